"""The version of a model from the model itself: `model_fingerprint`.

    path ─ files that count ─ sets of weights ─ header ─ regions ─ BLAKE3 ─┐
            folder             folder            safetensors,    reading    ├─ document ─ fingerprint
                                                 gguf, onnx                 │   documents
    state dict ─ canonical forms, tensors hashed many at a time ───────────┘
                  states

docs/model-fingerprint.md says what counts, byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from infercache import _core

if TYPE_CHECKING:
    from infercache.fingerprint.ledger import Ledger

__all__ = ["model_fingerprint"]


def model_fingerprint(
    model: str | os.PathLike[str] | Mapping[str, Any],
    /,
    *,
    by: Literal["parameters", "content"] = "parameters",
    progress: Callable[[int, int], object] | Literal[False] | None = None,
    cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
) -> str:
    """The fingerprint of a model: equal for equal parameters, to be used as ``version=``.

    Args:
        model: the path of a file or folder of weights, or a state dict. Safetensors and GGUF files count by their
            parameters, however these are sharded, and a state dict has the fingerprint of the safetensors files that
            hold it; any other file counts by its bytes and is never unpickled. Of a folder everything counts but hidden
            files and documentation.
        by: "content" counts every file by its bytes, whatever its format.
        progress: ``None`` shows a bar for large models where stderr is a terminal, ``False`` nothing; a function is
            called with the bytes done and the bytes in all, some ten times a second.
        cache_dir: where digests of files are kept, so that unchanged files are not read again; by default
            ``INFERCACHE_CACHE_DIR`` or the user's cache folder. ``False``: nowhere.

    Returns:
        ``fp1:`` and 64 hexadecimal digits.

    Raises:
        ModelNotFound: there is nothing at the path.
        InvalidModel: a file is not what its name says, a shard is missing, or a file changed while it was read.
        UnsupportedInput: a value of the state dict has no canonical form; the text leads to it.
        DeviceError: a tensor of the state dict lies on a device that cannot be used.
        InvalidArgument: an empty folder, or an option that is not acceptable.
        TypeError: neither a path nor a state dict.
        OSError: a file cannot be read.

    >>> import numpy as np
    >>> weights = {"layer.weight": np.eye(2, dtype=np.float32), "layer.bias": np.zeros(2, np.float32)}
    >>> model_fingerprint(weights)
    'fp1:b7f607a490e86bda...'
    """
    # Here, not above: `import infercache` is fast, and most who import it have their versions otherwise.
    from infercache.errors import InvalidArgument, shown
    from infercache.fingerprint import files, states
    from infercache.progress import check

    check(progress)
    if by not in ("parameters", "content"):
        raise InvalidArgument(f'by is "parameters" or "content", not {shown(by)}')
    if isinstance(model, Mapping):
        if by != "parameters":
            raise InvalidArgument('a state dict has parameters and no files: leave by="content" out')
        return _core._fingerprint_of(states.document(model, progress))
    return _core._fingerprint_of(files.document(_path(model), by, _ledger(cache_dir), progress))


def _path(model: Any) -> str:
    """The path, with a file or a folder there."""
    from infercache.errors import ModelNotFound

    if not isinstance(model, str | os.PathLike):
        advice = "; pass its state_dict()" if hasattr(model, "state_dict") else ""
        raise TypeError(
            f"a fingerprint is of the path of a file or folder, or of a state dict (a mapping of name to tensor), "
            f"not of {type(model).__qualname__}{advice}"
        )
    path = os.fspath(model)
    if not isinstance(path, str):
        raise TypeError("the path of a model is text (str), not bytes; os.fsdecode makes it so")
    if "\0" in path or not path or not os.path.exists(path):
        raise ModelNotFound(
            f"no file or folder at {path!r} (seen from {os.getcwd()}): name where the weights lie on this machine; "
            "a model that only a hub has must be downloaded first"
        )
    return path


def _ledger(cache_dir: str | os.PathLike[str] | Literal[False] | None) -> Ledger:
    from infercache.errors import InvalidArgument, shown
    from infercache.fingerprint.ledger import Ledger, default_folder

    if cache_dir is None:
        return Ledger(default_folder())
    if cache_dir is False:
        return Ledger(None)
    folder = os.fspath(cache_dir) if isinstance(cache_dir, str | os.PathLike) else None
    if not isinstance(folder, str) or not folder:
        raise InvalidArgument(f"cache_dir is a folder's path, None or False, not {shown(cache_dir)}")
    return Ledger(folder)
