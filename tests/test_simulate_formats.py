"""Logs as they come: each format recognised, each bad line told, each fault named with file, line and what to do."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from infercache import InvalidArgument, Key
from infercache.workload import sources
from infercache.workload.formats import FORMATS, recognised
from infercache.workload.simulation import Options, Simulation, simulate
from infercache.workload.sources import Source
from logs_of_requests import drawn, json_lines, table

ONE = Options(sizes=[1 << 20], ttls=[None])
TRACES = "data/traces"


def read(path: Path, **options: object) -> Simulation:
    return simulate([str(path)], Options(sizes=[1 << 20], ttls=[None], **options))  # type: ignore[arg-type]


def written(tmp_path: Path, content: str | bytes, name: str = "log") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def said(path: Path, **options: object) -> str:
    with pytest.raises(InvalidArgument) as told:
        read(path, **options)
    return str(told.value)


def same(one: Simulation, other: Simulation) -> None:
    """They were read as the same requests."""
    for name in ("asked", "times", "sizes", "costs", "models", "requests", "seconds"):
        np.testing.assert_array_equal(getattr(one.log, name), getattr(other.log, name), err_msg=name)


def test_json_lines_and_tables_say_the_same(tmp_path: Path) -> None:
    requests = drawn(500)
    expected = read(json_lines(tmp_path / "log.jsonl", requests))
    assert expected.readings[0].format == "jsonl"
    assert expected.requests == 500
    for number, delimiter in enumerate(",;\t|"):
        found = read(table(tmp_path / f"{number}.csv", requests, delimiter))
        assert found.readings[0].format == "csv"
        same(found, expected)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_compressed_logs_are_read_as_they_are(pack: object, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "log.jsonl", drawn(300))
    packed = written(tmp_path, pack(path.read_bytes()), "packed")  # type: ignore[operator]
    same(read(packed), read(path))


def test_several_gzip_members_are_one_log(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "log.jsonl", drawn(300))
    lines = path.read_bytes().splitlines(keepends=True)
    parts = b"".join(gzip.compress(b"".join(part)) for part in (lines[:100], lines[100:]))
    same(read(written(tmp_path, parts, "parts.gz")), read(path))


def test_standard_input_is_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = json_lines(tmp_path / "log.jsonl", drawn(300))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(path.read_bytes()))))
    same(simulate(["-"], ONE), read(path))


def test_logs_are_merged_by_their_times(tmp_path: Path) -> None:
    requests = drawn(400)
    whole = read(json_lines(tmp_path / "whole.jsonl", requests))
    odd, even = json_lines(tmp_path / "odd.jsonl", requests[1::2]), table(tmp_path / "even.csv", requests[::2])
    found = simulate([str(odd), str(even)], ONE)
    assert {group.workload for group in found.log.groups} == {"odd.jsonl", "even.csv"}
    np.testing.assert_array_equal(found.log.times, whole.log.times)
    assert found.trials[0].hits.sum() == whole.trials[0].hits.sum()


def test_a_log_need_not_be_in_the_order_of_its_times(tmp_path: Path) -> None:
    requests = drawn(400)
    shuffled = [requests[place] for place in np.random.default_rng(3).permutation(400)]
    found, expected = (read(json_lines(tmp_path / name, each)) for name, each in (("a", shuffled), ("b", requests)))
    assert found.trials[0].hits.sum() == pytest.approx(expected.trials[0].hits.sum(), abs=2)  # of equal times
    np.testing.assert_array_equal(found.log.times, expected.log.times)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ('{"time": 1700000000.25, "key": "a"}', None, 1_700_000_000.25),
        ('{"time": 1700000000250, "key": "a"}', None, 1_700_000_000.25),
        ('{"time": 1700000000250000, "key": "a"}', None, 1_700_000_000.25),
        ('{"time": "1700000000250000000", "key": "a"}', None, 1_700_000_000.25),
        ('{"time": "2023-11-14T22:13:20.250Z", "key": "a"}', None, 1_700_000_000.25),
        ('{"time": "2023-11-14T23:13:20.250+01:00", "key": "a"}', None, 1_700_000_000.25),
        ('{"time": "2023-11-14 22:13:20.250", "key": "a"}', None, 1_700_000_000.25),
        ('{"time": 250, "key": "a"}', "ms", 0.25),
        ('{"time": 0.25, "key": "a"}', None, 0.25),
    ],
)
def test_times_are_seconds_whatever_they_are_written_in(
    text: str, unit: str | None, expected: float, tmp_path: Path
) -> None:
    from infercache.workload.fields import parse

    base = json.dumps({"time": 1_700_000_000 if expected > 1e9 else 0, "key": "b"}) + "\n"
    fields = parse([f"time=time:{unit}"] if unit else [])
    found = read(written(tmp_path, base + text + "\n"), fields=fields)
    assert found.log.span == pytest.approx(expected % 1_700_000_000, abs=1e-6)


def test_names_that_say_their_unit_are_recognised(tmp_path: Path) -> None:
    for name, factor in (("cost_ms", 1e3), ("latency_seconds", 1.0), ("upstream_us", 1e6), ("Cost_MS", 1e3)):
        line = json.dumps({"prompt": "a", name: 0.5 * factor})
        assert read(written(tmp_path, line)).log.costs.tolist() == [0.5]


def test_a_latency_without_a_unit_is_not_guessed(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "a", "latency": 20}\n')
    found = read(path)
    assert not found.log.has_costs
    assert "--field cost=latency:ms" in found.readings[0].remarks[0]
    from infercache.workload.fields import parse

    assert read(path, fields=parse(["cost=latency:ms"])).log.costs.tolist() == [np.float32(0.02)]


def test_fields_may_have_any_name_and_lie_within_objects(tmp_path: Path) -> None:
    from infercache.workload.fields import parse

    path = written(
        tmp_path, '{"request": {"sha": "x", "at": 5}, "m": "e5"}\n{"request": {"sha": "x", "at": 9}, "m": "e5"}\n'
    )
    found = read(path, fields=parse(["key=request.sha", "time=request.at", "model=m"]))
    assert found.log.asked.tolist() == [0, 0]
    assert found.log.span == 4
    assert found.log.groups[0].model == "e5"


def test_equal_questions_have_equal_keys_as_in_the_cache(tmp_path: Path) -> None:
    lines = ['{"input": {"a": 1, "b": 2.0}}', '{"input": {"b": 2, "a": 1}}', '{"input": {"a": true, "b": 2}}']
    assert read(written(tmp_path, "\n".join(lines))).log.asked.tolist() == [0, 0, 1]


def test_models_and_versions_do_not_share_answers(tmp_path: Path) -> None:
    lines = [
        {"key": "k", "model": "a", "version": "1"},
        {"key": "k", "model": "a", "version": "2"},
        {"key": "k", "model": "b", "version": "1"},
        {"key": "k", "model": "a", "version": "1"},
    ]
    found = read(written(tmp_path, "\n".join(map(json.dumps, lines))))
    assert found.log.asked.tolist() == [0, 1, 2, 0]


def test_the_text_of_a_key_is_that_key(tmp_path: Path) -> None:
    text = "ic1:" + "0f" * 32
    assert bytes(read(written(tmp_path, json.dumps({"key": text}))).log.keys[0]) == bytes(Key(text))


def test_bad_lines_are_counted_and_told_with_the_first_of_each_kind(tmp_path: Path) -> None:
    lines = [
        *(
            '{"key": "a", "bytes": 5, "time": 1}',
            "not json",
            "[1]",
            '{"key": "a"} {"key": "b"}',
            '{"bytes": 5, "time": 1}',
        ),
        *('{"key": "a", "bytes": -5, "time": 1}', '{"key": "a", "bytes": "many", "time": 1}', "", "  "),
        *('{"key": "a", "time": "yesterday"}', "also not json", '{"key": "b", "time": 2}'),
    ]
    path = written(tmp_path, "\n".join(lines).encode() + b"\n\xff{}\n")
    found = read(path)
    assert found.requests == 2
    assert len(found.left_out) == 9
    told = "\n".join(found.left_out.listed())
    for expected in (
        f"2 × not JSON (first at {path}:2)",
        f"2 × not one JSON object (first at {path}:3)",
        f"1 × no 'key' in it, or an empty one (first at {path}:5)",
        f"2 × bytes: no number, negative, or more than 1e+12 (first at {path}:6)",
        f"(first at {path}:10)",
        f"1 × not UTF-8 text (first at {path}:13)",
    ):
        assert expected in told, told


def test_bad_rows_of_a_table_are_told_by_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, 'key,bytes\na,5\nb\n"c\nd",7\ne,x\n,4\n')
    found = read(path)
    assert found.requests == 2
    told = "\n".join(found.left_out.listed())
    assert f"not 2 columns, as the first line has (first at {path}:3)" in told
    assert f"{path}:6" in told
    assert f"{path}:7" in told


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("one two three\n", "--format"),
        ('{"a": 1}\n', "nothing in it tells which requests ask the same: there is 'a'"),
        ('{"key": 1, "time": -1}\n{"key": 1, "time": 99999999999}\n', "years apart"),
        ("\x1f\x8bnothing", "damaged"),
        ("\x28\xb5\x2f\xfd....", "compressed by zstd"),
        ("BZh9....", "compressed by bzip2"),
        ("key,key\n1,2\n", "--format"),
    ],
)
def test_what_is_no_log_is_told_with_its_name_and_what_to_do(content: str, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, content.encode("latin-1"))
    told = said(path)
    assert expected in told
    assert str(path) in told or "years" in expected


def test_a_log_that_is_cut_short_is_told(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "log", drawn(300))
    packed = written(tmp_path, gzip.compress(path.read_bytes())[:-20], "cut.gz")
    assert "cut short" in said(packed)
    assert "cut short" in said(written(tmp_path, struct.pack("<5i", *range(5)) + b"\0", "trace"))


def test_missing_files_folders_and_fields_are_told(tmp_path: Path) -> None:
    from infercache.workload.fields import parse

    assert "No such file" in said(tmp_path / "nothing")
    assert "a folder" in said(tmp_path)
    path = written(tmp_path, '{"key": "a"}\n')
    assert "no 'hash' in it for --field key; there is 'key'" in said(path, fields=parse(["key=hash"]))
    for wrong in ("key", "size=bytes", "key=", "cost=latency:minutes"):
        with pytest.raises(InvalidArgument, match="--field"):
            parse([wrong])


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_LINE", 1 << 20)
    assert "longer than 1 MiB: is it a log?" in said(written(tmp_path, b"{" + b"x" * (6 << 20)))


def test_a_log_with_times_and_one_without_are_not_mixed(tmp_path: Path) -> None:
    one, other = written(tmp_path, '{"key": 1, "time": 1}\n', "a"), written(tmp_path, '{"key": 1}\n', "b")
    with pytest.raises(InvalidArgument, match="order is unknown"):
        simulate([str(one), str(other)], ONE)


def test_sizes_and_costs_of_lines_that_do_not_say_are_the_models(tmp_path: Path) -> None:
    from infercache.workload.log import Defaults

    lines = [{"key": 1, "model": "a", "bytes": 10, "cost": 1}, {"key": 2, "model": "a"}, {"key": 3, "model": "b"}]
    path = written(tmp_path, "\n".join(map(json.dumps, lines)))
    log = read(path).log
    assert (log.sizes.tolist(), log.costs.tolist()) == ([10, 10, 1536], [1, 1, 0])
    log = read(path, defaults=Defaults({"": 7, "a": 8}, {"b": 0.5})).log
    assert (log.sizes.tolist(), log.costs.tolist()) == ([10, 8, 7], [1, 1, 0.5])
    assert log.seconds.tolist() == [2, 0.5]


# ------------------------------------------------------------------------------------------------------- public traces


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "format", "requests", "different"),
    [
        (f"{TRACES}/cache2k_web07.trace.xz", "cache2k", 76_118, 20_484),
        (f"{TRACES}/cache2k_web12.trace.xz", "cache2k", 95_607, 13_756),
        (f"{TRACES}/lirs_loop.trace.gz", "keys", 505_500, 1_011),
        (f"{TRACES}/mooncake_synthetic_trace.jsonl", "mooncake", 3_993, 3_782),
        ("data/queries/excite-small.log", "excite", 4_501, 2_107),
    ],
)
def test_public_traces_are_recognised(shared: Path, name: str, format: str, requests: int, different: int) -> None:
    found = read(shared / name)
    assert found.readings[0].format == format
    print(name, found.requests, found.log.different, found.left_out.listed())
    assert found.requests + len(found.left_out) == requests
    assert found.log.different == pytest.approx(different, rel=0.01)


@pytest.mark.shared
def test_a_cache_that_holds_everything_hits_what_the_traces_repeat(shared: Path) -> None:
    """The shares that the material's own description has of an unbounded cache."""
    for name, chosen, percent in (
        ("cache2k_web07.trace.xz", None, 73.1),
        ("cache2k_web12.trace.xz", None, 85.6),
        ("mooncake_synthetic_trace.jsonl", None, 5.3),
        ("mooncake_synthetic_trace.jsonl", "mooncake-blocks", 64),
    ):
        found = read(shared / TRACES / name, format=chosen)
        assert 100 * found.unbounded[0].hits.sum() / found.requests == pytest.approx(percent, abs=0.5)


@pytest.mark.shared
def test_arrivals_are_no_log_but_give_one_its_times(shared: Path, tmp_path: Path) -> None:
    azure = shared / TRACES / "AzureLLMInferenceTrace_conv_2023.csv"
    assert "--arrivals FILE gives its times to a log that has none" in said(azure)
    keys = written(tmp_path, "\n".join(["a", "b"] * 15_000))
    found = simulate([str(keys)], Options(sizes=[1 << 20], ttls=[1.0], arrivals=str(azure)))
    assert found.log.has_times
    assert 3_500 < found.log.span < 8_000
    assert 0.5 < found.trials[0].hits.sum() / found.requests < 1


def test_each_format_has_a_name_that_is_recognised_or_chosen(tmp_path: Path) -> None:
    begins = {
        "jsonl": '{"key": 1}\n',
        "csv": "time,key\n1,a\n",
        "gateway": '{"time": "t", "level": "info", "logger": "infercache.edge", "message": "answered"}\n',
        "keys": "17\n18\n17\n",
        "cache2k": "\0\0\0\1",
        "mooncake": '{"timestamp": 0, "hash_ids": [1]}\n',
        "excite": "2A9EABFB35F5B954\t970916105432\tfoods\n",
        "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n",
    }
    for name, text in begins.items():
        with Source(str(written(tmp_path, text))) as source:
            assert recognised(source) == name
    assert set(begins) | {"mooncake-blocks"} == set(FORMATS)
