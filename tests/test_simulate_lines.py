"""The native reader of lines gives what the readers in Python give, of whatever lines; and only what is usual."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache import _core
from infercache.workload import json_lines, tables
from infercache.workload.columns import Reading
from infercache.workload.requests import Batch, Groups, LeftOut
from infercache.workload.sources import Source


@contextmanager
def in_python() -> Iterator[None]:
    """Every line is left to the readers in Python."""

    def left(block: bytes, *_: Any) -> Any:
        lines = block.split(b"\n")
        odd = np.array([place for place, line in enumerate(lines) if line.strip()], dtype=np.uint32)
        return (b"", b"", b"", b"", b"", b"", [], odd.tobytes())

    with mock.patch.object(_core, "_log_objects", left), mock.patch.object(_core, "_log_rows", left):
        yield


def read(path: Path, reader: Any) -> tuple[list[Any], list[Any], dict[str, int]]:
    """The requests of a log, the groups, and what was left out."""
    groups, left_out = Groups(), LeftOut()
    reading = Reading("log", {}, groups, left_out, workload="w")
    with Source(str(path)) as source:
        batches = [batch for batch in reader(source, reading) if len(batch)]
    listed = groups.listed()
    return [row for batch in batches for row in rows(batch, listed)], reading.remarks, left_out.counts


def rows(batch: Batch, groups: list[Any]) -> Iterator[Any]:
    for place in range(len(batch)):
        time = None if batch.times is None else batch.times[place]
        amounts = [None if math.isnan(value) else value for value in (batch.sizes[place], batch.costs[place])]
        yield bytes(batch.keys[place]), groups[batch.groups[place]], time, *amounts


def same(path: Path, reader: Any) -> list[Any]:
    found = read(path, reader)
    with in_python():
        expected = read(path, reader)
    assert found == expected
    return found[0]


moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).flatmap(
    lambda moment: st.sampled_from(
        [
            moment.isoformat(),
            moment.isoformat(" ", "milliseconds"),
            moment.isoformat("T", "seconds") + "Z",
            moment.isoformat() + "+05:30",
            moment.isoformat() + "-11:00",
            moment.date().isoformat(),
            f"{moment:%Y-%m-%dT%H:%M:%S}.1234567Z",
        ]
    )
)
times = st.one_of(
    *(st.integers(0, 2 * 10**18), st.floats(0, 2e9), moments),
    st.sampled_from(
        ["", "now", None, True, "2023-02-29T00:00:00", "2024-02-29T00:00:00", "1e5", "2023-13-01T00:00:00"]
    ),
)
names = st.sampled_from(["a", "b", "", "é", 'quo"te', "back\\slash", None, 7, " a "])
questions = st.one_of(
    st.sampled_from(["q", "", "é", 'a "b" \\ \n', "ic1:" + "0a" * 32, "ic1:short", None, 1, 1.0, True, "\u2028", " q"]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
)
amounts = st.one_of(
    st.integers(-2, 2**41), st.floats(0, 1e7), st.sampled_from(["", "5", "5.5", "x", None, "1e3", " 4"])
)
lines = st.fixed_dictionaries(
    {"time": times, "key": questions},
    optional={
        "model": names,
        "version": names,
        "workload": names,
        "bytes": amounts,
        "cost_ms": amounts,
        "other": names,
    },
)
odd = st.sampled_from(
    ['{"key": 1', "[]", "", "  ", "\x00", '{"key": 1, "time": 1, "time": 2}', "null", "\ufeff{}", '"x"']
)


@given(st.lists(lines | odd, min_size=1, max_size=20), st.sampled_from([None, (",", ":")]))
def test_lines_of_json_are_read_alike(tmp_path_factory: pytest.TempPathFactory, given_: list[Any], form: Any) -> None:
    usual = {"time": 1, "key": "first", "model": "m", "version": "1", "workload": "x", "bytes": 1, "cost_ms": 1}
    texts = [each if isinstance(each, str) else json.dumps(each, separators=form) for each in [usual, *given_]]
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    assert len(same(path, json_lines.read)) >= 1


cells = st.one_of(
    *(times.map(str), amounts.map(str), names.map(str)),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n,\x00", exclude_categories=["Cs"]), max_size=5),
)


@given(st.lists(st.lists(cells, min_size=6, max_size=8), max_size=15), st.booleans())
def test_rows_are_read_alike(tmp_path_factory: pytest.TempPathFactory, given_: list[list[str]], ends: bool) -> None:
    texts = ["time,key,model,bytes,cost,workload", "1,first,m,2,3,x", *(",".join(row) for row in given_)]
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(("\r\n" if ends else "\n").join(texts).encode())
    same(path, tables.read)


def test_the_usual_lines_are_read_natively(tmp_path: Path) -> None:
    """What a log mostly consists of is not left to Python."""
    rows = [
        {"time": 1.5, "model": "m", "key": "a", "bytes": 3, "cost": 0.5},
        {"time": "2026-11-24T10:00:00.123Z", "model": "é", "key": {"b": [1, None]}, "bytes": None},
        {"time": "2026-11-24T10:00:00+01:00", "key": "ic1:" + "00" * 32, "cost": 1e-3},
    ]
    block = "\n".join(map(json.dumps, rows)).replace("\\u00e9", "é").encode()
    names = ["time", "model", None, None, "key", "bytes", "cost"]
    found = _core._log_objects(block, names, (1.0, 1.0), (1e9, 1e9), "")
    assert found[-1] == b""
    expected = [1.5, *(datetime.fromisoformat(str(row["time"])).timestamp() for row in rows[1:])]
    assert np.frombuffer(found[3]).tolist() == expected
    assert found[6] == [("", "m"), ("", "é"), ("", "")]
    found = _core._log_rows(
        b"1,m,a\r\n2,n,b\n", [0, 1, None, None, 2, None, None], 3, ord(","), (1e-3, 1.0), (9, 9), "w"
    )
    assert (found[-1], found[6]) == (b"", [("w", "m"), ("w", "n")])
    assert np.frombuffer(found[3]).tolist() == [0.001, 0.002]


@given(st.datetimes(datetime(1890, 1, 1), datetime(2210, 12, 31)), st.integers(-14 * 60, 14 * 60))
def test_moments_are_those_of_the_calendar(moment: datetime, minutes: int) -> None:
    text = f"{moment.isoformat()}{'+' if minutes >= 0 else '-'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    row = json.dumps({"time": text, "key": 1}).encode()
    found = _core._log_objects(row, ["time", None, None, None, "key", None, None], (1.0, 1.0), (1, 1), "")
    if found[-1]:
        assert (moment.month, moment.day) == (2, 29) or not 1900 <= moment.year < 2200, (
            "the usual ones are read natively"
        )
        return
    exact = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC) - timedelta(minutes=minutes)).total_seconds()
    assert np.frombuffer(found[3]).tolist() == [exact]
