"""What a command is given to read: a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from infercache.errors import InvalidArgument

__all__ = ["content", "text"]


def content(path: str | Path) -> bytes:
    """What is in a file; `-` is standard input.

    Raises:
        InvalidArgument: it cannot be read; the text says why.
    """
    try:
        if str(path) != "-":
            return Path(path).read_bytes()
        if sys.stdin is None:
            raise InvalidArgument("standard input is closed; give a file, or something to read there")
        return sys.stdin.buffer.read()
    except OSError as error:
        name = "standard input" if str(path) == "-" else path
        raise InvalidArgument(f"{name}: {error.strerror or error}") from None


def text(path: str | Path) -> str:
    """The text in a UTF-8 file; `-` is standard input. A byte order mark is no part of it.

    Raises:
        InvalidArgument: it cannot be read, or is not UTF-8.
    """
    found = content(path)
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{found[error.start]:02x} at offset {error.start:,}"
        raise InvalidArgument(f"{path}: not UTF-8 text ({wrong}: {error.reason})") from None
