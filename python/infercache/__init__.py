"""The inference cache: never run the same inference twice."""

from __future__ import annotations

from infercache._core import Key, canonical_json, canonical_json_from_json, key, key_from_json, register_form
from infercache.errors import (
    BatchResultError,
    CorruptValue,
    InfercacheError,
    InvalidArgument,
    InvalidJSON,
    RecursiveComputation,
    UnsupportedInput,
)
from infercache.explanation import Explanation, explain, explain_json
from infercache.values import register_value

__all__ = [
    "BatchResultError",
    "CorruptValue",
    "Explanation",
    "InfercacheError",
    "InvalidArgument",
    "InvalidJSON",
    "Key",
    "RecursiveComputation",
    "UnsupportedInput",
    "canonical_json",
    "canonical_json_from_json",
    "explain",
    "explain_json",
    "key",
    "key_from_json",
    "register_form",
    "register_value",
]
