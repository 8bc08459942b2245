"""Batches beside one another: who computes an item, who waits for it, who gets its error, and purges in between."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from infercache import Cache
from together import PATIENCE, Gate, Started, Waits, together


@pytest.fixture
def cache() -> Cache:
    return Cache("16MB")


class TestErrors:
    def test_an_error_stores_nothing_and_keeps_what_earlier_chunks_gave(self, cache: Cache) -> None:
        calls = []

        @cache.memoize_batch(model="m", version="1", operation="fails", over="items", max_batch=2)
        def embed(items: list[str]) -> list[str]:
            calls.append(items)
            if "c" in items and len(calls) < 3:
                raise LookupError("c")
            return items

        with pytest.raises(LookupError):
            embed(["a", "b", "c", "d", "e"])
        assert embed(["a", "b", "c", "d", "e"]) == ["a", "b", "c", "d", "e"]
        assert calls == [["a", "b"], ["c", "d"], ["c", "d"], ["e"]]
        assert len(cache.flights) == 0

    def test_waiters_get_the_error_of_their_items_only(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        waits, gate = Waits(monkeypatch), Gate()
        runs = Counter[str]()

        @cache.memoize_batch(model="m", version="1", operation="fails", over="items", max_batch=1)
        def embed(items: list[str]) -> list[str]:
            runs.update(items)
            if items == ["a"]:
                gate.pass_through()
                raise LookupError("a")
            return items

        leader = Started(lambda: embed(["a", "b"]))
        gate.wait_for(1)
        # "b" is led by the first batch, which never computes it.
        followers = Started(lambda: embed(["a"]), lambda: embed(["b"]))
        waits.wait_for(2)
        gate.open()
        leader.join(), followers.join()
        assert isinstance(leader.errors[0], LookupError)
        assert isinstance(followers.errors[0], LookupError)
        assert followers.errors[1] is None
        assert followers.outcomes[1] == ["b"]
        assert runs == {"a": 1, "b": 1}
        assert len(cache.flights) == 0


class TestCompany:
    def test_overlapping_batches_compute_each_item_once(self, cache: Cache) -> None:
        runs: Counter[str] = Counter()
        lock = threading.Lock()
        everyone = threading.Barrier(6, timeout=PATIENCE)

        @cache.memoize_batch(model="m", version="1", operation="overlap", over="items", max_batch=2)
        def embed(items: list[str]) -> list[str]:
            with lock:
                runs.update(items)
            return [item.upper() for item in items]

        def ask(start: int) -> list[str]:
            items = [f"{round_}-{(start + n) % 12}" for round_ in range(20) for n in range(8)]
            everyone.wait()
            for at in range(0, len(items), 8):
                assert embed(items[at : at + 8]) == [item.upper() for item in items[at : at + 8]]
            return []

        together(*[lambda start=start: ask(start * 2) for start in range(6)])
        assert set(runs.values()) == {1}
        assert len(cache.flights) == 0

    def test_items_in_flight_elsewhere_are_awaited_after_own_misses_are_computed(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits = Waits(monkeypatch)
        gates = {"a": Gate(), "b": Gate()}
        runs = []

        @cache.memoize_batch(model="m", version="1", operation="company", over="items")
        def embed(items: list[str]) -> list[str]:
            runs.append(items)
            gates[items[0]].pass_through()
            return [item.upper() for item in items]

        first = Started(lambda: embed(["a"]))
        gates["a"].wait_for(1)
        second = Started(lambda: embed(["a", "b", "a"]))
        gates["b"].wait_for(1)  # its own misses run although "a" has not come
        gates["b"].open()
        waits.wait_for(1)
        gates["a"].open()
        assert first.results() == [["A"]]
        assert second.results() == [["A", "B", "A"]]
        assert runs == [["a"], ["b"]]
        # "a" waited and its repeat took the same answer: of four misses two ran.
        assert (cache.stats().misses, cache.stats().coalesced) == (4, 2)

    def test_a_purge_during_a_batch_wins_over_its_items(self, cache: Cache) -> None:
        gate, answer = Gate(), ["old"]

        @cache.memoize_batch(model="m", version="1", operation="purged", over="items", tags=["{items}"])
        def embed(items: list[str]) -> list[str]:
            read = answer[0]
            if read == "old":
                gate.pass_through()
            return [read for _ in items]

        started = Started(lambda: embed(["a", "b"]))
        gate.wait_for(1)
        answer[0] = "new"
        cache.invalidate(tags=["a"])
        gate.open()
        assert started.results() == [["old", "old"]]
        assert embed(["a", "b"]) == ["new", "old"]
