"""`Broadcast`: what every reader gets, what is held, and that nobody holds up another, for any order of steps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache.edge.exchange import ClientGone, CutShort
from infercache.edge.forwarding import Buffered
from infercache.edge.streams import Broadcast, Reader
from scripted import idle

MOST = 600 << 10
PIECE = 100 << 10


def broadcast(most: int = MOST, limit: int = 1 << 40, deserted: list[str] | None = None) -> Broadcast:
    return Broadcast(most, Buffered(limit), lambda: None if deserted is None else deserted.append("deserted"))


async def taken(reader: Reader) -> list[bytes]:
    return [piece async for piece in reader]


class Follows:
    """A reader, what it has got, and what it should have."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.got, self.has_left = reader, list[bytes](), False


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.binary(min_size=1, max_size=5)),
        st.tuples(st.just("join"), st.none()),
        st.tuples(st.just("take"), st.integers(0, 5)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("open"), st.none()),
    ),
    max_size=60,
)


@given(STEPS, st.booleans())
def test_every_reader_gets_every_piece_in_order(steps: list[tuple[str, Any]], broken: bool) -> None:
    async def run() -> None:
        everybody, published = Buffered(1 << 30), list[bytes]()
        stream = Broadcast(1 << 30, everybody, lambda: None)
        readers: list[Follows] = []
        for step, given_ in steps:
            chosen = readers[given_ % len(readers)] if isinstance(given_, int) and readers else None
            if step == "put":
                await stream.publish(given_)
                published.append(given_)
            elif step == "join":
                readers.append(Follows(stream.join()))
            elif step == "open":
                stream.open()
            elif chosen is not None and step == "leave":
                await chosen.reader.aclose()
                chosen.has_left = True
            elif chosen is not None and not chosen.has_left and len(chosen.got) < len(published):
                chosen.got.append(await anext(chosen.reader))
        stream.end(ConnectionError() if broken else None)
        for each in readers:
            if each.has_left:
                assert each.got == published[: len(each.got)]
                continue
            try:
                async for piece in each.reader:
                    each.got.append(piece)
                assert not broken
            except CutShort:
                assert broken
            assert each.got == published
        assert everybody.held == 0, "what nobody reads any more is still held"

    asyncio.run(run())


@pytest.mark.parametrize("readers", [1, 3])
def test_what_is_recorded_waits_for_no_reader(readers: int) -> None:
    async def run() -> None:
        stream = broadcast()
        joined = [stream.join() for _ in range(readers)]
        for _ in range(5):  # nobody reads
            await asyncio.wait_for(stream.publish(b"x" * PIECE), 1)
        stream.end()
        assert not stream.given_up
        for reader in joined:
            assert len(await taken(reader)) == 5

    asyncio.run(run())


def test_beyond_the_limit_a_single_reader_gets_all_and_is_waited_for() -> None:
    async def run() -> None:
        everybody = Buffered(1 << 40)
        stream = Broadcast(MOST, everybody, lambda: None)
        reader = stream.join()
        highest, sent = 0, 50

        async def feed() -> None:
            nonlocal highest
            for number in range(sent):
                await stream.publish(b"%05d" % number + b"x" * PIECE)
                highest = max(highest, everybody.held)
            stream.end()

        feeding = asyncio.create_task(feed())
        await idle()
        assert not feeding.done(), "more was asked for than the reader takes"
        assert stream.given_up
        got = await taken(reader)
        await feeding
        assert [int(piece[:5]) for piece in got] == list(range(sent))
        assert highest <= MOST + 2 * PIECE
        assert everybody.held == 0

    asyncio.run(run())


def test_beyond_the_limit_a_slow_reader_is_cut_off_and_a_fast_one_is_not_held_up() -> None:
    async def run() -> None:
        everybody = Buffered(1 << 40)
        stream = Broadcast(MOST, everybody, lambda: None)
        fast, slow = stream.join(), stream.join()
        reading = asyncio.create_task(taken(fast))
        highest = 0
        for number in range(100):
            await asyncio.wait_for(stream.publish(b"%05d" % number + b"x" * PIECE), 10)
            highest = max(highest, everybody.held)
            await idle()
        stream.end()
        assert len(await reading) == 100
        with pytest.raises(CutShort):
            await taken(slow)
        assert highest <= 2 * MOST + 3 * PIECE
        assert everybody.held == 0

    asyncio.run(run())


def test_a_reader_that_is_a_little_slower_is_not_cut_off() -> None:
    async def run() -> None:
        stream = broadcast()
        first, second = stream.join(), stream.join()
        got: list[bytes] = []

        async def read_second() -> None:
            async for piece in second:
                got.append(piece)
                await idle()

        reading = [asyncio.create_task(taken(first)), asyncio.create_task(read_second())]
        for number in range(30):
            await stream.publish(b"%05d" % number + b"x" * PIECE)
            await idle()
        stream.end()
        await asyncio.gather(*reading)
        assert [int(piece[:5]) for piece in got] == list(range(30))

    asyncio.run(run())


def test_what_all_broadcasts_hold_together_is_bounded() -> None:
    async def run() -> None:
        everybody = Buffered(10 * PIECE)
        streams = [Broadcast(MOST, everybody, lambda: None) for _ in range(20)]
        readers = [stream.join() for stream in streams]
        reading = [asyncio.create_task(taken(reader)) for reader in readers]
        for _ in range(5):
            for stream in streams:
                await stream.publish(b"x" * PIECE)
                # Beyond the limit only what is on its way to a reader: one piece of each.
                assert everybody.held <= 10 * PIECE + 20 * (PIECE + 64)
            await idle()
        for stream in streams:
            stream.end()
        assert all(len(got) == 5 for got in await asyncio.gather(*reading))
        assert any(stream.given_up for stream in streams)
        assert everybody.held == 0

    asyncio.run(run())


def test_small_pieces_count_for_what_they_cost() -> None:
    async def run() -> None:
        stream = broadcast(most=64_000)
        reader = stream.join()
        reading = asyncio.create_task(taken(reader))
        for _ in range(2_000):
            await stream.publish(b"x")
        stream.end()
        assert stream.given_up
        assert len(await reading) == 2_000

    asyncio.run(run())


def test_the_last_reader_that_leaves_deserts_it() -> None:
    async def run() -> None:
        deserted: list[str] = []
        stream = broadcast(deserted=deserted)
        first, second = stream.join(), stream.join()
        await first.aclose()
        await first.aclose()
        assert not deserted
        await second.aclose()
        assert deserted == ["deserted"]

    asyncio.run(run())


def test_readers_wait_until_it_is_open_and_those_it_is_not_for_are_told() -> None:
    async def run() -> None:
        stream, gone = broadcast(), asyncio.get_running_loop().create_future()
        first, second = stream.join(), stream.join()
        waiting = [asyncio.create_task(each.begun(gone)) for each in (first, second)]
        await idle()
        assert not any(each.done() for each in waiting)
        stream.dismiss(first)
        await waiting[1]
        assert second.is_dismissed
        assert not waiting[0].done()
        stream.open()
        await waiting[0]
        assert not first.is_dismissed
        gone.cancel()

    asyncio.run(run())


def test_who_leaves_while_it_waits_waits_no_longer() -> None:
    async def run() -> None:
        gone = asyncio.get_running_loop().create_future()
        reader = broadcast().join()
        waiting = asyncio.create_task(reader.begun(gone))
        await idle()
        gone.set_result(None)
        with pytest.raises(ClientGone):
            await waiting

    asyncio.run(run())
