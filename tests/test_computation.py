"""What a computation carries: the stamp of what it read, its context; and who may have its result after a purge."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, register_form
from infercache.effects import CURRENT
from infercache.flights import Request
from together import PATIENCE, Gate, Started, Waits, held, is_quiet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture
def cache() -> Cache:
    return Cache("16MB")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


class TestPurges:
    def test_a_result_that_arrives_after_a_purge_is_not_served_to_later_callers(self, cache: Cache) -> None:
        source = ["old"]
        gate = Gate()

        @cache.memoize(model="m", version="1", operation="ask", tags=["t:{question}"])
        def ask(question: str) -> str:
            read = source[0]
            if read == "old":
                gate.pass_through()
            return read

        leader = Started(lambda: ask("q"))
        gate.wait_for(1)
        source[0] = "new"
        cache.invalidate(tags=["t:q"])
        # Who comes now does not even wait for the doomed flight.
        assert ask("q") == "new"
        gate.open()
        assert leader.results() == ["old"], "its question came before the purge"
        assert ask("q") == "new"
        assert is_quiet(cache)

    def test_who_came_before_the_model_began_may_have_its_result_whatever_was_purged(
        self, cache: Cache, waits: Waits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The flight is joined while the leader is between joining and running.
        before, gate = Gate(), Gate()
        runs = Counter[str]()

        def tags(result: str, question: str) -> list[str]:
            return ["t"]

        @cache.memoize(model="m", version="1", operation="ask", tags=tags)
        def ask(question: str) -> str:
            runs[question] += 1
            gate.pass_through()
            return "answer"

        tags_before = Request.tags_before

        def held_before(request: Request) -> list[str]:
            before.pass_through()
            return tags_before(request)

        monkeypatch.setattr(Request, "tags_before", held_before)
        leader = Started(lambda: ask("q"))
        before.wait_for(1)
        follower = Started(lambda: ask("q"))
        waits.wait_for(1)
        before.open()
        gate.wait_for(1)
        cache.invalidate(tags=["t"])
        gate.open()
        assert leader.results() + follower.results() == ["answer"] * 2
        assert runs == {"q": 1}

    def test_joiners_re_check_tags_from_the_result_against_their_arrival(self, cache: Cache, waits: Waits) -> None:
        runs, gate = Counter[str](), Gate()

        @cache.memoize(model="m", version="1", operation="ask", tags=lambda result, question: [f"found:{result}"])
        def ask(question: str) -> str:
            runs[question] += 1
            if runs[question] == 1:
                gate.pass_through()
                return "old"
            return "new"

        leader = Started(lambda: ask("q"))
        gate.wait_for(1)
        cache.invalidate(tags=["found:old"])  # nobody can know yet that it concerns the flight
        follower = Started(lambda: ask("q"))
        waits.wait_for(1)
        gate.open()
        assert leader.results() == ["old"]
        assert follower.results() == ["new"]
        assert ask("q") == "new"
        assert runs == {"q": 2}

    def test_a_purge_of_something_else_dooms_no_flight(self, cache: Cache, waits: Waits) -> None:
        model, ask = held(cache, tags=["t"])
        leader = Started(lambda: ask("q"))
        model.gate.wait_for(1)
        cache.invalidate(tags=["other"])
        follower = Started(lambda: ask("q"))
        waits.wait_for(1)
        model.gate.open()
        assert leader.results() == follower.results() == ["answer to q"]
        assert model.runs == {"q": 1}


class TestChangedArguments:
    """Whoever waited for another and must compute after all looks whether its arguments are still those of its key."""

    def test_arguments_that_were_changed_while_the_call_waited_are_not_stored_under_its_key(self, cache: Cache) -> None:
        hold, runs = asyncio.Event(), []

        @cache.memoize(model="m", version="1", operation="changed")
        async def ask(question: list[str]) -> list[str]:
            runs.append(list(question))
            if len(runs) == 1:
                await hold.wait()
            return [*question, "answered"]

        async def main() -> None:
            leader = asyncio.create_task(ask(["q"]))
            await asyncio.sleep(0)
            question = ["q"]
            waiter = asyncio.create_task(ask(question))
            await asyncio.sleep(0)
            question.append("and more")
            leader.cancel()
            assert await waiter == ["q", "and more", "answered"]
            assert runs == [["q"], ["q", "and more"]]
            assert await ask.peek(["q"]) is None
            assert await ask(["q"]) == ["q", "answered"]

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert is_quiet(cache)

    def test_items_that_were_changed_while_the_batch_waited_are_asked_for_as_they_are(self, cache: Cache) -> None:
        hold, runs = asyncio.Event(), []

        @cache.memoize_batch(model="m", version="1", operation="items", over="items")
        async def ask(items: list[list[str]]) -> list[str]:
            runs.append([list(item) for item in items])
            if len(runs) == 1:
                await hold.wait()
            return [" ".join(item) for item in items]

        async def main() -> None:
            leader = asyncio.create_task(ask([["q"]]))
            await asyncio.sleep(0)
            items = [["q"], ["r"]]
            waiter = asyncio.create_task(ask(items))
            await asyncio.sleep(0)
            items[0].append("more")
            leader.cancel()
            assert await waiter == ["q more", "r"]
            assert await ask.peek([["q"]]) is None
            assert await ask([["q"], ["r"]]) == ["q", "r"]

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert is_quiet(cache)

    def test_a_list_of_items_that_grows_while_its_keys_are_formed_is_asked_for_as_it_was(self, cache: Cache) -> None:
        class Growing(str):
            __slots__ = ()

        items: list[object] = ["a"]

        def grow(_item: Growing) -> str:
            items.append("late")
            return "grown"

        register_form(Growing, "tests.Growing", grow)
        items.append(Growing("b"))

        @cache.memoize_batch(model="m", version="1", operation="growing", over="items")
        def ask(items: list[object]) -> list[int]:
            return [len(str(item)) for item in items]

        assert ask(items) == [1, 1]


class TestContext:
    def test_a_model_runs_in_its_callers_context(self, cache: Cache) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

        @cache.memoize(model="m", version="1", ignore=["question"], operation="context")
        def ask(question: str) -> str:
            return variable.get()

        variable.set("mine")
        assert ask("q") == "mine"

    def test_an_answer_computed_from_another_flights_answer_carries_its_stamp(self, cache: Cache, waits: Waits) -> None:
        # `outer` begins after the purge of its tag, but is made of what `inner` had read before it.
        gate = Gate()

        @cache.memoize(model="m", version="1", operation="inner")
        def inner(question: str) -> str:
            gate.pass_through()
            return "old"

        @cache.memoize(model="m", version="1", operation="outer", tags=["t"])
        def outer(question: str) -> str:
            return inner(question)

        first = Started(lambda: inner("q"))
        gate.wait_for(1)
        cache.invalidate(tags=["t"])
        second = Started(lambda: outer("q"))
        waits.wait_for(1)
        gate.open()
        assert first.results() == second.results() == ["old"]
        assert inner.peek("q") == "old"
        assert outer.peek("q") is None

    @pytest.mark.parametrize("read", ["call", "peek", "batch", "peek batch", "lookup", "rescue", "rescued batch"])
    def test_an_answer_computed_from_a_stale_answer_carries_its_stamp(self, cache: Cache, read: str) -> None:
        options: dict[str, Any] = {"tags": ["inner"], "stale_while_revalidate": "1h", "stale_if_error": "1h"}
        if read.startswith("rescue"):
            del options["stale_while_revalidate"]
        fails: list[bool] = []

        @cache.memoize(model="m", version="1", operation="inner", **options)
        def inner(question: str) -> str:
            if fails:
                raise LookupError
            return "old"

        @cache.memoize_batch(model="m", version="1", operation="batch", over="questions", **options)
        def batch(questions: list[str]) -> list[str]:
            if fails:
                raise LookupError
            return ["old"] * len(questions)

        reads: dict[str, Callable[[], object]] = {
            "call": lambda: inner("q"),
            "peek": lambda: inner.peek("q"),
            "batch": lambda: batch(["q"]),
            "peek batch": lambda: batch.peek(["q"]),
            "lookup": lambda: cache.lookup(inner.key("q")).value,
            "rescue": lambda: inner("q"),
            "rescued batch": lambda: batch(["q"]),
        }

        @cache.memoize(model="m", version="1", operation="outer", tags=["t"])
        def outer(question: str) -> object:
            return reads[read]()

        inner("q")
        batch(["q"])
        cache.invalidate(tags=["inner"], soft=True)
        cache.invalidate(tags=["t"])
        fails.append(True)
        assert outer("q") in ("old", ["old"])
        assert outer.peek("q") is None, "made of what was read before the purge"

    def test_no_computation_runs_when_all_is_done(self, cache: Cache) -> None:
        async def main() -> Awaitable[Any]:
            @cache.memoize(model="m", version="1", operation="ask")
            async def ask(question: str) -> object:
                return CURRENT.get()

            return await ask("q")

        with pytest.warns(UserWarning, match="cannot be stored"):
            assert asyncio.run(main()) is not None
        assert CURRENT.get() is None
