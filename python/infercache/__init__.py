"""The inference cache: never run the same inference twice."""

from __future__ import annotations

from infercache._core import (
    Key,
    __version__,
    canonical_json,
    canonical_json_from_json,
    key,
    key_from_json,
    register_form,
)
from infercache.cache import Cache
from infercache.errors import (
    BatchResultError,
    CorruptValue,
    DeviceError,
    InfercacheError,
    InvalidArgument,
    InvalidJSON,
    RecursiveComputation,
    UncacheableResult,
    UnreadableEntry,
    UnsupportedInput,
)
from infercache.explanation import Explanation, explain, explain_json
from infercache.lookup import Lookup, Stamp, Token
from infercache.stats import Stats
from infercache.values import register_value

__all__ = [
    "BatchResultError",
    "Cache",
    "CorruptValue",
    "DeviceError",
    "Explanation",
    "InfercacheError",
    "InvalidArgument",
    "InvalidJSON",
    "Key",
    "Lookup",
    "RecursiveComputation",
    "Stamp",
    "Stats",
    "Token",
    "UncacheableResult",
    "UnreadableEntry",
    "UnsupportedInput",
    "__version__",
    "canonical_json",
    "canonical_json_from_json",
    "explain",
    "explain_json",
    "key",
    "key_from_json",
    "register_form",
    "register_value",
]
