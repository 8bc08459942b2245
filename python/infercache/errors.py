"""Every exception of infercache, one tree.

InfercacheError
├── UnsupportedInput   (TypeError)     a value that cannot enter a key; the text leads to it
├── InvalidJSON        (ValueError)    raw JSON text that is not acceptable; the text gives the byte
├── InvalidArgument    (ValueError)    an option, key text, duration, tag template … that is not acceptable
├── CorruptValue       (ValueError)    stored bytes that do not decode; inside the cache this is a miss
├── InvalidModel       (ValueError)    a model's files that have no fingerprint; the text names the file
├── ModelNotFound      (FileNotFoundError)  nothing lies where a model was said to
├── BatchResultError   (ValueError)    a batch function that returned too few or too many results
├── RecursiveComputation (RuntimeError)  a computation that needs its own result
├── DeviceError        (RuntimeError)  a GPU that cannot be used; the text says why and what to do
├── MissingExtra       (ImportError)   an optional package that a chosen feature needs is not installed
├── PurgeFailed        (ConnectionError)  a purge that the authority has not acknowledged; it holds in this process
└── TierError          (RuntimeError)  a tier's server answered a command with an error
    └── TierUnavailable (ConnectionError)  it could not be asked, or did not answer in time

and three warnings, each given once for what it is about:

UncacheableResult (UserWarning)   results of a function cannot be stored
UnreadableEntry   (UserWarning)   an entry that only the decorated function which stored it can read
UnusableCacheFolder (UserWarning) fingerprints cannot be kept where they were to be
"""

from __future__ import annotations

__all__ = [
    "BatchResultError",
    "CorruptValue",
    "DeviceError",
    "InfercacheError",
    "InvalidArgument",
    "InvalidJSON",
    "InvalidModel",
    "MissingExtra",
    "ModelNotFound",
    "PurgeFailed",
    "RecursiveComputation",
    "TierError",
    "TierUnavailable",
    "UncacheableResult",
    "UnreadableEntry",
    "UnsupportedInput",
    "UnusableCacheFolder",
    "is_encodable",
    "shown",
]

_LONGEST_SHOWN = 100


def shown(value: object) -> str:
    """What a caller gave, as an error's text shows it: in one line, not long, whatever its `__repr__` does."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the caller's own code, or an integer of more digits than Python writes
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 20]}…{text[-19:]}"


def is_encodable(text: str) -> bool:
    """Whether a text has UTF-8: it has no lone surrogate."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


class InfercacheError(Exception):
    """Base of every exception that infercache raises itself."""


class UnsupportedInput(InfercacheError, TypeError):
    """A value that cannot enter a key: the text names the path to it and how to register a form."""


class InvalidJSON(InfercacheError, ValueError):
    """Raw JSON text that is not acceptable: the text gives the byte offset and the fault."""


class InvalidArgument(InfercacheError, ValueError):
    """An option, a key's text form, a duration or a tag template that is not acceptable."""


class CorruptValue(InfercacheError, ValueError):
    """Stored bytes that do not decode to a value."""


class InvalidModel(InfercacheError, ValueError):
    """A model's files have no fingerprint: one is not what its name says, is missing, or changed while it was read."""


class ModelNotFound(InfercacheError, FileNotFoundError):
    """Nothing lies at the path of a model."""


class BatchResultError(InfercacheError, ValueError):
    """A batch function returned another number of results than it was given items."""


class RecursiveComputation(InfercacheError, RuntimeError):
    """A computation asked the cache for the very result that it is computing."""


class DeviceError(InfercacheError, RuntimeError):
    """A GPU cannot be used: CuPy is missing, its CUDA is not the driver's, memory or a stream is not there any more."""


class MissingExtra(InfercacheError, ImportError):
    """A feature was chosen that needs a package which is not installed: the text names the extra that brings it."""


class PurgeFailed(InfercacheError, ConnectionError):
    """A purge that holds in this process, but of which the shared tier's authority could not be told for sure.

    Attributes:
        outcome: "not done": the authority was told nothing; "unknown": it may have been; "not durable": it is done, but
            fewer replicas than asked for have it.
        __cause__: the tier's `TierError`; None where it is not durable.
    """

    outcome: str

    def __init__(self, text: str, *, outcome: str) -> None:
        super().__init__(text)
        self.outcome = outcome

    def __reduce__(self) -> tuple[object, ...]:
        return _purge_failed, (str(self), self.outcome)


def _purge_failed(text: str, outcome: str) -> PurgeFailed:
    """The error again, in another process."""
    return PurgeFailed(text, outcome=outcome)


class TierError(InfercacheError, RuntimeError):
    """A tier's server answered a command with an error, such as `WRONGTYPE …`: the text is the server's own.

    Attributes:
        repeated: the command had been sent before, and what became of it then is unknown.
    """

    repeated = False

    @property
    def code(self) -> str:
        """The first word of the server's text: `"NOSCRIPT"`, `"READONLY"`, `"ERR"`, …"""
        text = str(self)
        return text.split(None, 1)[0] if text else ""

    @property
    def refused(self) -> bool:
        """Whether the server did nothing at all of the command: it says so before it runs anything.

        False, too, where that is not sure: of an error from within a script, which may have done its first half, and
        where the command may have been done when it was sent before.
        """
        text = str(self)
        known = self.code in _REFUSALS or text.startswith("ERR unknown command")
        return known and " script: " not in text and not self.repeated


#: What a server says instead of running a command. (NOREPLICAS: too few replicas are connected. That too few of them
#: have confirmed a write that was done is no error, but the number that WAIT gives.)
_REFUSALS = frozenset({
    "ASK", "BUSY", "CLUSTERDOWN", "CROSSSLOT", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOPERM",
    "NOREPLICAS", "NOSCRIPT", "OOM", "READONLY", "TRYAGAIN",
})  # fmt: skip


class TierUnavailable(TierError, ConnectionError):
    """A tier could not be asked, or did not answer in time. The text says what happened and what to do.

    Attributes:
        sent: False if the server can have received nothing of what was to be done; True if the outcome is unknown.
        reason: what went wrong, in a word: "timeout", "connect", "closed", "authentication", "certificate",
            "protocol", "out" (the circuit breaker is open), "busy" (every connection was in use), "shut" (the tier is
            closed), "client" (there is no such client for this kind of caller), "cluster".
    """

    sent: bool
    reason: str

    def __init__(self, text: str = "", *, sent: bool = True, reason: str = "closed") -> None:
        super().__init__(text)
        self.sent = sent
        self.reason = reason

    @property
    def code(self) -> str:
        """Empty: the server did not say this."""
        return ""

    @property
    def refused(self) -> bool:
        """Whether nothing was sent."""
        return not self.sent


class UncacheableResult(UserWarning):
    """A function's result cannot be stored, so its calls run the model. Given once for each function."""


class UnreadableEntry(UserWarning):
    """`Cache.get` or `lookup` cannot build the value of an entry, which is a miss for it. Given once for each cache."""


class UnusableCacheFolder(UserWarning):
    """Fingerprints cannot be kept, so models are read anew at each start. Given once for each folder."""
