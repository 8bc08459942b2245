//! One item's answer as stored: the numbers in the narrowest form that keeps every one, and what stood around them.
//!
//! ```text
//! version ‖ form ‖ certainty ‖ counts ‖ tokens (u32) ‖ age (u32) ‖ numbers (u32)
//! ‖ lengths of the texts (3 × u32) ‖ texts ‖ numbers
//! texts: the answer's other members ‖ the item's other members ‖ the usage's other members
//! ```
//! All integers are little-endian.

/// Version of this layout.
const VERSION: u8 = 1;
const HEAD: usize = 28;

/// How numbers are stored, and written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// Each is a binary32, written as the binary64 of the same value: what `json.dumps` of a float32's `tolist()` gives.
    Single = 0,
    /// Each is the shortest text of a binary32, as servers in Rust and C++ write them.
    ShortSingle = 1,
    /// Binary64.
    Double = 2,
    /// Whole numbers without a point, as quantised embeddings have them; stored as binary64.
    Integer = 3,
}

/// How sure the number of tokens is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Certainty {
    /// The model server gave none.
    None = 0,
    /// Its own count of this item, or one of a batch whose sum is its own.
    Exact = 1,
    /// A share of the count of a batch.
    Apportioned = 2,
}

/// Which members the model server's usage says a count by. Some say but one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Counts {
    /// `prompt_tokens` and `total_tokens`, as OpenAI's.
    Both = 0,
    /// `prompt_tokens` alone.
    Prompt = 1,
    /// `total_tokens` alone.
    Total = 2,
}

/// How many tokens an item has.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    pub tokens: u32,
    pub certainty: Certainty,
    pub counts: Counts,
}

/// A stored item, read in place.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// How the numbers are stored.
    pub form: Form,
    /// Tokens of the item.
    pub counted: Counted,
    /// Seconds that the answer was old when it came: it may have come from another cache.
    pub age: u32,
    /// Members of the answer but for `data` and `usage`; of the item but for `embedding` and `index`; of the usage but for
    /// the counts. Each as `"name":value`, with commas between.
    pub texts: [&'a [u8]; 3],
    numbers: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads a record; `None` if these bytes are none.
    pub fn read(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (head, mut rest) = bytes.split_at_checked(HEAD)?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let form = Form::numbered(head[1])?;
        let certainty = match head[2] {
            0 => Certainty::None,
            1 => Certainty::Exact,
            2 => Certainty::Apportioned,
            _ => return None,
        };
        let counts = match head[3] {
            0 => Counts::Both,
            1 => Counts::Prompt,
            2 => Counts::Total,
            _ => return None,
        };
        let mut texts = [&rest[..0]; 3];
        for (index, text) in texts.iter_mut().enumerate() {
            (*text, rest) = rest.split_at_checked(word(16 + 4 * index) as usize)?;
        }
        let whole = head[0] == VERSION && rest.len() as u64 == u64::from(word(12)) * form.width();
        let counted = Counted { tokens: word(4), certainty, counts };
        whole.then_some(Record { form, counted, age: word(8), texts, numbers: rest })
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.numbers.len() / self.form.width() as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The numbers as binary64, which every form's fit.
    pub fn numbers(&self) -> impl Iterator<Item = f64> + '_ {
        self.numbers.chunks_exact(self.form.width() as usize).map(|bytes| match *bytes {
            [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => f64::NAN, // chunks are of one of these widths
        })
    }

    /// The bytes of binary32, little-endian, if the numbers are stored so.
    pub fn singles(&self) -> Option<&'a [u8]> {
        (self.form.width() == 4).then_some(self.numbers)
    }
}

impl Form {
    /// By its number, as stored.
    pub fn numbered(number: u8) -> Option<Form> {
        [Form::Single, Form::ShortSingle, Form::Double, Form::Integer].get(usize::from(number)).copied()
    }

    fn width(self) -> u64 {
        match self {
            Form::Single | Form::ShortSingle => 4,
            Form::Double | Form::Integer => 8,
        }
    }

    /// The narrowest form that keeps every number. `whole`: each was written without point and exponent.
    pub fn of(numbers: &[f64], whole: bool) -> Form {
        if whole && !numbers.is_empty() {
            return Form::Integer;
        }
        if numbers.iter().all(|&number| same(f64::from(number as f32), number)) {
            return Form::Single;
        }
        if numbers.iter().all(|&number| same(f64_of_short(number as f32), number)) {
            return Form::ShortSingle;
        }
        Form::Double
    }
}

/// The same number, sign of zero included. Infinities are no numbers.
fn same(a: f64, b: f64) -> bool {
    a.is_finite() && a.to_bits() == b.to_bits()
}

/// What the shortest text of a binary32 reads as.
pub(super) fn f64_of_short(single: f32) -> f64 {
    let mut buffer = zmij::Buffer::new();
    if single.is_finite() { buffer.format_finite(single).parse().unwrap_or(f64::NAN) } else { f64::NAN }
}

/// The stored form of an item. `None`: it is too large.
pub fn write(numbers: &[f64], form: Form, counted: Counted, age: u32, texts: [&[u8]; 3]) -> Option<Vec<u8>> {
    let room = HEAD + texts.iter().map(|text| text.len()).sum::<usize>() + numbers.len() * form.width() as usize;
    let mut out = Vec::with_capacity(room);
    out.extend_from_slice(&[VERSION, form as u8, counted.certainty as u8, counted.counts as u8]);
    out.extend_from_slice(&counted.tokens.to_le_bytes());
    out.extend_from_slice(&age.to_le_bytes());
    for length in [numbers.len(), texts[0].len(), texts[1].len(), texts[2].len()] {
        out.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    }
    texts.iter().for_each(|text| out.extend_from_slice(text));
    for &number in numbers {
        match form {
            Form::Single | Form::ShortSingle => out.extend_from_slice(&(number as f32).to_le_bytes()),
            Form::Double | Form::Integer => out.extend_from_slice(&number.to_le_bytes()),
        }
    }
    Some(out)
}
