use super::*;
use proptest::prelude::*;

/// The specification's definition, one element at a time.
fn slow(memory: &[u8], origin: usize, layout: &Layout) -> [u8; 32] {
    let mut content = Vec::new();
    let mut index = vec![0usize; layout.shape.len()];
    if layout.shape.contains(&0) {
        return *blake3::hash(b"").as_bytes();
    }
    loop {
        let offset: isize = index.iter().zip(&layout.strides).map(|(&i, &s)| i as isize * s).sum();
        let at = (origin as isize + offset) as usize;
        let element = &memory[at..at + layout.itemsize];
        let unit = layout.swap.max(1);
        for part in element.chunks(if unit > 1 { unit } else { layout.itemsize }) {
            if unit > 1 {
                content.extend(part.iter().rev());
            } else {
                content.extend(part);
            }
        }
        let Some(axis) = (0..index.len()).rev().find(|&axis| index[axis] + 1 < layout.shape[axis]) else {
            return *blake3::hash(&content).as_bytes();
        };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

fn memory(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2654435761) >> 7) as u8).collect()
}

fn check(memory: &[u8], origin: usize, layout: &Layout) {
    // SAFETY: the layouts of these tests stay within `memory`.
    let fast = unsafe { digest(memory.as_ptr().add(origin), layout) };
    assert_eq!(fast, slow(memory, origin, layout), "{layout:?}");
}

#[test]
fn scalars_empty_tensors_and_zero_strides() {
    let bytes = memory(4096);
    let layout = |shape: &[usize], strides: &[isize], itemsize| Layout {
        shape: shape.to_vec(),
        strides: strides.to_vec(),
        itemsize,
        swap: 0,
    };
    check(&bytes, 3, &layout(&[], &[], 8));
    check(&bytes, 0, &layout(&[0, 3], &[24, 8], 8));
    check(&bytes, 5, &layout(&[7, 5], &[0, 4], 4));
    check(&bytes, 5, &layout(&[7, 5], &[0, 0], 16));
    check(&bytes, 4000, &layout(&[10, 10], &[-40, -4], 4));
    check(&bytes, 1, &layout(&[1, 5, 1], &[999, 8, -7], 8));
}

#[test]
fn fortran_order_of_every_size_around_the_block() {
    let bytes = memory(700_000);
    for (rows, columns, itemsize) in
        [(300, 500, 4), (5, 40_000, 2), (40_000, 5, 2), (64, 1024, 8), (65, 1024, 1), (9000, 7, 8)]
    {
        let layout = Layout {
            shape: vec![rows, columns],
            strides: vec![itemsize as isize, (itemsize * rows) as isize],
            itemsize,
            swap: 0,
        };
        check(&bytes, 0, &layout);
        check(&bytes, 0, &Layout { swap: itemsize, ..layout });
    }
}

#[test]
fn threads_never_change_a_digest() {
    let bytes = memory(3 << 20);
    let piece = 32 << 10;
    let mut lengths = vec![0, 1, 1023, 1024, 1025, 2048, 5000, 3 << 20];
    for pieces in [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 33] {
        lengths.extend([pieces * piece - 1, pieces * piece, pieces * piece + 1, pieces * piece + 1025]);
    }
    for length in lengths {
        for threads in 1..=9 {
            let expected = *blake3::hash(&bytes[..length]).as_bytes();
            assert_eq!(digest_with(&bytes[..length], threads), expected, "{length}");
            if length > piece {
                assert_eq!(threads::with_helpers(&bytes[..length], threads), expected, "{length}");
            }
        }
        assert_eq!(digest_bytes(&bytes[..length]), *blake3::hash(&bytes[..length]).as_bytes());
    }
}

#[test]
fn many_callers_share_the_helpers() {
    let bytes = memory(2 << 20);
    std::thread::scope(|scope| {
        for caller in 0..6 {
            let bytes = &bytes;
            scope.spawn(move || {
                for turn in 0..40 {
                    let part = &bytes[caller * 1000..bytes.len() - turn * 4096];
                    assert_eq!(threads::with_helpers(part, 4), *blake3::hash(part).as_bytes());
                }
            });
        }
    });
}

proptest! {
    #[test]
    fn any_layout_agrees_with_the_slow_definition(
        axes in prop::collection::vec((0usize..6, -3isize..4, 0usize..2), 0..5),
        log_itemsize in 0u32..5,
        swapped in any::<bool>(),
        halves in any::<bool>(),
        shift in 0usize..16,
    ) {
        let itemsize = 1usize << log_itemsize;
        let swap = match (swapped, halves) {
            (false, _) => 0,
            (true, true) if itemsize > 2 => itemsize / 2,
            (true, _) => if itemsize == 16 { 8 } else { itemsize },
        };
        let layout = Layout {
            shape: axes.iter().map(|axis| axis.0).collect(),
            strides: axes.iter().map(|axis| axis.1 * (itemsize + axis.2) as isize).collect(),
            itemsize,
            swap,
        };
        let bytes = memory(4096);
        check(&bytes, 2048 + shift, &layout);
    }
}
