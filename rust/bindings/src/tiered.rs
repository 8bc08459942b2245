//! Between the cache and its shared tier: what is looked at again once the authority has answered, what the tier had, and
//! what it is given.

use crate::authority::position;
use crate::errors;
use crate::flight::{self, Entry, Terms};
use crate::key::Key;
use crate::lazy::intern;
use crate::opened::{LastScope, Opened, key_argument};
use crate::released::{COPY_FROM, WORK_FROM, released_from};
use crate::store::{Store, unreadable};
use crate::value;
use infercache_core::cache::{self, Cache, Stored, Written};
use infercache_core::entry::{EntryRef, KeyBytes};
use infercache_core::envelope::{self, COMPRESS_FROM, Lifetime, MacKey, Options, Reader, Refused, Unsealed};
use infercache_core::fence::{EpochId, Judgement};
use infercache_core::stats::Count;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList, PyString};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

// Why a value of the tier is none, besides the names of `envelope_refusals()`.
const FENCED: &str = "fenced";
const UNPROVEN: &str = "unproven";
const OTHER_EPOCH: &str = "epoch";
const OVER: &str = "over";
const NO_ROOM: &str = "no_room";
const TYPE: &str = "type";
const ERROR_REPLY: &str = "error_reply";
const UNAVAILABLE: &str = "unavailable";
/// What `PTTL` says of a key that has no end, and of none.
const ENDLESS: i64 = -1;
const GONE: i64 = -2;

/// Where the values of keys that memory missed are to stand: a place among all, and the number of its key.
#[pyclass(frozen, module = "infercache._core")]
pub struct Places(pub Vec<(usize, usize)>);

#[pymethods]
impl Places {
    #[new]
    fn new(pairs: Vec<(usize, usize)>) -> Places {
        Places(pairs)
    }
}

/// The names under which values stand in a tier: a prefix and each key's 64 hexadecimal digits. A sequence of bytes.
#[pyclass(frozen, sequence, module = "infercache._core")]
pub struct Names {
    prefix: String,
    keys: Vec<KeyBytes>,
}

impl Names {
    fn length(&self) -> usize {
        self.prefix.len() + 2 * size_of::<KeyBytes>()
    }

    fn write(&self, key: &KeyBytes, to: &mut Vec<u8>) {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";
        let mut digits = [0; 2 * size_of::<KeyBytes>()];
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(key) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        to.extend_from_slice(self.prefix.as_bytes());
        to.extend_from_slice(&digits);
    }

    /// The commands for some of the names: lives first. Their values are asked for afterwards.
    fn write_commands(&self, keys: &[KeyBytes], to: &mut Vec<u8>) {
        let length = format!("\r\n${}\r\n", self.length());
        let mut names = Vec::with_capacity(keys.len() * (length.len() + self.length()));
        for key in keys {
            let start = names.len();
            names.extend_from_slice(length.as_bytes());
            self.write(key, &mut names);
            to.extend_from_slice(b"*2\r\n$4\r\nPTTL");
            to.extend_from_slice(&names[start..]);
            to.extend_from_slice(b"\r\n");
        }
        match keys.len() {
            1 => to.extend_from_slice(b"*2\r\n$3\r\nGET"),
            many => to.extend_from_slice(format!("*{}\r\n$4\r\nMGET", many + 1).as_bytes()),
        }
        to.extend_from_slice(&names);
        to.extend_from_slice(b"\r\n");
    }
}

#[pymethods]
impl Names {
    #[new]
    fn new(py: Python<'_>, prefix: String, keys: Vec<Bound<'_, PyAny>>) -> PyResult<Names> {
        let bytes = |key: &Bound<'_, PyAny>| Ok(*key_argument(key)?.bytes(py)?);
        Ok(Names { prefix, keys: keys.iter().map(bytes).collect::<PyResult<_>>()? })
    }

    fn __len__(&self) -> usize {
        self.keys.len()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, place: usize) -> PyResult<Bound<'py, PyBytes>> {
        let key = self.keys.get(place).ok_or_else(|| PyIndexError::new_err("there are fewer names"))?;
        let mut name = Vec::with_capacity(self.length());
        self.write(key, &mut name);
        Ok(PyBytes::new(py, &name))
    }

    /// As the protocol has them: chunk by chunk of so many names the lives (`PTTL`), and then the values (`MGET`; `GET` of one).
    fn packed<'py>(&self, py: Python<'py>, chunk: usize) -> Vec<Bound<'py, PyBytes>> {
        let mut packed = Vec::new();
        self.keys
            .chunks(chunk.max(1))
            .map(|keys| {
                packed.clear();
                self.write_commands(keys, &mut packed);
                PyBytes::new(py, &packed)
            })
            .collect()
    }
}

/// How values are taken over from a tier.
#[derive(Clone, Copy)]
struct Taking {
    /// When the authority was asked along with it.
    since: Option<u64>,
    /// For how many milliseconds after its life one is served stale; `None`: none is, not even if it is softly purged.
    window: Option<u64>,
}

impl Taking {
    fn serves_stale(&self, past: u64) -> bool {
        self.window.is_some_and(|most| past < most || past == 0)
    }
}

/// What one look into the tier finds: of each of its keys an entry and "l1", "l2" or "stale" (its life is over, or it is
/// softly purged, but its window is not), or None. A sequence, filled by `tier_take`.
///
/// `window`: for how many milliseconds after its life one is served stale; None: none is, and one of the tier is promoted
/// for those who may. What is found is counted, in place of the miss before it, if `counted`.
#[pyclass(frozen, sequence, module = "infercache._core")]
pub struct Finds {
    keys: Vec<Py<Key>>,
    window: Option<u64>,
    counted: bool,
    /// The lock is never held while Python code runs or the interpreter is given up, so that no fork copies it locked.
    found: Mutex<Vec<Option<Find>>>,
}

/// An entry, its stamp, and what it counts as.
#[derive(Clone)]
pub struct Find {
    pub entry: EntryRef,
    pub stamp: u64,
    pub hit: Count,
}

impl Find {
    /// As Python sees it.
    pub fn shown<'py>(&self, py: Python<'py>) -> (Entry, Bound<'py, PyString>) {
        let source = match self.hit {
            Count::Hits => intern!(py, "l1"),
            Count::TierHits => intern!(py, "l2"),
            _ => intern!(py, "stale"),
        };
        (Entry { entry: self.entry.clone(), stamp: self.stamp }, source.clone())
    }
}

impl Finds {
    fn locked(&self) -> MutexGuard<'_, Vec<Option<Find>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found of the key with this number.
    pub fn at(&self, number: usize) -> Option<Find> {
        self.locked().get(number).cloned().flatten()
    }
}

#[pymethods]
impl Finds {
    #[new]
    #[pyo3(signature = (keys, *, window = None, counted = true))]
    fn new(keys: Vec<Bound<'_, PyAny>>, window: Option<u64>, counted: bool) -> PyResult<Finds> {
        let found = Mutex::new(vec![None; keys.len()]);
        let checked = |key: Bound<'_, PyAny>| -> PyResult<Py<Key>> {
            key_argument(&key)?;
            Ok(key.cast_into_exact::<Key>()?.unbind())
        };
        Ok(Finds { keys: keys.into_iter().map(checked).collect::<PyResult<_>>()?, window, counted, found })
    }

    fn __len__(&self) -> usize {
        self.keys.len()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, place: usize) -> PyResult<Option<(Entry, Bound<'py, PyString>)>> {
        if place >= self.keys.len() {
            return Err(PyIndexError::new_err("there are fewer keys"));
        }
        Ok(self.at(place).map(|find| find.shown(py)))
    }
}

/// What was found; a value of the tier that may be served to nobody here is in memory, and no answer (`Ok(None)`); or why
/// there is none.
type Taken = Result<Option<Find>, &'static str>;

/// What the tier had for some of the keys of `finds`, from number `first` up to `upto`, checked, put into memory with the
/// stamps that they carry, and written down in `finds`. Why there is none is counted by reason: "fenced" (a purge hides it),
/// "unproven" (too long nobody has heard of the authority), "epoch" (its stamp is of another one), "over" (so is its life),
/// "no_room", "type" (something else stands there), "error_reply", "unavailable", or a name of `envelope_refusals()`; a
/// value that is not there has none.
///
/// `values`, `lefts`: what the server said, bytes and `PTTL`, or an error; None: it was not asked. `elapsed`: milliseconds
/// since it was asked. `since`: when the authority was asked along with it; `look`: so memory is looked into once more
/// first.
#[pyfunction]
#[pyo3(signature = (store, finds, first, upto, values, lefts, elapsed, since, *, look = false))]
#[allow(clippy::too_many_arguments)] // what is asked for, what was answered, and when
fn tier_take(
    py: Python<'_>,
    store: &Store,
    finds: &Finds,
    first: usize,
    upto: usize,
    values: Option<Vec<Bound<'_, PyAny>>>,
    lefts: Option<Vec<Bound<'_, PyAny>>>,
    elapsed: u64,
    since: Option<u64>,
    look: bool,
) -> PyResult<BTreeMap<&'static str, u64>> {
    let opened = store.opened()?;
    let (values, lefts) = (values.unwrap_or_default(), lefts.unwrap_or_default());
    let bytes: Vec<Option<PyBackedBytes>> =
        values.iter().map(|value| value.cast_exact::<PyBytes>().ok().map(|bytes| bytes.clone().into())).collect();
    let mac = opened.secret.as_ref().map(MacKey::new);
    let reader = Reader { mac: mac.as_ref(), cap: opened.cache.capacity() };
    let bytes: Vec<Option<&[u8]>> = bytes.iter().map(|bytes| bytes.as_deref()).collect();
    let all = bytes.iter().flatten().map(|bytes| bytes.len()).sum();
    let unsealed = released_from(py, WORK_FROM, all, || envelope::unseal_all(&bytes, &reader));
    let taking = Taking { since, window: finds.window };
    let mut last = LastScope::default();
    let mut why = BTreeMap::new();
    for (place, number) in (first..upto.min(finds.keys.len())).enumerate() {
        let key = finds.keys[number].get();
        let near = if look { near(py, &opened.cache, key, taking)? } else { None };
        let taken: Taken = match (&near, unsealed.get(place)) {
            (Some(Find { hit: Count::Hits, .. }), _) | (_, None) => Ok(None),
            (_, Some(None)) => missing(py, &values[place], lefts.get(place))?,
            (_, Some(Some(unsealed))) => match left(py, lefts.get(place), elapsed)? {
                Ok(remaining) => promote(py, opened, key, &mut last, &reader, *unsealed, remaining, taking)?,
                Err(taken) => taken,
            },
        };
        let taken = taken.unwrap_or_else(|reason| {
            *why.entry(reason).or_insert(0) += 1;
            None
        });
        let Some(find) = taken.or(near) else { continue };
        if finds.counted {
            opened.cache.recount_as_hit(&find.entry, find.hit);
        }
        finds.locked()[number] = Some(find);
    }
    Ok(why)
}

/// What memory has of a key that was missed before the authority was asked.
fn near(py: Python<'_>, cache: &Cache, key: &Key, taking: Taking) -> PyResult<Option<Find>> {
    let (found, hit) = match cache.peek_since(key.bytes(py)?, taking.since) {
        cache::Found::Fresh(hit) => (hit, Count::Hits),
        cache::Found::Stale(hit) if taking.serves_stale(hit.past) => (hit, Count::StaleHits),
        _ => return Ok(None),
    };
    Ok(Some(Find { stamp: found.stamp.to_word(), entry: found.entry, hit }))
}

/// What a reply that is no bytes comes to: an error, or something else stands there, or nothing does.
fn missing(py: Python<'_>, value: &Bound<'_, PyAny>, left: Option<&Bound<'_, PyAny>>) -> PyResult<Taken> {
    if value.is_none() {
        // MGET says nothing of what is no string; that it has a life says it.
        let there = left.is_some_and(|left| left.extract::<i64>().is_ok_and(|left| left != GONE));
        return Ok(if there { Err(TYPE) } else { Ok(None) });
    }
    Ok(Err(error_of(py, value)?.unwrap_or(TYPE)))
}

/// Milliseconds that the server still keeps a value (`None`: for ever); or what it comes to without them.
fn left(py: Python<'_>, reply: Option<&Bound<'_, PyAny>>, elapsed: u64) -> PyResult<Result<Option<u64>, Taken>> {
    let Some(reply) = reply else { return Ok(Err(Err(TYPE))) };
    Ok(match reply.extract::<i64>() {
        Ok(ENDLESS) => Ok(None),
        Ok(GONE) => Err(Ok(None)),
        Ok(left) => Ok(Some(u64::try_from(left).unwrap_or(0).saturating_sub(elapsed))),
        Err(_) => Err(Err(error_of(py, reply)?.unwrap_or(TYPE))),
    })
}

/// Which counter an error among the replies belongs to; `None`: it is none.
fn error_of(py: Python<'_>, reply: &Bound<'_, PyAny>) -> PyResult<Option<&'static str>> {
    if reply.is_instance(errors::class(py, "TierUnavailable")?.as_any())? {
        return Ok(Some(UNAVAILABLE));
    }
    if !reply.is_instance(errors::class(py, "TierError")?.as_any())? {
        return Ok(None);
    }
    let is_type = reply.getattr(intern!(py, "code"))?.eq("WRONGTYPE")?;
    Ok(Some(if is_type { TYPE } else { ERROR_REPLY }))
}

fn promote(
    py: Python<'_>,
    opened: &Opened,
    key: &Key,
    last: &mut LastScope,
    reader: &Reader<'_>,
    unsealed: Result<Unsealed<'_>, Refused>,
    remaining: Option<u64>,
    taking: Taking,
) -> PyResult<Taken> {
    let (cache, bytes) = (&opened.cache, key.bytes(py)?);
    let decoded = unsealed.and_then(|unsealed| {
        let envelope = released_from(py, WORK_FROM, unsealed.len(), || unsealed.decode(bytes, reader))?;
        let lifetime = envelope.lifetime_with(remaining)?;
        Ok((envelope, lifetime))
    });
    let (envelope, lifetime) = match decoded {
        Ok(decoded) => decoded,
        Err(refused) => return Ok(Err(refused.name())),
    };
    if lifetime.left() == Some(0) {
        return Ok(Err(OVER));
    }
    // A key that knows its model is not told of another one by what somebody wrote into the tier.
    let scope = match key.scope {
        Some(_) => last.id(cache, &opened.namespace, key),
        None => cache.intern_tags(envelope.scope),
    };
    let Some(scope) = scope else { return Ok(Err(NO_ROOM)) };
    // Before the stamp: see rust/core/src/fence.rs on the order of a reader's loads.
    let assured = cache.is_assured(!envelope.tags.is_empty(), taking.since);
    let Some(stamp) = cache.fences().stamp_at(&envelope.epoch, envelope.lsn) else { return Ok(Err(OTHER_EPOCH)) };
    let judgement = cache.judge_stamp(stamp, scope, &envelope.key, &envelope.tags);
    match judgement {
        Judgement::Hidden => return Ok(Err(FENCED)),
        _ if !assured => return Ok(Err(UNPROVEN)),
        Judgement::Valid | Judgement::Soft => {}
    }
    let prepare = || cache.prepare_promoted(&envelope, scope, stamp, lifetime);
    let Some(entry) = released_from(py, COPY_FROM, envelope.payload.len(), prepare) else { return Ok(Err(NO_ROOM)) };
    match cache.store_prepared(&entry) {
        Stored::Fenced => return Ok(Err(FENCED)),
        // One that memory has no room for is still an answer.
        Stored::Kept | Stored::Refused => {}
    }
    let found = |hit| Some(Find { entry, stamp: stamp.to_word(), hit });
    let past = lifetime.life.and_then(|life| lifetime.age.checked_sub(life));
    Ok(Ok(match past {
        None if judgement == Judgement::Valid => found(Count::TierHits),
        past if taking.serves_stale(past.unwrap_or(0)) => found(Count::StaleHits),
        _ => None,
    }))
}

/// Puts what `tier_take` found into its places among the values, which `_get_many_near` gave; what does not decode here
/// leaves the default. How many of the tier's do not decode.
#[pyfunction]
fn tier_fill(
    py: Python<'_>,
    store: &Bound<'_, Store>,
    values: &Bound<'_, PyList>,
    places: &Places,
    finds: &Finds,
) -> PyResult<usize> {
    let cache = &store.get().opened()?.cache;
    let (mut used, mut spoiled) = (vec![false; finds.keys.len()], 0);
    for &(place, number) in &places.0 {
        let Some(Find { entry, stamp, hit }) = finds.at(number) else { continue };
        let again = std::mem::replace(&mut used[number], true);
        if again {
            // It was asked for once, and counted once.
            cache.recount_as_hit(&entry, hit);
        }
        match value::decode(py, &entry, None, false) {
            Ok(value) => {
                flight::used(py, stamp)?;
                values.set_item(place, value)?;
            }
            Err(error) => {
                unreadable(store, &entry, Some(hit), error)?;
                spoiled += usize::from(!again && matches!(hit, Count::TierHits));
            }
        }
    }
    Ok(spoiled)
}

/// What a look-up that found an entry in "l1", "l2" or among the "stale" ones was counted as.
fn hit_of(source: &Bound<'_, PyString>) -> PyResult<Option<Count>> {
    Ok(match source.to_str()? {
        "l1" => Some(Count::Hits),
        "l2" => Some(Count::TierHits),
        "stale" => Some(Count::StaleHits),
        _ => None,
    })
}

/// Counts what was found in "l1", in "l2" or "stale" as the miss that it comes to: its value cannot be built.
#[pyfunction]
fn tier_recount(store: &Store, entry: &Entry, source: &Bound<'_, PyString>) -> PyResult<()> {
    if let Some(hit) = hit_of(source)? {
        store.opened()?.cache.recount_as_miss(&entry.entry, hit);
    }
    Ok(())
}

/// What the tier is given of an entry that was just stored on these terms: its envelope, and the milliseconds for which the server is to keep it (`PX`; None: for ever). None: its stamp is of no epoch that the authority
/// is in now, so nobody could use it.
#[pyfunction]
#[pyo3(signature = (store, entry, terms, compress_from = COMPRESS_FROM))]
fn tier_envelope<'py>(
    py: Python<'py>,
    store: &Store,
    entry: &Entry,
    terms: &Terms,
    compress_from: usize,
) -> PyResult<Option<(Bound<'py, PyBytes>, Option<u64>)>> {
    let opened = store.opened()?;
    let Some((id, lsn)) = position(py, opened.cache.fences(), entry.stamp) else { return Ok(None) };
    let epoch: EpochId = id.as_bytes().try_into().expect("an epoch has 16 bytes");
    let lifetime = Lifetime { life: terms.life, stale: terms.stale, age: 0 };
    let total = lifetime.left();
    let written = Written { epoch, lsn, total };
    let Some(envelope) = opened.cache.envelope(&entry.entry, lifetime, &written) else { return Ok(None) };
    let mac = opened.secret.as_ref().map(MacKey::new);
    let options = Options { compress_from, mac: mac.as_ref() };
    // An entry that cannot be written as an envelope (of thousands of tags, say) stays in this process.
    let bytes = released_from(py, WORK_FROM, envelope.payload.len(), || envelope::encode(&envelope, &options));
    Ok(bytes.ok().map(|bytes| (PyBytes::new(py, &bytes), total)))
}

/// Adds this module's functions.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Places>()?;
    module.add_class::<Names>()?;
    module.add_class::<Finds>()?;
    module.add_function(wrap_pyfunction!(tier_take, module)?)?;
    module.add_function(wrap_pyfunction!(tier_fill, module)?)?;
    module.add_function(wrap_pyfunction!(tier_recount, module)?)?;
    module.add_function(wrap_pyfunction!(tier_envelope, module)?)
}
