//! The second pass over a document of which some objects are not in canonical order: each byte moves once.

use crate::document::{Limit, Writer};
use crate::stack::{Floor, SmallStack};
use std::ops::Range;

/// An object whose members did not come in canonical order.
pub struct Unsorted {
    /// From `{` to after `}` in the rough document.
    pub span: Range<usize>,
    /// Its members' spans, in canonical order, as a range of `sorted`.
    pub members: Range<usize>,
}

/// The last pass over a document of which some objects are not in canonical order.
pub struct Layout<'a> {
    /// The document as its pieces came.
    pub rough: &'a [u8],
    /// Where the rough document began: spans count from there.
    pub base: usize,
    /// Spans of members, those of each object in canonical order.
    pub sorted: &'a [Range<usize>],
    /// By where they begin, so an outer object stands before those inside it.
    pub unsorted: &'a [Unsorted],
    /// Where this thread's stack ends.
    pub floor: Floor,
}

impl Layout<'_> {
    fn raw(&self, span: Range<usize>, out: &mut Writer) -> std::result::Result<(), Limit> {
        out.raw(&self.rough[span.start - self.base..span.end - self.base])
    }

    /// Copies a span, each unsorted object within it in canonical order. As deep as containers nest: bounded.
    pub fn copy(&self, span: Range<usize>, out: &mut Writer) -> std::result::Result<(), Limit> {
        if self.floor.is_near() {
            return Err(Limit::SmallStack(SmallStack::of_this_thread()));
        }
        let mut at = span.start;
        loop {
            let next = self.unsorted.partition_point(|object| object.span.start < at);
            let Some(object) = self.unsorted.get(next).filter(|object| object.span.start < span.end) else {
                return self.raw(at..span.end, out);
            };
            self.raw(at..object.span.start, out)?;
            out.byte(b'{')?;
            for (order, member) in self.sorted[object.members.clone()].iter().enumerate() {
                if order > 0 {
                    out.byte(b',')?;
                }
                self.copy(member.clone(), out)?;
            }
            out.byte(b'}')?;
            at = object.span.end;
        }
    }
}
