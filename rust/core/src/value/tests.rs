use proptest::prelude::*;

use super::moment::{Date, Delta, Time, Zone};
use super::*;
use crate::entry::TENSOR_ALIGN;
use crate::limits::MAX_DEPTH;

/// A value of the format, for the tests: what a writer is told and a reader must say again.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    None,
    Bool(bool),
    Int(i64),
    UInt(u64),
    BigInt(Vec<u8>),
    Float(u64),
    Complex(u64, u64),
    Str(String),
    Bytes(Vec<u8>),
    Blob(i8, Vec<u8>),
    Seq(i8, Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Tensor(Dtype, u8, u64, Vec<u64>, Vec<u8>),
    Scalar(Dtype, Vec<u8>),
    Moment(u16, u8, u32, u8),
    Delta(i32, u32, u32),
    Record(u32, u64, Vec<Value>),
    Registered(String, Box<Value>),
    Absent,
}

fn write(writer: &mut Writer, value: &Value) {
    match value {
        Value::None => writer.none(),
        Value::Bool(value) => writer.bool(*value),
        Value::Int(value) => writer.int(*value),
        Value::UInt(value) => writer.uint(*value),
        Value::BigInt(bytes) => writer.big_int(bytes),
        Value::Float(bits) => writer.float(f64::from_bits(*bits)),
        Value::Complex(real, imaginary) => writer.complex(f64::from_bits(*real), f64::from_bits(*imaginary)),
        Value::Str(text) => writer.str(text),
        Value::Bytes(bytes) => writer.bytes(bytes),
        Value::Blob(code, bytes) => writer.extension(*code, bytes),
        Value::Seq(code, values) => {
            let mark = (*code != 0).then(|| writer.group(*code, values.len() as u32));
            if mark.is_none() {
                writer.list(values.len() as u32);
            }
            values.iter().for_each(|value| write(writer, value));
            if let Some(mark) = mark {
                writer.close(mark);
            }
        }
        Value::Dict(pairs) => {
            writer.dict(pairs.len() as u32);
            for (key, value) in pairs {
                write(writer, key);
                write(writer, value);
            }
        }
        Value::Tensor(dtype, flags, parameter, dims, elements) => {
            writer.tensor(*dtype, *flags, *parameter, dims.iter().copied(), elements).unwrap();
        }
        Value::Scalar(dtype, element) => writer.scalar(*dtype, 0, 0, element),
        Value::Moment(year, hour, microsecond, zone) => writer.datetime(date(*year), time(*hour, *microsecond, *zone)),
        Value::Delta(days, seconds, microseconds) => {
            writer.timedelta(Delta { days: *days, seconds: *seconds, microseconds: *microseconds });
        }
        Value::Record(index, fingerprint, values) => {
            let mark = writer.record(*index, *fingerprint, values.len() as u32);
            values.iter().for_each(|value| write(writer, value));
            writer.close(mark);
        }
        Value::Registered(name, value) => {
            let mark = writer.registered(name);
            write(writer, value);
            writer.close(mark);
        }
        Value::Absent => writer.absent(),
    }
}

fn date(year: u16) -> Date {
    Date { year, month: 2, day: 29 }
}

fn time(hour: u8, microsecond: u32, zone: u8) -> Time<'static> {
    let offset = Delta { days: -1, seconds: 3_600, microseconds: 1 };
    let zone = match zone % 5 {
        0 => Zone::None,
        1 => Zone::Utc,
        2 => Zone::Fixed(offset, None),
        3 => Zone::Fixed(offset, Some(b"home")),
        _ => Zone::Named(b"Europe/Zurich"),
    };
    Time { hour, minute: 1, second: 2, fold: 1, microsecond, zone }
}

fn many(reader: &mut Reader<'_>, group: Group) -> Result<Vec<Value>> {
    let values = (0..group.len).map(|_| read(reader)).collect::<Result<Vec<_>>>()?;
    reader.close(group)?;
    Ok(values)
}

fn read(reader: &mut Reader<'_>) -> Result<Value> {
    if let Some(value) = reader.float() {
        return Ok(Value::Float(value.to_bits()));
    }
    if let Some(text) = reader.short_text() {
        return Ok(Value::Str(String::from_utf8(text.to_vec()).map_err(|_| corrupt("UTF-8"))?));
    }
    Ok(match reader.next()? {
        Item::None => Value::None,
        Item::Bool(value) => Value::Bool(value),
        Item::Int(value) => Value::Int(value),
        Item::UInt(value) => Value::UInt(value),
        Item::BigInt(bytes) => Value::BigInt(bytes.to_vec()),
        Item::Float(value) => Value::Float(value.to_bits()),
        Item::Complex(real, imaginary) => Value::Complex(real.to_bits(), imaginary.to_bits()),
        Item::Str(text) => Value::Str(String::from_utf8(text.to_vec()).map_err(|_| corrupt("UTF-8"))?),
        Item::Bytes(bytes) => Value::Bytes(bytes.to_vec()),
        Item::Surrogates(bytes) => Value::Blob(ext::SURROGATES, bytes.to_vec()),
        Item::ByteArray(bytes) => Value::Blob(ext::BYTEARRAY, bytes.to_vec()),
        Item::NumpyStr(bytes) => Value::Blob(ext::NUMPY_STR, bytes.to_vec()),
        Item::NumpyBytes(bytes) => Value::Blob(ext::NUMPY_BYTES, bytes.to_vec()),
        Item::Decimal(text) => Value::Blob(ext::DECIMAL, text.to_vec()),
        Item::Uuid(bytes, safe) => {
            Value::Blob(ext::UUID, bytes.into_iter().chain((safe != 0).then_some(safe)).collect())
        }
        Item::List(group) => Value::Seq(0, many(reader, group)?),
        Item::Tuple(group) => Value::Seq(ext::TUPLE, many(reader, group)?),
        Item::Set(group) => Value::Seq(ext::SET, many(reader, group)?),
        Item::FrozenSet(group) => Value::Seq(ext::FROZENSET, many(reader, group)?),
        Item::Dict(group) => {
            let pairs = (0..group.len).map(|_| Ok((read(reader)?, read(reader)?))).collect::<Result<Vec<_>>>()?;
            reader.close(group)?;
            Value::Dict(pairs)
        }
        Item::Tensor(tensor) => Value::Tensor(
            tensor.dtype,
            tensor.flags,
            tensor.parameter,
            tensor.dims().collect(),
            tensor.elements.to_vec(),
        ),
        Item::Scalar(scalar) => Value::Scalar(scalar.dtype, scalar.elements.to_vec()),
        Item::DateTime(day, moment) => {
            let zone = (0..5).find(|&zone| time(moment.hour, moment.microsecond, zone) == moment);
            if day != date(day.year) {
                return Err(corrupt("not written by these tests"));
            }
            Value::Moment(day.year, moment.hour, moment.microsecond, zone.ok_or_else(|| corrupt("zone"))?)
        }
        Item::Date(_) | Item::Time(_) => return Err(corrupt("not written by these tests")),
        Item::TimeDelta(delta) => Value::Delta(delta.days, delta.seconds, delta.microseconds),
        Item::Record { index, fingerprint, group } => Value::Record(index as u32, fingerprint, many(reader, group)?),
        Item::Registered { name, group } => {
            let name = String::from_utf8(name.to_vec()).map_err(|_| corrupt("UTF-8"))?;
            Value::Registered(name, Box::new(many(reader, group)?.remove(0)))
        }
        Item::Absent => Value::Absent,
    })
}

fn stored(value: &Value) -> (u8, bool, Vec<u8>) {
    let mut writer = Writer::new();
    write(&mut writer, value);
    writer.finish()
}

fn restored(kind: u8, payload: &[u8]) -> Result<Value> {
    let mut reader = Reader::new(kind, payload)?;
    let value = read(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    proptest::sample::select(Dtype::ALL.to_vec())
}

fn tensors() -> impl Strategy<Value = Value> {
    (dtypes(), 0u8..16, proptest::collection::vec(0u64..5, 0..4), 1u64..4).prop_map(|(dtype, flags, dims, width)| {
        let parameter = if dtype.has_parameter() { 4 * width } else { 0 };
        let size = dtype.item_size().unwrap_or(parameter as usize) * dims.iter().product::<u64>() as usize;
        Value::Tensor(dtype, flags, parameter, dims, (0..size).map(|i| i as u8).collect())
    })
}

fn values() -> impl Strategy<Value = Value> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    let leaf = prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (i64::MAX as u64 + 1..=u64::MAX).prop_map(Value::UInt),
        bytes().prop_map(Value::BigInt),
        any::<u64>().prop_map(Value::Float),
        any::<(u64, u64)>().prop_map(|(real, imaginary)| Value::Complex(real, imaginary)),
        any::<String>().prop_map(Value::Str),
        bytes().prop_map(Value::Bytes),
        bytes().prop_map(|bytes| Value::Blob(ext::BYTEARRAY, bytes)),
        proptest::collection::vec(any::<u8>(), 16).prop_map(|bytes| Value::Blob(ext::UUID, bytes)),
        tensors(),
        any::<[u8; 4]>().prop_map(|element| Value::Scalar(Dtype::Float32, element.to_vec())),
        any::<(u16, u8, u32)>()
            .prop_flat_map(|(y, h, us)| (0u8..5).prop_map(move |zone| Value::Moment(y, h, us, zone))),
        any::<(i32, u32, u32)>().prop_map(|(days, s, us)| Value::Delta(days, s, us)),
        Just(Value::Absent),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        let many = proptest::collection::vec(inner.clone(), 0..6);
        prop_oneof![
            (0i8..4, many.clone()).prop_map(|(code, values)| Value::Seq(code, values)),
            proptest::collection::vec((inner.clone(), inner.clone()), 0..4).prop_map(Value::Dict),
            (any::<u32>(), any::<u64>(), many).prop_map(|(index, print, values)| Value::Record(index, print, values)),
            ("[a-z]{0,40}", inner).prop_map(|(name, value)| Value::Registered(name, Box::new(value))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(value in values()) {
        let (kind, aligned, payload) = stored(&value);
        prop_assert_eq!(aligned, kind == kind::TREE_WITH_TENSORS);
        prop_assert_eq!(check(kind, &payload), Ok(()));
        prop_assert_eq!(restored(kind, &payload), Ok(value));
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0u8..32, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = check(kind, &payload);
    }

    #[test]
    fn arbitrary_skeletons_never_panic(mut payload in proptest::collection::vec(any::<u8>(), 1..200)) {
        payload[0] = VERSION;
        let _ = check(kind::TREE, &payload);
    }

    #[test]
    fn truncation_is_noticed(value in values(), cut in any::<proptest::sample::Index>()) {
        let (kind, _, payload) = stored(&value);
        let cut = check(kind, &payload[..cut.index(payload.len())]);
        // A skeleton is a prefix code, so this is certain; behind tensors other bytes are taken for the skeleton's start.
        prop_assert!(cut.is_err() || kind == kind::TREE_WITH_TENSORS);
    }

    #[test]
    fn a_changed_byte_never_panics(value in values(), at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
        let (kind, _, mut payload) = stored(&value);
        let at = at.index(payload.len());
        payload[at] = byte;
        let _ = restored(kind, &payload);
    }

    #[test]
    fn one_tensor_round_trips(value in tensors()) {
        let Value::Tensor(dtype, flags, parameter, dims, elements) = value else { unreachable!() };
        let mut payload = elements.clone();
        write_descriptor(&mut payload, dtype, flags, parameter, dims.iter().copied());
        let tensor = Tensor::parse(&payload).unwrap();
        prop_assert_eq!((tensor.dtype, tensor.flags, tensor.parameter), (dtype, flags, parameter));
        prop_assert_eq!(tensor.dims().collect::<Vec<_>>(), dims);
        prop_assert_eq!(tensor.elements, &elements[..]);
        for end in 0..payload.len() {
            let _ = Tensor::parse(&payload[..end]);
        }
    }
}

#[test]
fn tensors_lie_at_multiples_of_64() {
    let tensor = Value::Tensor(Dtype::UInt8, 0, 0, vec![3], vec![1, 2, 3]);
    let (kind, aligned, payload) = stored(&Value::Seq(0, vec![tensor.clone(), tensor.clone(), tensor]));
    assert!(aligned);
    let mut reader = Reader::new(kind, &payload).unwrap();
    let Item::List(group) = reader.next().unwrap() else { panic!("a list") };
    for _ in 0..group.len {
        let Item::Tensor(tensor) = reader.next().unwrap() else { panic!("a tensor") };
        let offset = tensor.elements.as_ptr() as usize - payload.as_ptr() as usize;
        assert_eq!((offset % TENSOR_ALIGN, tensor.elements), (0, &[1, 2, 3][..]));
    }
}

#[test]
fn depth_is_capped() {
    let deep = |depth: usize| [vec![VERSION], vec![0x91; depth - 1], vec![0x90]].concat();
    assert_eq!(check(kind::TREE, &deep(MAX_DEPTH)), Ok(()));
    assert!(check(kind::TREE, &deep(MAX_DEPTH + 1)).is_err());
    assert!(check(kind::TREE, &deep(1 << 20)).is_err());
}

#[test]
fn extensions_at_the_front_of_extensions_do_not_recurse() {
    // A registered value whose name is a registered value whose name …; a record whose class is a record ….
    for code in [ext::REGISTERED, ext::RECORD] {
        let mut payload = vec![VERSION];
        for _ in 0..200_000 {
            payload.extend_from_slice(&[0xc7, 200, code as u8, 0x93]);
        }
        assert!(check(kind::TREE, &payload).is_err());
    }
}

#[test]
fn announced_lengths_are_compared_with_what_remains() {
    for head in
        [&[0xdd, 255, 255, 255, 255][..], &[0xdf, 255, 255, 255, 255], &[0xdb, 255, 255, 255, 255], &[0xc6, 0, 1, 0, 0]]
    {
        assert!(check(kind::TREE, &[&[VERSION], head].concat()).is_err());
    }
}

#[test]
fn a_narrowed_row_says_how_wide_its_array_was() {
    let row = |dtype: Dtype, parameter: u64, elements: &[u8]| {
        let mut payload = elements.to_vec();
        write_descriptor(&mut payload, dtype, 0, parameter, [2].into_iter());
        Tensor::parse(&payload).map(|row| (row.item_size(), row.array_item_size()))
    };
    assert_eq!(row(Dtype::Str, narrowed(4, 12), &[1; 8]), Ok((4, 12)));
    assert_eq!(row(Dtype::Str, 4, &[1; 8]), Ok((4, 4)));
    assert_eq!(row(Dtype::Bytes, narrowed(3, 4), &[1; 6]), Ok((3, 4)));
    assert_eq!(row(Dtype::DateTime64, 7 | 1 << 8 << 24, &[1; 16]), Ok((8, 8)), "a unit is no width");
    for (own, of) in [(4_u64, 6_u64), (4, 4), (8, 4), (4, 1 << 31), (0, 8), (1 << 31, 0)] {
        assert!(row(Dtype::Str, own | of << 32, &[1; 8]).is_err(), "{own} of {of}");
    }
    assert!(row(Dtype::Str, narrowed(8, 12), &[1; 8]).is_err(), "fewer elements than its shape asks for");
}

#[test]
fn shapes_that_overflow_are_corrupt() {
    for dims in [vec![u64::MAX, u64::MAX], vec![1 << 62, 4], vec![0, u64::MAX], vec![0, 1 << 62, 8]] {
        let mut payload = Vec::new();
        write_descriptor(&mut payload, Dtype::Float32, 0, 0, dims.iter().copied());
        assert!(Tensor::parse(&payload).is_err(), "{dims:?}");
    }
}

#[test]
fn long_groups_get_a_long_header() {
    for len in [250, 252, 253, 254, 255, 256, 300, 70_000] {
        let value = Value::Seq(ext::TUPLE, vec![Value::None; len]);
        let (kind, _, payload) = stored(&value);
        assert_eq!(restored(kind, &payload), Ok(value));
    }
}

#[test]
fn the_format_of_version_1_never_changes() {
    let value = Value::Seq(
        ext::TUPLE,
        vec![
            Value::Int(1),
            Value::Str("a".into()),
            Value::Tensor(Dtype::Float32, FLAG_FORTRAN, 0, vec![1], vec![0, 0, 128, 63]),
        ],
    );
    let (kind, _, payload) = stored(&value);
    assert_eq!(kind, 10);
    #[rustfmt::skip]
    assert_eq!(payload, [
        0, 0, 128, 63,                                                            // the tensor's only element
        1,                                                                        // version
        0xc7, 19, 1, 0x93, 1, 0xa1, b'a',                                         // tuple of three
        0xc7, 12, 8, 1, 0, 0, 0, 0, 0, 0, 0, 1, 12, 1, 1,                         // descriptor
        4, 0, 0, 0, 0, 0, 0, 0,                                                   // where the version stands
    ]);
    assert_eq!(Dtype::ALL.map(Dtype::code), std::array::from_fn(|i| i as u8 + 1));
}
