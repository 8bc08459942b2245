use super::*;
use crate::key::Scope;
use proptest::prelude::*;

fn query(head: &str, tensors: &[u8]) -> Query {
    Query::parse(head.as_bytes(), tensors).unwrap().unwrap()
}

fn key(head: &str, tensors: &[u8]) -> [u8; 32] {
    query(head, tensors).key(&Scope::new("n", "m", "1", "infer", None).unwrap())
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

const JSON: &str = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,2]}]}"#;

#[test]
fn json_and_binary_tensors_have_one_key() {
    let tensors = bytes_of(&[1.5, 2.0]);
    let alone = key(JSON, b"");
    for (head, tensors) in [
        (
            r#"{"id":"7","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#,
            tensors.as_slice(),
        ),
        (r#"{"inputs":[{"data":[[1.5,2.0]],"datatype":"FP32","name":"x","shape":[1,2]}],"id":"8"}"#, b""),
        (
            r#"{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[15e-1,2e0]}]}"#,
            b"",
        ),
    ] {
        assert_eq!(key(head, tensors), alone, "{head}");
    }
    let texts = r#"{"inputs":[{"name":"t","shape":[2],"datatype":"BYTES","data":["a\u0062","\n"]}]}"#;
    let binary = r#"{"inputs":[{"name":"t","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":11}}]}"#;
    assert_eq!(key(texts, b""), key(binary, b"\x02\0\0\0ab\x01\0\0\0\n"));
}

#[test]
fn shape_dtype_parameters_and_outputs_enter_the_key() {
    let alone = key(JSON, b"");
    for other in [
        r#"{"inputs":[{"name":"x","shape":[2,1],"datatype":"FP32","data":[1.5,2]}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP64","data":[1.5,2]}]}"#,
        r#"{"inputs":[{"name":"y","shape":[1,2],"datatype":"FP32","data":[1.5,2]}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[2,1.5]}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,2],"zzz":1}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"k":1},"data":[1.5,2]}]}"#,
        r#"{"parameters":{"k":1},"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,2]}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,2]}],"outputs":[{"name":"y"}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,2]}],"aaa":null}"#,
    ] {
        assert_ne!(key(other, b""), alone, "{other}");
    }
}

#[test]
fn inputs_count_by_name_not_by_order() {
    let x = r#"{"name":"x","shape":[1],"datatype":"INT8","data":[1]}"#;
    let y = r#"{"name":"y","shape":[1],"datatype":"INT8","data":[2]}"#;
    assert_eq!(key(&format!(r#"{{"inputs":[{x},{y}]}}"#), b""), key(&format!(r#"{{"inputs":[{y},{x}]}}"#), b""));
    assert!(Query::parse(format!(r#"{{"inputs":[{x},{x}]}}"#).as_bytes(), b"").unwrap().is_none());
}

#[test]
fn what_depends_on_more_than_the_request_is_not_understood() {
    let input = |inside: &str| format!(r#"{{"inputs":[{{"name":"x",{inside}}}]}}"#);
    let cases = [
        ("[]".to_owned(), &b""[..]),
        ("{}".to_owned(), b""),
        (r#"{"inputs":[]}"#.to_owned(), b""),
        (input(r#""shape":[1],"datatype":"FP32""#), b""),
        (input(r#""shape":[2],"datatype":"FP32","data":[1]"#), b""),
        (input(r#""shape":[1],"datatype":"FP16","data":[1]"#), b""),
        (input(r#""shape":[1],"datatype":"FP32","data":[1e39]"#), b""),
        (input(r#""shape":[1],"datatype":"INT8","data":[128]"#), b""),
        (input(r#""shape":[1],"datatype":"INT8","data":[1.0]"#), b""),
        (input(r#""shape":[1],"datatype":"WHAT","data":[1]"#), b""),
        (input(r#""shape":[1],"datatype":"INT8","data":[1]"#), b"x"),
        (input(r#""shape":[1],"datatype":"INT8","parameters":{"binary_data_size":2}"#), b"x"),
        (input(r#""shape":[1],"datatype":"BOOL","parameters":{"binary_data_size":1}"#), b"\x02"),
        (input(r#""shape":[1],"datatype":"INT8","parameters":{"shared_memory_region":"r"}"#), b""),
        (
            r#"{"parameters":{"sequence_id":5},"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}]}"#
                .into(),
            b"",
        ),
        (input(r#""shape":[9999999999,9999999999],"datatype":"INT8","data":[1]"#), b""),
    ];
    for (head, tensors) in cases {
        assert!(Query::parse(head.as_bytes(), tensors).unwrap().is_none(), "{head}");
    }
    assert!(Query::parse(b"{", b"").is_err());
}

const ANSWER: &str = concat!(
    r#"{"model_name":"m","model_version":"3","id":"theirs","outputs":["#,
    r#"{"name":"y","shape":[1,2],"datatype":"FP32","data":[[0.1,2.0]]},"#,
    r#"{"name":"t","shape":[2],"datatype":"BYTES","parameters":{"k":1},"data":["a","é"]},"#,
    r#"{"name":"b","shape":[2],"datatype":"BOOL","data":[true,false]}]}"#
);

#[test]
fn the_callers_own_id_comes_back_and_every_encoding_is_served() {
    let stored = record(ANSWER.as_bytes(), b"", 3).unwrap();
    assert_eq!(age(&stored), Some(3));
    let (text, head) = query(r#"{"id":"mine","inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}]}"#, b"")
        .render(&stored)
        .unwrap();
    assert_eq!(head, None);
    assert_eq!(
        String::from_utf8(text).unwrap(),
        concat!(
            r#"{"id":"mine","model_name":"m","model_version":"3","outputs":["#,
            r#"{"name":"y","shape":[1,2],"datatype":"FP32","data":[[0.1,2.0]]},"#,
            r#"{"name":"t","shape":[2],"datatype":"BYTES","parameters":{"k":1},"data":["a","é"]},"#,
            r#"{"name":"b","shape":[2],"datatype":"BOOL","data":[true,false]}]}"#
        )
    );
    let mixed = concat!(
        r#"{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}],"#,
        r#""outputs":[{"name":"y"},{"name":"t","parameters":{"binary_data":false}},{"name":"b"}]}"#
    );
    let (body, head) = query(mixed, b"").render(&stored).unwrap();
    let (head, tail) = body.split_at(head.unwrap());
    assert_eq!(
        std::str::from_utf8(head).unwrap(),
        concat!(
            r#"{"model_name":"m","model_version":"3","outputs":["#,
            r#"{"name":"y","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}},"#,
            r#"{"name":"t","shape":[2],"datatype":"BYTES","parameters":{"k":1},"data":["a","é"]},"#,
            r#"{"name":"b","shape":[2],"datatype":"BOOL","parameters":{"binary_data_size":2}}]}"#
        )
    );
    assert_eq!(tail, [bytes_of(&[0.1, 2.0]), vec![1, 0]].concat());
    // What came as binary is served as JSON.
    let again = record(head, tail, 0).unwrap();
    let (text, _) = query(JSON, b"").render(&again).unwrap();
    assert!(String::from_utf8(text).unwrap().contains(r#""data":[0.10000000149011612,2.0]"#));
}

#[test]
fn what_has_no_json_form_is_rendered_as_binary_alone() {
    let head = br#"{"outputs":[{"name":"h","shape":[1],"datatype":"FP16","parameters":{"binary_data_size":2}}]}"#;
    let stored = record(head, &[0, 60], 0).unwrap();
    assert!(query(JSON, b"").render(&stored).is_none());
    let binary = JSON.replacen('{', r#"{"parameters":{"binary_data_output":true},"#, 1);
    assert_eq!(query(&binary, b"").render(&stored).unwrap().0.last_chunk::<2>(), Some(&[0, 60]));
}

#[test]
fn incomplete_answers_give_no_record() {
    for (head, tensors) in [
        (r#"{"error":"no"}"#, &b""[..]),
        (r#"{"outputs":[{"name":"y","shape":[2],"datatype":"FP32","data":[1]}]}"#, b""),
        (r#"{"outputs":[{"name":"y","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":2}}]}"#, b"x"),
        (r#"{"outputs":[{"name":"y","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":1}}]}"#, b"xy"),
        (r#"{"outputs":[{"name":"y","shape":[1],"datatype":"INT8","parameters":{"shared_memory_region":"r"}}]}"#, b""),
        ("", b""),
    ] {
        assert!(record(head.as_bytes(), tensors, 0).is_none(), "{head}");
    }
}

#[test]
fn damaged_records_are_refused() {
    let stored = record(ANSWER.as_bytes(), b"", 0).unwrap();
    let query = query(JSON, b"");
    assert!(query.render(&stored).is_some());
    for end in 0..stored.len() {
        assert!(query.render(&stored[..end]).is_none());
    }
    for (at, bit) in (0..stored.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut damaged = stored.clone();
        damaged[at] ^= 1 << bit;
        let _ = query.render(&damaged); // an answer or none, never a panic
    }
}

proptest! {
    #[test]
    fn no_number_is_lost(numbers in prop::collection::vec(prop_oneof![
        any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{:?}", f64::from(x))),
        any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{x:?}")),
        (-1e30f64..1e30).prop_map(|x| format!("{x:?}")),
        any::<i16>().prop_map(|x| x.to_string()),
    ], 0..12), datatype in prop_oneof![Just("FP32"), Just("FP64")]) {
        let head = format!(
            r#"{{"outputs":[{{"name":"y","shape":[{}],"datatype":"{datatype}","data":[{}]}}]}}"#,
            numbers.len(), numbers.join(",")
        );
        let stored = record(head.as_bytes(), b"", 0).unwrap();
        let (text, _) = query(JSON, b"").render(&stored).unwrap();
        let text = String::from_utf8(text).unwrap();
        let inside = text.rsplit_once("\"data\":[").unwrap().1.strip_suffix("]}]}").unwrap();
        let got: Vec<f64> = inside.split(',').filter(|word| !word.is_empty()).map(|word| word.parse().unwrap()).collect();
        let wanted: Vec<f64> = numbers.iter().map(|word| word.parse().unwrap()).collect();
        prop_assert_eq!(got, wanted);
    }

    #[test]
    fn bodies_of_any_text_never_panic(head in "[\\[\\]{}\",: a\\\\1u]{0,60}", tail in prop::collection::vec(any::<u8>(), 0..8)) {
        let _ = Query::parse(head.as_bytes(), &tail);
        record(head.as_bytes(), &tail, 0);
    }
}
