use super::*;

fn plain(payload: &[u8]) -> Envelope<'_> {
    Envelope {
        key: [7; 32],
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

#[test]
fn what_goes_in_comes_out() {
    let payload = b"red shoes, ".repeat(100);
    for payload in [&b""[..], b"x", &payload] {
        let (envelope, key) = (plain(payload), MacKey::new(&[1; 32]));
        for mac in [None, Some(&key)] {
            let bytes = encode(&envelope, &Options { mac, ..Options::default() }).unwrap();
            assert_eq!(decode(&bytes, &[7; 32], &Reader { mac, cap: 1 << 20 }), Ok(envelope.clone()));
        }
    }
}
