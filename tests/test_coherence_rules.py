"""The rules of coherence one by one, each by a test that fails when the rule is taken out (docs/coherence.md has them).

What needs faults of the network is in test_coherence_faults.py, what a purge promises in general in test_coherence.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, coherence
from infercache.effects import drive
from proxy import Delay, Proxy
from servers import until
from sharing import SCOPE, STALENESS, key, make
from together import Gate, Started

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network


@pytest.fixture
def unfollowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No follower runs, so that nobody asks but who is told to."""
    monkeypatch.setattr(coherence.Coherence, "ensure_follower", lambda self: None)


def ask(cache: Cache) -> None:
    """One question to the authority."""
    shared = cache.shared
    assert shared is not None
    assert drive(shared.coherence.poll(5.0, shared.tier)) is True


def in_step(*caches: Cache) -> None:
    for cache in caches:
        ask(cache)


def test_tags_belong_to_their_namespace(server: Server) -> None:
    with make(server.url, namespace="a") as one, make(server.unix_url, namespace="b") as other:
        for cache in (one, other):
            assert cache.set(key(cache), "answer", tags=["t"])
        one.invalidate(tags=["t"])
        in_step(one, other)
        assert one.get(key(one)) is None
        assert other.get(key(other)) == "answer"
        one.clear()
        in_step(other)
        assert other.get(key(other)) == "answer"
        one.invalidate(all=True)
        in_step(other)
        assert other.get(key(other)) is None, "everything of the deployment"


def test_several_tags_of_one_purge_mean_or(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    for name in ("a", "b", "c"):
        assert one.set(key(one, name), name, tags=[name])
    one.invalidate(tags=["a", "b"])
    in_step(other)
    assert [other.get(key(other, name)) for name in ("a", "b", "c")] == [None, None, "c"]


@pytest.mark.usefixtures("unfollowed")
def test_a_proof_is_dated_when_its_question_was_sent(server: Server) -> None:
    with Proxy(server.address) as proxy, make(server.unix_url) as one, make(proxy.url) as other:
        k = key(one)
        assert one.set(k, "old", tags=["t"])
        assert other.get(k) == "old"
        proxy.set(replies=Delay(0.4))
        asked = proxy.commands["EVALSHA"]
        asking = Started(lambda: ask(other))
        proxy.wait_for("EVALSHA", asked + 1)
        time.sleep(0.05)
        one.invalidate(tags=["t"])  # the answer that is on its way knows nothing of it
        acknowledged = time.monotonic()
        asking.results()
        proxy.set()
        time.sleep(max(0.0, acknowledged + STALENESS - time.monotonic()))
        assert other.get(k) is None


@pytest.mark.usefixtures("unfollowed")
def test_an_answer_that_holds_only_a_part_is_no_proof(
    pair: tuple[Cache, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coherence, "CHANGES", 3)
    one, other = pair
    k = key(one)
    assert one.set(k, "old", tags=["the last"])
    assert other.get(k) == "old"
    time.sleep(STALENESS)
    for number in range(10):
        one.invalidate(tags=[f"tag {number}"])
    one.invalidate(tags=["the last"])
    assert other.get(k) is None, "its question was answered in part: what it knows does not reach to the end"
    ask(other)  # until the answer is whole
    assert other.shared.coherence.authority.proof_age < STALENESS  # type: ignore[union-attr,operator]
    assert other.get(k) is None


def test_a_follower_asks_in_time_though_no_bell_rings(server: Server) -> None:
    server.admin.execute_command("ACL", "SETUSER", "default", "resetchannels")
    with make(server.url, max_staleness="1.5s") as cache:
        assert cache.set(key(cache), "answer", tags=["t"])
        time.sleep(1.0)
        ages = []
        for _ in range(60):
            ages.append(cache.shared.coherence.authority.proof_age)  # type: ignore[union-attr]
            time.sleep(0.05)
        assert max(ages) < 1.5, "so no reader ever has to ask"
        assert sorted(ages)[len(ages) // 2] < 0.6, "a third of it between two questions"


def test_what_a_bell_says_proves_nothing_and_changes_nothing(server: Server, pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    k = key(one)
    assert one.set(k, "answer", tags=["t"])
    assert other.get(k) == "answer"
    before = other.shared.coherence.authority.applied  # type: ignore[union-attr]
    for junk in (b"", b"\xff" * 100, b"E" * 16, b"99999999999"):
        server.admin.publish("ic:bell", junk)
    time.sleep(STALENESS / 2)
    assert other.get(k) == "answer"
    assert other.shared.coherence.authority.applied == before  # type: ignore[union-attr]


def test_while_the_epoch_is_unknown_answers_are_returned_and_not_stored(server: Server) -> None:
    with Proxy(server.address) as proxy:
        proxy.refuse()
        with make(proxy.url, timeout="200ms", on_partition={"untagged": "serve", "tagged": "serve"}) as cache:
            runs: list[int] = []

            @cache.memoize(operation="unknown", **SCOPE)
            def compute(x: int) -> int:
                runs.append(x)
                return x

            assert [compute(1), compute(1)] == [1, 1]
            assert runs == [1, 1]
            assert not cache.set(key(cache), "answer")
            assert cache.get(key(cache)) is None
            proxy.listen()
            until(lambda: compute(1) == 1 and compute.peek(1) == 1, "and stored once it is known", 10.0)


@pytest.mark.parametrize("path", ["call", "refresh", "get_or_compute", "batch", "in the background"])
def test_a_purge_while_the_model_runs_wins_on_every_path(pair: tuple[Cache, Cache], path: str) -> None:
    one, other = pair
    gate, answers = Gate(), ["before", "old", "new"] if path in ("refresh", "in the background") else ["old", "new"]
    given: list[str] = []

    def model() -> str:
        given.append(answers[min(len(given), len(answers) - 1)])
        answer = given[-1]
        if answer == "old":
            gate.pass_through()
        return answer

    @one.memoize(
        operation="paths",
        tags=["t"],
        ttl="50ms" if path == "in the background" else "1h",
        stale_while_revalidate="1h",
        **SCOPE,
    )
    def call(x: int) -> str:
        return model()

    @one.memoize_batch(over="x", operation="paths", tags=["t"], **SCOPE)
    def batch(x: list[int]) -> list[str]:
        return [model() for _ in x]

    if path in ("refresh", "in the background"):
        assert call(1) == "before"
    if path == "in the background":
        time.sleep(0.06)
    running: dict[str, Any] = {
        "call": lambda: call(1),
        "refresh": lambda: call.refresh(1),
        "get_or_compute": lambda: one.get_or_compute(key(one), model, tags=["t"]),
        "batch": lambda: batch([1])[0],
        "in the background": lambda: call(1),
    }
    started = Started(running[path])
    gate.wait_for()
    other.invalidate(tags=["t"])
    gate.open()
    assert started.results() == ["before" if path == "in the background" else "old"], "who asked before it gets it"
    time.sleep(STALENESS)
    look: dict[str, Any] = {"get_or_compute": lambda: one.get(key(one)), "batch": lambda: batch.peek([1])}
    assert look.get(path, lambda: call.peek(1))() is None
    one._empty()
    assert running[path]() == "new", "the shared tier has nothing of before, either"


def test_an_answer_carries_the_smallest_stamp_of_what_it_was_computed_from(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    source = ["old"]

    def decorated(cache: Cache) -> tuple[Any, Any]:
        @cache.memoize(operation="inner", tags=["inner"], **SCOPE)
        def inner() -> str:
            return source[0]

        @cache.memoize(operation="outer", tags=["outer"], **SCOPE)
        def outer() -> str:
            return f"from {inner()}"

        return inner, outer

    (inner, _), (its_inner, its_outer) = decorated(one), decorated(other)
    assert inner() == "old"
    source[0] = "new"
    one.invalidate(tags=["outer"])
    in_step(other)
    assert its_outer() == "from old", "the inner answer was not purged, and the other process shares it"
    assert its_outer.peek() is None, "but it is of before the outer's purge, so nothing computed from it is kept"
    other.invalidate(tags=["inner"])
    assert its_inner() == "new"
    assert its_outer() == "from new"
    assert its_outer.peek() == "from new"


def test_who_waits_takes_no_result_that_a_purge_elsewhere_hides(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    first, answers = Gate(), ["old", "new"]
    runs: list[str] = []

    @one.memoize(operation="joined", tags=["t"], **SCOPE)
    def compute() -> str:
        runs.append(answers[len(runs)])
        answer = runs[-1]
        if answer == "old":
            first.pass_through()
        return answer

    leading = Started(compute)
    first.wait_for()
    other.invalidate(tags=["t"])
    waiting = Started(compute)  # after the purge was acknowledged
    time.sleep(STALENESS)
    first.open()
    assert leading.results() == ["old"]
    assert waiting.results() == ["new"]


def test_a_fence_that_is_dropped_leaves_the_horizon_behind(
    server: Server, pair: tuple[Cache, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coherence, "KEPT", 5)
    one, other = pair
    k = key(one)
    assert one.set(k, "answer", tags=["purged first"])
    value = server.admin.get(one.shared.name_of(k))  # type: ignore[union-attr]
    one.invalidate(tags=["purged first"])
    for number in range(20):
        one.invalidate(tags=[f"tag {number}"])
    assert server.admin.zcard("ic:fences") <= 5 + 2
    assert server.admin.zscore("ic:fences", b"H16") == -1
    server.admin.set(one.shared.name_of(k), value, px=60_000)  # type: ignore[union-attr,arg-type]
    with make(f"{server.url}?client_name=later") as later:
        in_step(other, later)
        for cache in (one, other, later):
            assert cache.get(k) is None, "the fence is gone, and everything of before it as well"


@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
def test_in_place_of_an_error_what_was_softly_purged_elsewhere_is_served_and_what_was_hard_never(
    pair: tuple[Cache, Cache], soft: bool
) -> None:
    one, other = pair
    broken: list[bool] = []

    @one.memoize(operation="errors", tags=["t"], stale_if_error="1h", **SCOPE)
    def compute() -> str:
        if broken:
            raise OSError("the model is down")
        return "old"

    assert compute() == "old"
    broken.append(True)
    other.invalidate(tags=["t"], soft=soft)
    time.sleep(STALENESS)
    if soft:
        assert compute() == "old"
    else:
        with pytest.raises(OSError, match="the model is down"):
            compute()


def test_what_memory_takes_from_the_tier_keeps_its_stamp(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    k = key(one)
    assert one.set(k, "old", tags=["t"])
    in_step(other)
    one.invalidate(tags=["t"])
    ask(other)
    assert other.get(k) is None, "stamped anew it would be of after the purge"
    stamp = one.lookup(k).stamp
    assert one.set(k, "new", tags=["t"], since=stamp)
    other.invalidate(tags=["something else"])
    assert other.get(k) == "new"
    other.invalidate(tags=["t"])
    assert other.get(k) is None
