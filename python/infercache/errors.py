"""Every exception of infercache, one tree.

InfercacheError
├── UnsupportedInput   (TypeError)     a value that cannot enter a key; the text leads to it
├── InvalidJSON        (ValueError)    raw JSON text that is not acceptable; the text gives the byte
├── InvalidArgument    (ValueError)    an option, key text, duration, tag template … that is not acceptable
├── CorruptValue       (ValueError)    stored bytes that do not decode; inside the cache this is a miss
├── BatchResultError   (ValueError)    a batch function that returned too few or too many results
├── RecursiveComputation (RuntimeError)  a computation that needs its own result
└── DeviceError      (RuntimeError)    a GPU that cannot be used; the text says why and what to do

and two warnings, each given once for what it is about:

UncacheableResult (UserWarning)   results of a function cannot be stored
UnreadableEntry   (UserWarning)   an entry that only the decorated function which stored it can read
"""

from __future__ import annotations

__all__ = [
    "BatchResultError",
    "CorruptValue",
    "DeviceError",
    "InfercacheError",
    "InvalidArgument",
    "InvalidJSON",
    "RecursiveComputation",
    "UncacheableResult",
    "UnreadableEntry",
    "UnsupportedInput",
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


class BatchResultError(InfercacheError, ValueError):
    """A batch function returned another number of results than it was given items."""


class RecursiveComputation(InfercacheError, RuntimeError):
    """A computation asked the cache for the very result that it is computing."""


class DeviceError(InfercacheError, RuntimeError):
    """A GPU cannot be used: CuPy is missing, its CUDA is not the driver's, memory or a stream is not there any more."""


class UncacheableResult(UserWarning):
    """A function's result cannot be stored, so its calls run the model. Given once for each function."""


class UnreadableEntry(UserWarning):
    """`Cache.get` or `lookup` cannot build the value of an entry, which is a miss for it. Given once for each cache."""
