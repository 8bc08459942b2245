//! The authority of a deployment as Python's follower feeds it: questions, answers, purges that are not acknowledged.
//!
//! `infercache/coherence.py` carries questions to the server and answers back; what they mean is the core's business.

use crate::errors;
use infercache_core::clock::counting;
use infercache_core::fence::follower::{self, Answer, Change};
use infercache_core::fence::{EpochId, FENCES, Fences, Stamp};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What tells authorities apart: the deployment's prefix and secret, and where its shared tier is.
type Deployment = (String, Option<[u8; 32]>, Option<String>);

/// The authority of a deployment in this process: its caches share one, so that a purge on any of them holds for all.
/// `server`: where the shared tier is, whose primary it follows; `None`: the process is its own authority.
pub fn authority(prefix: &str, secret: Option<[u8; 32]>, server: Option<String>) -> Arc<Fences> {
    static KNOWN: Mutex<Option<HashMap<Deployment, Weak<Fences>>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_with(HashMap::new);
    known.retain(|_, authority| authority.strong_count() > 0);
    let follows = server.is_some();
    let deployment = (prefix.to_owned(), secret, server);
    if let Some(authority) = known.get(&deployment).and_then(Weak::upgrade) {
        return authority;
    }
    let authority = Arc::new(if follows { Fences::following(FENCES) } else { Fences::new(FENCES) });
    known.insert(deployment, Arc::downgrade(&authority));
    authority
}

/// A tag as a member of the authority's set.
pub fn member(tag: u64, soft: bool) -> [u8; 9] {
    let mut member = [if soft { b's' } else { b'h' }; 9];
    member[1..].copy_from_slice(&tag.to_le_bytes());
    member
}

/// What a member names, and whether its purge is soft.
pub fn tag_of(member: &[u8]) -> Option<(u64, bool)> {
    let (kind, tag) = member.split_first()?;
    let tag = u64::from_le_bytes(tag.try_into().ok()?);
    match kind {
        b'h' => Some((tag, false)),
        b's' => Some((tag, true)),
        _ => None,
    }
}

fn malformed(py: Python<'_>, what: &str) -> PyErr {
    match errors::class(py, "TierError") {
        Ok(class) => PyErr::from_type(class, format!("the authority's answer is malformed: {what}")),
        Err(failed) => failed,
    }
}

/// What goes with a question to the authority; made before it is sent, which dates it.
#[pyclass(frozen, module = "infercache._core")]
pub struct Question(follower::Question);

#[pymethods]
impl Question {
    /// The epoch that is known here; empty: none.
    #[getter]
    fn epoch<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.epoch.as_ref().map_or(&[], |id| &id[..]))
    }

    /// What is applied of it.
    #[getter]
    fn applied(&self) -> u64 {
        self.0.applied
    }

    /// When it was made, in nanoseconds of the clock that also counts while the machine sleeps.
    #[getter]
    fn asked(&self) -> u64 {
        self.0.asked()
    }

    /// Purges that have to be sent along, as members of the authority's set.
    #[getter]
    fn pending<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.0.pending.iter().map(|&(tag, soft)| PyBytes::new(py, &member(tag, soft))))
    }
}

/// This process's replica of a deployment's authority.
#[pyclass(frozen, weakref, module = "infercache._core")]
pub struct Authority(pub Arc<Fences>);

#[pymethods]
impl Authority {
    /// The replica of the authority of deployment `prefix` on `server`.
    #[new]
    #[pyo3(signature = (prefix, secret, server))]
    fn new(prefix: &str, secret: Option<[u8; 32]>, server: String) -> Authority {
        Authority(authority(prefix, secret, Some(server)))
    }

    /// Begins a question, now.
    fn ask(&self) -> Question {
        Question(self.0.ask(counting()))
    }

    /// Applies the answer to a question: `[epoch, C, up to which LSN the changes reach, H, changes]`. False: it was
    /// discarded, since the epoch has changed since the question.
    fn apply(&self, py: Python<'_>, question: &Question, answer: &Bound<'_, PyAny>) -> PyResult<bool> {
        type Fields<'py> = (Vec<u8>, u64, u64, u64, Bound<'py, PyList>);
        let fields = answer.cast::<PyList>().map_err(|_| malformed(py, "it is no list"))?.to_tuple();
        let (epoch, last, upto, horizon, listed): Fields<'_> =
            fields.extract().map_err(|error: PyErr| malformed(py, &error.to_string()))?;
        let epoch: EpochId = epoch.try_into().map_err(|_| malformed(py, "its epoch has not 16 bytes"))?;
        let mut changes = Vec::with_capacity(listed.len() / 2);
        let mut items = listed.iter();
        while let Some(found) = items.next() {
            let bytes: Vec<u8> = found.extract().map_err(|_| malformed(py, "a member is no bytes"))?;
            let (tag, soft) = tag_of(&bytes).ok_or_else(|| malformed(py, "a member is no tag"))?;
            let score = items.next().ok_or_else(|| malformed(py, "a member has no number"))?;
            let lsn =
                number(&score).filter(|&lsn| lsn <= upto).ok_or_else(|| malformed(py, "a number is out of range"))?;
            changes.push(Change { tag, lsn, soft });
        }
        if upto > last || last >= 1 << 48 || horizon > last {
            return Err(malformed(py, "its numbers contradict one another"));
        }
        Ok(self.0.apply(&question.0, &Answer { epoch, upto, whole: upto == last, horizon, changes: &changes }))
    }

    /// Hides what these members name, or marks it stale, until the authority has acknowledged their purge.
    fn hide(&self, py: Python<'_>, members: Vec<Vec<u8>>) -> PyResult<()> {
        for bytes in &members {
            let (tag, soft) = tag_of(bytes).ok_or_else(|| malformed(py, "a member is no tag"))?;
            self.0.hide(&[tag], soft);
        }
        Ok(())
    }

    /// Takes note that the authority is out of reach, until its next answer.
    fn set_out(&self) {
        self.0.set_out();
    }

    /// Is it, as far as is known?
    #[getter]
    fn is_out(&self) -> bool {
        self.0.is_out()
    }

    /// Purges that the authority has not acknowledged.
    #[getter]
    fn pending(&self) -> usize {
        self.0.pending()
    }

    /// Seconds since the question was sent that was last answered in full; None: none ever was.
    #[getter]
    fn proof_age(&self) -> Option<f64> {
        let proof = self.0.proof();
        (proof != 0).then(|| counting().saturating_sub(proof) as f64 / 1e9)
    }

    /// What is applied now, as a stamp's word.
    #[getter]
    fn applied(&self) -> u64 {
        self.0.applied().to_word()
    }
}

/// A score: hiredis gives a number where the protocol has one, else its text.
fn number(score: &Bound<'_, PyAny>) -> Option<u64> {
    if let Ok(text) = score.extract::<Vec<u8>>() {
        return std::str::from_utf8(&text).ok()?.parse().ok();
    }
    let value = score.extract::<f64>().ok()?;
    (value >= 0.0 && value < (1u64 << 53) as f64 && value.fract() == 0.0).then_some(value as u64)
}

/// A stamp's word as another process understands it: `(epoch, LSN)`; None: its epoch is over, or none is known.
pub fn position<'py>(py: Python<'py>, fences: &Fences, word: u64) -> Option<(Bound<'py, PyBytes>, u64)> {
    fences.position(Stamp::from_word(word)).map(|(id, lsn)| (PyBytes::new(py, &id), lsn))
}

/// Adds this module's classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Question>()?;
    module.add_class::<Authority>()
}
