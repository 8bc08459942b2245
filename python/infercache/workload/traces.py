"""Public traces: what is asked for, and sometimes when, in forms of their own.

cache2k          32-bit integers, one a request                        (cache2k's web traces)
keys             a line a request: the line is what is asked for       (LIRS's and Caffeine's traces; plain texts)
mooncake         JSON Lines; a request is the sequence of its blocks   (Mooncake, FAST'25)
mooncake-blocks  the same; each block of 512 tokens is asked for
excite           user, time and query, parted by tabs                  (Excite's search log of 1997)
azure            times and token counts, without what was asked: a process of arrivals, in which nothing repeats
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import chain, repeat
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from infercache.errors import InvalidArgument
from infercache.workload.columns import Reading, requests_of
from infercache.workload.fields import Field, seconds_of
from infercache.workload.json_lines import objects
from infercache.workload.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infercache.workload.requests import Batch

__all__ = ["arrivals", "azure", "cache2k", "excite", "keys", "mooncake", "mooncake_blocks"]

_T = TypeVar("_T")


def cache2k(source: Source, reading: Reading) -> Iterator[Batch]:
    """Integers of 32 bits. Which end of them is first makes no difference to what is equal.

    Raises:
        InvalidArgument: it ends within one.
    """
    reading.fields = {"key": Field("each 32-bit integer")}
    count, rest = 0, b""
    for more in source.blocks():
        block = rest + more
        whole = len(block) // 4 * 4
        rest = block[whole:]
        asked = np.frombuffer(block[:whole], dtype=np.uint32).tolist()
        yield requests_of(reading, {"key": asked}, range(count + 1, count + len(asked) + 1))
        count += len(asked)
    if rest:
        raise InvalidArgument(f"{reading.where}: it ends within a 32-bit integer, so it is cut short, or no such trace")


def keys(source: Source, reading: Reading) -> Iterator[Batch]:
    """Lines, each of which is what is asked for."""
    reading.fields = {"key": Field("the line")}
    for first, raw in source.lines():
        texts = [line.strip().decode("utf-8", "surrogateescape") for line in raw]
        there = [(number, text) for number, text in enumerate(texts, first) if text]
        if there:
            numbers, asked = zip(*there, strict=True)
            # What is not UTF-8 is told apart by its bytes.
            values = [text if text.isascii() else text.encode("utf-8", "surrogateescape") for text in asked]
            yield requests_of(reading, {"key": values}, numbers)


def excite(source: Source, reading: Reading) -> Iterator[Batch]:
    """Queries of users. The times are of no zone."""
    reading.fields = {"time": Field("column 2"), "key": Field("column 3, the query")}
    for first, raw in source.lines():
        numbers, times, queries = [], [], []
        for number, line in enumerate(raw, first):
            if not line.strip():
                continue
            parts = line.decode("utf-8", "replace").rstrip("\r").split("\t")
            if len(parts) != 3:
                reading.bad(number, "not user, time and query, parted by tabs")
                continue
            try:
                moment = datetime.strptime(parts[1], "%y%m%d%H%M%S").replace(tzinfo=UTC)
            except ValueError:
                reading.bad(number, "its time is not yymmddHHMMSS")
                continue
            query = parts[2].strip()
            if not query:
                reading.bad(number, "an empty query")
                continue
            numbers.append(number)
            times.append(moment.timestamp())
            queries.append(query)
        if numbers:
            models = list(repeat("search", len(numbers)))
            yield requests_of(reading, {"time": times, "key": queries, "model": models}, numbers)


def mooncake(source: Source, reading: Reading) -> Iterator[Batch]:
    """Whole requests: the same blocks in the same order, to be answered as long."""
    reading.fields = {"time": Field("timestamp", "ms"), "key": Field("hash_ids, all of a request")}
    for numbers, rows in objects(source, reading):
        good = [(number, row) for number, row in zip(numbers, rows, strict=True) if _has_blocks(reading, number, row)]
        if good:
            yield requests_of(
                reading,
                {
                    "time": [row.get("timestamp") for _, row in good],
                    "key": [[row["hash_ids"], row.get("input_length"), row.get("output_length")] for _, row in good],
                },
                [number for number, _ in good],
            )


def mooncake_blocks(source: Source, reading: Reading) -> Iterator[Batch]:
    """Each block of each request: what a cache of prefixes is asked for."""
    reading.fields = {"time": Field("timestamp", "ms"), "key": Field("hash_ids, each")}
    for numbers, rows in objects(source, reading):
        good = [(number, row) for number, row in zip(numbers, rows, strict=True) if _has_blocks(reading, number, row)]
        lengths = [len(row["hash_ids"]) for _, row in good]
        if good:
            yield requests_of(
                reading,
                {
                    "time": _repeated([row.get("timestamp") for _, row in good], lengths),
                    "key": list(chain.from_iterable(row["hash_ids"] for _, row in good)),
                },
                _repeated([number for number, _ in good], lengths),
            )


def _has_blocks(reading: Reading, number: int, row: dict[str, object]) -> bool:
    blocks = row.get("hash_ids")
    if isinstance(blocks, list) and blocks:
        return True
    reading.bad(number, "no 'hash_ids' in it, or none of them")
    return False


def _repeated(values: list[_T], times: list[int]) -> list[_T]:
    return list(chain.from_iterable(map(repeat, values, times)))


def azure(source: Source, reading: Reading) -> Iterator[Batch]:
    """Nothing can be replayed of it.

    Raises:
        InvalidArgument: always; the text says what it is good for.
    """
    raise InvalidArgument(
        f"{reading.where}: times and token counts without what was asked, so nothing repeats in it. It is a process of "
        "arrivals: --arrivals FILE gives its times to a log that has none"
    )
    yield


def arrivals(path: str) -> npt.NDArray[np.float64]:
    """The times of a process of arrivals, ascending, as seconds from the first: the column TIMESTAMP of Azure's traces.

    Raises:
        InvalidArgument: it is no such file, or has fewer than two times.
    """
    with Source(path) as source:
        found = [
            _moment(path, number, line)
            for first, lines in source.lines()
            for number, line in enumerate(lines, first)
            if line.strip() and not (number == 1 and line.upper().startswith(b"TIMESTAMP"))
        ]
    if len(found) < 2:
        raise InvalidArgument(f"--arrivals {path}: fewer than two times in it")
    times: npt.NDArray[np.float64] = np.sort(np.array(found))
    times -= times[0]
    return times


def _moment(path: str, number: int, line: bytes) -> float:
    text = line.decode("utf-8", "replace").partition(",")[0].strip()
    try:
        # Seven digits of a second: Python's own reader takes six.
        return seconds_of(text[:26] if "-" in text and "." in text else text, None)
    except ValueError:
        raise InvalidArgument(
            f"--arrivals {path}:{number}: the first column is the time of an arrival: a number or ISO 8601"
        ) from None
