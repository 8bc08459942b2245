//! Element types of stored tensors.

/// Defines the element types once: their codes count from 1 in the order in which they stand here.
macro_rules! element_types {
    ($($(#[$documented:meta])* $dtype:ident $name:literal,)*) => {
        /// Element type of a tensor. The number of each is part of the format; names are those of KEYSPEC section 3, and
        /// `str`, `bytes`, `datetime64`, `timedelta64` besides.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[allow(missing_docs)] // each is its name
        pub enum Dtype {
            $($(#[$documented])* $dtype,)*
        }

        impl Dtype {
            /// Every element type, in the order of its code, which begins at 1.
            pub const ALL: [Dtype; [$(Dtype::$dtype),*].len()] = [$(Dtype::$dtype),*];

            /// The name that NumPy, ml_dtypes and torch know it by.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Dtype::$dtype => $name,)*
                }
            }
        }
    };
}

element_types! {
    Bool "bool",
    Int8 "int8",
    Int16 "int16",
    Int32 "int32",
    Int64 "int64",
    UInt8 "uint8",
    UInt16 "uint16",
    UInt32 "uint32",
    UInt64 "uint64",
    Float16 "float16",
    BFloat16 "bfloat16",
    Float32 "float32",
    Float64 "float64",
    Complex64 "complex64",
    Complex128 "complex128",
    Float8E3M4 "float8_e3m4",
    Float8E4M3 "float8_e4m3",
    Float8E4M3B11Fnuz "float8_e4m3b11fnuz",
    Float8E4M3Fn "float8_e4m3fn",
    Float8E4M3Fnuz "float8_e4m3fnuz",
    Float8E5M2 "float8_e5m2",
    Float8E5M2Fnuz "float8_e5m2fnuz",
    Float8E8M0Fnu "float8_e8m0fnu",
    /// Fixed-width text: code points of four bytes; the parameter is the item size in bytes.
    Str "str",
    /// Fixed-width bytes; the parameter is the item size.
    Bytes "bytes",
    /// 64-bit moments; the parameter is the unit (low 8 bits: NumPy's unit number; the rest: how many of it).
    DateTime64 "datetime64",
    /// 64-bit durations; the parameter as for moments.
    TimeDelta64 "timedelta64",
}

impl Dtype {
    /// The element type of this code, if there is one.
    pub fn from_code(code: u8) -> Option<Dtype> {
        Dtype::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// The code of this element type in the format.
    pub const fn code(self) -> u8 {
        self as u8 + 1
    }

    /// Bytes of one element; `None` where the parameter says.
    pub fn item_size(self) -> Option<usize> {
        use Dtype::*;
        Some(match self {
            Bool | Int8 | UInt8 | Float8E3M4 | Float8E4M3 | Float8E4M3B11Fnuz | Float8E4M3Fn | Float8E4M3Fnuz
            | Float8E5M2 | Float8E5M2Fnuz | Float8E8M0Fnu => 1,
            Int16 | UInt16 | Float16 | BFloat16 => 2,
            Int32 | UInt32 | Float32 => 4,
            Int64 | UInt64 | Float64 | Complex64 | DateTime64 | TimeDelta64 => 8,
            Complex128 => 16,
            Str | Bytes => return None,
        })
    }

    /// Whether a parameter stands in the descriptor.
    pub const fn has_parameter(self) -> bool {
        matches!(self, Dtype::Str | Dtype::Bytes | Dtype::DateTime64 | Dtype::TimeDelta64)
    }

    /// Whether it is ml_dtypes that adds it to NumPy.
    pub fn is_of_ml_dtypes(self) -> bool {
        self == Dtype::BFloat16 || self.name().starts_with("float8_")
    }
}
