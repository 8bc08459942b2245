//! Requests of a log, replayed through a cache: its own look-ups and stores, on a clock that the log moves.
//!
//! Nothing is modelled here. What a look-up finds, what is evicted and when it expires is decided by the very code that
//! serves: each request is a `get`, and where that finds nothing a store of so many bytes, as a caller of the cache does it.

use crate::clock::ManualClock;
use crate::errors;
use crate::released::released;
use crate::store::Store;
use infercache_core::cache::{Cache, Stored, Write};
use infercache_core::entry::KeyBytes;
use infercache_core::error::Error;
use infercache_core::scopes::ScopeId;
use infercache_core::value::kind;
use numpy::{Element, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::atomic::{AtomicU64, Ordering};

/// What became of a request: not found, and stored then.
const MISSED: u8 = 0;
/// Found, and not expired.
const HIT: u8 = 1;
/// Not found, and not stored: larger than the cache.
const REFUSED: u8 = 2;

/// Requests in the order of their times, one an element of each.
struct Requests<'a> {
    /// Which of the keys is asked for.
    asked: &'a [u32],
    /// When, in milliseconds of the clock.
    times: &'a [u64],
    /// Bytes of the answer.
    sizes: &'a [u64],
    /// Seconds that the model takes for it.
    costs: &'a [f32],
    /// Whose answer it is.
    models: &'a [u16],
}

impl Requests<'_> {
    /// What keeps them from being replayed with so many keys and models, from `now` on.
    fn fault(&self, keys: usize, models: usize, now: u64) -> Option<String> {
        let count = self.asked.len();
        if [self.times.len(), self.sizes.len(), self.costs.len(), self.models.len()].iter().any(|&one| one != count) {
            return Some("the arrays of requests differ in length".into());
        }
        if self.asked.iter().any(|&key| key as usize >= keys)
            || self.models.iter().any(|&one| usize::from(one) >= models)
        {
            return Some("a request asks for a key or a model that is not there".into());
        }
        if !self.times.is_sorted() || self.times.first().is_some_and(|&first| first < now) {
            return Some("requests are replayed in the order of their times".into());
        }
        None
    }

    /// Asks for each, and stores what is not found. What became of them, in their order.
    fn replay(
        &self,
        cache: &Cache,
        hand: &AtomicU64,
        keys: &[KeyBytes],
        scopes: &[ScopeId],
        life: Option<u64>,
    ) -> Vec<u8> {
        // Whatever an answer holds has no say in what the cache does with it.
        let content = vec![0; self.sizes.iter().copied().max().unwrap_or(0) as usize];
        let outcome = |place: usize| {
            hand.store(self.times[place], Ordering::Relaxed);
            let key = &keys[self.asked[place] as usize];
            if cache.get(key).is_some() {
                return HIT;
            }
            let write = Write {
                kind: kind::BYTES,
                aligned: false,
                payload: &content[..self.sizes[place] as usize],
                scope: scopes[usize::from(self.models[place])],
                tags: &[],
                stamp: cache.stamp(),
                life,
                stale: 0,
                cost: self.costs[place],
            };
            // In two steps, as the bindings store what callers give.
            match cache.prepare(key, &write, &[]).map(|prepared| cache.store_prepared(&prepared)) {
                Some(Stored::Kept) => MISSED,
                _ => REFUSED,
            }
        };
        (0..self.asked.len()).map(outcome).collect()
    }
}

/// The elements of a contiguous array of this type.
fn elements<'a, T: Element>(array: &'a Bound<'_, PyUntypedArray>, name: &str) -> PyResult<&'a [T]> {
    let py = array.py();
    if !array.is_c_contiguous() || !array.dtype().is_equiv_to(&numpy::dtype::<T>(py)) {
        let wanted = numpy::dtype::<T>(py);
        let reason = format!("{name}: give a contiguous array of {wanted}, not of {}", array.dtype());
        return Err(errors::to_python(py, &Error::InvalidArgument { reason }));
    }
    // SAFETY: so many elements of this type lie there, aligned (NumPy's own arrays are; `fault` below refuses others), and
    // they stay while the array is referred to. What another thread writes meanwhile is the caller's race.
    let start = unsafe { (*array.as_array_ptr()).data.cast::<T>().cast_const() };
    if array.len() == 0 {
        return Ok(&[]);
    }
    if !start.is_aligned() {
        let reason = format!("{name}: the array does not lie aligned in memory");
        return Err(errors::to_python(py, &Error::InvalidArgument { reason }));
    }
    // SAFETY: as above.
    Ok(unsafe { std::slice::from_raw_parts(start, array.len()) })
}

/// Replays requests through a cache whose clock this is: a byte for each, `MISSED`, `HIT` or `REFUSED`.
///
/// `keys` has 32 bytes a row; `asked` numbers its rows, `models` the names. Entries live as long as the cache says.
#[pyfunction]
#[pyo3(signature = (store, clock, keys, names, asked, times, sizes, costs, models))]
#[allow(clippy::too_many_arguments)] // the columns of a log
fn _replay<'py>(
    py: Python<'py>,
    store: &Bound<'py, Store>,
    clock: &Bound<'py, ManualClock>,
    keys: &Bound<'py, PyUntypedArray>,
    names: Vec<String>,
    asked: &Bound<'py, PyUntypedArray>,
    times: &Bound<'py, PyUntypedArray>,
    sizes: &Bound<'py, PyUntypedArray>,
    costs: &Bound<'py, PyUntypedArray>,
    models: &Bound<'py, PyUntypedArray>,
) -> PyResult<Bound<'py, PyBytes>> {
    let opened = store.get().opened()?;
    let hand = &*clock.get().0;
    let (keys, rest) = elements::<u8>(keys, "keys")?.as_chunks::<32>();
    let requests = Requests {
        asked: elements(asked, "asked")?,
        times: elements(times, "times")?,
        sizes: elements(sizes, "sizes")?,
        costs: elements(costs, "costs")?,
        models: elements(models, "models")?,
    };
    let whole = if rest.is_empty() { None } else { Some("a key has 32 bytes".to_owned()) };
    if let Some(reason) = whole.or_else(|| requests.fault(keys.len(), names.len(), hand.load(Ordering::Relaxed))) {
        return Err(errors::to_python(py, &Error::InvalidArgument { reason }));
    }
    let scope = |name: &String| opened.cache.intern(&opened.namespace, Some((name, "log")));
    let Some(scopes) = names.iter().map(scope).collect::<Option<Vec<ScopeId>>>() else {
        let reason = "there are more models than a cache tells apart".to_owned();
        return Err(errors::to_python(py, &Error::InvalidArgument { reason }));
    };
    let (cache, life) = (&*opened.cache, opened.life);
    let outcomes = released(py, || requests.replay(cache, hand, keys, &scopes, life));
    Ok(PyBytes::new(py, &outcomes))
}

/// Adds this module's function.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(_replay, module)?)
}
