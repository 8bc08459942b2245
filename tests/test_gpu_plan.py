"""The plan of the launches, without a device: trees, grids and places, for any sizes."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercache import InvalidArgument
from infercache.gpu.plan import (
    CHUNK,
    DIGEST,
    FAN,
    JOB,
    RELATIVE,
    ROOT,
    TILE,
    Plan,
    Strided,
    contiguous,
    strided,
    tiles_of,
)


class Node(NamedTuple):
    """A node of a job's tree."""

    job: int
    first: int  # chunk
    chunks: int


def joined(nodes: list[Node]) -> Node:
    """What a block makes of its nodes; each join must be one of the specification's tree."""
    while len(nodes) > 1:
        pairs = [specified(nodes[at], nodes[at + 1]) for at in range(0, len(nodes) - 1, 2)]
        nodes = pairs + (nodes[-1:] if len(nodes) % 2 else [])
    return nodes[0]


def specified(left: Node, right: Node) -> Node:
    """The specification: neighbours, the left one the largest power of two that leaves the right one something."""
    total = left.chunks + right.chunks
    assert left.job == right.job
    assert left.first + left.chunks == right.first
    assert left.chunks == 1 << (total - 1).bit_length() - 1
    return Node(left.job, left.first, total)


def followed(plan: Plan, lengths: list[int]) -> dict[int, Node]:
    """Does what the launches say with nodes in place of hashes; what is left at each place of the workspace."""
    places: dict[int, Node] = {}
    for kernel, blocks, (table, count) in plan.launches:
        rows = np.frombuffer(plan.table, JOB, count, table - plan.table_at)
        ends = [*rows["first_block"][1:].tolist(), blocks]
        assert rows["first_block"][0] == 0
        for row, end in zip(rows, ends, strict=True):
            mine = range(end - int(row["first_block"]))
            assert len(mine) >= 1
            assert bool(row["flags"] & ROOT) == (len(mine) == 1 and int(row["output"]) < plan.digests * DIGEST)
            made = [block(kernel, row, number, places, lengths) for number in mine]
            for number, node in enumerate(made):
                place = int(row["output"]) + number * DIGEST
                assert place not in places, "a place is written once"
                assert place + DIGEST <= plan.workspace
                assert not plan.table_at <= place < plan.table_at + len(plan.table)
                places[place] = node
    return places


def block(kernel: str, row: np.void, number: int, places: dict[int, Node], lengths: list[int]) -> Node:
    """The node of a block."""
    if kernel == "chunks":
        job = int(row["input"])  # the test's addresses are the jobs' numbers
        assert row["length"] == lengths[job]
        assert not row["flags"] & RELATIVE
        chunks = max(-(-lengths[job] // CHUNK), 1)
        return Node(job, number * TILE, min(TILE, chunks - number * TILE))
    first, last = number * FAN, min((number + 1) * FAN, int(row["length"]))
    assert row["flags"] & RELATIVE
    return joined([places[int(row["input"]) + at * DIGEST] for at in range(first, last)])


@settings(max_examples=50)
@given(
    lengths=st.lists(
        st.one_of(
            st.integers(0, 3000),
            st.integers(0, 1 << 31),
            st.builds(
                lambda tiles, around: max(tiles * TILE * CHUNK + around, 0),
                st.sampled_from([1, 2, FAN - 1, FAN, FAN + 1, 2 * FAN, 20 * FAN]),
                st.integers(-1, 1),
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_launches_join_every_chunk_as_the_specification_does(lengths: list[int]) -> None:
    plan = contiguous(list(enumerate(lengths)))
    places = followed(plan, lengths)
    for job, length in enumerate(lengths):
        assert places[job * DIGEST] == Node(job, 0, max(-(-length // CHUNK), 1))


@pytest.mark.parametrize(
    ("length", "blocks"),
    [
        (0, [1]),
        (1, [1]),
        (TILE * CHUNK, [1]),
        (TILE * CHUNK + 1, [2, 1]),
        (1 << 30, [8192, 32, 1]),
        (4 << 30, [32768, 128, 1]),
        ((16 << 30) + 1, [131073, 513, 3, 1]),
    ],
)
def test_grids_of_one_buffer(length: int, blocks: list[int]) -> None:
    assert [launch.blocks for launch in contiguous([(0, length)]).launches] == blocks


def test_workspace_is_a_small_part_of_the_input() -> None:
    """A chaining value of 32 bytes for each tile of 128 KiB, and a little."""
    for length in (1 << 20, 1 << 30, 1 << 36):
        assert contiguous([(0, length)]).workspace <= length // 4000 + 4096


def test_a_tile_counts_from_one_chunk_on() -> None:
    lengths = [0, 1, CHUNK, TILE * CHUNK - 1, TILE * CHUNK, TILE * CHUNK + 1]
    assert tiles_of(np.array(lengths, np.int64)).tolist() == [1, 1, 1, 1, 1, 2]


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="buffer 1 has -3 bytes"):
        contiguous([(0, 4), (0, -3)])


@st.composite
def layouts(draw: st.DrawFn) -> Strided:
    """Tensors of any layout."""
    dimensions = draw(st.integers(0, 4))
    shape = tuple(draw(st.integers(0, 5)) for _ in range(dimensions))
    strides = tuple(
        draw(st.one_of(st.integers(-64, 64), st.sampled_from([8, 16, 32, 64, -16]))) for _ in range(dimensions)
    )
    return Strided(draw(st.integers(10_000, 10_064)), shape, strides, draw(st.sampled_from([1, 2, 4, 8, 16])))


def addresses(tensor: Strided) -> list[int]:
    """Of every byte, in order."""
    return [
        tensor.pointer + sum(at * stride for at, stride in zip(index, tensor.strides, strict=True)) + byte
        for index in itertools.product(*map(range, tensor.shape))
        for byte in range(tensor.itemsize)
    ]


@settings(max_examples=300)
@given(tensor=layouts())
def test_a_simplified_layout_has_the_same_bytes_in_order(tensor: Strided) -> None:
    simple = tensor.simplified()
    assert addresses(simple) == addresses(tensor)
    assert simple.nbytes == tensor.nbytes
    assert len(simple.shape) <= len(tensor.shape) + 1
    if tensor.nbytes:
        assert all(part % simple.itemsize == 0 for part in (simple.pointer, *simple.strides)), "loads are aligned"


def test_a_layout_without_gaps_is_hashed_where_it_lies() -> None:
    for shape, strides in [((3, 4), (16, 4)), ((1, 12), (999, 4)), ((), ()), ((0, 7), (3, 3))]:
        plan = strided(Strided(4096, shape, strides, 4))
        assert [launch.kernel for launch in plan.launches] == ["chunks"]


def test_rows_are_gathered_in_wide_elements() -> None:
    """Every second row of a matrix: 16 bytes at a time."""
    assert Strided(4096, (10, 64), (512, 4), 4).simplified() == Strided(4096, (10, 16), (512, 16), 16)
    assert Strided(4100, (10, 64), (512, 4), 4).simplified().itemsize == 4
