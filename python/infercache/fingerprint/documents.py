"""What a fingerprint is the hash of: canonical documents (RFC 8785), assembled from parts that are hashed already.

docs/model-fingerprint.md says each form. A part is UTF-8 bytes of canonical JSON; texts and whole values come from
`infercache.canonical_json`, so that a state dict's document is, byte for byte, the canonical document of the mapping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from infercache import _core
from infercache.errors import InvalidModel, shown

__all__ = ["content", "folder", "gguf", "members", "parameters", "tensor"]


def members(found: Iterable[tuple[str, bytes | bytearray]], what: str) -> bytes:
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
