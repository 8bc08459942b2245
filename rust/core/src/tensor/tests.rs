use super::*;
use proptest::prelude::*;

/// The specification's content, one element at a time.
fn slow(memory: &[u8], origin: usize, layout: &Layout) -> Vec<u8> {
    let mut content = Vec::new();
    let mut index = vec![0usize; layout.shape.len()];
    if layout.shape.contains(&0) {
        return content;
    }
    loop {
        let offset: isize = index.iter().zip(&layout.strides).map(|(&i, &s)| i as isize * s).sum();
        let at = (origin as isize + offset) as usize;
        let mut element = memory[at..at + layout.itemsize].to_vec();
        if layout.swap > 1 {
            element.chunks_mut(layout.swap).for_each(<[u8]>::reverse);
        }
        if let Some(Signs { first, step }) = layout.signs {
            (first..layout.itemsize).step_by(step).for_each(|at| element[at] ^= 0x80);
        }
        content.extend(element);
        let Some(axis) = (0..index.len()).rev().find(|&axis| index[axis] + 1 < layout.shape[axis]) else {
            return content;
        };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

fn memory(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2654435761) >> 7) as u8).collect()
}

fn check(memory: &[u8], origin: usize, layout: &Layout) {
    let expected = slow(memory, origin, layout);
    // SAFETY: the layouts of these tests stay within `memory`.
    let fast = unsafe { digest(memory.as_ptr().add(origin), layout) };
    assert_eq!(fast, *blake3::hash(&expected).as_bytes(), "{layout:?}");
    if expected.is_empty() {
        return;
    }
    // SAFETY: as above.
    let content = unsafe { Content::new(memory.as_ptr().add(origin), layout) };
    assert_eq!(content.length, expected.len());
    assert!(content.piece().is_power_of_two() && (content::PIECE..=content::LONGEST_PIECE).contains(&content.piece()));
    for threads in 1..=3 {
        assert_eq!(threads::digest_with(&content, threads), fast, "{threads} {layout:?}");
    }
    // Parts from anywhere to anywhere.
    let elements = expected.len() / layout.itemsize;
    let mut block = Vec::new();
    for turn in 0..20 {
        let first = turn * 7919 % elements;
        let count = (turn * 104_729 % (elements - first)).max(1);
        let (from, length) = (first * layout.itemsize, count * layout.itemsize);
        assert_eq!(content.part(from, length, &mut block), &expected[from..from + length], "{layout:?}");
    }
}

fn layout(shape: &[usize], strides: &[isize], itemsize: usize) -> Layout {
    Layout { shape: shape.to_vec(), strides: strides.to_vec(), itemsize, swap: 0, signs: None }
}

#[test]
fn scalars_empty_tensors_and_zero_strides() {
    let bytes = memory(4096);
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
        let layout = layout(&[rows, columns], &[itemsize as isize, (itemsize * rows) as isize], itemsize);
        check(&bytes, 0, &layout);
        check(&bytes, 0, &Layout { swap: itemsize, ..layout });
    }
}

#[test]
fn large_layouts_of_every_kind() {
    let bytes = memory(2 << 20);
    for (origin, layout) in [
        (0, layout(&[600, 700, 3], &[4 * 700, 4, 1], 1)), // three of four channels
        (2, layout(&[600 * 700, 3], &[4, -1], 1)),        // channels the other way round
        (0, layout(&[3, 600 * 700], &[1, 3], 1)),         // channels first
        (0, layout(&[2, 3, 300 * 350], &[3 * 300 * 350, 1, 3], 1)), // of a batch
        (0, layout(&[40, 30, 50, 2], &[30 * 100 * 4, 4, 120, 6000], 4)),
        (3, layout(&[7, 40_000], &[160_001, 4], 4)), // long rows, apart
        (0, layout(&[20_000, 25], &[52, 2], 2)),
        (1, layout(&[100_000, 5], &[7, 1], 1)),
        (1 << 20, layout(&[300, 200], &[-1600, 8], 8)),
        (0, layout(&[50_000, 3, 4], &[0, 16, 4], 4)), // broadcast
        (0, layout(&[16, 1, 6_000], &[16, 5, 256], 16)),
        (0, layout(&[16_000, 32], &[4, 64_000], 4)), // rows side by side, many in a line
        (0, layout(&[40, 12_000], &[4, 160], 4)),
        (0, layout(&[40, 12_000], &[-4, 160], 4)),
    ] {
        let origin = origin + if layout.strides[0] == -4 { 160 } else { 0 };
        check(&bytes, origin, &layout);
        check(&bytes, origin, &Layout { swap: layout.itemsize.min(8), ..layout.clone() });
        check(&bytes, origin, &Layout { signs: Signs::of(layout.itemsize, layout.itemsize, true, false), ..layout });
    }
}

#[test]
fn signs_are_turned_where_they_are_promised() {
    let numbers = [1.5f32, -2.0, f32::NAN, 0.0, -0.0, f32::INFINITY, 3.0, -4.0];
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let turned = |real: bool, imaginary: bool| -> Vec<u8> {
        let turn = |(at, number): (usize, &f32)| if [real, imaginary][at % 2] { -number } else { *number };
        numbers.iter().enumerate().map(turn).flat_map(f32::to_le_bytes).collect()
    };
    for (negated, conjugated, expected) in [
        (false, false, turned(false, false)),
        (true, false, turned(true, true)),
        (false, true, turned(false, true)),
        (true, true, turned(true, false)),
    ] {
        let layout = Layout { signs: Signs::of(8, 4, negated, conjugated), ..layout(&[4], &[8], 8) };
        assert_eq!(slow(&bytes, 0, &layout), expected);
        check(&bytes, 0, &layout);
    }
    let layout = Layout { signs: Signs::of(4, 4, true, false), ..layout(&[8], &[4], 4) };
    assert_eq!(slow(&bytes, 0, &layout), turned(true, true));
    check(&bytes, 0, &layout);
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
            let content = Content::of_bytes(&bytes[..length]);
            assert_eq!(threads::digest_with(&content, threads), expected, "{length}");
            if length > piece {
                assert_eq!(threads::with_helpers(&content, threads).0, expected, "{length}");
            }
        }
        assert_eq!(digest_bytes(&bytes[..length]), *blake3::hash(&bytes[..length]).as_bytes());
    }
}

#[test]
fn bytes_in_parts_have_the_digest_of_the_whole() {
    let bytes = memory(1 << 20);
    for length in [0, 1, 1024, 1025, 70_000, bytes.len()] {
        for part in [1000, 1024, 65_536, 100_001] {
            let mut parts = Parts::default();
            bytes[..length].chunks(part).for_each(|part| parts.update(part));
            assert_eq!(parts.digest(), *blake3::hash(&bytes[..length]).as_bytes());
        }
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
                    assert_eq!(threads::with_helpers(&Content::of_bytes(part), 4).0, *blake3::hash(part).as_bytes());
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
        (turned, conjugated) in any::<(bool, bool)>(),
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
            signs: turned.then(|| Signs::of(itemsize, if halves && itemsize > 1 { itemsize / 2 } else { itemsize }, true, conjugated)).flatten(),
        };
        let bytes = memory(4096);
        check(&bytes, 2048 + shift, &layout);
    }
}
