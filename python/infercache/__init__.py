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
    InvalidModel,
    MissingExtra,
    ModelNotFound,
    PurgeFailed,
    RecursiveComputation,
    TierError,
    TierUnavailable,
    UncacheableResult,
    UnreadableEntry,
    UnsupportedInput,
    UnusableCacheFolder,
)
from infercache.explanation import Explanation, explain, explain_json
from infercache.fingerprint import model_fingerprint
from infercache.lookup import Lookup, Stamp, Token
from infercache.stats import Stats
from infercache.tiers import RedisTier
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
    "InvalidModel",
    "Key",
    "Lookup",
    "MissingExtra",
    "ModelNotFound",
    "PurgeFailed",
    "RecursiveComputation",
    "RedisTier",
    "Stamp",
    "Stats",
    "TierError",
    "TierUnavailable",
    "Token",
    "UncacheableResult",
    "UnreadableEntry",
    "UnsupportedInput",
    "UnusableCacheFolder",
    "__version__",
    "canonical_json",
    "canonical_json_from_json",
    "explain",
    "explain_json",
    "key",
    "key_from_json",
    "model_fingerprint",
    "register_form",
    "register_value",
]
