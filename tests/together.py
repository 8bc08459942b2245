"""Threads and tasks whose moments a test decides: nothing here sleeps, and nothing waits for ever."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from infercache import Cache, flights
from infercache.effects import CURRENT

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

#: Seconds after which something hangs. Far beyond what anything here takes, so that it never decides a test.
PATIENCE = 60.0


class Started:
    """Threads that run functions; `results` waits for them and raises what they raised."""

    def __init__(self, *functions: Callable[[], Any]) -> None:
        self.outcomes: list[Any] = [None] * len(functions)
        self.errors: list[BaseException | None] = [None] * len(functions)
        self.threads = [
            threading.Thread(target=self._run, args=(place, function), daemon=True)
            for place, function in enumerate(functions)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, place: int, function: Callable[[], Any]) -> None:
        try:
            self.outcomes[place] = function()
        except BaseException as error:
            self.errors[place] = error

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a thread hangs"

    def results(self) -> list[Any]:
        self.join()
        for error in self.errors:
            if error is not None:
                raise error
        return self.outcomes


def together(*functions: Callable[[], Any]) -> list[Any]:
    """The functions' results, run in a thread each."""
    return Started(*functions).results()


class Gate:
    """A model waits here until the test opens it, and tells the test that it has come."""

    def __init__(self) -> None:
        self._come = threading.Semaphore(0)
        self._open = threading.Event()

    def pass_through(self) -> None:
        self._come.release()
        assert self._open.wait(PATIENCE), "nobody opened the gate"

    def wait_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._come.acquire(timeout=PATIENCE), "nobody came to the gate"

    def wait_for_another(self, seconds: float) -> bool:
        """Whether one more comes within so long, of whom none is expected."""
        return self._come.acquire(timeout=seconds)

    def open(self) -> None:
        self._open.set()


class Waits:
    """Counts callers that have begun to wait for another's flight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun = threading.Semaphore(0)
        perform = flights.Landing.perform

        async def counted(landing: flights.Landing, blocking: bool) -> Any:
            self._begun.release()
            return await perform(landing, blocking)

        monkeypatch.setattr(flights.Landing, "perform", counted)

    def wait_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._begun.acquire(timeout=PATIENCE), "nobody waits"


def is_quiet(cache: Cache) -> bool:
    return len(cache.flights) == 0 and CURRENT.get() is None


class Model:
    """A model that counts its runs and can be held."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.runs: Counter[Any] = Counter()

    def run(self, question: Any) -> str:
        self.runs[question] += 1
        self.gate.pass_through()
        return f"answer to {question}"


def held(cache: Cache, **options: Any) -> tuple[Model, Callable[[Any], str]]:
    model = Model()

    @cache.memoize(model="m", version="1", operation="held", **options)
    def ask(question: Any) -> str:
        return model.run(question)

    return model, ask
