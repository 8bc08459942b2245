use super::*;
use proptest::prelude::*;

fn document(text: &[u8]) -> Result<String> {
    let mut out = Writer::new();
    write(text, &mut out)?;
    Ok(String::from_utf8(out.into_bytes()).unwrap())
}

/// A JSON value, and two independent slow ways to write it: canonically, and in any spelling that a parser must accept.
#[derive(Debug, Clone)]
enum Value {
    Word(&'static str),
    Integer(i64),
    Float(f64),
    Text(String),
    Array(Vec<Value>),
    Object(Vec<(String, Value)>),
}

fn canonical(value: &Value) -> String {
    let quote = |text: &str, dollar: bool| {
        let mut out = String::from("\"");
        if dollar && text.starts_with('$') {
            out.push('$');
        }
        for c in text.chars() {
            match c {
                '"' => out += "\\\"",
                '\\' => out += "\\\\",
                '\u{8}' => out += "\\b",
                '\t' => out += "\\t",
                '\n' => out += "\\n",
                '\u{c}' => out += "\\f",
                '\r' => out += "\\r",
                c if c < ' ' => out += &format!("\\u{:04x}", c as u32),
                c => out.push(c),
            }
        }
        out + "\""
    };
    match value {
        Value::Word(word) => (*word).to_owned(),
        Value::Integer(number) if (*number as f64) as i128 == i128::from(*number) => {
            ryu_js::Buffer::new().format(*number as f64).to_owned()
        }
        Value::Integer(number) => format!("{{\"$int\":\"{number}\"}}"),
        Value::Float(number) => ryu_js::Buffer::new().format(*number + 0.0).to_owned(),
        Value::Text(text) => quote(text, false),
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| name.encode_utf16().collect::<Vec<_>>());
            let members = members.iter().map(|(name, value)| format!("{}:{}", quote(name, true), canonical(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
    }
}

/// Any spelling: `choice` decides about white space, escapes and number formats.
fn spelled(value: &Value, choice: &mut impl FnMut(usize) -> usize) -> String {
    let quote = |text: &str, choice: &mut dyn FnMut(usize) -> usize| {
        let mut out = String::from("\"");
        for c in text.chars() {
            let mut units = [0; 2];
            let escaped: String = c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04X}")).collect();
            match (c, choice(4)) {
                ('/', 0) => out += "\\/",
                ('\n', 0) => out += "\\n",
                ('"', 0) => out += "\\\"",
                (c, 1) if c >= ' ' && c != '"' && c != '\\' => out += &escaped.to_lowercase().replace("\\U", "\\u"),
                (c, _) if c < ' ' || c == '"' || c == '\\' => out += &escaped,
                (c, 2) if c as u32 > 0xffff => out += &escaped,
                (c, _) => out.push(c),
            }
        }
        out + "\""
    };
    let space = |choice: &mut dyn FnMut(usize) -> usize| [" ", "", "\n", "\t \r", ""][choice(5)];
    let body = match value {
        Value::Word(word) => (*word).to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => match choice(3) {
            0 => format!("{number:e}"),
            1 => format!("{number:E}").replace('E', "E+").replace("E+-", "E-"),
            _ => format!("{number:?}"),
        },
        Value::Text(text) => quote(text, choice),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| spelled(item, choice)).collect();
            format!("[{}{}]", space(choice), items.join(","))
        }
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| {
                let name = quote(name, choice);
                format!("{}{name}{}:{}", space(choice), space(choice), spelled(value, choice))
            });
            let members: Vec<_> = members.collect();
            format!("{{{}{}}}", members.join(","), space(choice))
        }
    };
    format!("{}{body}{}", space(choice), space(choice))
}

/// Canonical text is its own document but for `$` names and for whole numbers beyond 2^53: `1e+20` as a document reads
/// `100000000000000000000`, and an integer literal in JSON text is exact (7499019021814238000 is no binary64).
fn is_fixed_point(document: &str) -> bool {
    !document.contains('$') && !document.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 15)
}

fn values() -> impl Strategy<Value = Value> {
    let text = || prop_oneof!["[a-c$\"\\\\/]{0,5}", "\\PC{0,6}", "[\u{0}-\u{20}\u{e000}\u{10000}é]{0,4}"];
    // A float that Rust prints without a fraction is an integer literal to a parser: those are `Integer` here.
    let float = any::<f64>().prop_filter("finite, and written with a fraction or an exponent", |f| f.is_finite());
    let leaf = prop_oneof![
        prop::sample::select(vec!["true", "false", "null"]).prop_map(Value::Word),
        any::<i64>().prop_map(Value::Integer),
        (-1000i64..1000).prop_map(Value::Integer),
        float.prop_map(Value::Float),
        text().prop_map(Value::Text),
    ];
    leaf.prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::btree_map(text(), inner, 0..7)
                .prop_map(|members| members.into_iter().collect::<Vec<_>>())
                .prop_shuffle()
                .prop_map(Value::Object),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_spelling_of_a_value_has_its_canonical_document(value in values(), seed in any::<u64>()) {
        let mut state = seed | 1;
        let mut choice = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let text = spelled(&value, &mut choice);
        let expected = canonical(&value);
        prop_assert_eq!(document(text.as_bytes()).unwrap(), expected.clone(), "{}", text);
        if is_fixed_point(&expected) {
            prop_assert_eq!(document(expected.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn any_bytes_give_a_document_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = document(&bytes);
    }

    #[test]
    fn any_json_like_text_gives_a_document_or_an_error(text in "[\\[\\]{},:\"\\\\u0-9a-f.eE+\\- $tn]{0,40}") {
        if let Ok(once) = document(text.as_bytes())
            && is_fixed_point(&once) {
                prop_assert_eq!(document(once.as_bytes()).unwrap(), once);
            }
    }
}

fn reason(text: &str) -> String {
    document(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_fault_is_told_with_its_byte() {
    for (text, expected) in [
        ("", "invalid JSON at byte 0: the text ends where a value was expected"),
        ("[1,]", "invalid JSON at byte 3: expected a value"),
        ("[1 2]", "invalid JSON at byte 3: expected ',' or ']'"),
        ("{\"a\":1,\"\\u0061\":2}", "invalid JSON at byte 7: duplicate member name \"a\""),
        ("{\"a\" 1}", "invalid JSON at byte 5: expected ':' after a member name"),
        ("[1e400]", "invalid JSON at byte 1: a number beyond the range of a binary64"),
        ("[\"\\ud800\"]", "invalid JSON at byte 2: a lone surrogate is no character"),
        ("\u{feff}1", "invalid JSON at byte 0: begins with a byte order mark; remove it"),
        ("01", "invalid JSON at byte 0: a number must not begin with a zero"),
        ("-", "invalid JSON at byte 1: expected a digit"),
        ("1 2", "invalid JSON at byte 2: something follows the value"),
        ("\"\t\"", "invalid JSON at byte 1: a control character in a string must be escaped"),
        ("\"abc", "invalid JSON at byte 0: a string that does not end"),
        ("NaN", "invalid JSON at byte 0: NaN and Infinity are not JSON"),
    ] {
        assert_eq!(reason(text), expected, "{text:?}");
    }
    assert!(document(b"\"\xff\"").unwrap_err().to_string().contains("at byte 1: not UTF-8"));
    assert!(reason(&"1".repeat(4301)).contains("more than 4300 digits"));
    assert!(document("1".repeat(4300).as_bytes()).is_ok());
}

#[test]
fn containers_nest_256_deep_and_no_deeper() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(document(nested(256).as_bytes()).is_ok());
    assert!(reason(&nested(257)).contains("more than 256 deep"));
    assert!(reason(&"[".repeat(1_000_000)).contains("more than 256 deep"));
}

#[test]
fn names_are_compared_and_sorted_unescaped() {
    let cases = [
        // "\n" stands before "A", though its escape begins with a backslash, which stands after it.
        (r#"{"A":1,"\n":2}"#, "{\"\\n\":2,\"A\":1}"),
        (r#"{"\u0024a":1,"$$b":2,"#, ""),
        (r#"{"\u0024b":1,"$a":2}"#, r#"{"$$a":2,"$$b":1}"#),
        ("{\"\u{fb33}\":1,\"\u{1f600}\":2}", "{\"\u{1f600}\":2,\"\u{fb33}\":1}"),
    ];
    for (text, expected) in cases {
        if expected.is_empty() {
            assert!(document(text.as_bytes()).is_err());
        } else {
            assert_eq!(document(text.as_bytes()).unwrap(), expected);
        }
    }
}

#[test]
fn an_error_leaves_the_writer_as_it_was() {
    let mut out = Writer::new();
    out.raw(b"before").unwrap();
    assert!(write(b"{\"b\":1,\"a\":[1,2", &mut out).is_err());
    assert_eq!(out.as_bytes(), b"before");
    write(b"{\"b\":1,\"a\":2}", &mut out).unwrap();
    assert_eq!(out.as_bytes(), b"before{\"a\":2,\"b\":1}");
}

#[test]
fn unsorted_objects_however_deep_are_laid_out_in_one_pass() {
    let depth = 250;
    let text = "{\"b\":".repeat(depth) + "0" + &",\"a\":1}".repeat(depth);
    let expected = "{\"a\":1,\"b\":".repeat(depth) + "0" + &"}".repeat(depth);
    assert_eq!(document(text.as_bytes()).unwrap(), expected);
}
