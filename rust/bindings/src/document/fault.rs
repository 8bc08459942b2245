//! Why a value has no document, and the path that leads to it. The path is put together while the walk unwinds, so a
//! walk that succeeds pays nothing for it.

use crate::errors;
use infercache_core::document::Limit;
use pyo3::prelude::*;
use std::fmt::Write as _;

/// The result of writing a part of a document; the error is boxed to keep the good case in a register.
pub type Outcome<T = ()> = Result<T, Box<Fault>>;

/// Why a value has no document.
#[derive(Debug)]
pub struct Fault {
    cause: Cause,
    /// From the innermost step outwards.
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Cause {
    /// No row of the specification admits the value.
    Unsupported(String),
    /// Python code ran before the walk had references to what it points at; the walk must begin again, with references.
    Again,
    /// Python code that was asked for an attribute or a form raised.
    Raised(PyErr),
}

/// One step on the path to a value.
#[derive(Debug)]
pub enum Step {
    /// A member of an object, a field, a parameter.
    Name(String),
    /// An item of a list or tuple.
    Index(usize),
    /// The value of a mapping under a name that is not text, as its canonical form.
    Under(String),
    /// A name of a mapping.
    NameOf,
    /// A member of a set.
    Member,
    /// What a registered form returned.
    Form(String),
}

impl Fault {
    /// No row admits the value: `reason` says what it is and what to do.
    #[cold]
    pub fn unsupported(reason: impl Into<String>) -> Box<Fault> {
        Fault::new(Cause::Unsupported(reason.into()))
    }

    fn new(cause: Cause) -> Box<Fault> {
        Box::new(Fault { cause, steps: Vec::new() })
    }

    /// A bound of a document; `cycle`: containers nest too deep because one contains itself.
    #[cold]
    pub fn from_limit(limit: Limit, cycle: bool) -> Box<Fault> {
        Fault::unsupported(match limit {
            Limit::TooDeep | Limit::SmallStack(_) if cycle => "it contains itself, so it has no document".to_owned(),
            Limit::TooDeep => format!("{limit}; pass a flatter value"),
            _ => limit.to_string(),
        })
    }

    /// The walk must begin again; see [`Fault::is_again`].
    #[cold]
    pub fn again() -> Box<Fault> {
        Fault::new(Cause::Again)
    }

    /// Whether Python code ran before the walk had references to what it points at, so that it must begin again.
    pub fn is_again(&self) -> bool {
        matches!(self.cause, Cause::Again)
    }

    /// The same fault, seen from one step further out.
    #[cold]
    pub fn at(mut self: Box<Fault>, step: impl FnOnce() -> Step) -> Box<Fault> {
        if !self.is_again() {
            self.steps.push(step()); // (what a step points at may be gone where it is)
        }
        self
    }

    /// The exception, with the path from `root` on.
    pub fn into_pyerr(self, py: Python<'_>, root: &str) -> PyErr {
        let path = self.path(root);
        let reason = match self.cause {
            Cause::Raised(error) => {
                let note = format!("while forming the key of {path}");
                // A note that cannot be added (an exception class without them) must not hide the exception.
                let _ = error.value(py).call_method1(crate::lazy::intern!(py, "add_note"), (note,));
                return error;
            }
            Cause::Unsupported(ref reason) => reason.clone(),
            Cause::Again => "it changed while it was read; pass a copy".to_owned(),
        };
        match errors::class(py, "UnsupportedInput") {
            Ok(class) => PyErr::from_type(class, format!("{path}: {reason}")),
            Err(failed) => failed,
        }
    }

    fn path(&self, root: &str) -> String {
        const SHOWN: usize = 12;
        let mut path = root.to_owned();
        for (at, step) in self.steps.iter().rev().enumerate() {
            if at == SHOWN && self.steps.len() > 2 * SHOWN {
                path.push('…');
            }
            if at >= SHOWN && at + SHOWN < self.steps.len() {
                continue; // the middle of a very long path helps nobody
            }
            match step {
                Step::Name(name) if is_identifier(name) => _ = write!(path, ".{name}"),
                Step::Name(name) => _ = write!(path, "[{:?}]", shortened(name)),
                Step::Index(index) => _ = write!(path, "[{index}]"),
                Step::Under(name) => _ = write!(path, "[{}]", shortened(name)),
                Step::NameOf => path.push_str("<name>"),
                Step::Member => path.push_str("<member>"),
                Step::Form(name) => _ = write!(path, "<form {}>", shortened(name)),
            }
        }
        path
    }
}

fn is_identifier(name: &str) -> bool {
    name.len() <= 60
        && name.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// At most sixty characters of a text, for an error.
pub fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(57).collect::<String>() + "…" }
}

impl From<PyErr> for Box<Fault> {
    #[cold]
    fn from(error: PyErr) -> Box<Fault> {
        Fault::new(Cause::Raised(error))
    }
}

impl From<Limit> for Box<Fault> {
    #[cold]
    fn from(limit: Limit) -> Box<Fault> {
        Fault::from_limit(limit, false)
    }
}
