"""What a fingerprint is the hash of: canonical documents (RFC 8785), assembled from parts that are hashed already.

docs/model-fingerprint.md says each form. A part is UTF-8 bytes of canonical JSON; texts and whole values come from
`infercache.canonical_json`, so that a state dict's document is, byte for byte, the canonical document of the mapping.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from infercache import _core
from infercache.errors import InvalidModel, UnsupportedInput, is_encodable, shown
from infercache.fingerprint.progress import Wish, told

__all__ = ["content", "folder", "gguf", "members", "parameters", "state_dict", "tensor"]

#: Mappings of a state dict that are walked here, entry by entry, so that progress shows; what nests deeper goes at
#: once.
_WALKED = 4


def members(found: Iterable[tuple[str, bytes]], what: str) -> bytes:
    """An object of the caller's own names: `$` escaped as in the key specification, sorted by UTF-16 code units.

    Raises:
        InvalidModel: a name is not Unicode text; `what` says whose names these are.
    """
    try:
        by_units = sorted((name.encode("utf-16-be"), name, value) for name, value in found)
        parts = [
            _core.canonical_json("$" + name if name.startswith("$") else name) + b":" + value
            for _, name, value in by_units
        ]
    except UnicodeEncodeError as error:
        raise InvalidModel(f"{what}: the name {shown(error.object)} is not Unicode text; rename it") from None
    return b"{" + b",".join(parts) + b"}"


def tensor(dtype: str, shape: Sequence[int], digest: str) -> bytes:
    """A tensor's form: the key specification's, section 3."""
    axes = ",".join(map(str, shape))
    return f'{{"$tensor":{{"blake3":"{digest}","dtype":"{dtype}","shape":[{axes}]}}}}'.encode()


def parameters(tensors: Iterable[tuple[str, bytes]], what: str) -> bytes:
    """Parameters by name."""
    return b'{"parameters":' + members(tensors, what) + b"}"


def gguf(
    metadata: Iterable[tuple[str, str]], tensors: Iterable[tuple[str, int, Sequence[int], str]], what: str
) -> bytes:
    """What a GGUF file, or a set of them, holds: digests of metadata values, tensors with ggml's number of the type."""
    values = members(((name, f'"{digest}"'.encode()) for name, digest in metadata), what)
    forms = members(
        (
            (name, f'{{"blake3":"{digest}","shape":[{",".join(map(str, shape))}],"type":{number}}}'.encode())
            for name, number, shape, digest in tensors
        ),
        what,
    )
    return b'{"gguf":{"metadata":' + values + b',"tensors":' + forms + b"}}"


def content(digest: str, external: Mapping[str, str] | None = None) -> bytes:
    """A file by its bytes, and the files by theirs that it refers to."""
    if not external:
        return f'{{"content":"{digest}"}}'.encode()
    others = members(((name, f'"{its}"'.encode()) for name, its in external.items()), "external data")
    return f'{{"content":"{digest}","external":'.encode() + others + b"}"


def folder(files: Mapping[str, bytes], what: str) -> bytes:
    """Files by relative name."""
    return b'{"files":' + members(files.items(), what) + b"}"


def state_dict(state: Mapping[Any, Any], progress: Wish) -> bytes:
    """The document of a state dict.

    Raises:
        UnsupportedInput: a value that has no canonical form; the text leads to it.
    """
    done, total = 0, bytes_of(state)
    with told(progress, total) as tell:

        def count(more: int) -> None:
            nonlocal done
            done += more
            tell(min(done, total))

        return b'{"parameters":' + _mapping(state, "state_dict", 1, count) + b"}"


def _mapping(state: Mapping[Any, Any], path: str, depth: int, count: Callable[[int], None]) -> bytes:
    if not all(type(name) is str and is_encodable(name) for name in state):
        return _value(dict(state), path, count)  # `$map`, Enum members, lone surrogates: one place knows the rules
    found = []
    for name, value in state.items():
        inside = f"{path}[{name!r}]"
        if depth < _WALKED and type(value) in (dict, OrderedDict):
            found.append((name, _mapping(value, inside, depth + 1, count)))
        else:
            found.append((name, _value(value, inside, count)))
    return members(found, path)


def _value(value: Any, path: str, count: Callable[[int], None]) -> bytes:
    try:
        document = _core.canonical_json(value)
    except UnsupportedInput as error:
        reason = str(error)
        if reason.startswith("input"):
            raise UnsupportedInput(f"{path}{reason.removeprefix('input')}") from error.__cause__
        raise UnsupportedInput(f"{path}: {reason}") from error.__cause__
    count(bytes_of(value))
    return document


def bytes_of(value: Any, depth: int = 0) -> int:
    """Bytes of the tensors of a state dict's value, as far as it says them: for progress alone."""
    if isinstance(value, Mapping):
        return sum(bytes_of(inside, depth + 1) for inside in value.values()) if depth < 2 * _WALKED else 0
    found = getattr(value, "nbytes", 0)
    return found if isinstance(found, int) else 0
