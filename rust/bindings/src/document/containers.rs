//! Lists, tuples, mappings and sets.
//!
//! Whatever Python code runs in between (a property, a registered form, another thread), nothing is read from memory
//! that may be gone: a mapping's members are taken with references of their own before the first one is written, and a
//! list is asked for its length again at each item.

use super::fault::{Fault, Outcome, Step, shortened};
use super::scalars::utf8;
use super::{Walk, forms, kinds, refused};
use infercache_core::document::utf16_order;
use kinds::Kind;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySet};
use std::cmp::Ordering;
use std::ops::Range;

/// A member of a mapping that is being written.
pub struct Entry<'py> {
    /// Keeps `name` alive: the name itself, or the text that an Enum member or a NumPy string stands for.
    key: Bound<'py, PyAny>,
    value: Bound<'py, PyAny>,
    /// The name's UTF-8, which CPython keeps with the text in `key`; meaningless while a name is not known to be text.
    name: *const [u8],
    /// The first eight bytes of the name as a number, so that most comparisons need no look at the name.
    prefix: u64,
}

const NO_NAME: *const [u8] = &[];

impl Entry<'_> {
    fn name(&self) -> &[u8] {
        // SAFETY: set from the UTF-8 of `key`, which is immutable and lives as long as `key`.
        unsafe { &*self.name }
    }

    fn set_name(&mut self, name: &str) {
        let bytes = name.as_bytes();
        self.prefix = match bytes.first_chunk::<8>() {
            Some(first) => u64::from_be_bytes(*first),
            None => bytes.iter().rev().fold(0, |prefix, &byte| prefix >> 8 | u64::from(byte) << 56),
        };
        self.name = bytes;
    }

    fn order(&self, other: &Entry<'_>) -> Ordering {
        const NON_ASCII: u64 = 0x8080_8080_8080_8080;
        if self.prefix != other.prefix && (self.prefix | other.prefix) & NON_ASCII == 0 {
            return self.prefix.cmp(&other.prefix);
        }
        utf16_order(self.name(), other.name())
    }
}

impl<'py> Walk<'_, 'py> {
    /// Enters a container, writes its inside, leaves it.
    fn contained(&mut self, container: &Bound<'py, PyAny>, inside: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        self.out.enter()?;
        let outcome = inside(self);
        self.out.leave();
        outcome.map_err(|fault| fault.through(container.as_ptr() as usize))
    }

    /// An item that a container holds and lends out.
    ///
    /// # Safety
    ///
    /// `item` is a live object now; it may die as soon as Python code runs.
    #[inline]
    unsafe fn borrowed(&mut self, item: *mut ffi::PyObject) -> Outcome {
        // SAFETY: live, and `plain` runs no Python code; anything else gets a reference of its own first.
        unsafe {
            if self.plain(item)? {
                return Ok(());
            }
            let item = Bound::from_borrowed_ptr(self.py, item);
            self.compound(&item)
        }
    }

    pub(super) fn list(&mut self, list: &Bound<'py, PyAny>) -> Outcome {
        // SAFETY: a list or an instance of a subclass; PyList_Size and PyList_GetItem read its content, check the
        // index, and lend an item that lives at least until Python code runs.
        let length = unsafe { ffi::PyList_Size(list.as_ptr()) };
        self.array_of(list, length, |at| {
            // SAFETY: as above.
            unsafe { ffi::PyList_GetItem(list.as_ptr(), at) }
        })?;
        // SAFETY: as above.
        if unsafe { ffi::PyList_Size(list.as_ptr()) } != length {
            return Err(changed(list));
        }
        Ok(())
    }

    pub(super) fn tuple(&mut self, tuple: &Bound<'py, PyAny>) -> Outcome {
        // SAFETY: as for lists.
        let length = unsafe { ffi::PyTuple_Size(tuple.as_ptr()) };
        self.array_of(tuple, length, |at| {
            // SAFETY: as above.
            unsafe { ffi::PyTuple_GetItem(tuple.as_ptr(), at) }
        })
    }

    #[inline]
    fn array_of(
        &mut self,
        container: &Bound<'py, PyAny>,
        length: ffi::Py_ssize_t,
        item: impl Fn(ffi::Py_ssize_t) -> *mut ffi::PyObject,
    ) -> Outcome {
        self.contained(container, |walk| {
            walk.out.byte(b'[')?;
            for at in 0..length {
                if at > 0 {
                    walk.out.byte(b',')?;
                }
                let item = item(at);
                if item.is_null() {
                    drop(PyErr::take(walk.py)); // IndexError: the list became shorter
                    return Err(changed(container));
                }
                // SAFETY: lent just now.
                unsafe { walk.borrowed(item) }.map_err(|fault| fault.at(Step::Index(at as usize)))?;
            }
            Ok(walk.out.byte(b']')?)
        })
    }

    /// A dict or an instance of a subclass, by its content.
    pub(super) fn mapping(&mut self, dict: &Bound<'py, PyAny>) -> Outcome {
        self.contained(dict, |walk| {
            let first = walk.entries.len();
            walk.take_entries(dict);
            let outcome = match walk.find_names(first)? {
                Names::Plain => walk.object(first, false),
                Names::Text => walk.object(first, true),
                Names::Other => walk.map(first),
            };
            walk.entries.truncate(first);
            outcome
        })
    }

    /// Takes references to all members at once: no Python code runs in between, so it is one state of the dict.
    fn take_entries(&mut self, dict: &Bound<'py, PyAny>) {
        let mut position: ffi::Py_ssize_t = 0;
        let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a dict or an instance of a subclass, which nobody changes while only this loop runs; what it lends
        // gets a reference at once.
        unsafe {
            while ffi::PyDict_Next(dict.as_ptr(), &raw mut position, &raw mut key, &raw mut value) != 0 {
                let key = Bound::from_borrowed_ptr(self.py, key);
                let value = Bound::from_borrowed_ptr(self.py, value);
                self.entries.push(Entry { key, value, name: NO_NAME, prefix: 0 });
            }
        }
    }

    /// Finds the text of each name from `first` on.
    fn find_names(&mut self, first: usize) -> Outcome<Names> {
        let mut names = Names::Plain;
        for at in first..self.entries.len() {
            // SAFETY: every object has a type.
            let class = unsafe { ffi::Py_TYPE(self.entries[at].key.as_ptr()) };
            if class != &raw mut ffi::PyUnicode_Type || self.forms {
                let key = self.entries[at].key.clone();
                let Some(text) = self.name_text(&key).map_err(|fault| fault.at(Step::NameOf))? else {
                    return Ok(Names::Other);
                };
                self.entries[at].key = text;
                names = Names::Text;
            }
            let entry = &mut self.entries[at];
            // SAFETY: a str object or an instance of a subclass, kept alive by the entry.
            let name = unsafe { utf8(self.py, entry.key.as_ptr()) }.map_err(|fault| fault.at(Step::NameOf))?;
            entry.set_name(name);
        }
        Ok(names)
    }

    /// The text that a name counts as: itself, what an Enum member or a NumPy string stands for, or `None`.
    fn name_text(&mut self, name: &Bound<'py, PyAny>) -> Outcome<Option<Bound<'py, PyAny>>> {
        let mut name = name.clone();
        for _ in 0..super::MAX_HOPS {
            if self.forms && forms::of(&name).is_some() {
                return Ok(None);
            }
            if name.is_exact_instance_of::<pyo3::types::PyString>() {
                return Ok(Some(name));
            }
            name = match kinds::of(&name)? {
                Kind::Text => return Ok(Some(name)),
                Kind::EnumMember => name.getattr(pyo3::intern!(self.py, "value"))?,
                // np.str_ is a str; its content is what `.item()` gives.
                Kind::NumpyScalar if name.is_instance_of::<pyo3::types::PyString>() => return Ok(Some(name)),
                _ => return Ok(None),
            };
        }
        Err(refused(&name, "an endless chain of Enum values"))
    }

    /// The members from `first` on as an object.
    fn object(&mut self, first: usize, may_repeat: bool) -> Outcome {
        self.entries[first..].sort_unstable_by(Entry::order);
        let last = self.entries.len();
        if may_repeat
            && let Some(pair) = self.entries[first..last].windows(2).find(|pair| pair[0].name() == pair[1].name())
        {
            let name = shortened(&String::from_utf8_lossy(pair[0].name()));
            return Err(Fault::unsupported(format!("two names of one mapping have the form {name:?}; keep one")));
        }
        self.out.byte(b'{')?;
        for at in first..last {
            if at > first {
                self.out.byte(b',')?;
            }
            let entry = &self.entries[at];
            // SAFETY: UTF-8 of a str object.
            self.out.name(unsafe { std::str::from_utf8_unchecked(entry.name()) })?;
            let value = entry.value.as_ptr();
            // SAFETY: the entry holds a reference until the mapping is done.
            if let Err(fault) = unsafe { self.borrowed(value) } {
                let name = String::from_utf8_lossy(self.entries[at].name()).into_owned();
                return Err(fault.at(Step::Name(name)));
            }
        }
        Ok(self.out.byte(b'}')?)
    }

    /// The members from `first` on as `$map`: the names' forms are written, sorted and taken away, then each pair.
    fn map(&mut self, first: usize) -> Outcome {
        let start = self.out.len();
        let mut names: Vec<(Range<usize>, usize)> = Vec::with_capacity(self.entries.len() - first);
        for at in first..self.entries.len() {
            let key = self.entries[at].key.clone();
            let from = self.out.len();
            self.value(&key).map_err(|fault| fault.at(Step::NameOf))?;
            names.push((from - start..self.out.len() - start, at));
        }
        let forms = self.out.as_bytes()[start..].to_vec();
        self.out.truncate(start);
        names.sort_unstable_by(|a, b| forms[a.0.clone()].cmp(&forms[b.0.clone()]));
        let shown = |name: &Range<usize>| shortened(&String::from_utf8_lossy(&forms[name.clone()]));
        if let Some(pair) = names.windows(2).find(|pair| forms[pair[0].0.clone()] == forms[pair[1].0.clone()]) {
            let name = shown(&pair[0].0);
            return Err(Fault::unsupported(format!("two names of one mapping have the form {name}; keep one")));
        }
        self.out.raw(b"{\"$map\":[")?;
        for (order, (name, at)) in names.iter().enumerate() {
            self.out.raw(if order > 0 { b",[" } else { b"[" })?;
            self.out.raw(&forms[name.clone()])?;
            self.out.byte(b',')?;
            let value = self.entries[*at].value.clone();
            self.value(&value).map_err(|fault| fault.at(Step::Under(shown(name))))?;
            self.out.byte(b']')?;
        }
        Ok(self.out.raw(b"]}")?)
    }

    /// A mappingproxy: the dict that it shows, or what another mapping gives when it is copied.
    pub(super) fn proxy(&mut self, proxy: &Bound<'py, PyAny>) -> Outcome {
        let shown = self.py.import(pyo3::intern!(self.py, "gc"))?.call_method1("get_referents", (proxy,))?;
        if let Ok(shown) = shown.get_item(0)
            && shown.is_instance_of::<PyDict>()
        {
            return self.mapping(&shown);
        }
        let copy = PyDict::new(self.py);
        copy.update(proxy.cast().map_err(PyErr::from)?)?;
        self.mapping(copy.as_any())
    }

    /// A set or frozenset, or an instance of a subclass, by its content: members sorted by their canonical bytes.
    pub(super) fn set(&mut self, set: &Bound<'py, PyAny>) -> Outcome {
        // A copy of the content: copying a set asks no member for its hash and no subclass for its iterator.
        // SAFETY: gives a new reference or an exception.
        let copy = unsafe { Bound::from_owned_ptr_or_err(self.py, ffi::PySet_New(set.as_ptr())) }?;
        let copy = copy.cast_into::<PySet>().map_err(PyErr::from)?;
        self.contained(set, |walk| {
            let start = walk.out.len();
            let mut members: Vec<Range<usize>> = Vec::with_capacity(copy.len());
            for member in &copy {
                let from = walk.out.len();
                walk.value(&member).map_err(|fault| fault.at(Step::Member))?;
                members.push(from - start..walk.out.len() - start);
            }
            let forms = walk.out.as_bytes()[start..].to_vec();
            walk.out.truncate(start);
            members.sort_unstable_by(|a, b| forms[a.clone()].cmp(&forms[b.clone()]));
            if let Some(pair) = members.windows(2).find(|pair| forms[pair[0].clone()] == forms[pair[1].clone()]) {
                let member = shortened(&String::from_utf8_lossy(&forms[pair[0].clone()]));
                return Err(Fault::unsupported(format!("two members of one set have the form {member}; keep one")));
            }
            walk.out.raw(b"{\"$set\":[")?;
            for (order, member) in members.into_iter().enumerate() {
                if order > 0 {
                    walk.out.byte(b',')?;
                }
                walk.out.raw(&forms[member])?;
            }
            Ok(walk.out.raw(b"]}")?)
        })
    }

    /// Named values as an object: the fields of a dataclass or model.
    pub(super) fn record(
        &mut self,
        record: &Bound<'py, PyAny>,
        fields: Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    ) -> Outcome {
        self.contained(record, |walk| {
            let first = walk.entries.len();
            let fields = fields.into_iter();
            walk.entries.extend(fields.map(|(key, value)| Entry { key, value, name: NO_NAME, prefix: 0 }));
            let outcome = match walk.find_names(first)? {
                Names::Other => Err(refused(record, "its fields' names are not text")),
                _ => walk.object(first, true),
            };
            walk.entries.truncate(first);
            outcome
        })
    }
}

/// What the names of a mapping are.
enum Names {
    /// All of exactly type str, so no two are equal.
    Plain,
    /// All text, some of them by way of an Enum member or a subclass.
    Text,
    /// Some are not text.
    Other,
}

#[cold]
fn changed(container: &Bound<'_, PyAny>) -> Box<Fault> {
    refused(container, "it changed while it was read; pass a copy")
}
