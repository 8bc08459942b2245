"""Coherence between processes that share a server: what a purge promises, whatever is lost on the way.

Two URLs of one server, by TCP and by its socket, have followers of their own in one process, as two processes would.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

import fills
import servers
from clusters import Cluster
from infercache import Cache, InvalidArgument, PurgeFailed, Token
from infercache.tiers.blocking import run
from processes import Worker
from servers import until
from sharing import SCOPE, STALENESS, key, make

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network


def both_have(one: Cache, other: Cache, *, tags: tuple[str, ...] = ("t",)) -> Any:
    k = key(one)
    assert one.set(k, "answer", tags=tags)
    assert other.get(k) == "answer"
    assert other.stats().hits_l2 == 1
    assert other.get(k) == "answer"
    assert other.stats().hits_l1 == 1
    return k


def gone(cache: Cache, k: Any) -> bool:
    return cache.get(k) is None


@pytest.mark.parametrize("binary", servers.NAMES, indirect=True)
def test_what_one_process_computed_the_others_share(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    runs: list[tuple[str, int]] = []

    def decorated(cache: Cache, name: str) -> Any:
        @cache.memoize(model="m", version="1", operation="double")
        def double(x: int) -> int | None:
            runs.append((name, x))
            return 2 * x if x else None

        return double

    first, second = decorated(one, "one"), decorated(other, "other")
    assert [first(0), first(1), second(0), second(1), second(1)] == [None, 2, None, 2, 2]
    assert runs == [("one", 0), ("one", 1)]
    assert (other.stats().hits_l2, other.stats().hits_l1, other.stats().misses) == (2, 1, 0)


@pytest.mark.parametrize("target", ["tag", "key", "model", "version", "all", "delete", "clear"])
def test_a_purge_anywhere_is_seen_everywhere_within_max_staleness(pair: tuple[Cache, Cache], target: str) -> None:
    one, other = pair
    k = both_have(one, other)
    targets: dict[str, Any] = {
        "tag": {"tags": ["t"]},
        "key": {"key": k},
        "model": {"model": "m"},
        "version": {"model": "m", "version": "1"},
        "all": {"all": True},
    }
    if target == "delete":
        one.delete(k)
    elif target == "clear":
        one.clear()
    else:
        one.invalidate(**targets[target])
    assert gone(one, k), "the process that purged sees it at once"
    time.sleep(STALENESS)
    assert gone(other, k)


def test_the_doorbell_brings_a_purge_at_once(server: Server) -> None:
    with make(server.url, max_staleness="1h") as one, make(server.unix_url, max_staleness="1h") as other:
        k = both_have(one, other)
        until(lambda: server.admin.pubsub_numsub("ic:bell")[0][1] == 2, "both followers listen")
        one.invalidate(tags=["t"])
        until(lambda: gone(other, k), "the purge has come, long before anybody had to ask", 5.0)


def test_a_doorbell_that_never_rings_loses_nothing(server: Server) -> None:
    server.admin.execute_command("ACL", "SETUSER", "default", "resetchannels")  # nobody may subscribe, nor publish
    with make(server.url) as one, make(server.unix_url) as other:
        k = both_have(one, other)
        one.invalidate(tags=["t"])
        time.sleep(STALENESS)
        assert gone(other, k)


def test_a_reader_whose_follower_does_not_run_asks_for_itself(
    pair: tuple[Cache, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    monkeypatch.setattr(type(other.shared.coherence), "ensure_follower", lambda self: None)  # type: ignore[union-attr]
    k = both_have(one, other)
    time.sleep(STALENESS)
    one.invalidate(tags=["t"])
    assert other.get(k) is None, "its proof was too old, so the question went along"
    assert other.stats().hits_l1 == 1


def test_with_no_staleness_allowed_every_look_up_asks(server: Server) -> None:
    with make(server.url, max_staleness="0s") as one, make(server.unix_url, max_staleness="0s") as other:
        k = key(one)
        assert one.set(k, "answer", tags=["t"])
        assert other.get(k) == "answer"
        for _ in range(20):
            one.set(k, "answer", tags=["t"])
            assert other.get(k) == "answer"
            one.invalidate(tags=["t"])
            assert gone(other, k)


@pytest.mark.parametrize("step", fills.STEPS)
def test_a_purge_at_each_step_of_a_fill_in_another_process_wins(server: Server, step: str) -> None:
    with make(server.url) as cache, Worker(fills.cache_process, l2=server.url, max_staleness=STALENESS) as worker:
        k = cache.key({"question": "q"}, operation="fill", **SCOPE)
        filling = worker.begin("fill", "q")
        for each in fills.STEPS:
            worker.wait_for(each)
            if each == step:
                cache.invalidate(tags=["question:q"])
            worker.go(each, "old" if each == "model running" else None)
        assert filling.result() == "old"
        time.sleep(STALENESS)
        if step == "before the stamp":
            return  # what is computed after a purge may be served
        assert gone(cache, k)
        assert worker.call("get", "q") is None


def test_a_dead_fill_that_lands_after_a_good_one_is_a_miss_and_never_served(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    k = key(one)
    dead = one.lookup(k).stamp
    other.invalidate(tags=["t"])
    assert other.set(k, "good", tags=["t"], since=other.lookup(k).stamp)
    one.set(k, "dead", tags=["t"], since=dead)  # its follower may not know of the purge yet
    time.sleep(STALENESS)
    assert one.get(k) in (None, "good")
    other._empty()
    assert other.get(k) in (None, "good")


def test_a_soft_purge_marks_stale_everywhere(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    k = both_have(one, other)
    one.invalidate(tags=["t"], soft=True)
    time.sleep(STALENESS)
    assert one.lookup(k).source == "stale"
    found = other.lookup(k)
    assert (found.source, found.value) == ("stale", "answer")
    one.invalidate(tags=["t"])
    time.sleep(STALENESS)
    assert other.lookup(k).source == "miss"


def test_a_token_of_another_process_is_read_your_writes(server: Server) -> None:
    with make(server.url, max_staleness="1h") as one, make(server.unix_url, max_staleness="1h") as other:
        server.admin.execute_command("ACL", "SETUSER", "default", "resetchannels")
        server.admin.client_kill_filter(_type="pubsub")
        k = both_have(one, other)
        token = one.invalidate(tags=["t"])
        assert other.get(k, min_token=Token.parse(str(token))) is None
        assert other.get_many([k], min_token=token) == [None]
        assert other.lookup(k, min_token=token).source == "miss"


def test_a_token_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="is no token"):
        Token.parse("ict1:00:1")
    token = Token(bytes(range(16)), 12)
    assert Token.parse(str(token)) == token


@pytest.mark.parametrize("loss", ["flushall", "restart", "delete", "evict the key"])
def test_an_authority_that_is_lost_begins_a_new_epoch_that_hides_everything(
    server: Server, pair: tuple[Cache, Cache], loss: str
) -> None:
    one, other = pair
    k = both_have(one, other)
    value = server.admin.get(one.shared.name_of(k))  # type: ignore[union-attr]
    match loss:
        case "flushall":
            server.flush()
        case "restart":
            server.restart(empty=True)
        case "delete":
            server.admin.delete("ic:fences")
        case _:
            server.admin.unlink("ic:fences")
    server.admin.set(one.shared.name_of(k), value, px=60_000)  # type: ignore[union-attr,arg-type]
    time.sleep(STALENESS)
    until(lambda: gone(one, k) and gone(other, k), "both know of it")
    assert one.set(k, "anew", tags=["t"])
    until(lambda: other.get(k) == "anew", "they share again")


def test_a_promoted_replica_begins_a_new_epoch(binary: servers.Binary) -> None:
    with servers.Server(binary) as primary:
        replica = primary.replica()
        with make(primary.url) as cache:
            k = key(cache)
            cache.set(k, "answer", tags=["t"])
            replica.wait_in_step(primary)
            epoch = cache.token().epoch
            primary.kill()
            replica.promote()
            with make(replica.url) as other:
                assert other.get(k) is None, "a purge that the replica never saw may have been promised"
                assert other.token().epoch != epoch


def test_a_replica_refuses_even_a_poll(binary: servers.Binary) -> None:
    with servers.Server(binary) as primary:
        replica = primary.replica()
        with make(primary.url) as cache:
            assert cache.set(key(cache), "answer")
        replica.wait_in_step(primary)
        with make(replica.url) as reader:
            assert reader.get(key(reader)) is None
            assert reader.stats().l2_errors > 0
            with pytest.raises(PurgeFailed):
                reader.invalidate(tags=["t"])


def test_a_durable_purge_waits_for_a_replica(binary: servers.Binary) -> None:
    with servers.Server(binary) as primary, make(primary.url, timeout="4s") as cache:
        with pytest.raises(PurgeFailed, match="the purge is done, but") as caught:
            cache.invalidate(tags=["t"], durable=True)
        assert caught.value.outcome == "not durable"
        replica = primary.replica()
        replica.wait_in_step(primary)
        cache.invalidate(tags=["t"], durable=1)


def test_purges_work_at_maxmemory(server: Server, pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    k = both_have(one, other)
    server.config(maxmemory=1, **{"maxmemory-policy": "noeviction"})
    one.invalidate(tags=["t"])
    time.sleep(STALENESS)
    assert gone(one, k)
    assert gone(other, k)


def test_scripts_are_loaded_again_after_a_script_flush(server: Server, pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    k = both_have(one, other)
    server.flush_scripts()
    one.invalidate(tags=["t"])
    time.sleep(STALENESS)
    assert gone(other, k)


def wires(cache: Cache) -> Any:
    """The connections of a cache's threads to its server."""
    tier: Any = cache.shared.tier  # type: ignore[union-attr]
    return tier._blocking.at(tier._router._node.address)


def taken(cache: Cache, count: int) -> list[Any]:
    """So many connections, opened if need be, that nobody else can use."""
    return [run(wires(cache).take(time.monotonic() + 5.0)) for _ in range(count)]


def test_a_purge_that_fails_raises_holds_here_and_reaches_the_others_later(server: Server) -> None:
    with make(server.url, timeout="200ms") as one, make(server.unix_url) as other:
        k = both_have(one, other)
        for wire in taken(one, 2):  # one for the follower, one for the purge: without, see the next test
            wires(one).give_back(wire)
        with server.paused():
            with pytest.raises(PurgeFailed, match="the purge holds in this process only") as caught:
                one.invalidate(tags=["t"])
            assert caught.value.outcome == "unknown"
            assert gone(one, k)
        until(lambda: one.shared.coherence.authority.pending == 0, "the authority has been told", 10.0)  # type: ignore[union-attr]
        time.sleep(STALENESS)
        assert gone(other, k)
        assert one.set(k, "anew", tags=["t"])
        until(lambda: one.get(k) == "anew", "and the tag is no longer hidden")


def test_a_purge_that_could_not_be_sent_for_want_of_a_connection_is_not_done(server: Server) -> None:
    with make(server.url, timeout="200ms") as one, make(server.unix_url) as other:
        k = both_have(one, other)
        held = []
        with server.paused():
            time.sleep(0.05)  # what the follower asked before is answered, and its connection back
            while wires(one)._idle:
                held += taken(one, 1)
            with pytest.raises(PurgeFailed, match="the purge holds in this process only") as caught:
                one.invalidate(tags=["t"])
        assert caught.value.outcome == "not done"
        assert gone(one, k)
        for wire in held:
            wires(one).give_back(wire)
        until(lambda: gone(other, k), "the others have heard of it", 10.0)


def test_a_purge_that_was_not_sent_says_so(server: Server) -> None:
    with make(server.url) as cache:
        assert cache.set(key(cache), "answer")
        server.kill()
        with pytest.raises(PurgeFailed, match="the authority was not told") as caught:
            cache.invalidate(tags=["t"])
        assert caught.value.outcome == "not done"


def test_out_of_reach_untagged_entries_are_served_and_tagged_ones_are_not(server: Server) -> None:
    with make(server.url, timeout="100ms") as cache:
        plain, tagged = key(cache, "plain"), key(cache, "tagged")
        cache.set(plain, "answer")
        cache.set(tagged, "answer", tags=["t"])
        server.kill()
        time.sleep(STALENESS)
        assert cache.get(plain) == "answer"
        assert cache.get(tagged) is None


def test_a_partition_is_lived_through_for_the_time_that_was_given(server: Server) -> None:
    options = {"untagged": "bypass", "tagged": "2s"}
    with make(server.url, timeout="100ms", on_partition=options) as cache:
        plain, tagged = key(cache, "plain"), key(cache, "tagged")
        cache.set(plain, "answer")
        cache.set(tagged, "answer", tags=["t"])
        server.kill()
        time.sleep(STALENESS)
        assert cache.get(plain) is None
        assert cache.get(tagged) == "answer"
        time.sleep(2.0)
        assert cache.get(tagged) is None


def test_a_storm_of_purges_leaves_memory_bounded_and_hides_everything_before(
    server: Server, pair: tuple[Cache, Cache]
) -> None:
    one, other = pair
    k = both_have(one, other)
    for start in range(0, 100_000, 10_000):
        one.invalidate(tags=[f"tag:{number}" for number in range(start, start + 10_000)])
    one.invalidate(tags=["t"])
    time.sleep(STALENESS)
    until(lambda: gone(other, k), "the follower has caught up")
    assert server.admin.zcard("ic:fences") <= 100_002
    assert server.admin.memory_usage("ic:fences", samples=0) < 20 << 20
    assert other.set(k, "anew", tags=["t"])
    until(lambda: one.get(k) == "anew", "they share again")


def test_the_child_of_a_fork_knows_nothing_and_works(server: Server) -> None:
    with make(server.url) as cache:
        k = key(cache)
        assert cache.set(k, "answer", tags=["t"])
        assert cache.get(k) == "answer"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                known = cache.token().epoch  # nothing is known
                found = cache.get(k)  # from the server, with sockets of its own
                cache.invalidate(tags=["t"])
                code = 0 if (known, found, cache.get(k)) == (b"", "answer", None) else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        time.sleep(STALENESS)
        assert gone(cache, k), "the child's purge"


def test_an_answer_computed_in_another_process_carries_the_smaller_stamp(server: Server) -> None:
    with make(server.url) as outer, make(server.unix_url, max_staleness="1h") as inner:
        asked: list[Token] = []

        @outer.memoize(model="outer", version="1", operation="outer", tags=["t"])
        def compute() -> str:
            asked.append(outer.token())
            found = inner.get(k, min_token=outer.token())
            return f"from {found}"

        k = key(inner)
        inner.set(k, "old", tags=["t"])
        token = outer.invalidate(tags=["t"])
        assert compute() == "from None", "the inner cache was told how much the outer one knows"
        assert asked == [token]


def test_a_cache_that_closes_leaves_the_others_their_authority(server: Server) -> None:
    with make(server.unix_url) as other, make(server.url) as second:
        first = make(server.url)
        k = both_have(first, second)
        first.close()
        other.invalidate(tags=["t"])
        time.sleep(STALENESS)
        assert gone(second, k)
        assert second.set(k, "anew")
        until(lambda: other.get(k) == "anew", "it is shared")


def test_a_look_up_in_the_shared_tier_is_counted_once(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    k = key(one)
    found = other.lookup(k)
    assert found.source == "miss"
    assert other.set(k, "answer", since=found.stamp), "the stamp of the very first miss will do"
    found = one.lookup(k)
    assert (found.source, found.value) == ("l2", "answer")
    stats = one.stats()
    assert (stats.hits_l1, stats.hits_l2, stats.misses) == (0, 1, 0)
    assert one.lookup(k).source == "l1"


def test_a_cluster_is_one_deployment(binary: servers.Binary) -> None:
    with Cluster(binary) as cluster, make(cluster.url, timeout="2s") as one:
        keys = [key(one, f"q{number}") for number in range(50)]
        assert one.set_many([(k, number) for number, k in enumerate(keys)], tags=["t"]) == 50
        one._empty()
        assert one.get_many(keys) == list(range(50))
        assert one.stats().hits_l2 == 50
        one.invalidate(tags=["t"])
        one._empty()
        assert one.get_many(keys) == [None] * 50


def test_caches_of_one_deployment_in_a_process_go_on_when_one_is_closed(server: Server) -> None:
    with make(server.unix_url) as elsewhere:
        with make(server.url) as one, make(server.url) as other:
            k = both_have(elsewhere, other)
            one.close()
            elsewhere.invalidate(tags=["t"])
            time.sleep(STALENESS)
            assert gone(other, k), "its follower follows"
            other.invalidate(tags=["t"])
        with make(server.url) as later:
            assert later.set(key(later), "later", tags=["t"])
            later.invalidate(tags=["t"])
            assert gone(later, k)
            age = later.shared.coherence.authority.proof_age  # type: ignore[union-attr]
            time.sleep(2 * STALENESS)
            assert later.shared.coherence.authority.proof_age < age + STALENESS  # type: ignore[union-attr,operator]
