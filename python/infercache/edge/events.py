"""Server-sent events: whether a stream of them is one that may be kept."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator

__all__ = ["events", "refusal"]


def events(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The events of a stream, each with its type and its data; the last, even where no blank line has ended it."""
    kind, data = b"", list[bytes]()
    for line in body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if not line:
            if data or kind:
                yield kind, b"\n".join(data)
            kind, data = b"", []
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
    if data or kind:
        yield kind, b"\n".join(data)


def refusal(body: bytes, ends: Collection[bytes]) -> str:
    """Why a stream must not be kept, a word for `Cache-Status`; "": it is whole, and no event tells of an error.

    Args:
        body: all that came.
        ends: the data of the event that ends a whole stream, any of these.
    """
    last = b""
    for kind, data in events(body):
        if kind == b"error" or (b"error" in data and _tells_of_an_error(data)):
            return "stream-error"
        last = data
    return "" if last in ends else "stream-unfinished"


def _tells_of_an_error(data: bytes) -> bool:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(told, dict):
        return False
    if told.get("error") is not None or told.get("object") == "error" or told.get("type") == "error":
        return True
    choices = told.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") == "error" for choice in choices
    )
