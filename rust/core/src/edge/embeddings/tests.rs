use super::*;
use crate::key::Scope;
use proptest::prelude::*;

fn query(body: &str) -> Query {
    Query::parse(body.as_bytes()).unwrap().unwrap()
}

fn keys(body: &str) -> Vec<[u8; 32]> {
    query(body).keys(&Scope::new("n", "m", "1", "embeddings", None).unwrap())
}

fn records(body: &[u8], weights: &[usize], age: u32) -> Option<Vec<Vec<u8>>> {
    super::records(body, weights, None, age).map(|answer| answer.records)
}

fn answer(records: &[Vec<u8>], base64: bool) -> (String, Usage) {
    let mut out = Vec::new();
    let usage = render(records.iter().map(Vec::as_slice), base64, &mut out).unwrap();
    (String::from_utf8(out).unwrap(), usage)
}

fn embeddings(rows: &[Vec<String>]) -> String {
    let rows: Vec<String> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| format!(r#"{{"object":"embedding","index":{index},"embedding":[{}]}}"#, row.join(", ")))
        .collect();
    format!(
        r#"{{"object":"list","data":[{}],"model":"m","usage":{{"prompt_tokens":7,"total_tokens":7}}}}"#,
        rows.join(",")
    )
}

#[test]
fn one_item_has_one_key_however_it_is_asked_for() {
    let alone = keys(r#"{"model":"m","input":"a"}"#);
    for same in [
        r#"{"input":["a"],"model":"m"}"#,
        r#"{"input":"a","model":"m","user":"u1","encoding_format":"base64"}"#,
        r#"{ "inp\u0075t" : "\u0061", "encoding_format":null, "user":null, "model":"m"}"#,
    ] {
        assert_eq!(keys(same), alone, "{same}");
    }
    assert_eq!(keys(r#"{"model":"m","input":[1,2]}"#), keys(r#"{"model":"m","input":[[1,2]]}"#));
    assert_eq!(keys(r#"{"model":"m","input":["a","b","a"]}"#)[2], alone[0]);
}

#[test]
fn every_member_that_nobody_knows_enters_the_key() {
    let alone = keys(r#"{"model":"m","input":"a"}"#);
    for other in [
        r#"{"model":"m","input":"a","dimensions":8}"#,
        r#"{"model":"m","input":"a","zzz":null}"#,
        r#"{"model":"m","input":"a","a":null}"#,
        r#"{"model":"m","input":"a","user":5}"#,
        r#"{"model":"m","input":"b"}"#,
        r#"{"model":"m","input":[1]}"#,
    ] {
        assert_ne!(keys(other), alone, "{other}");
    }
    for body in [r#"{"a":1,"input":"x","z":[2],"model":"m"}"#, r#"{"a":1,"input":["x"],"z":[2],"model":"m"}"#] {
        let mut document = Vec::new();
        query(body).document(0, &mut document);
        assert_eq!(document, br#"{"a":1,"input":"x","z":[2]}"#);
    }
}

#[test]
fn what_is_no_request_for_items_is_not_understood() {
    for body in [
        "[]",
        "3",
        r#"{"model":"m"}"#,
        r#"{"input":"a"}"#,
        r#"{"model":"m","input":[]}"#,
        r#"{"model":"m","input":[[]]}"#,
        r#"{"model":"m","input":["a",1]}"#,
        r#"{"model":"m","input":[1,"a"]}"#,
        r#"{"model":"m","input":[1.5]}"#,
        r#"{"model":"m","input":[1.0]}"#,
        r#"{"model":"m","input":[1,1e0]}"#,
        r#"{"model":"m","input":[[1],[2.0]]}"#,
        r#"{"model":"m","inp\u0075t":[-0]}"#,
        r#"{"model":"m","input":[9007199254740993]}"#,
        r#"{"model":"m","input":[-1]}"#,
        r#"{"model":"m","input":[[1],["a"]]}"#,
        r#"{"model":"m","input":null}"#,
        r#"{"model":"m","input":{"a":1}}"#,
        r#"{"model":"","input":"a"}"#,
        r#"{"model":5,"input":"a"}"#,
        r#"{"model":"m","input":"a","encoding_format":"int8"}"#,
    ] {
        assert!(Query::parse(body.as_bytes()).unwrap().is_none(), "{body}");
    }
    for body in ["", "{", r#"{"model":"m","model":"n","input":"a"}"#, "{\"input\":\"\x01\"}"] {
        assert!(Query::parse(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn what_is_missing_is_asked_for_as_the_caller_wrote_it() {
    let body = br#"{ "input" : ["a","\u0062", "c" ], "dimensions": 8.0, "encoding_format":"base64","model":"m" }"#;
    let query = Query::parse(body).unwrap().unwrap();
    assert_eq!(
        String::from_utf8(query.ask(body, &[1, 2]).unwrap()).unwrap(),
        r#"{"input":["\u0062","c"],"dimensions":8.0,"encoding_format":"float","model":"m"}"#
    );
    let body = br#"{"input":[5,6],"model":"m"}"#;
    let query = Query::parse(body).unwrap().unwrap();
    assert_eq!(query.ask(body, &[0]).unwrap(), body);
}

#[test]
fn the_order_is_that_of_the_index() {
    let body = br#"{"data":[{"embedding":[2.5],"index":1},{"index":0,"embedding":[1.5]}]}"#;
    let found = records(body, &[1, 1], 0).unwrap();
    let (text, usage) = answer(&found, false);
    assert_eq!(text, r#"{"data":[{"index":0,"embedding":[1.5]},{"index":1,"embedding":[2.5]}]}"#);
    assert_eq!(usage, Usage::Unknown);
}

#[test]
fn an_incomplete_answer_gives_no_records() {
    for body in [
        r#"{"data":[{"index":0,"embedding":[1]}]}"#,
        r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#,
        r#"{"data":[{"index":0,"embedding":[1]},{"index":2,"embedding":[1]}]}"#,
        r#"{"data":[{"index":0,"embedding":[1]},{"index":1}]}"#,
        r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[null]}]}"#,
        r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":["inf"]}]}"#,
        r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":"AAA="}]}"#,
        r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[NaN]}]}"#,
        r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1]}]"#,
        r#"{"error":{"message":"no"}}"#,
        "",
    ] {
        assert!(records(body.as_bytes(), &[1, 1], 0).is_none(), "{body}");
    }
}

#[test]
fn a_batchs_tokens_are_kept_when_they_are_apportioned() {
    let rows = vec![vec!["1.5".to_owned()]; 3];
    let found = records(embeddings(&rows).as_bytes(), &[10, 200, 1], 0).unwrap();
    assert_eq!(answer(&found, false).1, Usage::Apportioned(7));
    let shares: Vec<u32> = found.iter().map(|bytes| Record::read(bytes).unwrap().counted.tokens).collect();
    assert!(shares[1] > shares[0] && shares[0] >= shares[2], "{shares:?}");
    let alone = records(embeddings(&rows[..1]).as_bytes(), &[10], 0).unwrap();
    assert_eq!(answer(&[alone[0].clone(), alone[0].clone()], false).1, Usage::Exact(14));
}

#[test]
fn usage_has_the_counts_that_the_server_says() {
    for (usage, wanted) in [
        (r#"{"prompt_tokens":7,"total_tokens":7}"#, r#","usage":{"prompt_tokens":7,"total_tokens":7}}"#),
        (r#"{"total_tokens":7}"#, r#","usage":{"total_tokens":7}}"#),
        (r#"{"prompt_tokens": 7, "cost": null}"#, r#","usage":{"cost":null,"prompt_tokens":7}}"#),
        (r#"{"prompt_tokens":7,"total_tokens":9}"#, "]}"),
        (r#"{"prompt_tokens":7,"total_tokens":null}"#, "]}"),
        (r#"{"total_tokens":7.5}"#, "]}"),
        (r#"{}"#, "]}"),
    ] {
        let body = format!(r#"{{"data":[{{"index":0,"embedding":[1]}}],"usage":{usage}}}"#);
        let (text, _) = answer(&records(body.as_bytes(), &[1], 0).unwrap(), false);
        assert!(text.ends_with(wanted), "{usage}: {text}");
    }
}

#[test]
fn tokens_that_the_server_confirms_are_exact() {
    let rows = vec![vec!["1.5".to_owned()]; 3];
    let text = embeddings(&rows);
    let counted = |counts: &[u32]| super::records(text.as_bytes(), &[10, 200, 1], Some(counts), 0);
    let confirmed = counted(&[1, 2, 4]).unwrap();
    assert!(confirmed.agrees);
    assert_eq!(answer(&confirmed.records, false).1, Usage::Exact(7));
    assert_eq!(answer(&confirmed.records[1..], false).1, Usage::Exact(6));
    for wrong in [[1, 2, 3], [1, 2, 5], [u32::MAX, u32::MAX, 9]] {
        let other = counted(&wrong).unwrap();
        assert!(!other.agrees);
        assert_eq!(answer(&other.records, false).1, Usage::Apportioned(7));
    }
    assert!(counted(&[7]).is_none());
    let uncounted = super::records(br#"{"data":[{"index":0,"embedding":[1]}]}"#, &[1], Some(&[5]), 0).unwrap();
    assert!(uncounted.agrees);
    assert_eq!(answer(&uncounted.records, false).1, Usage::Unknown);
}

#[test]
fn damaged_records_are_refused() {
    let whole = records(embeddings(&[vec!["0.1".to_owned(), "2.0".to_owned()]]).as_bytes(), &[1], 0).unwrap().remove(0);
    assert!(Record::read(&whole).is_some());
    for end in 0..whole.len() {
        assert!(Record::read(&whole[..end]).is_none());
    }
    for (at, flip) in (0..28).flat_map(|at| (0..8).map(move |bit| (at, 1u8 << bit))) {
        let mut damaged = whole.clone();
        damaged[at] ^= flip;
        let mut out = Vec::new();
        let _ = render(std::iter::once(damaged.as_slice()), false, &mut out); // an answer or none, never a panic
    }
}

#[test]
fn whole_numbers_stay_whole_and_floats_stay_floats() {
    for (given, form) in [
        ("-5,0,127", Form::Integer),
        ("-5.0,0.0,127.0", Form::Single),
        ("-0.0,0.5", Form::Single),
        ("0.1,0.2", Form::ShortSingle),
        ("0.1,0.123456789012345", Form::Double),
    ] {
        let row: Vec<String> = given.split(',').map(str::to_owned).collect();
        let found = records(embeddings(&[row]).as_bytes(), &[1], 0).unwrap();
        assert_eq!(Record::read(&found[0]).unwrap().form, form, "{given}");
        assert!(answer(&found, false).0.contains(&format!("[{given}]")), "{}", answer(&found, false).0);
    }
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{:?}", f64::from(x))),
        any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{x:?}")),
        any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{x:?}")),
        (-1.0f32..1.0).prop_map(|x| format!("{:?}", f64::from(x))),
        any::<i32>().prop_map(|x| x.to_string()),
        Just("-0.0".to_owned()),
    ]
}

/// Lists of tokens, a few of which are not written as integers.
fn token_lists() -> impl Strategy<Value = Vec<Vec<String>>> {
    prop::collection::vec(prop::collection::vec("[1-9][0-9]{0,2}(\\.0|e0)?|0", 1..4), 1..4)
}

proptest! {
    #[test]
    fn no_digit_is_lost(rows in prop::collection::vec(prop::collection::vec(number(), 0..20), 1..5)) {
        let weights = vec![3; rows.len()];
        let found = records(embeddings(&rows).as_bytes(), &weights, 0).unwrap();
        let (text, _) = answer(&found, false);
        let again = records(text.as_bytes(), &weights, 0).unwrap();
        for ((row, bytes), read_again) in rows.iter().zip(&found).zip(&again) {
            let wanted: Vec<u64> = row.iter().map(|text| text.parse::<f64>().unwrap().to_bits()).collect();
            for bytes in [bytes, read_again] {
                let got: Vec<u64> = stored(bytes).iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(&got, &wanted);
            }
        }
        // In base64 the numbers are those that a server with binary32 at hand gives.
        let (text, _) = answer(&found, true);
        let Some(again) = records(text.as_bytes(), &weights, 0) else {
            prop_assert!(rows.iter().flatten().any(|text| (text.parse::<f64>().unwrap() as f32).is_infinite()));
            return Ok(());
        };
        for (row, bytes) in rows.iter().zip(&again) {
            let singles: Vec<f32> = row.iter().map(|text| text.parse::<f64>().unwrap() as f32).collect();
            let got: Vec<f32> = stored(bytes).iter().map(|&x| x as f32).collect();
            prop_assert_eq!(got, singles);
        }
    }

    #[test]
    fn shares_sum_to_the_batchs_tokens(weights in prop::collection::vec(0usize..5000, 1..40)) {
        let rows = vec![vec!["1".to_owned()]; weights.len()];
        let found = records(embeddings(&rows).as_bytes(), &weights, 0).unwrap();
        let sum: u32 = found.iter().map(|bytes| Record::read(bytes).unwrap().counted.tokens).sum();
        prop_assert_eq!(sum, 7);
    }

    #[test]
    fn what_is_understood_can_be_asked_for(tokens in token_lists()) {
        let lists: Vec<String> = tokens.iter().map(|list| format!("[{}]", list.join(", "))).collect();
        let body = format!(r#"{{"model":"m","input":[{}]}}"#, lists.join(","));
        let are_integers = !body.contains(".0") && !body.contains("e0");
        let Some(query) = Query::parse(body.as_bytes()).unwrap() else {
            prop_assert!(!are_integers);
            return Ok(());
        };
        prop_assert!(are_integers);
        let places: Vec<usize> = (0..query.len()).collect();
        prop_assert!(query.ask(body.as_bytes(), &places).is_some());
    }

    #[test]
    fn requests_of_any_text_never_panic(body in "[\\[\\]{}\",: a\\\\1u]{0,60}") {
        if let Ok(Some(query)) = Query::parse(body.as_bytes()) {
            query.ask(body.as_bytes(), &[0]);
        }
        records(body.as_bytes(), &[1], 0);
    }
}

/// The numbers as who reads the answer has them: those of the shortest texts of binary32 are other binary64.
fn stored(bytes: &[u8]) -> Vec<f64> {
    let record = Record::read(bytes).unwrap();
    let short = record.form == Form::ShortSingle;
    record.numbers().map(|x| if short { super::record::f64_of_short(x as f32) } else { x }).collect()
}
