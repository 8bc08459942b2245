//! A model server's answer: one record for each item that was asked for.

use super::super::scan::{self, Member, joined};
use super::record::{self, Certainty, Counted, Counts, Form};
use crate::document::Writer;
use crate::json;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::cmp::Reverse;
use std::ops::Range;

/// What stands in the answer beside the items.
struct Around {
    others: Vec<u8>,
    usage: Vec<u8>,
    tokens: Option<u32>,
    counts: Counts,
}

/// A model server's answer, item by item.
pub struct Answer {
    /// One for each item, in the order of the request.
    pub records: Vec<Vec<u8>>,
    /// Whether the server counted as many tokens as the items were said to have, if it counted and they were.
    pub agrees: bool,
}

/// The records of an answer to `weights.len()` items. Its tokens are the items' `counts`, where these are given and sum
/// to what the server counted, or else apportioned among them by weight (their lengths), to the last one.
///
/// `age` is how many seconds old the answer is already. `None`: it is no complete answer to so many items, so nothing of
/// it may be stored.
pub fn records(body: &[u8], weights: &[usize], counts: Option<&[u32]>, age: u32) -> Option<Answer> {
    json::write(body, &mut Writer::new()).ok()?;
    let members = scan::members(body, scan::whole(body)?)?;
    let data = named(body, &members, "data")?;
    let items = scan::elements(body, data.value.clone())?;
    if items.len() != weights.len() || counts.is_some_and(|counts| counts.len() != weights.len()) {
        return None;
    }
    let around = around(body, &members);
    let sums_up = |counts: &&[u32]| {
        around.tokens.is_some_and(|tokens| counts.iter().map(|&count| u64::from(count)).sum::<u64>() == tokens.into())
    };
    let checked = counts.filter(sums_up);
    let agrees = counts.is_none() || around.tokens.is_none() || checked.is_some();
    let shares = checked.map_or_else(|| shares(around.tokens, weights), <[u32]>::to_vec);
    let certainty = match around.tokens {
        None => Certainty::None,
        Some(_) if weights.len() == 1 || checked.is_some() => Certainty::Exact,
        Some(_) => Certainty::Apportioned,
    };
    let mut records: Vec<Vec<u8>> = vec![Vec::new(); items.len()];
    for item in items {
        let members = scan::members(body, item)?;
        let place: usize = text(body, &named(body, &members, "index")?.value)?.parse().ok()?;
        let (numbers, whole) = numbers(body, &named(body, &members, "embedding")?.value)?;
        let others = joined(body, &members, &["embedding", "index"]);
        let form = Form::of(&numbers, whole);
        let texts = [around.others.as_slice(), &others, &around.usage];
        let counted = Counted { tokens: *shares.get(place)?, certainty, counts: around.counts };
        let record = record::write(&numbers, form, counted, age, texts)?;
        if !std::mem::replace(&mut records[place], record).is_empty() {
            return None; // one index twice: another is missing
        }
    }
    Some(Answer { records, agrees })
}

fn named<'a>(body: &[u8], members: &'a [Member], name: &str) -> Option<&'a Member> {
    members.iter().find(|member| member.is(body, name))
}

fn text<'a>(body: &'a [u8], span: &Range<usize>) -> Option<&'a str> {
    std::str::from_utf8(&body[span.clone()]).ok()
}

fn around(body: &[u8], members: &[Member]) -> Around {
    let others = joined(body, members, &["data", "usage"]);
    let usage = named(body, members, "usage").and_then(|usage| scan::members(body, usage.value.clone()));
    let Some(usage) = usage else {
        return Around { others, usage: Vec::new(), tokens: None, counts: Counts::Both };
    };
    let count = |name: &str| {
        named(body, &usage, name).map(|member| text(body, &member.value).and_then(|text| text.parse::<u32>().ok()))
    };
    let (tokens, counts) = match (count("prompt_tokens"), count("total_tokens")) {
        (Some(tokens), None) => (tokens, Counts::Prompt),
        (None, Some(tokens)) => (tokens, Counts::Total),
        (Some(tokens), Some(total)) if tokens == total => (tokens, Counts::Both),
        // Counts that differ, as where images have tokens too, are of more than the text: nobody can add them up here.
        _ => (None, Counts::Both),
    };
    // Details that count something are of this batch alone.
    let is_empty = |member: &Member| matches!(&body[member.value.clone()], b"null" | b"0" | b"{}");
    let is_count = |member: &Member| member.is(body, "prompt_tokens") || member.is(body, "total_tokens");
    let usage = scan::joined_if(body, &usage, |member| !is_count(member) && is_empty(member));
    Around { others, usage, tokens, counts }
}

/// The numbers of an embedding, given as a list or, by servers that know nothing else, in base64; and whether each was
/// written as a whole number.
fn numbers(body: &[u8], span: &Range<usize>) -> Option<(Vec<f64>, bool)> {
    if body[span.start] == b'"' {
        let bytes = STANDARD.decode(&body[span.start + 1..span.end - 1]).ok()?;
        let (singles, rest) = bytes.as_chunks::<4>();
        let numbers: Vec<f64> = singles.iter().map(|single| f64::from(f32::from_le_bytes(*single))).collect();
        // Infinities and NaN have no text.
        return (rest.is_empty() && numbers.iter().all(|number| number.is_finite())).then_some((numbers, false));
    }
    let mut whole = true;
    let elements = scan::elements(body, span.clone())?;
    let mut numbers = Vec::with_capacity(elements.len());
    for element in elements {
        let text = text(body, &element)?;
        if !text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
            return None; // null and true are no numbers, and `parse` takes "inf"
        }
        let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite())?;
        // -0 is no integer, and a binary64 does not tell one beyond 2^53 from its neighbours.
        whole &= !text.contains(['.', 'e', 'E']) && text != "-0" && number.abs() < (1u64 << 53) as f64;
        numbers.push(number);
    }
    Some((numbers, whole))
}

/// A batch's tokens apportioned by weight: by largest remainder, so that the sum is the batch's.
fn shares(tokens: Option<u32>, weights: &[usize]) -> Vec<u32> {
    let total = u128::from(tokens.unwrap_or(0));
    let sum: u128 = weights.iter().map(|&weight| weight as u128 + 1).sum(); // no item is without weight
    let exact = |place: usize| total * (weights[place] as u128 + 1);
    let mut shares: Vec<u32> = (0..weights.len()).map(|place| (exact(place) / sum) as u32).collect();
    let given: u128 = shares.iter().map(|&share| u128::from(share)).sum();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&place| Reverse(exact(place) % sum));
    for &place in order.iter().take((total - given) as usize) {
        shares[place] += 1;
    }
    shares
}
