//! The memory of one entry, while no entry is in it.

#[cfg(not(feature = "explore"))]
use std::alloc::dealloc;
use std::alloc::{Layout, alloc};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// Memory that nobody else knows of: new, or of an entry that is gone. It is freed if nothing is written into it.
#[derive(Debug)]
pub(crate) struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: owned memory without any content.
unsafe impl Send for Block {}

impl Block {
    /// New memory; `None`: there is none.
    pub(super) fn allocate(layout: Layout) -> Option<Block> {
        // SAFETY: an entry's layout has at least the size of its header.
        Some(Block { start: NonNull::new(unsafe { alloc(layout) })?, layout })
    }

    /// The memory of an entry that is gone.
    ///
    /// # Safety
    /// It was a block of this layout once, and nobody else will look at it any more.
    pub(super) unsafe fn from_start(start: NonNull<u8>, layout: Layout) -> Block {
        let block = Block { start, layout };
        #[cfg(feature = "explore")]
        block.deface();
        block
    }

    /// To be written into; the caller owns it from now on.
    pub(super) fn into_start(self) -> NonNull<u8> {
        ManuallyDrop::new(self).start
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// While schedules are explored, the bytes of an entry that is gone are overwritten at once and others may run then,
    /// so that a reader who still looks at it is seen to. The header's atomics are left to be found.
    #[cfg(feature = "explore")]
    fn deface(&self) {
        let kept = size_of::<super::Header>() - crate::limits::KEY_BYTES;
        // SAFETY: within the block, and nobody else may look at these bytes.
        unsafe { self.start.add(kept).write_bytes(FREED, self.layout.size() - kept) };
        crate::sync::thread::yield_now();
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; an owned block is in no other hands. While schedules are explored it is kept,
        // so that an address which comes twice is that of a block written over.
        #[cfg(not(feature = "explore"))]
        unsafe {
            dealloc(self.start.as_ptr(), self.layout);
        }
    }
}

/// What explored schedules see in place of a freed entry's key and payload; there, freed memory is never given back.
#[cfg(feature = "explore")]
pub const FREED: u8 = 0xdd;
