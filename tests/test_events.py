"""Events of a stream purge: each at least once, whoever dies, and none holds up the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import servers
from consumers import consumer_process, tags_of
from infercache import Cache, InvalidArgument, RedisTier, TierError
from infercache.events import Event, Purge, StreamEvents
from processes import Worker
from proxy import BlackHole, Cut, Hold, Proxy
from servers import until

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network

STREAM, GROUP = "events", "purgers"
SCOPE = {"model": "m", "version": "1"}


@pytest.fixture
def cache(server: Server) -> Iterator[Cache]:
    with Cache("8MB", l2=server.url, max_staleness="1s", timeout="1s") as cache:
        yield cache


@pytest.fixture
def tier(server: Server) -> Iterator[RedisTier]:
    """The way to the stream where it is not the cache's own."""
    tier = RedisTier(server.url, timeout="1s")
    yield tier
    tier.close()


def events(cache: Cache, targets: Callable[[Event], Any] = tags_of, **options: Any) -> StreamEvents:
    return StreamEvents(cache, STREAM, GROUP, targets, **{"wait": "100ms", "claim_after": "200ms", **options})


def stored(cache: Cache, product: int) -> Any:
    """The key of an answer about a product."""
    key = cache.key(product, operation="test", **SCOPE)
    assert cache.set(key, "answer", tags=[f"product:{product}"])
    assert cache.get(key) == "answer"
    return key


def pending(server: Server) -> int:
    return server.admin.xpending(STREAM, GROUP)["pending"]


@pytest.mark.parametrize("binary", servers.NAMES, indirect=True)
def test_an_event_purges_what_it_names_and_is_acknowledged(server: Server, cache: Cache) -> None:
    keys = [stored(cache, number) for number in range(3)]
    server.admin.xadd(STREAM, {"product": "0"})  # before there is a group
    with events(cache) as running:
        until(lambda: cache.get(keys[0]) is None, "the event of before is heard")
        server.admin.xadd(STREAM, {"product": "1"})
        until(lambda: cache.get(keys[1]) is None, "the event is heard")
        until(lambda: running.stats() == {"events": 2, "purged": 2}, "both were purged")
        until(lambda: pending(server) == 0, "both are acknowledged")
        assert cache.get(keys[2]) == "answer"
    assert not running.is_running
    assert server.admin.xinfo_consumers(STREAM, GROUP) == [], "it has left the group"


def test_a_group_may_begin_with_what_comes_from_now_on(server: Server, cache: Cache) -> None:
    server.admin.xadd(STREAM, {"product": "0"})
    with events(cache, start="$") as running:
        until(lambda: server.admin.exists(STREAM) and server.admin.xinfo_groups(STREAM), "the group is there")
        server.admin.xadd(STREAM, {"product": "1"})
        until(lambda: running.stats().get("purged") == 1, "the event is heard")
    assert running.stats() == {"events": 1, "purged": 1}


def test_what_an_event_names_may_be_anything_that_a_purge_takes(server: Server, cache: Cache) -> None:
    key, plain = stored(cache, 1), cache.key(2, operation="test", **SCOPE)
    wanted: dict[str, Any] = {
        "nothing": None,
        "no tags": [],
        "generated": (tag for tag in ["product:7"]),
        "soft": Purge(tags=["product:1"], soft=True),
        "key": Purge(key=plain),
    }
    with events(cache, lambda event: wanted[event.text("what")]) as running:
        for what in ("nothing", "no tags", "generated", "soft"):
            server.admin.xadd(STREAM, {"what": what})
        until(lambda: cache.lookup(key).source == "stale", "it is marked stale")
        until(lambda: running.stats() == {"events": 4, "ignored": 2, "purged": 2}, "the others did nothing")
        assert cache.set(plain, "answer")
        server.admin.xadd(STREAM, {"what": "key"})
        until(lambda: cache.get(plain) is None, "by its key")
        wanted["all"] = Purge(all=True)
        server.admin.xadd(STREAM, {"what": "all"})
        until(lambda: cache.lookup(key).source == "miss", "everything")


def test_a_consumer_killed_between_purge_and_acknowledgement_leaves_the_event_to_another(
    server: Server, cache: Cache
) -> None:
    key = stored(cache, 1)
    with Proxy(server.address) as proxy:
        proxy.set(requests=Hold(when="XACK"))
        through = f"redis://127.0.0.1:{proxy.port}"
        with Worker(consumer_process, server.url, through, wait="100ms", claim_after="200ms") as first:
            first.call("start")
            ident = server.admin.xadd(STREAM, {"product": "1"}).decode()
            assert first.wait_for("delivered") == ident
            until(lambda: cache.get(key) is None, "the first consumer has purged")
            first.kill()
    assert pending(server) == 1, "and not acknowledged"
    stored(cache, 1)
    with events(cache) as second:
        until(lambda: cache.get(key) is None, "the second one purges again")
        until(lambda: pending(server) == 0, "and acknowledges")
    assert second.stats() == {"events": 1, "claimed": 1, "purged": 1}


def test_a_consumer_killed_before_the_purge_leaves_the_event_to_another(server: Server, cache: Cache) -> None:
    key = stored(cache, 1)
    with Proxy(server.address) as proxy:
        proxy.set(requests=Hold(when="EVALSHA"))
        through = f"redis://127.0.0.1:{proxy.port}"
        with Worker(consumer_process, through, server.url, wait="100ms", claim_after="200ms") as first:
            first.call("start")
            server.admin.xadd(STREAM, {"product": "1"})
            first.wait_for("delivered")
            first.kill()
    assert cache.get(key) == "answer"
    with events(cache):
        until(lambda: cache.get(key) is None, "the second one purges")
        until(lambda: pending(server) == 0, "and acknowledges")


def test_a_consumer_that_is_started_again_under_its_name_finds_at_once_what_it_had_left(
    server: Server, cache: Cache
) -> None:
    key = stored(cache, 1)
    first = events(cache, consumer="one", claim_after="1h")
    server.admin.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    server.admin.xadd(STREAM, {"product": "1"})
    server.admin.xreadgroup(GROUP, "one", {STREAM: ">"})  # delivered, and then it died
    with first:
        until(lambda: cache.get(key) is None, "it purges")
        until(lambda: pending(server) == 0, "and acknowledges")


def test_nothing_is_acknowledged_while_the_authority_cannot_be_told(
    server: Server, binary: servers.Binary, tier: RedisTier
) -> None:
    with servers.Server(binary) as authority, Cache("8MB", l2=authority.url, timeout="200ms") as cache:
        key = stored(cache, 1)
        with events(cache, tier=tier, claim_after="1h") as running:
            with authority.paused():
                for product in (1, 2, 3):
                    server.admin.xadd(STREAM, {"product": str(product)})
                until(lambda: running.stats().get("failed_purges", 0) >= 2, "the authority is asked again")
                assert pending(server) >= 1
                assert "purged" not in running.stats()
            until(lambda: running.stats().get("purged") == 3, "all are purged once it answers")
            until(lambda: pending(server) == 0, "and acknowledged")
            assert cache.get(key) is None


def test_an_event_whose_targets_cannot_be_told_is_tried_and_then_set_aside(
    server: Server, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    key = stored(cache, 1)
    deliveries: list[str] = []

    def targets(event: Event) -> Iterable[str]:
        deliveries.append(event.text("product"))
        return tags_of(event) if event.text("product") == "1" else [int(event.text("product"))]  # type: ignore[list-item]

    with events(cache, targets, tries=3) as running:
        poison = server.admin.xadd(STREAM, {"product": "x", "also": "kept"})
        server.admin.xadd(STREAM, {"product": "1"})
        until(lambda: cache.get(key) is None, "the event behind it is not held up")
        until(lambda: running.stats().get("set_aside") == 1, "it is given up")
        until(lambda: pending(server) == 0, "and acknowledged")
    assert deliveries.count("x") == 3
    assert running.stats()["failed"] == 3
    ((_, fields),) = server.admin.xrange(f"{STREAM}:aside")
    assert fields[b"product"] == b"x"
    assert fields[b"also"] == b"kept"
    assert fields[b"infercache:event"] == poison
    assert b"ValueError: invalid literal" in fields[b"infercache:error"]
    assert "is set aside in 'events:aside', and nothing was purged for it" in caplog.text


def test_malformed_targets_are_the_events_fault(server: Server, cache: Cache) -> None:
    wrong: list[Any] = ["product:1", Purge(version="1"), [b"tag"], Purge(tags="text"), 7]

    with events(cache, lambda event: wrong[int(event.text("n"))], tries=1) as running:
        for number in range(len(wrong)):
            server.admin.xadd(STREAM, {"n": str(number)})
        until(lambda: running.stats().get("set_aside") == len(wrong), "all of them")
    assert running.stats() == {"events": 5, "failed": 5, "set_aside": 5}


def test_an_answer_with_events_that_is_lost_loses_none(server: Server, cache: Cache) -> None:
    key = stored(cache, 1)
    with Proxy(server.address) as proxy:
        tier = RedisTier(f"redis://127.0.0.1:{proxy.port}", timeout="500ms")
        running = events(cache, tier=tier, claim_after="1h", wait="2s")
        with running:
            until(lambda: server.calls("xreadgroup") >= 2, "it waits for events")
            proxy.set(replies=Cut(after=0, times=1))
            server.admin.xadd(STREAM, {"product": "1"})
            until(lambda: cache.get(key) is None, "what was delivered to nobody is read again")
            until(lambda: pending(server) == 0, "and acknowledged")
        assert running.stats()["errors"] >= 1
        tier.close()


def test_an_acknowledgement_that_is_lost_is_repeated(server: Server, cache: Cache) -> None:
    stored(cache, 1)
    with Proxy(server.address) as proxy:
        tier = RedisTier(f"redis://127.0.0.1:{proxy.port}", timeout="300ms", retries=0)
        with events(cache, tier=tier, claim_after="1h") as running:
            proxy.set(requests=BlackHole(when="XACK"))
            server.admin.xadd(STREAM, {"product": "1"})
            until(lambda: running.stats().get("errors", 0) >= 1, "it was not heard")
            assert pending(server) == 1
            proxy.set()
            until(lambda: pending(server) == 0, "it is said again")
        assert running.stats()["purged"] == 1
        tier.close()


def test_a_server_that_comes_back_empty_is_followed_from_its_beginning(server: Server, cache: Cache) -> None:
    with events(cache, start="$") as running:
        until(lambda: server.admin.exists(STREAM), "the group is there")
        server.restart(empty=True)
        server.admin.xadd(STREAM, {"product": "1"})
        until(lambda: running.stats().get("purged") == 1, "the event is heard", 20.0)


def test_an_event_that_was_trimmed_before_it_was_purged_is_counted_as_lost(
    server: Server, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    server.admin.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    for product in range(3):
        server.admin.xadd(STREAM, {"product": str(product)})
    server.admin.xreadgroup(GROUP, "dead", {STREAM: ">"})
    server.admin.xreadgroup(GROUP, "one", {STREAM: ">"})
    server.admin.xtrim(STREAM, maxlen=1, approximate=False)
    time.sleep(0.2)
    with events(cache, consumer="one") as running:
        until(lambda: pending(server) == 0, "nothing is left")
        until(lambda: running.stats().get("purged") == 1, "what was left is purged")
    assert running.stats()["lost"] == 2
    assert "were trimmed before they were purged" in caplog.text


def test_many_events_are_one_purge(server: Server, cache: Cache) -> None:
    server.admin.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    for product in range(200):
        server.admin.xadd(STREAM, {"product": str(product)})
    before = cache.invalidate(tags=["first"])
    with events(cache, batch=100) as running:
        until(lambda: running.stats().get("purged") == 200, "all are purged")
    assert cache.invalidate(tags=["last"]).lsn - before.lsn == 3


def test_a_purge_without_a_shared_tier_reaches_this_process(server: Server, tier: RedisTier) -> None:
    cache = Cache("8MB")
    key = stored(cache, 1)
    with events(cache, tier=tier):
        server.admin.xadd(STREAM, {"product": "1"})
        until(lambda: cache.get(key) is None, "the event is heard")


def test_a_key_that_is_no_stream_ends_it_loudly(server: Server, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    server.admin.set(STREAM, "no stream")
    with pytest.raises(TierError, match="WRONGTYPE"):
        events(cache).run()
    running = events(cache).start()
    until(lambda: not running.is_running and "has ended" in caplog.text, "the thread ends")
    with pytest.raises(TierError, match="WRONGTYPE"):
        running.stop()


def test_one_consumer_runs_once_at_a_time_and_may_start_again(server: Server, cache: Cache) -> None:
    running = events(cache)
    with running:
        until(lambda: running.is_running, "it runs")
        with pytest.raises(InvalidArgument, match="consumed already"):
            running.run()
    key = stored(cache, 1)
    with running:
        server.admin.xadd(STREAM, {"product": "1"})
        until(lambda: cache.get(key) is None, "it goes on")


def test_run_blocks_until_it_is_stopped(server: Server, cache: Cache) -> None:
    running = events(cache)
    thread = threading.Thread(target=running.run)
    thread.start()
    until(lambda: running.is_running, "it runs")
    running.stop()
    thread.join(10.0)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("tier", None),
        ("stream", ""),
        ("group", None),
        ("targets", "tags"),
        ("start", "7-0"),
        ("batch", 0),
        ("tries", 0),
        ("consumer", ""),
        ("wait", "0s"),
        ("claim_after", "soon"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(option: str, wrong: Any) -> None:
    given = {"stream": STREAM, "group": GROUP, "targets": tags_of, "tier": object(), option: wrong}
    stream, group, targets = given.pop("stream"), given.pop("group"), given.pop("targets")
    with pytest.raises(InvalidArgument, match=option):
        StreamEvents(Cache("1MB"), stream, group, targets, **given)
