//! What a walk points at, and when it takes references.
//!
//! While only plain values and builtin containers are written no Python code runs, so nothing that the walk points at
//! can go away, and it takes no references: counting up and down costs more than writing a short value. Before
//! anything that may run Python code (a property, a registered form, even an allocation that sets off the garbage
//! collector) [`Pins::hold`] takes a reference to everything that is still pointed at.

use super::Holes;
use infercache_core::document::utf16_order;
use infercache_core::stack::Stack;
use pyo3::ffi;
use std::cmp::Ordering;

/// A member of a mapping that is being written.
pub struct Entry {
    /// Keeps the name alive: the name itself, or the text that an Enum member or a NumPy string stands for.
    pub key: *mut ffi::PyObject,
    /// What is to be written under the name.
    pub value: *mut ffi::PyObject,
    /// The name's UTF-8, which CPython keeps with the text in `key`; empty while it is not known.
    name: *const u8,
    length: usize,
    /// The first eight bytes of the name as a number, so that most comparisons need no look at the name.
    prefix: u64,
}

impl Entry {
    /// A member whose name is not known to be text yet.
    pub fn new(key: *mut ffi::PyObject, value: *mut ffi::PyObject) -> Entry {
        Entry { key, value, name: std::ptr::NonNull::dangling().as_ptr(), length: 0, prefix: 0 }
    }

    /// The name.
    ///
    /// # Safety
    ///
    /// `key` is alive, and the text given to [`Entry::set_name`] is its UTF-8.
    #[inline]
    pub unsafe fn name<'a>(&self) -> &'a str {
        // SAFETY: as the caller vouches: CPython keeps valid UTF-8 as long as the text lives.
        unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(self.name, self.length)) }
    }

    /// Notes the UTF-8 of `key`.
    #[inline]
    pub fn set_name(&mut self, name: &str) {
        let bytes = name.as_bytes();
        self.prefix = match bytes.first_chunk::<8>() {
            Some(first) => u64::from_be_bytes(*first),
            None => bytes.iter().rev().fold(0, |prefix, &byte| prefix >> 8 | u64::from(byte) << 56),
        };
        (self.name, self.length) = (bytes.as_ptr(), bytes.len());
    }

    /// The canonical order of two members.
    ///
    /// # Safety
    ///
    /// As [`Entry::name`], for both.
    #[inline]
    pub unsafe fn order(&self, other: &Entry) -> Ordering {
        const NON_ASCII: u64 = 0x8080_8080_8080_8080;
        if self.prefix != other.prefix && (self.prefix | other.prefix) & NON_ASCII == 0 {
            return self.prefix.cmp(&other.prefix);
        }
        // SAFETY: as the caller vouches.
        unsafe { utf16_order(self.name().as_bytes(), other.name().as_bytes()) }
    }
}

/// The members of open mappings and the open containers of one walk.
pub struct Pins {
    /// Of the thread that walks: here, so that a walk need not ask for it.
    pub stack: Stack,
    /// Members of the mappings that are being written, one mapping after another.
    pub entries: Vec<Entry>,
    /// Where digests are missing that a device computes.
    pub holes: Holes,
    /// The containers that are being written, outermost first.
    open: Vec<*mut ffi::PyObject>,
    /// So many of the first entries and containers have a reference of their own.
    held_entries: usize,
    held_open: usize,
}

impl Default for Pins {
    fn default() -> Pins {
        let stack = Stack::of_this_thread();
        Pins { stack, entries: Vec::new(), holes: Holes::new(), open: Vec::new(), held_entries: 0, held_open: 0 }
    }
}

impl Pins {
    /// Takes a reference to all that is pointed at and has none.
    ///
    /// # Safety
    ///
    /// The GIL is held, and no Python code ran since the pointers were pinned or last held.
    #[inline]
    pub unsafe fn hold(&mut self) {
        // SAFETY: live objects, as the caller vouches.
        unsafe {
            for entry in &self.entries[self.held_entries..] {
                ffi::Py_INCREF(entry.key);
                ffi::Py_INCREF(entry.value);
            }
            for &container in &self.open[self.held_open..] {
                ffi::Py_INCREF(container);
            }
        }
        self.held_entries = self.entries.len();
        self.held_open = self.open.len();
    }

    /// Notes that the walk is inside this container.
    #[inline]
    pub fn enter(&mut self, container: *mut ffi::PyObject) {
        self.open.push(container);
    }

    /// The walk leaves the container entered last.
    ///
    /// # Safety
    ///
    /// The GIL is held.
    #[inline]
    pub unsafe fn leave(&mut self) {
        if let Some(container) = self.open.pop()
            && self.held_open > self.open.len()
        {
            self.held_open = self.open.len();
            // SAFETY: the reference that `hold` took.
            unsafe { ffi::Py_DECREF(container) };
        }
    }

    /// Forgets the entries from `first` on.
    ///
    /// # Safety
    ///
    /// The GIL is held.
    #[inline]
    pub unsafe fn truncate(&mut self, first: usize) {
        while self.held_entries > first {
            self.held_entries -= 1;
            let entry = &self.entries[self.held_entries];
            let (key, value) = (entry.key, entry.value);
            // SAFETY: the references that `hold` took; the entry is no longer counted as held.
            unsafe {
                ffi::Py_DECREF(key);
                ffi::Py_DECREF(value);
            }
        }
        self.entries.truncate(first);
    }

    /// Puts another text in place of a held entry's name.
    ///
    /// # Safety
    ///
    /// The GIL is held, the entry is held, and `text` is a reference that is given away.
    pub unsafe fn replace_key(&mut self, at: usize, text: *mut ffi::PyObject) {
        debug_assert!(at < self.held_entries);
        let before = std::mem::replace(&mut self.entries[at].key, text);
        // SAFETY: the reference that `hold` took.
        unsafe { ffi::Py_DECREF(before) };
    }

    /// Whether a container is inside itself.
    pub fn is_cycle(&self) -> bool {
        let mut open = self.open.clone();
        open.sort_unstable();
        open.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// Gives all references back and keeps the memory.
    ///
    /// # Safety
    ///
    /// The GIL is held.
    pub unsafe fn clear(&mut self) {
        self.holes.clear();
        // SAFETY: as the caller vouches.
        unsafe {
            self.truncate(0);
            while !self.open.is_empty() {
                self.leave();
            }
        }
    }

    /// Bytes of memory held.
    pub fn capacity(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.open.capacity() * size_of::<usize>()
    }
}
