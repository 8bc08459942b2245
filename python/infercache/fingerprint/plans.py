"""What a format's reader says before anything large is read: regions to be hashed, what their digests come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infercache.errors import InvalidModel

__all__ = ["Plan", "Sheet", "by_content", "whole"]

#: What is known of a file once it is hashed, as JSON keeps it.
Sheet = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Work on one file.

    Attributes:
        regions: offset and length in bytes; within the file.
        sheet: from the regions' digests (hexadecimal) to what is known of the file.
    """

    regions: list[tuple[int, int]]
    sheet: Callable[[list[str]], Sheet]


def whole(size: int, **more: Any) -> Plan:
    """A file by its bytes."""
    return Plan([(0, size)], lambda digests: {"content": digests[0], **more})


def by_content(path: str, format: str, reason: str) -> InvalidModel:
    """The error for a file that is not what its name says."""
    return InvalidModel(
        f'{path}: not a readable {format} file: {reason}; if it is to count as it is, byte by byte, pass by="content"'
    )
