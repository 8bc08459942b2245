"""The promise of `max_staleness`, over the product: real processes, a real server behind the proxy, and every fault.

INFERCACHE_HISTORY_SECONDS is how long the recorded history is: 14 by default, more than a minute in .ci/run. That the
checker would see a violation is shown by builds of the product in which one rule is off.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import cohering
from cohering import STALENESS
from faults import ALL, Fault, Rig
from histories import run_history
from history import assert_coherent, check
from proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from history import Event
    from servers import Server

pytestmark = pytest.mark.network

SECONDS = float(os.environ.get("INFERCACHE_HISTORY_SECONDS") or 14)
WAYS = ("calls", "batch", "tasks", "many")


def record(server: Server, factory: Callable[..., Any], seconds: float, faults: Any, **options: Any) -> list[Event]:
    with Proxy(server.address) as proxy:
        rig = Rig(server, proxy, replicated=options.pop("replicated", False))
        given: dict[str, Any] = {"rig": rig, "max_staleness": STALENESS, "url": proxy.url, "ways": WAYS, "threads": 4}
        return run_history(factory, seconds, 3, faults, **{"seed": 1, **given, **options})


def test_no_read_is_older_than_max_staleness_allows_whatever_fails(server: Server) -> None:
    events = record(server, cohering.cohering, SECONDS, ALL)
    verdict = assert_coherent(events, max_staleness=STALENESS, least_tested=200)
    assert verdict.with_token > 5
    assert verdict.counts["fault"] >= 5
    assert {event.note for event in events if event.kind == "read"} >= {"", "batch", "task", "get_many", "get"}
    # A purge may fail while a fault lasts; an inference never does.
    failed = [event for event in events if event.kind == "error" and event.note.startswith("read")]
    assert not failed, failed[:3]


def test_replicas_that_are_promoted_may_have_missed_purges_and_no_read_shows_it(server: Server) -> None:
    faults = [Fault(1.5 + 2.5 * turn, 0.1, "failover") for turn in range(3)]
    faults += [Fault(0.7 + turn, 0.1, "pause process", turn) for turn in range(7)]
    events = record(server, cohering.cohering, 10, faults, seed=4, replicated=True)
    verdict = assert_coherent(events, max_staleness=STALENESS, least_tested=100)
    assert [event.note for event in events if event.kind == "fault"].count("failover") == 3
    assert verdict.with_token > 5


def test_wall_clocks_a_quarter_of_an_hour_apart_change_nothing(server: Server) -> None:
    faults = ["cut", "delay", "pause process", "kill process"]
    events = record(server, cohering.cohering, 8, faults, seed=3, wall_clocks=[900, -900, 0])
    assert_coherent(events, max_staleness=STALENESS, least_tested=100)


PAUSES = [Fault(0.5 + 1.6 * turn, 1.3, "pause process", turn) for turn in range(3)]


@pytest.mark.parametrize(
    ("broken", "faults", "rule"),
    [
        (cohering.without_proof, PAUSES, "stale"),
        (cohering.without_stamps_of_values, ["cut"], "stale"),
        (cohering.without_the_stamp_before, ["cut"], "stale"),
        (cohering.without_epochs, [Fault(1 + turn, 0.1, "flush") for turn in range(5)], "stale"),
        (cohering.without_tokens, ["delay"], "token"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_product_with_a_rule_taken_out_is_caught(
    server: Server, broken: Callable[..., Any], faults: Any, rule: str
) -> None:
    for seed in range(3):  # what happens depends on time as well: not every run needs to show it
        events = record(server, broken, 6, faults, seed=seed, ways=["calls", "many"])
        rules = {violation.rule for violation in check(events, max_staleness=STALENESS).violations}
        if rule in rules:
            return
    pytest.fail(f"three histories of {broken.__name__} broke no rule {rule!r}")
