"""The parts of one set of weights, as the document of the whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from infercache.errors import InvalidModel, shown
from infercache.fingerprint import documents

if TYPE_CHECKING:
    from infercache.fingerprint.folder import Weights
    from infercache.fingerprint.plans import Sheet

__all__ = ["gguf", "safetensors"]


def safetensors(root: str, weights: Weights, parts: list[Sheet]) -> bytes:
    """The parameters of all parts.

    Raises:
        InvalidModel: a parameter stands in two parts, or not where the index says.
    """
    path = os.path.join(root, weights.name)
    where = {
        entry[0]: os.path.basename(name)
        for name, part in zip(weights.files, parts, strict=True)
        for entry in part["parameters"]
    }
    tensors = [
        (name, documents.tensor(dtype, shape, digest))
        for name, dtype, shape, digest in _each_once(path, (entry for part in parts for entry in part["parameters"]))
    ]
    if weights.index is not None and weights.index != where:
        wrong = min(weights.index.items() ^ where.items())[0]
        raise InvalidModel(
            f"{path}.index.json: it does not say which files hold which parameters, such as {shown(wrong)}; download "
            "the model again, or remove the index if it is a leftover"
        )
    return documents.parameters(tensors, path)


def gguf(root: str, weights: Weights, parts: list[Sheet]) -> bytes:
    """The metadata and tensors of all parts; `split.*` was left out before.

    Raises:
        InvalidModel: the files are not the parts of one model, in this order.
    """
    path = os.path.join(root, weights.name)
    for number, (name, part) in enumerate(zip(weights.files, parts, strict=True)):
        no, count = part["split"]
        if (count > 1 or len(parts) > 1) and (no, count) != (number, len(parts)):
            raise InvalidModel(
                f"{os.path.join(root, name)}: it says that it is part {no + 1} of {count}, its name that it is part "
                f"{number + 1} of {len(parts)}; give it its name back"
            )
    metadata: dict[str, str] = {}
    for part in parts:
        for key, digest in part["metadata"]:
            if metadata.setdefault(key, digest) != digest:
                raise InvalidModel(f"{path}: its parts differ in the metadata {shown(key)}: they are not of one model")
    entries = _each_once(path, (entry for part in parts for entry in part["tensors"]))
    return documents.gguf(metadata.items(), [(name, kind, shape, its) for name, kind, shape, its in entries], path)


def _each_once(path: str, entries: Iterable[list[Any]]) -> Iterable[list[Any]]:
    seen = set()
    for entry in entries:
        if entry[0] in seen:
            raise InvalidModel(
                f'{path}: {shown(entry[0])} stands in two of its parts; pass by="content" if that is meant'
            )
        seen.add(entry[0])
        yield entry
