"""Both kinds of callers of a tier, threads and event loops, so that a test's guarantee is tried for each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from infercache.errors import TierUnavailable
from infercache.tiers import Command, RedisTier

#: How much later than its budget an operation may end on a machine that does other things: scheduling, not waiting.
LATE = 0.4


class Asker:
    """Asks a tier as a thread does, or as a task of one event loop that lives as long as the test."""

    def __init__(self, kind: str, runner: asyncio.Runner | None) -> None:
        self.kind = kind
        self._runner = runner

    def __call__(self, tier: RedisTier, *commands: Command, budget: float | None = None) -> list[Any]:
        """The replies."""
        if self._runner is None:
            return tier.exchange(commands, budget=budget)
        return self._runner.run(tier.aexchange(commands, budget=budget))

    def together(
        self, tier: RedisTier, exchanges: Sequence[Sequence[Command]], budget: float | None = None
    ) -> list[Any]:
        """The replies of many exchanges at once, or the error of each."""
        if self._runner is None:
            from concurrent.futures import ThreadPoolExecutor

            def one(commands: Sequence[Command]) -> Any:
                try:
                    return tier.exchange(commands, budget=budget)
                except TierUnavailable as error:
                    return error

            with ThreadPoolExecutor(len(exchanges)) as threads:
                return list(threads.map(one, exchanges))

        async def all_of_them() -> list[Any]:
            parts = [tier.aexchange(commands, budget=budget) for commands in exchanges]
            return await asyncio.gather(*parts, return_exceptions=True)

        return self._runner.run(all_of_them())

    def close(self, tier: RedisTier) -> None:
        """Closes the tier as this kind of caller does."""
        if self._runner is None:
            tier.close()
        else:
            self._runner.run(tier.aclose())


@contextlib.contextmanager
def asking(kind: str) -> Iterator[Asker]:
    """A caller of a kind: "thread" or "task"."""
    if kind == "thread":
        yield Asker(kind, None)
        return
    with asyncio.Runner() as runner:
        yield Asker(kind, runner)


@contextlib.contextmanager
def refused(*reasons: str, within: float | None = None) -> Iterator[pytest.ExceptionInfo[TierUnavailable]]:
    """What is inside raises `TierUnavailable` for one of the reasons, not later than `within` seconds and `LATE`."""
    began = time.monotonic()
    with pytest.raises(TierUnavailable) as caught:
        yield caught
    took = time.monotonic() - began
    assert caught.value.reason in reasons, caught.value
    if within is not None:
        assert took < within + LATE, f"took {took:.3f} s of {within} s: {caught.value}"


def pinging(count: int = 1) -> list[Command]:
    """Commands that change nothing."""
    return [Command("PING") for _ in range(count)]


def eventually(condition: Callable[[], Any], what: str, patience: float) -> float:
    """Seconds until the condition held, asked every 20 ms; fails after `patience`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < patience, f"after {patience} s still not: {what}"
        time.sleep(0.02)
    return time.monotonic() - began
