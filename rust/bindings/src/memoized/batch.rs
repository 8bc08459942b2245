//! A decorated batch function: each item has a key and an entry of its own, and known batches are answered here.

use super::call::{Callable, Next, callable_type};
use super::{Common, Parts, bound, invalid, peek};
use crate::document::{Draft, Holes};
use crate::flight::{self, Entry, Terms};
use crate::key::{self, Key};
use crate::lazy::intern;
use crate::{document, value};
use infercache_core::cache::Found;
use infercache_core::entry::{EntryRef, KeyBytes};
use infercache_core::key::Scope;
use infercache_core::stats::Count;
use infercache_core::value::kind;
use pyo3::exceptions::PyTypeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use std::sync::Arc;

/// A decorated batch function but for its being callable: `MemoizedBatch` in Python is the class below it that is.
#[pyclass(frozen, subclass, module = "infercache._core", name = "_MemoizedBatch")]
pub struct MemoizedBatch {
    common: Common,
    /// The parameter that holds the items, and where it stands among the positional ones.
    over: Py<PyString>,
    position: Option<usize>,
}

/// An answer, or a method to call and its arguments.
type Step<'py> = (Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyTuple>>);

/// What looking a batch's items up found.
struct Batch {
    scope: Arc<Scope>,
    keys: Vec<KeyBytes>,
    found: Vec<Option<(EntryRef, u64)>>,
    stale: Vec<usize>,
    /// Whether others have run since the keys were formed.
    waited: bool,
}

/// What the entries of a batch make.
enum Assembled<'py> {
    Whole(Bound<'py, PyAny>),
    /// Arrays of different shapes or dtypes.
    Unalike,
    /// A stored value does not decode; all are gone.
    Corrupt,
}

impl Batch {
    fn is_complete(&self) -> bool {
        self.found.iter().all(Option::is_some)
    }

    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        list_of(py, self.keys.iter().map(|key| Key::new(*key, self.scope.clone())))
    }

    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let entry = |found: &Option<(EntryRef, u64)>| match found {
            None => Ok(py.None().into_bound(py)),
            Some((entry, stamp)) => Ok(Bound::new(py, Entry { entry: entry.clone(), stamp: *stamp })?.into_any()),
        };
        PyList::new(py, self.found.iter().map(entry).collect::<PyResult<Vec<_>>>()?)
    }
}

fn list_of<'py>(py: Python<'py>, keys: impl Iterator<Item = Key>) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, keys.map(|key| Bound::new(py, key)).collect::<PyResult<Vec<_>>>()?)
}

/// The keys of a batch's items. Those whose documents have digests that a device computes are known when the others are, and
/// the digests of all of them come in one go.
struct Forming<'a> {
    scope: &'a Scope,
    keys: Vec<KeyBytes>,
    /// Which keys are yet to be made, and their documents.
    open: Vec<usize>,
    documents: Vec<(Vec<u8>, Holes)>,
}

impl Forming<'_> {
    #[inline]
    fn add(&mut self, py: Python<'_>, document: &[u8], holes: Holes) -> PyResult<()> {
        if holes.is_empty() {
            self.keys.push(key::of_document(py, self.scope, document));
        } else {
            self.open.push(self.keys.len());
            self.documents.push((document.to_vec(), holes));
            self.keys.push(KeyBytes::default());
        }
        Ok(())
    }
}

/// The keys of a batch's items, and what those that are not known yet will be made from, in their order.
struct Formed {
    keys: Vec<KeyBytes>,
    open: Vec<(usize, Draft)>,
}

impl Formed {
    /// All keys' bytes; waits for what a device computes.
    fn bytes(mut self, py: Python<'_>, scope: &Scope) -> PyResult<Vec<KeyBytes>> {
        for (index, draft) in self.open {
            self.keys[index] = key::of_document(py, scope, &draft.whole(py)?);
        }
        Ok(self.keys)
    }

    /// The keys, which wait for nothing before their bytes are asked for.
    fn keys<'py>(self, py: Python<'py>, scope: &Arc<Scope>) -> PyResult<Bound<'py, PyList>> {
        let mut keys: Vec<Key> = self.keys.into_iter().map(|key| Key::new(key, scope.clone())).collect();
        for (index, draft) in self.open {
            keys[index] = key::Formed::Open(Box::new(draft)).key(scope.clone());
        }
        list_of(py, keys.into_iter())
    }
}

impl MemoizedBatch {
    /// The items of a call as a tuple, if they are a list or a tuple; anything else is for Python to take apart.
    fn items<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let positional = self.position.and_then(|position| args.get_item(position).ok());
        let given = match positional {
            Some(given) => Some(given),
            None => kwargs.map(|kwargs| kwargs.get_item(&self.over)).transpose()?.flatten(),
        };
        let Some(given) = given else { return Ok(None) };
        if let Ok(list) = given.cast_exact::<PyList>() {
            // A copy: code of the caller's own may run while the items' keys are formed.
            return Ok(Some(list.to_tuple()));
        }
        Ok(given.cast_into_exact::<PyTuple>().ok())
    }

    fn look(&self, scope: Arc<Scope>, keys: Vec<KeyBytes>, waited: bool) -> Batch {
        let common = &self.common;
        let (mut found, mut stale) = (Vec::with_capacity(keys.len()), Vec::new());
        for (index, key) in keys.iter().enumerate() {
            found.push(match common.revalidate {
                None => common.cache.get(key).map(|entry| {
                    let stamp = entry.stamp();
                    (entry, stamp)
                }),
                most => match common.cache.find(key, most) {
                    Found::Fresh(hit) => Some((hit.entry, hit.stamp.to_word())),
                    Found::Stale(hit) => {
                        stale.push(index);
                        Some((hit.entry, hit.stamp.to_word()))
                    }
                    Found::Miss => None,
                },
            });
        }
        Batch { scope, keys, found, stale, waited }
    }

    fn form<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        items: &Bound<'py, PyTuple>,
    ) -> PyResult<(Arc<Scope>, Formed)> {
        let (common, arguments) = (&self.common, self.common.arguments.get());
        let bound = || arguments.bind(py, args, kwargs);
        let scope = common.scope(py, bound)?;
        let keys = Vec::with_capacity(items.len());
        let mut forming = Forming { scope: &scope, keys, open: Vec::new(), documents: Vec::new() };
        let mut add = |document: &[u8], holes| forming.add(py, document, holes);
        match &common.document {
            None => {
                // Everything but the item is written once.
                let template = arguments.items(py, args, kwargs, self.over.bind(py).to_str()?)?;
                for item in items.iter_borrowed() {
                    document::with_document(py, |out| template.write(py, &item, out), &mut add)?;
                }
            }
            Some(function) => {
                let bound = bound()?;
                for item in items.iter_borrowed() {
                    bound.set_item(&self.over, item)?;
                    let value = function.bind(py).call((), Some(&bound))?;
                    document::with_document(py, |out| document::write(py, &value, out), &mut add)?;
                }
            }
        }
        let Forming { keys, open, documents, .. } = forming;
        let drafts = if open.is_empty() { Vec::new() } else { Draft::begin_all(py, documents)? };
        Ok((scope, Formed { keys, open: open.into_iter().zip(drafts).collect() }))
    }

    /// The result of a batch of which every item was found.
    fn assemble<'py>(&self, py: Python<'py>, batch: &Batch) -> PyResult<Assembled<'py>> {
        let entries = batch.found.iter().flatten();
        let parts: Vec<value::Part<'_, '_>> = entries.clone().map(|(entry, _)| value::Part::Stored(entry)).collect();
        let terms = self.common.terms.get();
        let schema = terms.schema.as_ref().map(|schema| schema.bind(py));
        match value::assemble(py, &parts, schema, terms.copy, &terms.chosen) {
            // Rows that do not fit together: only the function can say what its answer to all of them is.
            Ok(result) if is_unalike(&parts, &result) => {
                self.recount(batch);
                Ok(Assembled::Unalike)
            }
            Ok(result) => {
                if let Some(least) = entries.map(|(_, stamp)| *stamp).min() {
                    flight::used(py, least)?;
                }
                Ok(Assembled::Whole(result))
            }
            Err(error) if self.common.is_corrupt(py, &error)? => {
                for key in &batch.keys {
                    self.common.cache.remove(key);
                }
                self.recount(batch);
                Ok(Assembled::Corrupt)
            }
            Err(error) => Err(error),
        }
    }

    /// What was counted as hits is misses: the entries do not make an answer.
    #[cold]
    fn recount(&self, batch: &Batch) {
        for (index, found) in batch.found.iter().enumerate() {
            if let Some((entry, _)) = found {
                self.common.cache.recount_as_miss(entry, Count::hit(batch.stale.contains(&index)));
            }
        }
    }
}

#[pymethods]
impl MemoizedBatch {
    #[new]
    fn new(py: Python<'_>, parts: Parts<'_>, over: Py<PyString>, position: Option<usize>) -> PyResult<MemoizedBatch> {
        Ok(MemoizedBatch { common: Common::new(py, parts)?, over, position })
    }

    /// What a call comes to once its items are known to be a tuple that is not empty: `(answer, None, None)`, or the
    /// method to call and its arguments. A call that does not `wait` for a device and would have to comes to
    /// `(None, None, keys)`, to go on with these `keys` when they are there.
    #[pyo3(signature = (args, kwargs, items, keys=None, wait=true))]
    fn _next<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        items: &Bound<'py, PyTuple>,
        keys: Option<Vec<Py<Key>>>,
        wait: bool,
    ) -> PyResult<Step<'py>> {
        let (py, waited) = (slf.py(), keys.is_some());
        let (scope, keys) = match keys {
            Some(keys) => {
                let scope = keys.first().and_then(|key| key.get().scope.clone());
                let bytes = keys.iter().map(|key| key.get().bytes(py).copied()).collect::<PyResult<_>>()?;
                (scope.ok_or_else(|| invalid(py, "keys that no call has formed".to_owned()))?, bytes)
            }
            None => {
                let (scope, formed) = slf.get().form(py, args, kwargs, items)?;
                if !wait && !formed.open.is_empty() {
                    return Ok((None, None, Some(formed.keys(py, &scope)?.to_tuple())));
                }
                let bytes = formed.bytes(py, &scope)?;
                (scope, bytes)
            }
        };
        Ok(match slf.get().answer(slf, args, kwargs, items, slf.get().look(scope, keys, waited))? {
            Next::Answer(answer) => (Some(answer), None, None),
            Next::Call(method, arguments) => (None, Some(method), Some(arguments)),
        })
    }

    /// The keys of these items, the other arguments being as given.
    fn _keys<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        items: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyList>> {
        let (scope, formed) = self.form(py, args, kwargs, items)?;
        formed.keys(py, &scope)
    }

    /// The entry that a call would be answered with for this key, or None; counts nothing.
    fn _peek(&self, py: Python<'_>, key: &Key) -> PyResult<Option<Entry>> {
        peek(py, &self.common, key)
    }

    /// Whether a call's model or version is not the key's any more.
    #[pyo3(signature = (args, kwargs, key))]
    fn _renamed(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        key: &Key,
    ) -> PyResult<bool> {
        self.common.is_renamed(py, args, kwargs, key)
    }

    /// The arguments of a call by name, defaults applied.
    #[pyo3(signature = (args, kwargs))]
    fn _bind<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.common.arguments.get().bind(py, args, kwargs)
    }

    fn __get__<'py>(
        slf: Bound<'py, Self>,
        instance: Option<Bound<'py, PyAny>>,
        owner: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let kind = slf.get().common.binds;
        bound::bind(slf.into_any(), kind, instance, owner)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.common.traverse(&visit)
    }
}

impl Callable for MemoizedBatch {
    fn next<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Next<'py>> {
        let py = slf.py();
        match slf.get().items(args, kwargs)?.filter(|items| !items.is_empty()) {
            Some(items) => {
                let (scope, formed) = slf.get().form(py, args, kwargs, &items)?;
                let keys = formed.bytes(py, &scope)?;
                slf.get().answer(slf, args, kwargs, &items, slf.get().look(scope, keys, false))
            }
            None => Ok(Next::Call(slf.getattr(intern!(py, "_unusual"))?, (args, kwargs).into_pyobject(py)?)),
        }
    }
}

impl MemoizedBatch {
    fn answer<'py>(
        &self,
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        items: &Bound<'py, PyTuple>,
        mut batch: Batch,
    ) -> PyResult<Next<'py>> {
        let py = slf.py();
        if batch.is_complete() {
            match self.assemble(py, &batch)? {
                Assembled::Whole(answer) if batch.stale.is_empty() => return Ok(Next::Answer(answer)),
                Assembled::Whole(answer) => {
                    let stale = (args, kwargs, items, batch.keys(py)?, &batch.stale, answer).into_pyobject(py)?;
                    return Ok(Next::Call(slf.getattr(intern!(py, "_stale"))?, stale));
                }
                Assembled::Unalike => {
                    let unalike = (args, kwargs, items).into_pyobject(py)?;
                    return Ok(Next::Call(slf.getattr(intern!(py, "_unalike"))?, unalike));
                }
                Assembled::Corrupt => batch.found.fill(None),
            }
        }
        let (keys, entries) = (batch.keys(py)?, batch.entries(py)?);
        let missing = (args, kwargs, items, keys, entries, &batch.stale, batch.waited).into_pyobject(py)?;
        Ok(Next::Call(slf.getattr(intern!(py, "_miss"))?, missing))
    }
}

/// The items of a batch function's result in stored form: for each an `Encoded`, or text that says why it has none.
/// An integer: so many results, not `items`. Text: why the result has no items.
#[pyfunction]
fn encode_rows<'py>(
    py: Python<'py>,
    result: &Bound<'py, PyAny>,
    items: usize,
    terms: &Terms,
) -> PyResult<Bound<'py, PyAny>> {
    let schema = terms.schema.as_ref().map(|schema| schema.bind(py));
    match value::encode_rows(py, result, items, schema, &terms.chosen)? {
        value::Rows::Count(found) => Ok(found.into_pyobject(py)?.into_any()),
        value::Rows::Unsuited(reason) => Ok(reason.into_pyobject(py)?.into_any()),
        value::Rows::Items(rows) => {
            let row = |row: Result<value::Encoded, String>| match row {
                Ok(encoded) => Ok(Bound::new(py, flight::Encoded(encoded))?.into_any()),
                Err(reason) => Ok(reason.into_pyobject(py)?.into_any()),
            };
            Ok(PyList::new(py, rows.into_iter().map(row).collect::<PyResult<Vec<_>>>()?)?.into_any())
        }
    }
}

/// Whether these are rows of arrays that did not become one.
fn is_unalike(parts: &[value::Part<'_, '_>], result: &Bound<'_, PyAny>) -> bool {
    let is_row = |part: &value::Part<'_, '_>| matches!(part, value::Part::Stored(entry) if entry.kind() & kind::MASK == kind::ROW);
    (result.is_exact_instance_of::<PyList>() || result.is_exact_instance_of::<PyTuple>()) && parts.iter().any(is_row)
}

/// A batch function's result from its items: an `Entry`, or the object itself in a tuple of one, for each. None: they are
/// rows that do not fit together.
#[pyfunction]
fn assemble<'py>(py: Python<'py>, items: Vec<Bound<'py, PyAny>>, terms: &Terms) -> PyResult<Option<Bound<'py, PyAny>>> {
    let mut least = u64::MAX;
    let mut objects = Vec::with_capacity(items.len());
    for item in &items {
        objects.push(match item.cast_exact::<Entry>() {
            Ok(entry) => {
                least = least.min(entry.get().stamp);
                None
            }
            Err(_) => match item.cast_exact::<PyTuple>() {
                Ok(object) => Some(object.get_item(0)?),
                Err(_) => return Err(PyTypeError::new_err("an item is an Entry or a tuple of one object")),
            },
        });
    }
    let mut parts = Vec::with_capacity(items.len());
    for (item, object) in items.iter().zip(&objects) {
        parts.push(match object {
            Some(object) => value::Part::Object(object),
            None => value::Part::Stored(&item.cast_exact::<Entry>()?.get().entry),
        });
    }
    let schema = terms.schema.as_ref().map(|schema| schema.bind(py));
    let result = value::assemble(py, &parts, schema, terms.copy, &terms.chosen)?;
    if is_unalike(&parts, &result) {
        return Ok(None);
    }
    if least != u64::MAX {
        flight::used(py, least)?;
    }
    Ok(Some(result))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MemoizedBatch", callable_type::<MemoizedBatch>(module.py(), c"infercache._core.MemoizedBatch")?)?;
    module.add_function(wrap_pyfunction!(encode_rows, module)?)?;
    module.add_function(wrap_pyfunction!(assemble, module)?)
}
