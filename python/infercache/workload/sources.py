"""A log's bytes and lines as they come: a file or standard input, compressed or not, in bounded memory."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from infercache.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Lines", "Source"]

#: Bytes that are read at once, and the longest line: what has longer ones is no log.
_BLOCK = 4 << 20
LONGEST_LINE = 64 << 20
#: Bytes of the beginning that formats are recognised by.
_HEAD = 64 << 10
_GZIP, _XZ, _ZSTD, _BZIP = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"BZh"
_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)

#: The number of the first line, counted from 1, and lines without their ends.
Lines = tuple[int, list[bytes]]


class Source:
    """One log, to be read once.

    Args:
        path: a file; "-": standard input.

    Attributes:
        name: for messages.
        size: bytes of the file as it lies there; 0: nobody knows.
        head: the first bytes, uncompressed.

    Raises:
        InvalidArgument: it cannot be opened, is damaged, or is compressed in a way that is not read.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == "-" else path
        self.size = 0
        try:
            self._raw = self._open(path)
        except OSError as error:
            raise InvalidArgument(f"{self.name}: {error.strerror or error}") from None
        try:
            self._content = self._uncompressed()
            self.head = self._read(_HEAD)
        except BaseException:
            self.close()
            raise
        self._ahead = self.head

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: str) -> IO[bytes]:
        if path != "-":
            if Path(path).is_dir():
                raise InvalidArgument(f"{path}: a folder; name the logs in it")
            self.size = Path(path).stat().st_size
            return Path(path).open("rb")
        if sys.stdin is None:
            raise InvalidArgument("standard input is closed; give a file, or something to read there")
        return sys.stdin.buffer

    def _uncompressed(self) -> IO[bytes]:
        start = _peek(self._raw)
        if start.startswith(_GZIP):
            return cast("IO[bytes]", gzip.GzipFile(fileobj=self._raw))
        if start.startswith(_XZ):
            return lzma.LZMAFile(self._raw)
        for magic, command in ((_ZSTD, "zstd"), (_BZIP, "bzip2")):
            if start.startswith(magic):
                raise InvalidArgument(
                    f"{self.name}: compressed by {command}, which is not read; try: {command} -dc FILE | infercache "
                    "simulate -"
                )
        return self._raw

    def _read(self, most: int) -> bytes:
        try:
            return self._content.read(most) or b""
        except _DAMAGED as error:
            raise InvalidArgument(f"{self.name}: damaged, or cut short: {error}") from None
        except OSError as error:
            raise InvalidArgument(f"{self.name}: {error.strerror or error}") from None

    @property
    def done(self) -> int:
        """Bytes of the file read so far, as they lie there."""
        return self._raw.tell() if self.size else 0

    def blocks(self) -> Iterator[bytes]:
        """All of its bytes, in parts of some megabytes."""
        block, self._ahead = self._ahead, b""
        while block:
            yield block
            block = self._read(_BLOCK)

    def whole_lines(self) -> Iterator[tuple[int, bytes]]:
        """All of its lines, many at a time: the number of the first, counted from 1, and their text.

        Raises:
            InvalidArgument: one is too long for a log's.
        """
        number, rest = 1, b""
        for block in self.blocks():
            end = block.rfind(b"\n") + 1
            if not end:
                rest += block
                if len(rest) > LONGEST_LINE:
                    raise InvalidArgument(
                        f"{self.name}: line {number:,} is longer than {LONGEST_LINE >> 20} MiB: is it a log?"
                    )
                continue
            text = rest + block[:end]
            rest = block[end:]
            yield number, text
            number += text.count(b"\n")
        if rest:
            yield number, rest

    def lines(self) -> Iterator[Lines]:
        """All of its lines, many at a time, each for itself."""
        for number, text in self.whole_lines():
            yield number, text.removesuffix(b"\n").split(b"\n")

    def close(self) -> None:
        """Closes the file."""
        if self._raw is not getattr(sys.stdin, "buffer", None):
            self._raw.close()


def _peek(raw: IO[bytes]) -> bytes:
    """The first bytes, which stay there to be read."""
    if isinstance(raw, io.BufferedReader):
        return raw.peek(8)[:8]
    start = raw.read(8)
    raw.seek(0)
    return start
