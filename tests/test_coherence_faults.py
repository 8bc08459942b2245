"""What the tier's faults do to inference, and to the promise of purges: a server that is down, slow, mute or killed.

Every fault is a real one: processes are killed and stopped, bytes are held, dropped and cut by the proxy. One cannot be
had: a machine that sleeps. A process that is stopped stands in for it, but no clock stands still for that one, so that
proof is dated on a clock which counts suspension is shown nowhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import fills
from asked import WAYS, Asked
from asking import LATE
from infercache import Cache, Key, PurgeFailed
from processes import Worker
from proxy import BlackHole, Cut, Delay, Hold, Proxy, Trickle
from servers import Server, until
from together import Started

if TYPE_CHECKING:
    from processes import Call

pytestmark = pytest.mark.network

STALENESS = 0.5
BUDGET = 0.2
#: Within so many seconds a tier that is back is used again.
RETURN = 5.0


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.address) as proxy:
        yield proxy


@pytest.fixture(params=["thread", "task"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def asked(url: str, kind: str, **options: Any) -> Iterator[Asked]:
    options = {"max_staleness": STALENESS, "timeout": BUDGET, **options}
    one = Asked(Cache("8MB", l2=url, **options), kind)
    try:
        yield one
    finally:
        one.close()


def shares(one: Asked, server: Server, question: str) -> bool:
    """Whether what it computes now reaches the server."""
    one.by("memoized", question)
    return bool(server.admin.exists(one.cache.shared.name_of(one.one.key(question))))  # type: ignore[union-attr]


def used_again(one: Asked, server: Server) -> None:
    """A tier that has come back is used within the time that is promised."""
    began = time.monotonic()
    number = 0
    while not shares(one, server, f"afterwards {number}"):
        number += 1
        assert time.monotonic() - began < RETURN + LATE, f"{one.cache.shared.errors}"  # type: ignore[union-attr]
        time.sleep(0.05)


FAULTS: dict[str, Callable[[Proxy], None]] = {
    "answers after 5 s": lambda proxy: proxy.set(replies=Delay(5)),
    "answers trickle": lambda proxy: proxy.set(replies=Trickle(1, 0.2)),
    "a black hole": lambda proxy: proxy.set(requests=BlackHole(), replies=BlackHole()),
    "half open: requests are lost": lambda proxy: proxy.set(requests=BlackHole()),
    "half open: answers are lost": lambda proxy: proxy.set(replies=BlackHole()),
    "answers are cut": lambda proxy: proxy.set(replies=Cut(after=5)),
    "nobody listens": lambda proxy: proxy.refuse(cut=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_call_takes_longer_than_its_budget_and_a_tier_that_is_back_is_used_again(
    server: Server, proxy: Proxy, kind: str, fault: str
) -> None:
    with asked(proxy.url, kind) as one:
        until(lambda: shares(one, server, "q"), "the tier is in use")
        FAULTS[fault](proxy)
        one.word = "during the fault"
        for turn in range(3):
            for way in (*WAYS, "set"):
                answer, seconds = one.timed(way, f"{way} {turn}")
                assert seconds < BUDGET + LATE, f"{way}: {seconds:.3f} s of {BUDGET} s"
                if way in ("memoized", "batch", "get_or_compute"):
                    assert answer == "during the fault"
        assert one.cache.stats().l2_errors > 0
        with pytest.raises(PurgeFailed):
            one.purge()
        proxy.listen()
        proxy.cut()  # connections that lost bytes are of no use to anybody
        proxy.set()
        one.word = "afterwards"
        used_again(one, server)


def test_a_server_that_is_stopped_holds_up_nobody_and_is_used_again(server: Server, kind: str) -> None:
    with asked(server.url, kind) as one:
        until(lambda: shares(one, server, "q"), "the tier is in use")
        with server.paused():
            one.word = "meanwhile"
            for turn in range(2):
                for way in (*WAYS, "set"):
                    answer, seconds = one.timed(way, f"{way} {turn}")
                    assert seconds < BUDGET + LATE, f"{way}: {seconds:.3f} s of {BUDGET} s"
                    assert answer in ("meanwhile", None, True, False)
        used_again(one, server)


def test_the_breaker_opens_so_that_calls_cost_nothing_and_closes_again(server: Server, proxy: Proxy, kind: str) -> None:
    with asked(proxy.url, kind, timeout="300ms") as one:
        tier = one.cache.l2
        assert tier is not None
        until(lambda: shares(one, server, "q"), "the tier is in use")
        proxy.set(replies=Delay(5))
        until(lambda: one.by("memoized", f"q {time.monotonic()}") and tier.is_out, "the breaker is open", 10.0)
        waits = [one.timed("memoized", f"while open {number}")[1] for number in range(20)]
        # Now and then one of them is the probe.
        assert sorted(waits)[len(waits) // 2] < 0.1
        assert tier.stats()["breaker_openings"] >= 1
        proxy.cut()
        proxy.set()
        used_again(one, server)
        assert not tier.is_out


def test_a_server_that_is_down_at_the_start_is_used_once_it_is_there(server: Server, proxy: Proxy, kind: str) -> None:
    proxy.refuse()
    with asked(proxy.url, kind) as one:
        for turn in range(10):
            assert one.by("memoized", f"q {turn}") == "new"
        with pytest.raises(PurgeFailed, match="the authority was not told") as caught:
            one.purge()
        assert caught.value.outcome == "not done"
        proxy.listen()
        used_again(one, server)


@pytest.mark.parametrize(("command", "during"), [("GET", "read"), ("SET", "write"), ("EVALSHA", "purge")])
@pytest.mark.parametrize("arrived", [True, False], ids=["after it had it", "before it had it"])
def test_a_server_killed_in_the_middle_fails_no_inference(
    server: Server, proxy: Proxy, kind: str, command: str, during: str, arrived: bool
) -> None:
    with asked(proxy.url, kind, timeout="1s", max_staleness="1h") as one:
        until(lambda: shares(one, server, "q"), "the tier is in use")
        before = proxy.commands[command]
        held = Hold(when=command)
        proxy.set(**{"replies" if arrived else "requests": held})
        calling = Started(lambda: one.purge() if during == "purge" else one.timed("memoized", "in the middle"))
        proxy.wait_for(command, before + 1)
        server.kill()
        proxy.cut()
        calling.join()
        if during == "purge":
            assert isinstance(calling.errors[0], PurgeFailed)
            assert calling.errors[0].outcome == "unknown"
            assert one.cache.get(one.one.key("q")) is None, "it holds here"
        else:
            [(answer, seconds)] = calling.results()
            assert answer == "new"
            assert seconds < 1 + LATE
        proxy.set()
        server.restart(empty=True)
        used_again(one, server)


def test_a_call_spends_its_budget_once_however_much_it_has_to_do_with_the_tier(
    server: Server, proxy: Proxy, kind: str
) -> None:
    with asked(proxy.url, kind, timeout="500ms") as one:
        until(lambda: shares(one, server, "q"), "the tier is in use")
        proxy.set(replies=Delay(0.3))
        _, seconds = one.timed("memoized", "another")  # 0.3 s to read, and 0.2 s are left to tell of it
        assert 0.3 <= seconds < 0.5 + LATE
        _, seconds = one.timed("batch", "another")  # four chunks of it
        assert seconds < 0.5 + LATE


@pytest.mark.parametrize("way", ["get", "get_many", "lookup"])
def test_a_read_with_a_token_spends_its_budget_once(server: Server, proxy: Proxy, kind: str, way: str) -> None:
    options: Any = {"timeout": "900ms", "max_staleness": "1h"}
    with asked(proxy.url, kind, **options) as one, Cache("1MB", l2=server.url, **options) as other:
        until(lambda: shares(one, server, "q"), "the tier is in use")
        key, token = one.one.key("another"), other.invalidate(tags=["elsewhere"])
        proxy.set(replies=Delay(0.8))  # time for one question and a tenth of a second
        asked_for = [key] if way == "get_many" else key
        began = time.monotonic()
        if one.runner is None:
            getattr(one.cache, way)(asked_for, min_token=token)
        else:
            one.runner.run(getattr(one.cache, f"a{way}")(asked_for, min_token=token))
        assert 0.8 <= time.monotonic() - began < 0.9 + LATE


# Purges and what arrives late, out of order, twice or not at all.


@contextlib.contextmanager
def filler(url: str, **options: Any) -> Iterator[Worker]:
    with Worker(fills.cache_process, l2=url, **{"max_staleness": STALENESS, "timeout": "1s", **options}) as worker:
        yield worker


def filling(worker: Worker, question: str, answer: Any) -> Call:
    """A memoized call in another process whose model has answered."""
    call = worker.begin("memoized", question)
    worker.wait_for("model running")
    worker.go("model running", answer)
    worker.wait_for("model returned")
    return call


@pytest.mark.parametrize("step", ["model running", "model returned", "the store is on its way", "stored"])
def test_a_purge_at_each_step_of_a_memoized_call_in_another_process_wins(
    server: Server, proxy: Proxy, step: str
) -> None:
    with asked(server.url, "thread") as here, filler(proxy.url) as there:
        key = Key(there.call("name", "q"))
        call = there.begin("memoized", "q")
        there.wait_for("model running")
        if step == "model running":
            here.purge()
        there.go("model running", "old")
        there.wait_for("model returned")
        if step == "model returned":
            here.purge()
        if step == "the store is on its way":
            proxy.set(requests=Hold(when="SET"))
        there.go("model returned")
        if step == "the store is on its way":
            proxy.wait_for("SET")
            here.purge()
            result = call.result()
            proxy.set()  # the dead store arrives, long after the purge
            until(lambda: server.calls("set") == 1, "the store has arrived")
        else:
            result = call.result()
        assert result == "old", "its own caller gets what it computed"
        if step == "stored":
            assert here.cache.get(key) == "old"
            here.purge()
        time.sleep(STALENESS)
        assert there.call("peek", "q") is None
        assert here.cache.get(key) is None
        again = filling(there, "q", "new")
        there.go("model returned")
        assert again.result() == "new"
        until(lambda: there.call("peek", "q") == "new", "what was computed after the purge is kept")


def test_a_process_that_was_stopped_does_not_serve_what_was_purged_meanwhile(server: Server) -> None:
    with asked(server.url, "thread") as here, filler(server.url) as there:
        for turn in range(4):
            call = filling(there, "q", turn)
            there.go("model returned")
            assert call.result() == turn
            assert there.call("peek", "q") == turn
            there.pause()
            here.purge()
            reading = there.begin("peek", "q")  # it stands in the socket, and is the first thing that is done
            time.sleep(STALENESS)
            there.resume()
            assert reading.result() is None


def test_a_doorbell_that_is_lost_loses_nothing(server: Server, proxy: Proxy) -> None:
    with asked(server.url, "thread") as here, asked(proxy.url, "thread") as there:
        assert here.by("get") is None
        assert there.by("get") is None
        until(lambda: server.admin.pubsub_numsub("ic:bell")[0][1] == 2, "both listen")
        for connection in proxy.open_connections:
            if connection.commands["SUBSCRIBE"]:
                connection.set(replies=BlackHole())
        for turn in range(5):
            there.word = f"word {turn}"
            assert there.by("memoized") == there.word, "nothing is left of before the purge"
            here.purge()
            time.sleep(STALENESS)


@pytest.mark.parametrize("after", [0, 1, 7, 20, 40, 60, 90])
def test_an_answer_cut_short_is_no_answer(server: Server, proxy: Proxy, after: int) -> None:
    with asked(server.url, "thread") as here, asked(proxy.url, "thread", max_staleness="300ms") as there:
        assert there.by("memoized") == "new"
        proxy.set(replies=Cut(after=after, when="EVALSHA"))
        here.purge()
        there.word = "newer"
        time.sleep(0.3)
        assert there.by("get") is None
        assert there.by("memoized") == "newer"
        proxy.set()
        used_again(there, server)


def test_an_answer_that_was_overtaken_changes_nothing(server: Server, proxy: Proxy) -> None:
    """TCP does not reorder: two connections do. The held answer is of before the purge, and comes after it."""
    with asked(proxy.url, "thread", max_staleness="1h", timeout="5s") as one:
        assert one.by("memoized") == "new"
        shared = one.cache.shared
        assert shared is not None
        asks = proxy.commands["EVALSHA"]
        proxy.set(replies=Hold(when="EVALSHA"))
        from infercache.effects import drive

        held = Started(lambda: drive(shared.coherence.poll(5.0, shared.tier)))
        proxy.wait_for("EVALSHA", asks + 1)
        late = [connection for connection in proxy.open_connections if isinstance(connection.faults[1], Hold)]
        for connection in late:
            if not connection.replies.armed:  # type: ignore[union-attr]
                connection.set()
        fresh = [each for each in late if each.replies.armed]  # type: ignore[union-attr]
        assert fresh
        proxy._faults = (proxy._faults[0], type(proxy._faults[0])())  # connections that come are well
        token = one.purge()
        assert one.by("get") is None
        applied = shared.coherence.authority.applied
        for connection in fresh:
            connection.set()
        assert held.results() == [True]
        assert shared.coherence.authority.applied == applied
        assert one.by("get") is None
        assert one.cache.token() == token


def test_a_purge_whose_answer_was_lost_is_repeated_and_does_no_harm(server: Server, proxy: Proxy, kind: str) -> None:
    with asked(server.url, "thread") as here, asked(proxy.url, kind, timeout="1s", max_staleness="1h") as there:
        assert here.by("memoized") == "new"
        assert there.by("memoized") == "new"

        def is_quiet() -> bool:
            before = proxy.commands["EVALSHA"]
            time.sleep(0.3)
            return proxy.commands["EVALSHA"] == before

        until(is_quiet, "the follower has asked its first questions")
        proxy.set(replies=Cut(after=0, when="EVALSHA", times=1))
        token = there.purge()
        assert token.lsn == 2, "the authority has carried it out twice"
        time.sleep(STALENESS)
        assert here.by("get") is None
        assert there.by("get") is None


def test_a_purge_that_never_arrived_is_told_with_a_later_question(server: Server, proxy: Proxy, kind: str) -> None:
    with asked(server.url, "thread") as here, asked(proxy.url, kind) as there:
        assert here.by("memoized") == "new"
        assert there.by("memoized") == "new"
        proxy.refuse(cut=True)
        with pytest.raises(PurgeFailed) as caught:
            there.purge()
        assert caught.value.outcome == "not done"
        assert there.by("get") is None, "it holds here"
        time.sleep(STALENESS)
        assert here.by("get") == "new", "nobody else can know"
        proxy.listen()
        authority = there.cache.shared.coherence.authority  # type: ignore[union-attr]
        until(lambda: authority.pending == 0, "the authority has been told", 10.0)
        time.sleep(STALENESS)
        assert here.by("get") is None


@pytest.mark.parametrize("ahead", [900, -900])
def test_a_wall_clock_that_is_wrong_by_a_quarter_of_an_hour_changes_nothing(server: Server, ahead: float) -> None:
    with asked(server.url, "thread", ttl="60s") as here, filler(server.url, wall_clock=ahead, ttl="60s") as there:
        key = Key(there.call("name", "q"))
        call = filling(there, "q", "theirs")
        there.go("model returned")
        assert call.result() == "theirs"
        assert here.cache.get(key) == "theirs", "neither too old nor of the future"
        here.purge()
        time.sleep(STALENESS)
        assert there.call("peek", "q") is None
        assert here.cache.set(key, "ours", tags=["question:q"])
        assert there.call("memoized", "q") == "ours"
        there.call("purge", "q")
        time.sleep(STALENESS)
        assert here.cache.get(key) is None


def test_a_fork_with_live_followers_and_busy_threads_has_a_child_that_works(server: Server) -> None:
    forking = Worker(fills.forking_process, l2=server.url, max_staleness=STALENESS)
    with forking as one, asked(server.url, "thread") as here:
        for turn in range(6):
            assert one.call("fork", turn) == 0, "the child read, computed, purged and shared"
        time.sleep(STALENESS)
        assert one.call("wrong") == [], "the parent's threads went on"
        key = Key(one.call("name", "of the child 0"))
        assert here.cache.get(key) == "computed in the child"


@pytest.mark.parametrize("kind_of_loss", ["evicted", "deleted"])
def test_an_authoritys_key_that_is_lost_while_processes_run_hides_everything(server: Server, kind_of_loss: str) -> None:
    with asked(server.url, "thread") as here, filler(server.url) as there:
        call = filling(there, "q", "old")
        there.go("model returned")
        assert call.result() == "old"
        if kind_of_loss == "deleted":
            server.admin.delete("ic:fences")
        else:
            server.config(maxmemory_policy="allkeys-random", maxmemory=1)
            with contextlib.suppress(Exception):  # there is no memory left for it, which is the point
                server.admin.set("anything", "x")
            assert server.info("stats")["evicted_keys"] >= 1
            server.config(maxmemory=0)
        epoch = here.cache.token().epoch
        time.sleep(STALENESS)
        assert there.call("peek", "q") is None
        assert here.by("get") is None
        assert here.cache.token().epoch != epoch
