"""Which format a log has, by how it begins."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from infercache.errors import InvalidArgument
from infercache.workload import gateway, json_lines, tables, traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infercache.workload.columns import Reading
    from infercache.workload.requests import Batch
    from infercache.workload.sources import Source

__all__ = ["FORMATS", "recognised"]

#: Readers by the name of their format.
FORMATS: dict[str, Callable[[Source, Reading], Iterator[Batch]]] = {
    "jsonl": json_lines.read,
    "csv": tables.read,
    "gateway": gateway.read,
    "keys": traces.keys,
    "cache2k": traces.cache2k,
    "mooncake": traces.mooncake,
    "mooncake-blocks": traces.mooncake_blocks,
    "excite": traces.excite,
    "azure": traces.azure,
}
_EXCITE = re.compile(rb"[0-9A-F]{16}\t\d{12}\t")
_AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens"
_WORD = re.compile(rb"\S{1,200}")


def recognised(source: Source) -> str:
    """The name of the format that a log begins as.

    Raises:
        InvalidArgument: it is empty, or begins as none.
    """
    head = source.head.removeprefix(b"\xef\xbb\xbf")
    if not head.strip():
        raise InvalidArgument(f"{source.name}: empty")
    if b"\0" in head:
        return "cache2k"
    lines = [line.strip() for line in head.split(b"\n")][:100]
    lines = [line for line in lines if line]
    if lines[0].startswith(b"{"):
        return _of_object(lines[0])
    if _EXCITE.match(lines[0]):
        return "excite"
    if lines[0].startswith(_AZURE):
        return "azure"
    header = tables.names_of(lines[0])
    if header is not None and tables.is_known(header[0]):
        return "csv"
    # The last line of the head may be cut.
    if all(_WORD.fullmatch(line) and not set(b",;|") & set(line) for line in lines[:-1] or lines):
        return "keys"
    raise InvalidArgument(
        f"{source.name}: in no format that is known by its beginning. Name one with --format: {', '.join(FORMATS)} "
        "(a text a line is --format keys), or name the columns with --format csv --field key=NAME"
    )


def _of_object(line: bytes) -> str:
    try:
        first = json.loads(line)
    except ValueError:
        return "jsonl"
    if not isinstance(first, dict):
        return "jsonl"
    if "hash_ids" in first:
        return "mooncake"
    return "gateway" if gateway.is_line(first) else "jsonl"
