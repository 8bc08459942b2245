"""Files to what is known of them: from the ledger, or by hashing what their format says."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from infercache import _core
from infercache.errors import InvalidModel
from infercache.fingerprint import gguf, onnx, safetensors
from infercache.fingerprint.ledger import Ledger, Stamp
from infercache.fingerprint.plans import Plan, Sheet, whole
from infercache.progress import Wish, told

__all__ = ["sheets"]

#: Files that are open at a time: well below what a process may have.
_TOGETHER = 64


class _Work(NamedTuple):
    """A file that has to be read."""

    path: str
    real: str
    kind: str
    stamp: Stamp
    began_ns: int
    plan: Plan


def _plan(path: str, kind: str, file: BinaryIO, size: int) -> Plan:
    if kind == "safetensors":
        return safetensors.plan(path, file, size)
    if kind == "gguf":
        return gguf.plan(path, file, size)
    if kind == "onnx":
        return whole(size, external=onnx.external(path, file, size))
    return whole(size)


def sheets(asked: Iterable[tuple[str, str]], ledger: Ledger, wish: Wish) -> dict[tuple[str, str], Sheet]:
    """What is known of each file, by path and kind ("safetensors", "gguf", "onnx", "content").

    Raises:
        InvalidModel: a file is not what its name says, or changed while it was read.
        OSError: a file cannot be read.
    """
    found: dict[tuple[str, str], Sheet] = {}
    work: list[_Work] = []
    same: dict[tuple[str, str], list[tuple[str, str]]] = {}  # links to one file are one piece of work
    folders: dict[str, str] = {}
    for path, kind in asked:
        began = time.time_ns()
        real, there = _located(path, folders)
        those = same.setdefault((real, kind), [])
        those.append((path, kind))
        if len(those) > 1:
            continue
        stamp = _stamp(path, there)
        sheet = ledger.find(real, kind, stamp)
        if sheet is None:
            with open(path, "rb") as file:
                if ledger.keeps and stamp.is_settled(began):
                    _clean(file)
                work.append(_Work(path, real, kind, stamp, began, _plan(path, kind, file, stamp.size)))
        else:
            found[path, kind] = sheet
    if work:
        total = sum(length for one in work for _, length in one.plan.regions)
        done = 0
        with told(wish, "fingerprint", total) as tell:
            for first in range(0, len(work), _TOGETHER):
                batch = work[first : first + _TOGETHER]
                for one, sheet in zip(batch, _hashed(batch, _after(done, tell)), strict=True):
                    found[one.path, one.kind] = sheet
                    if one.stamp.is_settled(one.began_ns):
                        ledger.keep(one.real, one.kind, one.stamp, sheet)
                done += sum(length for one in batch for _, length in one.plan.regions)
                tell(done)
    for those in same.values():
        for alias in those[1:]:
            found[alias] = found[those[0]]
    return found


def _clean(file: BinaryIO) -> None:
    """Has what was written through a memory map go to the device, so that the next such write sets the file's times.

    The system sets them when a page that is clean is written to, not when it is written once more (Linux, mm/memory.c).
    """
    with suppress(OSError):  # a file system without it, or Windows, which wants the right to write for it
        os.fsync(file.fileno())


def _after(before: int, tell: Callable[[int], None]) -> Callable[[int], None]:
    return lambda done: tell(before + done)


def _hashed(batch: list[_Work], tell: Callable[[int], None]) -> list[Sheet]:
    paths = [one.path for one in batch]
    regions = [(at, *region) for at, one in enumerate(batch) for region in one.plan.regions]
    try:
        digests = iter(_core._hash_regions(paths, regions, tell))
    except EOFError as error:
        raise _changed(str(error)) from None
    made = [one.plan.sheet([next(digests).hex() for _ in one.plan.regions]) for one in batch]
    for one in batch:
        # Header and elements were read by name, one after the other: it has to stand for the same bytes throughout.
        try:
            after = _stamp(one.path, os.stat(one.path))
        except FileNotFoundError:
            raise _changed(one.path) from None
        if after != one.stamp:
            raise _changed(one.path)
    return made


def _located(path: str, folders: dict[str, str]) -> tuple[str, os.stat_result]:
    """The real path of a file and what the operating system says of it, which is asked for each folder once."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return os.path.realpath(path), os.stat(path)
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name), found


def _stamp(path: str, found: os.stat_result) -> Stamp:
    if not stat.S_ISREG(found.st_mode):
        raise InvalidModel(f"{path}: neither a file nor a folder; name the model's file or folder")
    return Stamp.of(found)


def _changed(path: str) -> InvalidModel:
    return InvalidModel(f"{path}: it changed while it was read; ask again when it is complete")
