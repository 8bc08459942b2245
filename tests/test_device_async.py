"""`async def` functions of device tensors: the event loop goes on while a device computes their keys.

The stand-in's streams do their work when something steps them, so a loop that were held up by a wait would show: the
wait would do the work itself, and count.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import infercache
from device_stand_in import StandIn, fresh
from infercache import Cache, DeviceError, Key
from infercache.gpu import digests

key = partial(infercache.key, model="m", version="1")
RNG = np.random.default_rng(41)
SHAPES = [(3, 4), (300, 200)]  # hashed by the host from a copy, and by the device


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A device of a kind."""
    return fresh(monkeypatch)


def floats(*shape: int) -> np.ndarray:
    return RNG.random(shape, np.float32)


@contextlib.asynccontextmanager
async def running(device: StandIn) -> AsyncIterator[None]:
    """The device does its work, as a device does, whether anybody waits or not."""

    async def run() -> None:
        while True:
            device.finish()
            await asyncio.sleep(0)

    task = asyncio.ensure_future(run())
    try:
        yield
    finally:
        task.cancel()


async def others_run(waiting: asyncio.Future[Any], device: StandIn) -> None:
    """Other tasks get their turns while this one waits for the device, which stands still."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        turns += 1

    for _ in range(20):
        await asyncio.create_task(other())
    await asyncio.sleep(0.03)
    assert turns == 20
    assert not waiting.done()
    assert device.count["waits"] == 0, "who had waited for the event would have held the loop up"


class Model:
    """Counts its runs; its answer is the sum of what it was given."""

    def __init__(self, device: StandIn, cache: Cache, **options: Any) -> None:
        self.device = device
        self.runs = 0

        async def model(image: Any) -> float:
            self.runs += 1
            given = np.array(image.elements)
            await asyncio.sleep(0)
            return float(given.sum())

        self.ask = cache.memoize(model="m", version="1", operation="f", **options)(model)

        async def batch(images: list[Any]) -> list[float]:
            self.runs += 1
            given = [np.array(image.elements) for image in images]
            await asyncio.sleep(0)
            return [float(one.sum()) for one in given]

        self.ask_all = cache.memoize_batch(model="m", version="1", operation="g", over="images", **options)(batch)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loop_runs_other_tasks_while_a_device_computes_a_key(stand_in: StandIn, shape: tuple[int, int]) -> None:
    model, host = Model(stand_in, Cache("1MB")), floats(*shape)

    async def ask(runs: int) -> None:
        waiting = asyncio.ensure_future(model.ask(stand_in.cupy.ndarray(host.copy())))
        await others_run(waiting, stand_in)
        async with running(stand_in):
            assert await waiting == float(host.sum())
        assert model.runs == runs

    for _ in range(2):  # a miss, a hit
        stand_in.count.clear()
        asyncio.run(ask(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loop_runs_other_tasks_while_a_device_computes_a_batchs_keys(
    stand_in: StandIn, shape: tuple[int, int]
) -> None:
    model, hosts = Model(stand_in, Cache("1MB")), [floats(*shape) for _ in range(3)]

    async def ask(asked: list[np.ndarray], runs: int) -> None:
        stand_in.count.clear()
        waiting = asyncio.ensure_future(model.ask_all([stand_in.cupy.ndarray(host.copy()) for host in asked]))
        await others_run(waiting, stand_in)
        async with running(stand_in):
            assert await waiting == [float(host.sum()) for host in asked]
        assert model.runs == runs

    asyncio.run(ask(hosts[:2], 1))
    asyncio.run(ask(hosts, 2))
    asyncio.run(ask(hosts, 2))


ASKS: dict[str, Callable[[Model, Cache, Any], Awaitable[object]]] = {
    "peek": lambda model, _, image: model.ask.peek(image),
    "refresh": lambda model, _, image: model.ask.refresh(image),
    "invalidate": lambda model, _, image: model.ask.invalidate(image),
    "batch peek": lambda model, _, image: model.ask_all.peek([image, image]),
    "batch refresh": lambda model, _, image: model.ask_all.refresh([image, image]),
    "batch invalidate": lambda model, _, image: model.ask_all.invalidate([image]),
    "aget": lambda _, cache, image: cache.aget(key(image)),
    "aget_many": lambda _, cache, image: cache.aget_many([key(1), key(image)]),
    "alookup": lambda _, cache, image: cache.alookup(key(image)),
    "aset": lambda _, cache, image: cache.aset(key(image), 1),
    "aset_many": lambda _, cache, image: cache.aset_many([(key(image), 1)]),
    "adelete": lambda _, cache, image: cache.adelete(key(image)),
    "awarm": lambda _, cache, image: cache.awarm([key(image)]),
    "ainvalidate": lambda _, cache, image: cache.ainvalidate(key=key(image)),
    "aget_or_compute": lambda model, cache, image: cache.aget_or_compute(
        key(image), partial(model.ask.__wrapped__, image)
    ),
}


@pytest.mark.parametrize("ask", ASKS)
def test_whatever_is_awaited_lets_other_tasks_run_while_a_device_computes_keys(stand_in: StandIn, ask: str) -> None:
    cache = Cache("1MB")
    model = Model(stand_in, cache)

    async def once() -> None:
        waiting = asyncio.ensure_future(ASKS[ask](model, cache, stand_in.cupy.ndarray(floats(300, 200))))  # type: ignore[arg-type]
        await others_run(waiting, stand_in)
        async with running(stand_in):
            await waiting

    asyncio.run(once())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_that_is_cancelled_while_a_device_computes_its_key_leaves_nothing_behind(
    stand_in: StandIn, shape: tuple[int, int]
) -> None:
    cache, host = Cache("1MB"), floats(*shape)
    model = Model(stand_in, cache)

    async def ask() -> None:
        for waiting in (
            asyncio.ensure_future(model.ask(stand_in.cupy.ndarray(host))),
            asyncio.ensure_future(model.ask_all([stand_in.cupy.ndarray(host)])),
        ):
            await others_run(waiting, stand_in)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert model.runs == 0
        async with running(stand_in):
            assert await model.ask(stand_in.cupy.ndarray(host)) == float(host.sum())
            assert await model.ask_all([stand_in.cupy.ndarray(host)]) == [float(host.sum())]
        assert model.runs == 2

    asyncio.run(ask())
    assert cache.stats().misses == 2


def test_of_two_tasks_that_wait_for_the_same_key_one_asks_the_model(stand_in: StandIn) -> None:
    model, host = Model(stand_in, Cache("1MB")), floats(300, 200)

    async def ask() -> None:
        async with running(stand_in):
            answers = await asyncio.gather(*(model.ask(stand_in.cupy.ndarray(host.copy())) for _ in range(5)))
        assert answers == [float(host.sum())] * 5

    asyncio.run(ask())
    assert model.runs == 1


@pytest.mark.parametrize("what", ["ask", "ask_all", "refresh", "refresh all"])
def test_a_tensor_overwritten_while_its_key_is_waited_for_is_not_stored_under_that_key(
    stand_in: StandIn, what: str
) -> None:
    """Another task has its turn between the key and the model, and writes to the tensor that both are of."""
    cache, before, after = Cache("1MB"), floats(300, 200), floats(300, 200)
    model = Model(stand_in, cache)

    def asked(image: Any) -> Awaitable[Any]:
        if what.endswith("all"):
            return model.ask_all.refresh([image]) if what.startswith("refresh") else model.ask_all([image])
        return model.ask.refresh(image) if what.startswith("refresh") else model.ask(image)

    async def ask() -> None:
        image = stand_in.cupy.ndarray(before.copy())
        waiting = asyncio.ensure_future(asked(image))  # type: ignore[arg-type]
        await others_run(waiting, stand_in)
        image.fill_(after)
        async with running(stand_in):
            given = await waiting
            assert given in (float(after.sum()), [float(after.sum())]), "what the model was given"
            for host in (before, after):
                one = await model.ask(stand_in.cupy.ndarray(host.copy()))
                [other] = await model.ask_all([stand_in.cupy.ndarray(host.copy())])
                assert one == other == float(host.sum())
            runs = model.runs
            assert await model.ask(stand_in.cupy.ndarray(before.copy())) == float(before.sum())
            assert model.runs == runs, "and what was not overwritten is stored"

    asyncio.run(ask())


def test_a_stale_entry_is_not_made_anew_from_a_tensor_that_was_overwritten(stand_in: StandIn) -> None:
    clock = infercache.testing.ManualClock()
    cache = Cache("1MB", clock=clock)
    model = Model(stand_in, cache, ttl=10, stale_while_revalidate=100)
    before, after = floats(300, 200), floats(300, 200)

    async def ask() -> None:
        async with running(stand_in):
            image = stand_in.cupy.ndarray(before.copy())
            assert await model.ask(image) == float(before.sum())
            assert await model.ask_all([image]) == [float(before.sum())]
            clock.advance(20)
            assert await model.ask(image) == float(before.sum())
            assert await model.ask_all([image]) == [float(before.sum())]
            image.fill_(after)  # before the background has had its turn
            for _ in range(200):
                await asyncio.sleep(0)
            await asyncio.sleep(0.02)
            fresh_one = stand_in.cupy.ndarray(before.copy())
            assert await model.ask.peek(fresh_one) == float(before.sum())
            assert await model.ask_all.peek([fresh_one]) == [float(before.sum())]

    asyncio.run(ask())


def test_a_device_that_fails_while_a_key_is_waited_for_says_so(stand_in: StandIn) -> None:
    model = Model(stand_in, Cache("1MB"))

    class Lost:
        @property
        def done(self) -> bool:
            raise stand_in.cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")

    async def ask() -> None:
        waiting = asyncio.ensure_future(model.ask(stand_in.cupy.ndarray(floats(300, 200))))
        await asyncio.sleep(0)
        [workspace] = digests.hashing._workspaces.values()
        workspace._slots[0].event = Lost()
        with pytest.raises(DeviceError, match="was freed"):
            await waiting

    asyncio.run(ask())
    assert model.runs == 0


def test_without_an_event_loop_of_asyncio_a_call_waits_for_the_device(stand_in: StandIn) -> None:
    cache, host = Cache("1MB"), floats(300, 200)

    @cache.memoize(model="m", version="1", operation="f")
    async def total(image: Any) -> float:
        return float(image.elements.sum())

    for _ in range(2):
        with pytest.raises(StopIteration) as answer:
            total(stand_in.cupy.ndarray(host)).send(None)
        assert answer.value.value == float(host.sum())


def test_a_key_is_asked_for_with_pauses_that_grow_with_the_wait(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 30:
            stand_in.finish()
        await sleep(pause)

    async def ask() -> None:
        lazy: Key = key(stand_in.cupy.ndarray(floats(300, 200)))
        monkeypatch.setattr(asyncio, "sleep", noted)
        found = lazy._digests()
        assert found is not None
        await found.arrived()

    asyncio.run(ask())
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.001
    assert pauses[-1] <= digests.LONGEST_PAUSE
