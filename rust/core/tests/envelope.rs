//! Envelopes: what was written comes back, and whatever else comes is refused.
#![cfg(not(feature = "explore"))]

use infercache_core::cache::{Cache, Found, Options as CacheOptions, Stored, Write, Written};
use infercache_core::clock::Clock;
use infercache_core::envelope::{
    CHECKSUM_BYTES, Envelope, HEADER_BYTES, Lifetime, MAC_BYTES, MAC_CONTEXT, MacKey, Options, Reader, Refused, decode,
    encode,
};
use infercache_core::fence::{Stamp, Target};
use infercache_core::limits::MAX_ENVELOPE_TAGS;
use infercache_core::scopes::ScopeTags;
use proptest::prelude::*;
use std::borrow::Cow;
use std::sync::atomic::Ordering;

const KEY: [u8; 32] = [7; 32];
const SECRET: [u8; 32] = [1; 32];
const CAP: u64 = 1 << 20;

fn plain(payload: &[u8]) -> Envelope<'_> {
    Envelope {
        key: KEY,
        kind: 1,
        aligned: false,
        epoch: [9; 16],
        lsn: 5,
        lifetime: Lifetime { life: Some(60_000), stale: 1_000, age: 10 },
        total: Some(60_990),
        scope: ScopeTags { namespace: 1, model: 2, version: 3 },
        tags: Cow::Owned(vec![4, 5]),
        cost: 0.25,
        payload: Cow::Borrowed(payload),
    }
}

/// With a checksum, and with a MAC.
fn seals() -> [Option<MacKey>; 2] {
    [None, Some(MacKey::new(&SECRET))]
}

fn sealed(envelope: &Envelope<'_>, mac: Option<&MacKey>) -> Vec<u8> {
    encode(envelope, &Options { mac, ..Options::default() }).expect("an envelope that can be written")
}

fn opened<'a>(bytes: &'a [u8], mac: Option<&MacKey>) -> Result<Envelope<'a>, Refused> {
    decode(bytes, &KEY, &Reader { mac, cap: CAP })
}

/// The envelope with other bytes at an offset, and a seal that is right for them: what a forger can make who needs no secret,
/// or has it.
fn resealed(envelope: &[u8], at: usize, bytes: &[u8], mac: bool) -> Vec<u8> {
    let mut body = envelope[..envelope.len() - if mac { MAC_BYTES } else { CHECKSUM_BYTES }].to_vec();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    let seal = if mac {
        blake3::keyed_hash(&blake3::derive_key(MAC_CONTEXT, &SECRET), &body).as_bytes().to_vec()
    } else {
        blake3::hash(&body).as_bytes()[..CHECKSUM_BYTES].to_vec()
    };
    [body, seal].concat()
}

fn envelopes() -> impl Strategy<Value = Envelope<'static>> {
    let duration = || prop_oneof![Just(None), (0..u64::MAX).prop_map(Some)];
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..2_000),
        ("[a-c]{1,40}", 0usize..200).prop_map(|(text, times)| text.repeat(times).into_bytes()),
    ];
    (
        (any::<[u8; 16]>(), 0u8..32, any::<bool>(), any::<u64>(), 1..u64::MAX),
        (duration(), any::<u64>(), any::<u64>(), 1..u64::MAX),
        (1u64.., proptest::option::of((1u64.., 1u64..)), proptest::collection::vec(1u64.., 0..20), 0f32..1e30),
        payload,
    )
        .prop_map(
            |((epoch, kind, aligned, lsn, total), (life, stale, age, _), (namespace, model, tags, cost), payload)| {
                let (model, version) = model.unwrap_or_default();
                Envelope {
                    key: KEY,
                    kind,
                    aligned,
                    epoch,
                    lsn,
                    lifetime: Lifetime { life, stale, age },
                    total: life.is_some().then_some(total),
                    scope: ScopeTags { namespace, model, version },
                    tags: Cow::Owned(tags),
                    cost,
                    payload: Cow::Owned(payload),
                }
            },
        )
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(envelope in envelopes(), compress_from in prop_oneof![Just(0usize), Just(512), Just(usize::MAX)]) {
        for mac in seals() {
            let bytes = encode(&envelope, &Options { compress_from, mac: mac.as_ref() }).unwrap();
            prop_assert_eq!(opened(&bytes, mac.as_ref()), Ok(envelope.clone()));
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), head in any::<bool>()) {
        let bytes = if head { [b"\x89ICE\x01".to_vec(), bytes].concat() } else { bytes };
        for mac in seals() {
            prop_assert!(opened(&bytes, mac.as_ref()).is_err());
        }
    }

    /// Whoever needs no secret can seal anything: the fields behind the seal are distrusted like any other bytes.
    #[test]
    fn arbitrary_bytes_under_a_right_seal_are_an_envelope_or_refused(
        envelope in envelopes(), at in 0usize..400, bytes in proptest::collection::vec(any::<u8>(), 1..24), mac in any::<bool>()
    ) {
        let key = mac.then(|| MacKey::new(&SECRET));
        let whole = sealed(&envelope, key.as_ref());
        let at = at % (whole.len() - MAC_BYTES - bytes.len());
        let forged = resealed(&whole, at, &bytes, mac);
        if let Ok(read) = opened(&forged, key.as_ref()) {
            prop_assert!(read.payload.len() as u64 <= CAP);
            prop_assert_eq!(read.key, KEY);
            // What is accepted has one way to be written, its codec aside: nothing in it was overlooked.
            let again = encode(&read, &Options { compress_from: usize::MAX, mac: key.as_ref() }).unwrap();
            prop_assert_eq!(opened(&again, key.as_ref()), Ok(read.clone()));
            if forged[5] == 0 {
                prop_assert_eq!(again, forged);
            }
        }
    }

    #[test]
    fn a_mutated_envelope_is_refused(envelope in envelopes(), changes in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4)) {
        for mac in seals() {
            let whole = sealed(&envelope, mac.as_ref());
            let mut changed = whole.clone();
            for (at, flip) in &changes {
                changed[at.index(whole.len())] ^= flip;
            }
            prop_assume!(changed != whole);
            prop_assert!(opened(&changed, mac.as_ref()).is_err());
        }
    }
}

#[test]
fn every_bit_flip_is_refused() {
    let text = b"red shoes, ".repeat(60);
    for mac in seals() {
        for payload in [&b""[..], b"red shoes", &text] {
            let whole = sealed(&plain(payload), mac.as_ref());
            for bit in 0..8 * whole.len() {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(opened(&flipped, mac.as_ref()).is_err(), "bit {bit} of {}", whole.len());
            }
        }
    }
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    let text = b"red shoes, ".repeat(60);
    for mac in seals() {
        for payload in [&b""[..], b"red shoes", &text] {
            let whole = sealed(&plain(payload), mac.as_ref());
            for length in 0..whole.len() {
                assert!(opened(&whole[..length], mac.as_ref()).is_err(), "{length} of {}", whole.len());
            }
            for byte in 0..=255 {
                let longer = [&whole[..], &[byte]].concat();
                assert!(opened(&longer, mac.as_ref()).is_err());
            }
        }
    }
}

#[test]
fn another_keys_value_is_refused() {
    for mac in seals() {
        let whole = sealed(&plain(b"v"), mac.as_ref());
        for at in 0..32 {
            let mut other = KEY;
            other[at] ^= 1;
            assert_eq!(decode(&whole, &other, &Reader { mac: mac.as_ref(), cap: CAP }), Err(Refused::Key));
        }
    }
}

#[test]
fn another_version_of_the_format_is_refused() {
    for mac in [false, true] {
        let key = mac.then(|| MacKey::new(&SECRET));
        let whole = sealed(&plain(b"v"), key.as_ref());
        for format in (0..=255).filter(|&format| format != 1) {
            assert_eq!(opened(&resealed(&whole, 4, &[format], mac), key.as_ref()), Err(Refused::Format));
        }
    }
}

#[test]
fn the_reader_says_whether_there_is_a_mac() {
    let [_, key] = seals();
    let (unsigned, signed) = (sealed(&plain(b"v"), None), sealed(&plain(b"v"), key.as_ref()));
    assert_eq!(opened(&unsigned, key.as_ref()), Err(Refused::Unsigned));
    assert_eq!(opened(&signed, None), Err(Refused::Signed));
    // A forger without the secret says that there is no MAC and seals with a checksum; or calls a checksum a MAC.
    let stripped = resealed(&[&signed[..signed.len() - MAC_BYTES], &[0; CHECKSUM_BYTES]].concat(), 6, &[0], false);
    assert!(opened(&stripped, None).is_ok(), "the forgery itself is well made");
    assert_eq!(opened(&stripped, key.as_ref()), Err(Refused::Unsigned));
    let mut called = unsigned;
    called[6] |= 1;
    called.extend_from_slice(&[0; 16]);
    assert_eq!(opened(&called, key.as_ref()), Err(Refused::Mac));
}

#[test]
fn a_mac_under_another_secret_is_refused() {
    let [_, key] = seals();
    let whole = sealed(&plain(b"v"), Some(&MacKey::new(&[2; 32])));
    assert_eq!(opened(&whole, key.as_ref()), Err(Refused::Mac));
    // Nor does the secret itself serve as the sub-key.
    let body = &whole[..whole.len() - MAC_BYTES];
    let raw = [body, blake3::keyed_hash(&SECRET, body).as_bytes()].concat();
    assert_eq!(opened(&raw, key.as_ref()), Err(Refused::Mac));
}

#[test]
fn what_cannot_be_is_refused_under_a_right_seal_too() {
    let (most, none, nan) = (u64::MAX.to_le_bytes(), 0u64.to_le_bytes(), f32::NAN.to_le_bytes());
    let (infinite, negative) = (f32::INFINITY.to_le_bytes(), (-1f32).to_le_bytes());
    let cases: [(usize, &[u8], Refused); 20] = [
        (5, &[1], Refused::Codec),
        (5, &[3], Refused::Codec),
        (7, &[32], Refused::Kind),
        (80, &most, Refused::Times), // a life that ends, and a server that keeps it for ever
        (80, &none, Refused::Times),
        (96, &none, Refused::Tags),
        (104, &none, Refused::Tags),
        (112, &none, Refused::Tags),
        (120, &nan, Refused::Cost),
        (120, &infinite, Refused::Cost),
        (120, &negative, Refused::Cost),
        (124, &u32::MAX.to_le_bytes(), Refused::Tags),
        (124, &(MAX_ENVELOPE_TAGS as u32).to_le_bytes(), Refused::Lengths),
        (124, &[1], Refused::Lengths),
        (128, &most, Refused::Bomb),
        (128, &(CAP + 1).to_le_bytes(), Refused::Bomb),
        (128, &8u64.to_le_bytes(), Refused::Lengths),
        (136, &most, Refused::Lengths),
        (136, &8u64.to_le_bytes(), Refused::Lengths),
        (144, &none, Refused::Tags),
    ];
    for mac in [false, true] {
        let key = mac.then(|| MacKey::new(&SECRET));
        let whole = sealed(&plain(b"red shoes"), key.as_ref());
        for (at, bytes, refused) in cases {
            assert_eq!(opened(&resealed(&whole, at, bytes, mac), key.as_ref()), Err(refused), "{bytes:?} at {at}");
        }
        let flags = 0x80 | u8::from(mac);
        assert_eq!(opened(&resealed(&whole, 6, &[flags], mac), key.as_ref()), Err(Refused::Flags));
    }
}

#[test]
fn a_compressed_payload_of_another_length_is_refused() {
    let text = b"red shoes, ".repeat(60);
    let whole = sealed(&plain(&text), None);
    assert_eq!(whole[5], 2, "it pays to compress this");
    let length = text.len() as u64;
    for (claimed, refused) in [
        (0, Refused::Compression),
        (length - 1, Refused::Compression),
        (length + 1, Refused::Compression),
        (CAP, Refused::Bomb), // more than 255 times what is there
    ] {
        assert_eq!(opened(&resealed(&whole, 128, &claimed.to_le_bytes(), false), None), Err(refused), "{claimed}");
    }
    // And every change of the compressed bytes themselves is refused or gives as many bytes.
    for at in HEADER_BYTES + 16..whole.len() - CHECKSUM_BYTES {
        for flip in [0x01, 0x10, 0x80, 0xff] {
            match opened(&resealed(&whole, at, &[whole[at] ^ flip], false), None) {
                Ok(read) => assert_eq!(read.payload.len(), text.len()),
                Err(refused) => assert_eq!(refused, Refused::Compression),
            }
        }
    }
}

#[test]
fn tags_are_bounded_and_as_many_as_the_bound_are_read() {
    let tags = |many: usize| Envelope { tags: (1..=many as u64).collect::<Vec<_>>().into(), ..plain(b"v") };
    let most = tags(MAX_ENVELOPE_TAGS);
    assert_eq!(opened(&sealed(&most, None), None), Ok(most));
    assert!(encode(&tags(MAX_ENVELOPE_TAGS + 1), &Options::default()).is_err());
}

#[test]
fn what_no_reader_would_accept_is_not_written() {
    let base = || plain(b"v");
    let lifetime = |life| Lifetime { life, ..base().lifetime };
    let scope = |namespace, model, version| ScopeTags { namespace, model, version };
    for wrong in [
        Envelope { kind: 32, ..base() },
        Envelope { tags: vec![1, 0].into(), ..base() },
        Envelope { scope: scope(0, 1, 1), ..base() },
        Envelope { scope: scope(1, 0, 1), ..base() },
        Envelope { scope: scope(1, 1, 0), ..base() },
        Envelope { total: None, ..base() },
        Envelope { total: Some(0), ..base() },
        Envelope { total: Some(u64::MAX), ..base() },
        Envelope { lifetime: lifetime(Some(u64::MAX)), ..base() },
    ] {
        assert!(encode(&wrong, &Options::default()).is_err(), "{wrong:?}");
    }
    // A cost that is none is none, as in an entry.
    for (cost, read) in [(f32::NAN, 0.0), (-1.0, 0.0), (-0.0, 0.0), (f32::INFINITY, f32::MAX)] {
        assert_eq!(opened(&sealed(&Envelope { cost, ..base() }, None), None).unwrap().cost, read);
    }
}

#[test]
fn it_compresses_only_what_saves_an_eighth() {
    let mut noise = vec![0; 4_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let half = [&noise[..2_000], &[0; 2_000]].concat();
    let little = [&noise[..3_700], &[0; 300]].concat();
    for (payload, codec) in [(&noise, 0), (&half, 2), (&little, 0), (&vec![0; 511], 0), (&vec![0; 512], 2)] {
        let bytes = sealed(&plain(payload), None);
        assert_eq!(bytes[5], codec, "{}", payload.len());
        let read = opened(&bytes, None).unwrap();
        assert_eq!(read.payload, payload.as_slice());
        assert_eq!(matches!(read.payload, Cow::Borrowed(_)), codec == 0, "a raw payload is not copied");
    }
}

#[test]
fn the_servers_remaining_life_tells_the_age() {
    let envelope = plain(b"v"); // 10 ms old, given 60,990 ms
    let age = |remaining| envelope.lifetime_with(remaining).map(|lifetime| lifetime.age);
    assert_eq!(age(Some(60_990)), Ok(10));
    assert_eq!(age(Some(60_000)), Ok(1_000));
    assert_eq!(envelope.lifetime_with(Some(0)).unwrap().left(), Some(0));
    assert_eq!(age(Some(60_991)), Err(Refused::Times), "somebody gave it more");
    assert_eq!(age(None), Err(Refused::Times), "somebody took its end away");
    let for_ever = Envelope { total: None, lifetime: Lifetime { life: None, stale: 0, age: 3 }, ..plain(b"v") };
    assert_eq!(for_ever.lifetime_with(None).unwrap(), for_ever.lifetime);
    assert_eq!(for_ever.lifetime.left(), None);
}

#[test]
fn nothing_prints_the_sub_key() {
    assert_eq!(format!("{:?}", MacKey::new(&SECRET)), "MacKey { .. }");
}

#[test]
fn each_reason_has_a_counter_of_its_own() {
    let names: std::collections::HashSet<_> = Refused::ALL.iter().map(|refused| refused.name()).collect();
    assert_eq!(names.len(), Refused::ALL.len());
}

// ---- into a cache and out of it --------------------------------------------------------------------------------------

fn cache(now: u64) -> (Cache, std::sync::Arc<std::sync::atomic::AtomicU64>) {
    let (clock, hand) = Clock::manual(now);
    (Cache::new(CacheOptions { clock, ..CacheOptions::new(1 << 20, 7) }), hand)
}

fn stored(cache: &Cache, tag: u64) -> Stamp {
    let scope = cache.intern("n", Some(("m", "1"))).unwrap();
    let stamp = cache.stamp();
    let (life, stale) = (Some(1_000), 500);
    let write =
        Write { kind: 2, aligned: true, payload: &[5; 300], scope, tags: &[tag], stamp, life, stale, cost: 0.25 };
    assert_eq!(cache.store(&KEY, &write).0, Stored::Kept);
    stamp
}

/// What one cache wrote, promoted into another after it lay on the server for `lain` milliseconds.
fn promoted(from: &Cache, into: &Cache, stamp: Stamp, lain: u64) -> Stored {
    let Found::Fresh(hit) = from.peek(&KEY) else { panic!("it was stored") };
    let lifetime = from.lifetime(&hit.entry).unwrap();
    let written = Written { epoch: [3; 16], lsn: stamp.lsn(), total: lifetime.left() };
    let bytes = sealed(&from.envelope(&hit.entry, lifetime, &written).unwrap(), None);
    let read = opened(&bytes, None).unwrap();
    assert_eq!((read.epoch, read.lsn), ([3; 16], stamp.lsn()));
    let now = read.lifetime_with(read.total.map(|total| total - lain)).unwrap();
    let scope = into.intern_tags(read.scope).unwrap();
    let here = Stamp::new(into.stamp().epoch(), read.lsn);
    into.store_prepared(&into.prepare_promoted(&read, scope, here, now).unwrap())
}

#[test]
fn a_promoted_entry_keeps_its_life_its_age_and_all_that_it_was() {
    // The reader's clock began long before, just before, or after the value was computed.
    for begun in [1_000_000, 150, 20] {
        let ((writer, clock), (reader, later)) = (cache(5_000), cache(begun));
        let stamp = stored(&writer, 77);
        clock.fetch_add(100, Ordering::Relaxed);
        assert_eq!(promoted(&writer, &reader, stamp, 200), Stored::Kept);
        let Found::Fresh(hit) = reader.peek(&KEY) else { panic!("promoted") };
        assert_eq!((hit.left, hit.age), (Some(700), 300.min(begun)), "begun at {begun}");
        let entry = &hit.entry;
        assert_eq!((entry.kind(), entry.aligned(), entry.payload(), entry.tags()), (2, true, &[5; 300][..], &[77][..]));
        assert!((entry.cost() - 0.25).abs() < 1e-3);
        later.fetch_add(700, Ordering::Relaxed);
        assert!(matches!(reader.peek(&KEY), Found::Stale(_)));
        later.fetch_add(499, Ordering::Relaxed);
        assert!(matches!(reader.peek(&KEY), Found::Stale(_)));
        later.fetch_add(1, Ordering::Relaxed);
        assert!(matches!(reader.peek(&KEY), Found::Miss));
    }
}

#[test]
fn a_promoted_entry_that_is_stale_stays_so_for_the_rest_of_its_window() {
    for begun in [1_000_000, 20] {
        let ((writer, _), (reader, later)) = (cache(5_000), cache(begun));
        let stamp = stored(&writer, 77);
        assert_eq!(promoted(&writer, &reader, stamp, 1_200), Stored::Kept);
        assert!(matches!(reader.peek(&KEY), Found::Stale(_)));
        later.fetch_add(299, Ordering::Relaxed);
        assert!(matches!(reader.peek(&KEY), Found::Stale(_)));
        later.fetch_add(1, Ordering::Relaxed);
        assert!(matches!(reader.peek(&KEY), Found::Miss));
    }
}

#[test]
fn a_purge_hides_what_is_promoted_after_it_by_each_of_its_tags() {
    let targets = [
        Target::All,
        Target::Namespace,
        Target::Model("m"),
        Target::ModelVersion("m", "1"),
        Target::Key(&KEY),
        Target::Tag("t"),
    ];
    for target in targets {
        let ((writer, _), (reader, _)) = (cache(0), cache(0));
        let stamp = stored(&writer, writer.tag("n", Target::Tag("t")));
        reader.invalidate(&[reader.tag("n", target)], false);
        assert_eq!(promoted(&writer, &reader, stamp, 0), Stored::Fenced, "{target:?}");
    }
    let ((writer, _), (reader, _)) = (cache(0), cache(0));
    let stamp = stored(&writer, writer.tag("n", Target::Tag("t")));
    reader.invalidate(&[reader.tag("n", Target::Tag("other"))], false);
    assert_eq!(promoted(&writer, &reader, stamp, 0), Stored::Kept);
    reader.invalidate(&[reader.tag("n", Target::Tag("t"))], false);
    assert!(matches!(reader.peek(&KEY), Found::Miss), "nor is it served after a later purge");
}

#[test]
fn an_entry_that_left_the_table_has_no_known_lifetime() {
    let (cache, _) = cache(0);
    stored(&cache, 1);
    let held = cache.get(&KEY).unwrap();
    assert_eq!(cache.lifetime(&held), Some(Lifetime { life: Some(1_000), stale: 500, age: 0 }));
    cache.remove(&KEY);
    assert_eq!(cache.lifetime(&held), None);
    stored(&cache, 2);
    assert_eq!(cache.lifetime(&held), None, "another entry stands in its place");
}
