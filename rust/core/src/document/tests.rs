use super::*;
use proptest::prelude::*;

fn written(write: impl FnOnce(&mut Writer) -> Written) -> String {
    let mut out = Writer::new();
    write(&mut out).unwrap();
    String::from_utf8(out.into_bytes()).unwrap()
}

#[test]
fn integers_are_numbers_where_a_binary64_holds_them() {
    for (value, expected) in [
        (0, "0"),
        (-1, "-1"),
        ((1 << 53) - 1, "9007199254740991"),
        (1 << 53, "9007199254740992"),
        ((1 << 53) + 1, "{\"$int\":\"9007199254740993\"}"),
        ((1 << 53) + 2, "9007199254740994"),
        (-(1 << 53) - 1, "{\"$int\":\"-9007199254740993\"}"),
        (i64::MIN, "-9223372036854776000"),
        (i64::MAX, "{\"$int\":\"9223372036854775807\"}"),
    ] {
        assert_eq!(written(|w| w.integer(value)), expected);
        let digits = value.unsigned_abs().to_string();
        assert_eq!(written(|w| w.integer_text(value < 0, &digits)), expected);
    }
}

#[test]
fn nan_and_infinities_are_forms_and_minus_zero_is_zero() {
    assert_eq!(written(|w| w.float(f64::NAN)), "{\"$float\":\"NaN\"}");
    assert_eq!(written(|w| w.float(-f64::NAN)), "{\"$float\":\"NaN\"}");
    assert_eq!(written(|w| w.float(f64::INFINITY)), "{\"$float\":\"Infinity\"}");
    assert_eq!(written(|w| w.float(f64::NEG_INFINITY)), "{\"$float\":\"-Infinity\"}");
    assert_eq!(written(|w| w.float(-0.0)), "0");
    assert_eq!(written(|w| w.integer_text(true, "0")), "0");
}

#[test]
fn names_that_begin_with_a_dollar_get_one_more() {
    assert_eq!(written(|w| w.name("$tensor")), "\"$$tensor\":");
    assert_eq!(written(|w| w.name("a$")), "\"a$\":");
    assert_eq!(written(|w| w.string("$tensor")), "\"$tensor\"");
}

#[test]
fn the_limits_hold() {
    let mut out = Writer::new();
    for _ in 0..MAX_DEPTH {
        out.enter().unwrap();
    }
    assert_eq!(out.enter(), Err(Limit::TooDeep));
    assert_eq!(out.integer_text(false, &"1".repeat(4301)), Err(Limit::TooManyDigits));
    assert!(out.integer_text(false, &"1".repeat(4300)).is_ok());
    let large = "x".repeat(MAX_DOCUMENT_BYTES / 2);
    out.clear();
    out.string(&large).unwrap();
    assert!(out.finish().is_ok());
    assert!(out.string(&large).and_then(|()| out.finish()).is_err());
}

/// The standard's definition of a string's text, one character at a time.
fn slow_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out + "\""
}

proptest! {
    #[test]
    fn strings_agree_with_the_slow_definition(text in "[\\x00-\\x7f]{0,70}|\\PC{0,70}|[a-z]{0,40}[\"\\\\\\x00-\\x1f]?[a-zé😀]{0,40}") {
        prop_assert_eq!(written(|w| w.string(&text)), slow_string(&text));
    }

    #[test]
    fn names_sort_by_utf16_code_units(a in any::<String>(), b in any::<String>()) {
        let units = |s: &str| s.encode_utf16().collect::<Vec<_>>();
        prop_assert_eq!(utf16_order(a.as_bytes(), b.as_bytes()), units(&a).cmp(&units(&b)));
    }

    #[test]
    fn names_near_the_surrogates_sort_by_utf16_code_units(a in "[a\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}]{0,4}", b in "[a\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}]{0,4}") {
        let units = |s: &str| s.encode_utf16().collect::<Vec<_>>();
        prop_assert_eq!(utf16_order(a.as_bytes(), b.as_bytes()), units(&a).cmp(&units(&b)));
    }
}

#[test]
fn numbers_of_an_array_are_written_as_each_alone() {
    let items: Vec<Number> = (0..1000)
        .map(|at| match at % 7 {
            0 => Number::Integer(at - 500),
            1 => Number::Integer((at - 500) << 44),
            2 => Number::Float(f64::from(at as i32) * -1e-9),
            3 => Number::Float(f64::from(at as i32) / 7.0),
            4 => Number::Float(f64::from(at as i32) * 1e18),
            _ => Number::Float(-2.2250738585072014e-308 * f64::from(at as i32 + 1)),
        })
        .collect();
    for length in [0, 1, 2, 63, 64, 65, 128, 129, 1000] {
        let (mut together, mut alone) = (Writer::new(), Writer::new());
        assert_eq!(together.numbers(0, length, |at| Some(items[at])), Ok(length));
        for (at, item) in items[..length].iter().enumerate() {
            if at > 0 {
                alone.byte(b',').unwrap();
            }
            match *item {
                Number::Float(value) => alone.float(value).unwrap(),
                Number::Integer(value) => alone.integer(value).unwrap(),
            }
        }
        assert_eq!(together.as_bytes(), alone.as_bytes());
    }
}

#[test]
fn numbers_of_an_array_end_before_what_is_no_plain_number() {
    let odd = [
        Number::Float(f64::NAN),
        Number::Float(f64::NEG_INFINITY),
        Number::Integer(i64::MIN),
        Number::Integer((1 << 53) + 1),
    ];
    for odd in odd.map(Some).into_iter().chain([None]) {
        for place in [0, 1, 64, 70] {
            let mut out = Writer::new();
            let item = |at: usize| if at == place { odd } else { Some(Number::Integer(at as i64)) };
            assert_eq!(out.numbers(0, 100, item), Ok(place));
            let expected: Vec<String> = (0..place).map(|at| at.to_string()).collect();
            assert_eq!(out.as_bytes(), expected.join(",").as_bytes());
        }
    }
}

#[test]
fn a_digest_that_comes_later_gives_the_document_of_one_that_is_known() {
    let digest: [u8; 32] = std::array::from_fn(|at| 7 * at as u8);
    let (mut early, mut late) = (Writer::new(), Writer::new());
    for out in [&mut early, &mut late] {
        out.raw(b"[1,").unwrap();
    }
    early.tensor_form(&digest, "bfloat16", &[2, 3]).unwrap();
    let at = late.open_tensor_form("bfloat16", &[2, 3]).unwrap();
    for out in [&mut early, &mut late] {
        out.raw(b"]").unwrap();
    }
    assert_ne!(early.as_bytes(), late.as_bytes());
    late.fill(at, &digest);
    assert_eq!(early.as_bytes(), late.as_bytes());
}
