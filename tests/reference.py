"""The slow oracle: keys as docs/key-specification.md says them, in the plainest Python, without infercache.

Every rule is written again from the page, with other means than the library's: ECMAScript numbers from Python's `repr`
and Decimal, member order from the UTF-16 encoding, tensors from `tobytes()`, BLAKE3 from its own package.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import struct
import sys
import types
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import blake3
import numpy as np

CONTEXT = "infercache 2026-11-23 key v1 scope"
DTYPES = {
    *(
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    ),
    *("complex64", "complex128", "bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
}


class Refused(Exception):
    """The value has no document."""


def key(
    document: bytes,
    model: str,
    version: str,
    namespace: str = "default",
    operation: str = "",
    secret: bytes | None = None,
) -> str:
    """The text form of the key of a document."""
    material = b"".join(
        struct.pack("<Q", len(f)) + f for f in (s.encode() for s in (namespace, model, version, operation))
    )
    scope = blake3.blake3(material, derive_key_context=CONTEXT).digest()
    if secret is not None:
        scope = blake3.blake3(scope, key=secret).digest()
    return "ic1:" + blake3.blake3(document, key=scope).hexdigest()


def number(value: float) -> str:
    """ECMA-262's Number::toString, step by step: k digits with the value s × 10^(n - k)."""
    if value == 0:
        return "0"
    if value < 0:
        return "-" + number(-value)
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert sign == 0
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    stripped = text.rstrip("0")
    exponent += len(text) - len(stripped)
    k, n = len(stripped), len(stripped) + exponent
    if k <= n <= 21:
        return stripped + "0" * (n - k)
    if 0 < n <= 21:
        return stripped[:n] + "." + stripped[n:]
    if -6 < n <= 0:
        return "0." + "0" * -n + stripped
    e = f"e{'+' if n > 0 else '-'}{abs(n - 1)}"
    return stripped[0] + ("." + stripped[1:] if k > 1 else "") + e


def string(text: str) -> str:
    """RFC 8785 section 3.2.2.2, one character at a time."""
    short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
    out = []
    for character in text:
        code = ord(character)
        if 0xD800 <= code < 0xE000:
            raise Refused("lone surrogate")
        out.append(short.get(code) or (f"\\u{code:04x}" if code < 32 else character))
    return '"' + "".join(out) + '"'


def integer(value: int) -> str:
    """A number where a binary64 holds it."""
    magnitude = abs(value)
    try:
        if int(float(magnitude)) == magnitude:
            return number(float(value))
    except OverflowError:
        pass
    if magnitude >= 10**4300:
        raise Refused("too many digits")
    return '{"$int":"' + str(value) + '"}'


def object_of(members: list[tuple[str, str]]) -> str:
    """An object of names as they are and values as documents."""
    names = [name for name, _ in members]
    if len(set(names)) < len(names):
        raise Refused("duplicate name")
    escaped = [("$" + name if name.startswith("$") else name, value) for name, value in members]
    escaped.sort(key=lambda member: member[0].encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(f"{string(name)}:{value}" for name, value in escaped) + "}"


def distinct(parts: list[str]) -> list[str]:
    """Parts sorted by their bytes; two alike are refused."""
    if len(set(parts)) < len(parts):
        raise Refused("two with one form")
    return sorted(parts, key=str.encode)


def digest(content: bytes) -> str:
    """Plain BLAKE3, hexadecimal."""
    return blake3.blake3(content).hexdigest()


def tensor(array: np.ndarray[Any, Any]) -> str:
    """An array's elements, little-endian, in C order."""
    name = array.dtype.newbyteorder("=").name
    if name not in DTYPES or array.dtype.char in "gG":
        raise Refused(f"dtype {array.dtype}")
    content = array.astype(array.dtype.newbyteorder("<")).tobytes("C")
    shape = ",".join(map(str, array.shape))
    return f'{{"$tensor":{{"blake3":"{digest(content)}","dtype":"{name}","shape":[{shape}]}}}}'


def form(value: Any, depth: int = 1) -> str:
    """The document of a value, as text. `depth` is that of the container that `value` would be."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Enum):
        return form(value.value, depth)
    if isinstance(value, np.generic):
        plain = isinstance(value, np.bool_ | np.integer | np.float16 | np.float32 | np.float64 | np.str_ | np.bytes_)
        if not plain or isinstance(value, np.timedelta64):
            raise Refused(type(value).__name__)
        return form(value.item(), depth)
    if isinstance(value, str):
        return string(value)
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        if value - value != 0:
            return '{"$float":"%s"}' % ("NaN" if value != value else "Infinity" if value > 0 else "-Infinity")
        return number(value)
    if isinstance(value, list | tuple | dict | types.MappingProxyType | set | frozenset):
        return container(value, depth)
    return other(value, depth)


def container(value: Any, depth: int) -> str:
    """Lists, mappings, sets."""
    if depth > 256:
        raise Refused("too deep")
    if isinstance(value, list | tuple):
        return "[" + ",".join(form(item, depth + 1) for item in value) + "]"
    if isinstance(value, set | frozenset):
        return '{"$set":[' + ",".join(distinct([form(member, depth + 1) for member in value])) + "]}"
    names = [name_text(name) for name in value]
    if all(name is not None for name in names):
        return object_of(
            [(name or "", form(member, depth + 1)) for name, member in zip(names, value.values(), strict=True)]
        )
    pairs = {form(name, depth + 1): form(member, depth + 1) for name, member in value.items()}
    if len(pairs) < len(value):
        raise Refused("two names with one form")
    return '{"$map":[' + ",".join(f"[{name},{pairs[name]}]" for name in distinct(list(pairs))) + "]}"


def name_text(name: Any) -> str | None:
    """The text that a name of a mapping is, if it is one."""
    while isinstance(name, Enum):
        name = name.value
    return str.__str__(name) if isinstance(name, str) else None


def other(value: Any, depth: int) -> str:
    """Everything that is neither a JSON value nor a container."""
    if isinstance(value, bytes | bytearray):
        return f'{{"$bytes":"{digest(bytes(value))}"}}'
    if isinstance(value, np.ndarray | memoryview):
        return elements(value, depth)
    for kind, label in (
        (datetime.datetime, "$datetime"),
        (datetime.date, "$date"),
        (datetime.time, "$time"),
    ):
        if type(value) is kind:
            return f'{{"{label}":{string(value.isoformat())}}}'
    if isinstance(value, Decimal):
        return f'{{"$decimal":"{str(value).upper() if value.is_finite() else value}"}}'
    if isinstance(value, UUID):
        return f'{{"$uuid":"{value}"}}'
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if depth > 256:
            raise Refused("too deep")
        return object_of([(f.name, form(getattr(value, f.name), depth + 1)) for f in dataclasses.fields(value)])
    raise Refused(type(value).__name__)


def elements(value: Any, depth: int) -> str:
    """Arrays and memoryviews."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        if 0 in value.shape:
            raise Refused("empty text array")
        return form(value.tolist(), depth)
    if isinstance(value, memoryview) and value.ndim == 1 and value.c_contiguous and value.format in ("B", "c"):
        return f'{{"$bytes":"{digest(value.tobytes())}"}}'
    return tensor(np.asarray(value))


def document(value: Any) -> bytes:
    """The canonical document of a Python value."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 2000)  # 256 containers are a few frames each
    try:
        return form(value).encode()
    finally:
        sys.setrecursionlimit(before)


def json_document(text: bytes) -> bytes:
    """The canonical document of raw JSON text."""

    def pairs(members: list[tuple[str, Any]]) -> Any:
        if len({name for name, _ in members}) < len(members):
            raise Refused("duplicate name")
        return dict(members)

    def refuse(literal: str) -> Any:
        raise Refused(literal)

    def whole(literal: str) -> int:
        if len(literal.lstrip("-")) > 4300:
            raise Refused("too many digits")
        return int(literal)

    def real(literal: str) -> float:
        value = float(literal)
        if value - value != 0:
            raise Refused(literal)
        return value

    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=refuse, parse_int=whole, parse_float=real
        )
    except (ValueError, RecursionError) as error:
        raise Refused(str(error)) from error
    return document(value)
