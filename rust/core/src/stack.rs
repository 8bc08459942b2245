//! How near a walk is to the end of its thread's stack, so that a value that nests deeply is an error on a small stack
//! and not the end of the process.
//!
//! The bounds are asked of the system once a thread. What is left is then one comparison with an address on the stack,
//! so a walk can afford it at each container.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

/// Bytes that a walk leaves to whatever it calls: the hash of what was written, an allocator that starts up, the text of
/// an error, a property of the caller's own. CPython leaves as much to C code that does not look.
const RESERVE: usize = 16 << 10;

/// A thread's stack, from its lowest address to the one behind its highest. It stays on its thread.
#[derive(Debug, Clone, Copy)]
pub struct Stack {
    low: usize,
    high: usize,
    _of_this_thread: PhantomData<*const ()>,
}

/// What a thread has whose bounds the system does not tell: nothing is ever within it.
const UNKNOWN: Stack = Stack { low: 0, high: 0, _of_this_thread: PhantomData };

thread_local! {
    /// `None`: not asked yet.
    static STACK: Cell<Option<Stack>> = const { Cell::new(None) };
}

impl Stack {
    /// The stack of this thread.
    #[inline]
    pub fn of_this_thread() -> Stack {
        match STACK.get() {
            Some(stack) => stack,
            None => Stack::ask(),
        }
    }

    #[cold]
    #[inline(never)]
    fn ask() -> Stack {
        let bounds = system::bounds();
        let stack = bounds.map_or(UNKNOWN, |(low, high)| Stack { low, high, ..UNKNOWN });
        STACK.set(Some(stack));
        stack
    }

    /// Where a walk on this stack has to end. A thread that runs on a stack that is not its own (a coroutine of another
    /// library's) has no floor: nothing is known of where that stack ends.
    #[inline(always)]
    pub fn floor(self) -> Floor {
        let here = position();
        Floor { lowest: if self.low <= here && here < self.high { self.low + RESERVE } else { 0 } }
    }

    /// Whether there is room for so many bytes more, as far as anybody knows.
    #[inline]
    pub fn has_room(self, bytes: usize) -> bool {
        let here = position();
        !(self.low..self.high).contains(&here) || here - self.low >= bytes
    }
}

/// The address on a stack below which a walk must not go on.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    lowest: usize,
}

impl Floor {
    /// The floor of this thread's stack.
    #[inline]
    pub fn of_this_thread() -> Floor {
        Stack::of_this_thread().floor()
    }

    /// Whether nothing that nests further should be begun here.
    #[inline(always)]
    pub fn is_near(self) -> bool {
        position() < self.lowest
    }
}

/// Why a walk stopped short of its floor. Its text says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmallStack {
    /// Of the thread's stack, all of it.
    bytes: usize,
}

impl SmallStack {
    /// Of this thread.
    #[cold]
    pub fn of_this_thread() -> SmallStack {
        let stack = Stack::of_this_thread();
        SmallStack { bytes: stack.high - stack.low }
    }
}

impl fmt::Display for SmallStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.bytes >> 10;
        write!(
            f,
            "nests too deeply for what is left of the {kib} KiB stack of this thread; use one with more (threading.stack_size)"
        )
    }
}

/// An address in the frame of whoever this is compiled into.
#[inline(always)]
fn position() -> usize {
    let here = 0u8;
    std::ptr::from_ref(&here).addr()
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use std::mem::MaybeUninit;

    /// The lowest address of the calling thread's stack, and the one behind its highest.
    pub fn bounds() -> Option<(usize, usize)> {
        let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
        let (mut low, mut size) = (std::ptr::null_mut(), 0);
        // SAFETY: the call fills the attributes in where it returns 0; they are given back once, and then not used.
        unsafe {
            if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
                return None;
            }
            let found = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size) == 0;
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            found.then(|| (low.addr(), low.addr().saturating_add(size)))
        }
    }
}

#[cfg(target_os = "macos")]
mod system {
    pub fn bounds() -> Option<(usize, usize)> {
        // SAFETY: both only read what the system knows of the calling thread.
        let (high, size) = unsafe {
            let thread = libc::pthread_self();
            (libc::pthread_get_stackaddr_np(thread).addr(), libc::pthread_get_stacksize_np(thread))
        };
        Some((high.saturating_sub(size), high))
    }
}

#[cfg(windows)]
mod system {
    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn GetCurrentThreadStackLimits(low: *mut usize, high: *mut usize);
    }

    pub fn bounds() -> Option<(usize, usize)> {
        let (mut low, mut high) = (0, 0);
        // SAFETY: the call fills both in, for the calling thread.
        unsafe { GetCurrentThreadStackLimits(&raw mut low, &raw mut high) };
        (low < high).then_some((low, high))
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos", windows)))]
mod system {
    pub fn bounds() -> Option<(usize, usize)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How deep a function goes that looks at each level, in frames of more than 1 KiB.
    fn depth(floor: Floor, at: usize) -> usize {
        if floor.is_near() || at == 100_000 {
            return at;
        }
        let frame = std::hint::black_box([at; 128]);
        let reached = depth(floor, at + 1);
        std::hint::black_box(&frame);
        reached
    }

    fn on_a_stack_of<T: Send + 'static>(bytes: usize, run: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::Builder::new().stack_size(bytes).spawn(run).unwrap().join().unwrap()
    }

    /// The system may hand out a larger stack, of a thread that has ended.
    fn size() -> usize {
        let stack = Stack::of_this_thread();
        stack.high - stack.low
    }

    #[test]
    fn a_walk_that_looks_ends_before_its_stack_does_and_uses_what_there_is() {
        for bytes in [64 << 10, 128 << 10, 1 << 20] {
            let (depth, size) = on_a_stack_of(bytes, || (depth(Floor::of_this_thread(), 0), size()));
            assert!(size >= bytes);
            assert!((depth + 1) * 1024 <= size - RESERVE, "{depth} levels of 1 KiB on {size} bytes");
            // (Instrumented builds have larger frames.)
            assert!(depth * 8192 >= size - 2 * RESERVE, "{depth} levels of 1 KiB on {size} bytes");
        }
    }

    #[test]
    fn what_runs_on_a_stack_that_is_not_its_threads_has_no_floor() {
        STACK.set(Some(Stack { low: usize::MAX - 1, high: usize::MAX, ..UNKNOWN })); // as if this stack were another's
        assert!(!Floor::of_this_thread().is_near());
        assert!(Stack::of_this_thread().has_room(usize::MAX));
    }

    #[test]
    fn the_text_names_the_threads_stack() {
        let (text, size) = on_a_stack_of(512 << 10, || (SmallStack::of_this_thread().to_string(), size()));
        assert!(text.contains(&format!(" {} KiB stack of this thread", size >> 10)), "{text}");
    }
}
