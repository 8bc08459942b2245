"""The document of a file or folder: which files count, what is known of each, and what that comes to."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING

from infercache.errors import InvalidModel
from infercache.fingerprint import documents, folder, merging
from infercache.fingerprint.folder import Weights
from infercache.fingerprint.reading import sheets

if TYPE_CHECKING:
    from infercache.fingerprint.ledger import Ledger
    from infercache.fingerprint.plans import Sheet
    from infercache.progress import Wish

__all__ = ["document"]


def document(path: str, by: str, ledger: Ledger, progress: Wish) -> bytes:
    """The canonical document of what lies at a path; `by` is "parameters" or "content".

    Raises:
        InvalidModel: a file is not what its name says, is missing, or changed while it was read.
        InvalidArgument: a folder in which nothing counts.
        OSError: a file cannot be read.
    """
    if os.path.isdir(path):
        return _of_folder(path, by, ledger, progress)
    if by == "content":
        return documents.content(sheets([(path, "content")], ledger, progress)[path, "content"]["content"])
    several = folder.set_of(path)
    kind = folder.format_of(path)
    if several is None and kind is None:
        return _of_file(path, ledger, progress)
    root, name = os.path.split(path)
    root, weights = several or (root, Weights(name, str(kind), [name]))
    return _of_weights(root, weights, {name: os.path.join(root, name) for name in weights.files}, ledger, progress)


def _of_weights(root: str, weights: Weights, paths: dict[str, str], ledger: Ledger, progress: Wish) -> bytes:
    found = sheets([(paths[name], weights.format) for name in weights.files], ledger, progress)
    return _merged(root, weights, [found[paths[name], weights.format] for name in weights.files])


def _of_folder(root: str, by: str, ledger: Ledger, progress: Wish) -> bytes:
    paths = folder.counted(root)
    weights, rest = folder.sets(root, paths) if by == "parameters" else ([], paths)
    kinds = {name: _kind(name) if by == "parameters" else "content" for name in rest}
    asked = [(paths[name], one.format) for one in weights for name in one.files]
    asked += [(paths[name], kinds[name]) for name in sorted(rest)]
    found = sheets(asked, ledger, progress)
    parts = {one.name: _merged(root, one, [found[paths[name], one.format] for name in one.files]) for one in weights}
    if len(parts) == 1 and not rest:
        return next(iter(parts.values()))
    its = {name: found[path, kinds[name]] for name, path in rest.items()}
    parts |= {name: documents.content(sheet["content"]) for name, sheet in its.items()}
    # What a model refers to counts whatever its name: it may be one that a folder's files otherwise do not count by.
    unseen: dict[str, str] = {}
    for name, sheet in its.items():
        for beside, path in _external(paths[name], sheet).items():
            inside = posixpath.normpath(posixpath.join(posixpath.dirname(name), beside.replace("\\", "/")))
            if inside not in paths:
                unseen[inside] = path
    found = sheets([(path, "content") for path in unseen.values()], ledger, progress)
    parts |= {name: documents.content(found[path, "content"]["content"]) for name, path in unseen.items()}
    return documents.folder(parts, root)


def _of_file(path: str, ledger: Ledger, progress: Wish) -> bytes:
    """A file that counts by its bytes, and those that an ONNX model refers to."""
    kind = _kind(path)
    sheet = sheets([(path, kind)], ledger, progress)[path, kind]
    beside = _external(path, sheet)
    found = sheets([(its, "content") for its in beside.values()], ledger, progress)
    return documents.content(sheet["content"], {name: found[its, "content"]["content"] for name, its in beside.items()})


def _kind(name: str) -> str:
    return "onnx" if name.lower().endswith(".onnx") else "content"


def _external(path: str, sheet: Sheet) -> dict[str, str]:
    """The files that the model at a path refers to: their paths, by the names that it has for them."""
    beside = {name: os.path.join(os.path.dirname(path), name) for name in sheet.get("external", [])}
    for name, its in beside.items():
        if not os.path.isfile(its):
            raise InvalidModel(f"{path}: its external data {name!r} is missing; download the model again")
    return beside


def _merged(root: str, weights: Weights, parts: list[Sheet]) -> bytes:
    merge = merging.safetensors if weights.format == "safetensors" else merging.gguf
    return merge(root, weights, parts)
