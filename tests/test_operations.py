"""What docs/coherence.md and docs/operations.md tell those who run a server holds: policies, restarts, replicas."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import servers
from infercache import Cache, PurgeFailed, TierError
from servers import until
from sharing import key

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network

STALENESS = 0.3


def make(url: str, **options: Any) -> Cache:
    return Cache("32MB", l2=url, **{"max_staleness": STALENESS, "timeout": "1s", **options})


@pytest.fixture
def cache(server: Server) -> Iterator[Cache]:
    with make(server.url) as cache:
        yield cache


@pytest.mark.parametrize("binary", servers.NAMES, indirect=True)
@pytest.mark.parametrize("snapshot", [False, True], ids=["append-only file", "snapshot"])
def test_a_server_restarted_with_its_data_begins_a_new_epoch(binary: servers.Binary, snapshot: bool) -> None:
    with servers.Server(binary, persistent=True) as server, make(server.url) as cache:
        k = key(cache)
        assert cache.set(k, "answer", tags=["t"])
        assert cache.get(k) == "answer"
        epoch = cache.token().epoch
        if snapshot:
            server.admin.save()
            server.directives["appendonly"] = "no"  # what is loaded then is the snapshot
        server.restart()
        assert server.admin.exists("ic:fences", cache.shared.name_of(k)) == 2, "its data are there"  # type: ignore[union-attr]
        time.sleep(STALENESS)
        until(lambda: cache.token().epoch not in (epoch, b""), "the follower has heard of it")
        assert cache.get(k) is None, "a purge may have been promised that the disk never saw"


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-lfu", "volatile-ttl"])
def test_a_volatile_policy_takes_values_and_leaves_the_authority(server: Server, cache: Cache, policy: str) -> None:
    cache.invalidate(tags=["t"])
    epoch = cache.token().epoch
    used = server.info("memory")["used_memory"]
    server.config(maxmemory=used + (4 << 20), maxmemory_policy=policy)
    for number in range(3_000):
        cache.set(key(cache, number), random.Random(number).randbytes(6_000))  # no compression helps
        if server.info("stats")["evicted_keys"] > 500:
            break
    assert server.info("stats")["evicted_keys"] > 500
    cache.invalidate(tags=["u"])
    assert cache.token().epoch == epoch


def test_noeviction_refuses_values_and_counts_them_while_purges_work(server: Server, cache: Cache) -> None:
    k = key(cache)
    assert cache.set(k, "answer", tags=["t"])
    server.config(maxmemory=1, maxmemory_policy="noeviction")
    before = cache.stats().l2_errors
    assert cache.set(key(cache, "another"), "answer"), "memory has it"
    assert cache.stats().l2_errors == before + 1
    assert cache.shared is not None
    assert cache.shared.errors["store"] == 1
    cache.invalidate(tags=["t"])
    assert cache.get(k) is None


def test_a_primary_without_its_replicas_refuses_even_a_poll(binary: servers.Binary) -> None:
    options = {"min_replicas_to_write": 1, "min_replicas_max_lag": 1}
    with servers.Server(binary, **options) as primary:
        replica = primary.replica()
        with make(primary.url) as cache:
            k = key(cache)
            until(lambda: cache.set(k, "answer", tags=["t"]) and cache.get(k) == "answer", "it is served")
            replica.kill()  # or cut off, and promoted by the others
            until(lambda: cache.get(k) is None, "nothing proves any more that nobody has purged", 10.0)
            with pytest.raises(PurgeFailed) as caught:
                cache.invalidate(tags=["t"])
            assert caught.value.outcome == "not done"
            assert "NOREPLICAS" in str(caught.value)
            assert isinstance(caught.value.__cause__, TierError), "the cause is at hand, not in the text alone"
            assert caught.value.__cause__.code == "NOREPLICAS"


def test_another_secret_finds_nothing_and_purges_nothing(server: Server) -> None:
    with make(server.url, secret=b"a" * 32) as cache, make(server.url, secret=b"b" * 32) as other:
        k = key(cache)
        assert cache.set(k, "answer", tags=["t"])
        assert key(other) != k
        assert other.get(k) is None
        assert other.shared is not None
        assert dict(other.shared.errors) == {"mac": 1}
        other.invalidate(tags=["t"])
        time.sleep(STALENESS)
        assert cache.get(k) == "answer"


def test_two_deployments_of_one_server_do_not_hear_of_each_others_tags(server: Server) -> None:
    with make(server.url, l2_prefix="one") as cache, make(server.url, l2_prefix="other") as other:
        k = key(cache)
        assert cache.set(k, "answer", tags=["t"])
        other.invalidate(tags=["t"])
        other.invalidate(all=True)
        time.sleep(STALENESS)
        assert cache.get(k) == "answer"
        assert sorted(server.admin.keys("*:fences")) == [b"one:fences", b"other:fences"]


def test_a_token_is_known_once_its_epoch_is_over(server: Server, cache: Cache) -> None:
    k = key(cache)
    assert cache.set(k, "answer")
    token = cache.invalidate(tags=["t"])
    server.flush()
    assert cache.get(k, min_token=token) in (None, "answer")
    time.sleep(STALENESS)
    until(lambda: cache.token().epoch != token.epoch, "a new epoch has begun")
    assert cache.get(k, min_token=token) is None
    assert cache.set(k, "anew")
    assert cache.get(k, min_token=token) == "anew"
