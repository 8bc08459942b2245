"""The product over a cluster of six processes: slots on the move, batches across slots, masters that are killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from asked import Asked
from clusters import Cluster, Move
from infercache import Cache, PurgeFailed, Token
from servers import until
from together import Started

if TYPE_CHECKING:
    from infercache import Key
    from servers import Binary

pytestmark = pytest.mark.network

STALENESS = 0.5
SCOPE = {"model": "m", "version": "1"}
MANY = 64


@pytest.fixture
def cluster(binary: Binary) -> Iterator[Cluster]:
    with Cluster(binary) as cluster:
        yield cluster


def make(cluster: Cluster, **options: Any) -> Cache:
    return Cache("8MB", l2=cluster.url, **{"max_staleness": STALENESS, "timeout": "2s", **options})


def fences(cluster: Cluster) -> int:
    return int(key_slot(b"ic:fences"))


def keys_of(cache: Cache) -> list[Key]:
    return [cache.key(f"question {number}", operation="many", **SCOPE) for number in range(MANY)]


def slots_of(cache: Cache, keys: list[Key]) -> set[int]:
    return {int(key_slot(cache.shared.name_of(key).encode())) for key in keys}  # type: ignore[union-attr]


def test_batches_across_slots_are_shared_and_purged_as_one(cluster: Cluster) -> None:
    with make(cluster) as one, make(cluster) as other:
        first, second = Asked(one, "thread"), Asked(other, "thread")
        items = [f"item {number}" for number in range(MANY)]
        assert first.batch(items) == ["new"] * MANY
        runs = first.runs
        assert second.batch(items) == ["new"] * MANY
        assert (first.runs, second.runs) == (runs, 0), "the other cache had it all from the cluster"
        assert other.stats().hits_l2 == MANY
        one.invalidate(tags=[f"question:item {number}" for number in range(0, MANY, 2)])
        time.sleep(STALENESS)
        second.word = "newer"
        assert second.batch(items) == ["newer", "new"] * (MANY // 2)
        keys = keys_of(one)
        assert len(slots_of(one, keys)) > MANY // 2, "they lie in many slots"
        assert one.set_many([(key, number) for number, key in enumerate(keys)]) == MANY
        assert other.get_many(keys) == list(range(MANY))
        assert other.stats().l2_errors == one.stats().l2_errors == 0


def test_slots_that_move_fail_nothing_and_lose_nothing(cluster: Cluster) -> None:
    """A key whose slot is on its way answers ASK where it has left, and MOVED once the slot has another master."""
    with make(cluster) as one, make(cluster) as other:
        keys = keys_of(one)
        assert one.set_many([(key, number) for number, key in enumerate(keys)], tags=["t"]) == MANY
        for slot in sorted(slots_of(one, keys))[:12]:
            source = cluster.owner(slot)
            target = next(master for master in cluster.masters() if master is not source)
            with Move(cluster, slot, target) as move:
                for cache in (one, other):
                    cache._empty()
                    assert cache.get_many(keys) == list(range(MANY)), f"slot {slot} is migrating, its keys are here"
                move.migrate()
                for cache in (one, other):
                    cache._empty()
                    assert cache.get_many(keys) == list(range(MANY)), f"the keys of slot {slot} have left"
            one._empty()
            assert one.get_many(keys) == list(range(MANY)), f"slot {slot} has moved"
        counts = one.l2.stats()  # type: ignore[union-attr]
        assert counts["asked"] >= 12
        assert counts["moved"] >= 1
        assert one.stats().l2_errors == 0
        one.invalidate(tags=["t"])
        time.sleep(STALENESS)
        assert other.get_many(keys) == [None] * MANY


def test_the_slot_of_the_authority_moves_while_purges_and_reads_go_on(cluster: Cluster) -> None:
    with make(cluster) as one, make(cluster) as other:
        first, second = Asked(one, "thread"), Asked(other, "thread")
        slot = fences(cluster)
        stop = time.monotonic() + 4
        seen: list[bool] = []

        def purge_and_look() -> None:
            turn = 0
            while time.monotonic() < stop:
                turn += 1
                first.word = second.word = f"word {turn}"
                try:
                    first.purge()
                except PurgeFailed:  # it says that it may not have been done
                    continue
                time.sleep(STALENESS)
                seen.append(second.by("memoized") == first.word)

        looking = Started(purge_and_look)
        for _ in range(6):
            time.sleep(0.5)
            source = cluster.owner(slot)
            cluster.move([slot], next(master for master in cluster.masters() if master is not source))
        looking.results()
        assert all(seen)
        assert len(seen) >= 3
        # The key was carried over with its epoch's replication id, which is another server's: a new epoch begins there.
        assert first.by("memoized") == second.by("memoized")


@pytest.mark.parametrize("whose", ["the authority's", "another"])
def test_a_master_that_is_killed_fails_no_inference_and_hides_what_was_purged(cluster: Cluster, whose: str) -> None:
    with make(cluster, timeout="300ms") as one, make(cluster, timeout="300ms") as other:
        first, second = Asked(one, "thread"), Asked(other, "thread")
        items = [f"item {number}" for number in range(MANY)]
        assert first.batch(items) == second.batch(items) == ["new"] * MANY
        authority = cluster.owner(fences(cluster))
        epoch = one.token().epoch
        others = [master for master in cluster.masters() if master is not authority]
        victim = authority if whose == "the authority's" else others[0]
        one.invalidate(tags=["question:item 0"])
        killing = Started(lambda: cluster.kill(victim))
        second.word = "newer"
        turn = 0
        while killing.threads[0].is_alive():
            turn += 1
            assert second.batch([f"during {turn} {number}" for number in range(6)]) == ["newer"] * 6
            time.sleep(0.02)
        killing.results()
        time.sleep(STALENESS)
        assert second.batch(items[:1]) == ["newer"], "it was purged"

        def shares() -> bool:
            question = f"afterwards {time.monotonic()}"
            first.by("memoized", question)
            found: bool = other.get(first.one.key(question)) == first.word
            return found

        until(shares, "the tier is shared again", 10.0)
        assert (one.token().epoch != epoch) == (victim is authority), "a promoted replica may have missed a purge"
        tokens: list[Token] = []

        def purged() -> bool:
            # A node that was too slow is taken for out of reach for a while, and the error says to call again.
            with contextlib.suppress(PurgeFailed):
                tokens.append(one.invalidate(tags=["question:item 1"]))
            return bool(tokens)

        until(purged, "the authority is told of a purge", 10.0)
        time.sleep(STALENESS)
        assert other.token().epoch == tokens[0].epoch
        assert second.batch(items[:2]) == ["newer"] * 2
