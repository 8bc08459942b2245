//! Lists, tuples, mappings and sets.
//!
//! Whatever Python code runs in between (a property, a registered form, another thread), nothing is read from memory
//! that may be gone: a mapping's members are taken with references of their own before the first one is written, and a
//! list is asked for its length again at each item.

use super::fault::{Fault, Outcome, Step, shortened};
use super::pins::Entry;
use super::scalars::{builtin_number, is_number, utf8};
use super::{Walk, forms, kinds, refused};
use kinds::Kind;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySet};
use std::ops::Range;

impl<'py> Walk<'_, 'py> {
    /// Enters a container, writes its inside, leaves it.
    ///
    /// # Safety
    ///
    /// `container` is a live object.
    #[inline]
    unsafe fn contained(
        &mut self,
        container: *mut ffi::PyObject,
        inside: impl FnOnce(&mut Self) -> Outcome,
    ) -> Outcome {
        self.pins.enter(container);
        if self.floor.is_near() || self.out.enter().is_err() {
            return Err(self.too_deep());
        }
        let outcome = inside(self);
        self.out.leave();
        // SAFETY: the walk holds the GIL.
        unsafe { self.pins.leave() };
        outcome
    }

    /// A list or an instance of a subclass, by its content.
    ///
    /// # Safety
    ///
    /// `list` is a live object of that kind, which stays alive at least until Python code runs.
    pub(super) unsafe fn list(&mut self, list: *mut ffi::PyObject) -> Outcome {
        // SAFETY: a list, pinned while it is written; PyList_Size and PyList_GetItem read its content and check the
        // index. What they lend lives at least until Python code runs, before which the walk takes references.
        unsafe {
            let length = ffi::PyList_Size(list);
            self.contained(list, |walk| {
                walk.array_of(length, |at| ffi::PyList_GetItem(list, at))?;
                if ffi::PyList_Size(list) != length {
                    return Err(changed());
                }
                Ok(())
            })
        }
    }

    /// A tuple or an instance of a subclass, by its content.
    ///
    /// # Safety
    ///
    /// As [`Walk::list`].
    pub(super) unsafe fn tuple(&mut self, tuple: *mut ffi::PyObject) -> Outcome {
        // SAFETY: as for lists.
        unsafe {
            let length = ffi::PyTuple_Size(tuple);
            self.contained(tuple, |walk| walk.array_of(length, |at| ffi::PyTuple_GetItem(tuple, at)))
        }
    }

    /// # Safety
    ///
    /// `item` gives live objects, or null with an exception.
    #[inline]
    unsafe fn array_of(
        &mut self,
        length: ffi::Py_ssize_t,
        item: impl Fn(ffi::Py_ssize_t) -> *mut ffi::PyObject,
    ) -> Outcome {
        self.out.byte(b'[')?;
        let mut at = 0;
        while at < length {
            let lent = item(at);
            if lent.is_null() {
                drop(PyErr::take(self.py)); // IndexError: the list became shorter
                return Err(changed());
            }
            // SAFETY: lent just now.
            if !self.forms && unsafe { is_number(lent) } {
                let (from, to) = (at as usize, length as usize);
                // SAFETY: live objects or null; no Python code runs here.
                let number = |at| unsafe { builtin_number(item(at as ffi::Py_ssize_t)) };
                let after = self.out.numbers(from, to, number)?;
                if after > from {
                    at = after as ffi::Py_ssize_t;
                    continue;
                }
            }
            if at > 0 {
                self.out.byte(b',')?;
            }
            // SAFETY: lent just now.
            unsafe { self.any(lent) }.map_err(|fault| fault.at(|| Step::Index(at as usize)))?;
            at += 1;
        }
        Ok(self.out.byte(b']')?)
    }

    /// A dict or an instance of a subclass, by its content.
    ///
    /// # Safety
    ///
    /// As [`Walk::list`].
    pub(super) unsafe fn mapping(&mut self, dict: *mut ffi::PyObject) -> Outcome {
        let entries = |walk: &mut Self| {
            let mut position: ffi::Py_ssize_t = 0;
            let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: a dict, which nobody changes while only this loop runs: the members are one state of it.
            while unsafe { ffi::PyDict_Next(dict, &raw mut position, &raw mut key, &raw mut value) } != 0 {
                walk.pins.entries.push(Entry::new(key, value));
            }
        };
        // SAFETY: as the caller vouches; what the entries point at lives at least until Python code runs.
        unsafe { self.members(dict, false, entries) }
    }

    /// The members that `entries` pins, as an object or `$map`. Names of `fields` are what they are, whatever forms are
    /// registered, and need not be unique: a Pydantic extra may be named like a field that has an alias.
    ///
    /// # Safety
    ///
    /// `container` and what the entries point at are alive; `entries` runs no Python code.
    unsafe fn members(
        &mut self,
        container: *mut ffi::PyObject,
        fields: bool,
        entries: impl FnOnce(&mut Self),
    ) -> Outcome {
        let inside = |walk: &mut Self| {
            let first = walk.pins.entries.len();
            entries(walk);
            if walk.eager {
                walk.hold();
            }
            let outcome = match walk.find_names(first, fields)? {
                Names::Plain => walk.object(first, fields),
                Names::Text => walk.object(first, true),
                Names::Other => walk.map(first),
            };
            // SAFETY: the walk holds the GIL.
            unsafe { walk.pins.truncate(first) };
            outcome
        };
        // SAFETY: as the caller vouches.
        unsafe { self.contained(container, inside) }
    }

    /// Finds the text of each name from `first` on.
    #[inline]
    fn find_names(&mut self, first: usize, fields: bool) -> Outcome<Names> {
        let mut names = Names::Plain;
        for at in first..self.pins.entries.len() {
            let key = self.pins.entries[at].key;
            // SAFETY: pinned; every object has a type.
            let class = unsafe { ffi::Py_TYPE(key) };
            if class != &raw mut ffi::PyUnicode_Type || (self.forms && !fields) {
                self.hold();
                // SAFETY: held.
                let key = unsafe { Bound::from_borrowed_ptr(self.py, key) };
                let Some(text) = self.name_text(&key).map_err(|fault| fault.at(|| Step::NameOf))? else {
                    return Ok(Names::Other);
                };
                // SAFETY: held above; the reference is given away.
                unsafe { self.pins.replace_key(at, text.into_ptr()) };
                names = Names::Text;
            }
            let entry = &mut self.pins.entries[at];
            // SAFETY: a str object or an instance of a subclass, pinned.
            let name = unsafe { utf8(self.py, entry.key) };
            let name = name.map_err(|error| self.lost(error)).map_err(|fault| fault.at(|| Step::NameOf))?;
            self.pins.entries[at].set_name(name);
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
                Kind::EnumMember => name.getattr(crate::lazy::intern!(self.py, "value"))?,
                // np.str_ is a str; its content is what `.item()` gives.
                Kind::NumpyScalar if name.is_instance_of::<pyo3::types::PyString>() => return Ok(Some(name)),
                _ => return Ok(None),
            };
        }
        Err(refused(&name, "an endless chain of Enum values"))
    }

    /// The members from `first` on as an object.
    #[inline]
    fn object(&mut self, first: usize, may_repeat: bool) -> Outcome {
        // SAFETY: the entries' keys are pinned.
        self.pins.entries[first..].sort_unstable_by(|a, b| unsafe { a.order(b) });
        if may_repeat {
            self.refuse_repeated(first)?;
        }
        self.out.byte(b'{')?;
        for at in first..self.pins.entries.len() {
            if at > first {
                self.out.byte(b',')?;
            }
            let entry = &self.pins.entries[at];
            let value = entry.value;
            // SAFETY: pinned, both of them.
            unsafe {
                self.out.name(entry.name())?;
                let written = self.any(value);
                written.map_err(|fault| fault.at(|| Step::Name(self.pins.entries[at].name().to_owned())))?;
            }
        }
        Ok(self.out.byte(b'}')?)
    }

    #[cold]
    fn refuse_repeated(&self, first: usize) -> Outcome {
        for pair in self.pins.entries[first..].windows(2) {
            // SAFETY: the entries' keys are pinned.
            let (name, next) = unsafe { (pair[0].name(), pair[1].name()) };
            if name == next {
                let name = shortened(name);
                return Err(Fault::unsupported(format!("two names of one mapping have the form {name:?}; keep one")));
            }
        }
        Ok(())
    }

    /// The members from `first` on as `$map`: the names' forms are written, sorted and taken away, then each pair.
    fn map(&mut self, first: usize) -> Outcome {
        let (start, holes) = (self.out.len(), self.pins.holes.len());
        self.hold();
        let mut names: Vec<(Range<usize>, usize)> = Vec::with_capacity(self.pins.entries.len() - first);
        let defer = std::mem::take(&mut self.defer); // the order of names depends on their digests
        for at in first..self.pins.entries.len() {
            let from = self.out.len();
            // SAFETY: held.
            unsafe { self.any(self.pins.entries[at].key) }.map_err(|fault| fault.at(|| Step::NameOf))?;
            names.push((from - start..self.out.len() - start, at));
        }
        self.settle(holes)?;
        self.defer = defer;
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
            // SAFETY: held.
            unsafe { self.any(self.pins.entries[*at].value) }.map_err(|fault| fault.at(|| Step::Under(shown(name))))?;
            self.out.byte(b']')?;
        }
        Ok(self.out.raw(b"]}")?)
    }

    /// A mappingproxy: the dict that it shows, or what another mapping gives when it is copied.
    pub(super) fn proxy(&mut self, proxy: &Bound<'py, PyAny>) -> Outcome {
        let shown = self.py.import(crate::lazy::intern!(self.py, "gc"))?.call_method1("get_referents", (proxy,))?;
        if let Ok(shown) = shown.get_item(0)
            && shown.is_instance_of::<PyDict>()
        {
            // SAFETY: a dict, of which `shown` is a reference.
            return unsafe { self.mapping(shown.as_ptr()) };
        }
        let copy = PyDict::new(self.py);
        copy.call_method1(crate::lazy::intern!(self.py, "update"), (proxy,))?;
        // SAFETY: a dict, of which `copy` is a reference.
        unsafe { self.mapping(copy.as_ptr()) }
    }

    /// A set or frozenset, or an instance of a subclass, by its content: members sorted by their canonical bytes.
    pub(super) fn set(&mut self, set: &Bound<'py, PyAny>) -> Outcome {
        // A copy of the content: copying a set asks no member for its hash and no subclass for its iterator.
        // SAFETY: gives a new reference or an exception.
        let copy = unsafe { Bound::from_owned_ptr_or_err(self.py, ffi::PySet_New(set.as_ptr())) }?;
        let copy = copy.cast_into::<PySet>().map_err(PyErr::from)?;
        let inside = |walk: &mut Self| {
            let (start, holes) = (walk.out.len(), walk.pins.holes.len());
            let mut members: Vec<Range<usize>> = Vec::with_capacity(copy.len());
            let defer = std::mem::take(&mut walk.defer); // their order depends on their digests
            for member in &copy {
                let from = walk.out.len();
                walk.value(&member).map_err(|fault| fault.at(|| Step::Member))?;
                members.push(from - start..walk.out.len() - start);
            }
            walk.settle(holes)?;
            walk.defer = defer;
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
        };
        // SAFETY: `set` is a reference.
        unsafe { self.contained(set.as_ptr(), inside) }
    }

    /// Named values as an object: the fields of a dataclass or model.
    pub(super) fn record(
        &mut self,
        record: &Bound<'py, PyAny>,
        fields: &[(Bound<'py, PyAny>, Bound<'py, PyAny>)],
    ) -> Outcome {
        let entries = |walk: &mut Self| {
            walk.pins.entries.extend(fields.iter().map(|(name, value)| Entry::new(name.as_ptr(), value.as_ptr())));
        };
        // SAFETY: `record` and `fields` are references.
        unsafe { self.members(record.as_ptr(), true, entries) }
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
fn changed() -> Box<Fault> {
    Fault::unsupported("the list changed while it was read; pass a copy")
}
