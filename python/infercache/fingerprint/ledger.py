"""What is known of files that were hashed before, so that a restart does not read them again.

One small file for each model file, named after the hash of its real path. Its first line says what it is and holds a
checksum of the second, which holds what the model file looked like (inode, size, mtime, ctime) and its digests.
If anything is not as expected it counts for nothing and is written anew: nothing here is ever an error.

As with git's index, a file that was modified within the last two seconds before it was read is not written down:
another change within the file system's clock tick would leave no trace. ctime counts since anybody can set mtime back.

Digests become versions, so they are taken from nobody else: folder and files have to belong to this user or to root,
and be writable by no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from infercache.errors import UnusableCacheFolder

if TYPE_CHECKING:
    from infercache.fingerprint.plans import Sheet

__all__ = ["Ledger", "Stamp", "default_folder"]

FORMAT, VERSION = "infercache fingerprint", 1
#: Nanoseconds that a modification has to lie back: the coarsest clock of a file system in use (FAT) ticks every two
#: seconds.
SETTLED = 2_000_000_000
#: Entries that are kept; the oldest quarter goes when there are more.
MOST_ENTRIES = 4096
_MOST_BYTES = 256 << 20
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

_warned: set[str] = set()


class Stamp(NamedTuple):
    """What tells whether a file is still the one that was hashed.

    The device is left out: its number changes when a container starts or a network file system is mounted again.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """From what the operating system says of a file."""
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def is_settled(self, now_ns: int) -> bool:
        """Whether a change from now on would show."""
        return max(self.mtime_ns, self.ctime_ns) + SETTLED <= now_ns


def default_folder() -> str | None:
    """Where entries are kept if nobody says otherwise; None where there is no such place."""
    chosen = os.environ.get("INFERCACHE_CACHE_DIR")
    if chosen:
        return chosen
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    if not base or not os.path.isabs(base):  # the XDG specification has relative ones ignored
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "infercache") if os.path.isabs(base) else None


class Ledger:
    """The entries in one folder; without a folder there are none and none are kept."""

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else os.path.join(folder, "fingerprints")
        self._readable: bool | None = None  # not known yet

    @property
    def keeps(self) -> bool:
        """Whether anything is written down."""
        return self._folder is not None

    def find(self, path: str, kind: str, stamp: Stamp) -> Sheet | None:
        """What is known of the file at this real path, if it is still the same file."""
        if self._readable is None:
            self._readable = self._folder is not None and self._is_ours()
        if not self._readable:
            return None
        try:
            return self._read(self._place(path, kind), path, kind, stamp)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    def keep(self, path: str, kind: str, stamp: Stamp, sheet: Sheet) -> None:
        """Writes down what is known of a file."""
        if self._folder is None:
            return
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            if self._is_ours():
                self._write(self._place(path, kind), path, kind, stamp, sheet)
                self._prune()
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror or error})")

    def _place(self, path: str, kind: str) -> str:
        name = hashlib.blake2b(os.fsencode(path) + b"\0" + kind.encode(), digest_size=20).hexdigest()
        return os.path.join(str(self._folder), f"{name}.json")

    def _is_ours(self) -> bool:
        try:
            found = os.lstat(str(self._folder))
        except OSError:
            return False
        if not stat.S_ISDIR(found.st_mode):
            self._warn("is no folder, or a link to one")
            return False
        if not _is_trusted(found):
            self._warn("belongs to another user, or others may write to it")
            return False
        return True

    def _read(self, place: str, path: str, kind: str, stamp: Stamp) -> Sheet | None:
        # Neither a link nor a pipe that somebody put there; both flags are missing on Windows.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        # By the bare calls: a file object asks the operating system half a dozen questions more.
        descriptor = os.open(place, flags | getattr(os, "O_BINARY", 0))
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not _is_trusted(found) or found.st_size > _MOST_BYTES:
                return None
            content = os.read(descriptor, found.st_size)
        finally:
            os.close(descriptor)
        head, _, body = content.partition(b"\n")
        if json.loads(head) != _head(body):
            return None
        entry: dict[str, Any] = json.loads(body)
        if (entry["path"], entry["kind"], entry["stamp"]) != (path, kind, list(stamp)):
            return None
        sheet: Sheet = entry["sheet"]
        return sheet

    def _write(self, place: str, path: str, kind: str, stamp: Stamp, sheet: Sheet) -> None:
        import tempfile

        entry = {"path": path, "kind": kind, "stamp": list(stamp), "sheet": sheet}
        body = json.dumps(entry, separators=(",", ":")).encode()
        descriptor, temporary = tempfile.mkstemp(dir=self._folder)  # for its owner alone
        try:
            with open(descriptor, "wb") as file:
                file.write(json.dumps(_head(body)).encode() + b"\n" + body)
            os.replace(temporary, place)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _prune(self) -> None:
        with os.scandir(str(self._folder)) as entries:
            found = [entry.path for entry in entries]
        if len(found) <= MOST_ENTRIES:
            return
        aged = []
        for path in found:
            with suppress(OSError):  # another process prunes too
                aged.append((os.lstat(path).st_mtime_ns, path))
        for _, path in sorted(aged)[: len(aged) - MOST_ENTRIES * 3 // 4]:
            with suppress(OSError):
                os.unlink(path)

    def _warn(self, reason: str) -> None:
        if str(self._folder) not in _warned:
            _warned.add(str(self._folder))
            warnings.warn(
                f"the folder of fingerprints computed before, {self._folder}, {reason}: models are read anew "
                "at each start; INFERCACHE_CACHE_DIR or cache_dir= names another folder, cache_dir=False none",
                UnusableCacheFolder,
                stacklevel=2,
            )


def _head(body: bytes) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "check": hashlib.blake2b(body, digest_size=32).hexdigest()}


def _is_trusted(found: os.stat_result) -> bool:
    """Belongs to this user or to root, and nobody else may write. (On Windows a profile's rights see to that.)"""
    if not hasattr(os, "geteuid"):
        return True
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & _OTHERS_MAY_WRITE
