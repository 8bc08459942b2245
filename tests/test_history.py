"""The checker of histories catches each kind of violation and no other, and tells a correct cache from broken ones."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import ALL, Rig
from fills import local_cache
from historian import token_from_json, token_to_json
from histories import run_history
from history import Event, Log, assert_coherent, check, load
from proxy import Proxy
from standins import AskingCache, DeafCache, DeletingCache, Token

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

SECOND = 1_000_000_000


def read(begin: float, version: int, *, process: str = "p", token: int | None = None, lasting: float = 0.1) -> Event:
    return Event("read", process, "k", round(begin * SECOND), round((begin + lasting) * SECOND), version, token)


def moved(begin: float, version: int, *, acknowledged: float | None = None) -> list[Event]:
    """The source moves, and a purge tells of it."""
    start = round(begin * SECOND)
    end = round((begin + 0.1 if acknowledged is None else acknowledged) * SECOND)
    return [Event("write", "w", "k", start, start, version), Event("purge", "w", "k", start, end, version)]


def rules(events: list[Event], *, monotonic: bool = False) -> list[str]:
    return [violation.rule for violation in check(events, max_staleness=2.0, monotonic=monotonic).violations]


def test_an_old_version_is_allowed_until_max_staleness_after_the_acknowledgement_and_not_from_then_on() -> None:
    purge = moved(1, 1, acknowledged=1.5)
    assert rules([*purge, read(3.499, 0)]) == []
    assert rules([*purge, read(3.5, 0)]) == ["stale"]
    assert rules([*purge, read(3.5, 1)]) == []


def test_a_read_that_began_in_time_may_take_as_long_as_it_likes() -> None:
    assert rules([*moved(1, 1), read(3, 0, lasting=60)]) == []


def test_the_purge_that_matters_is_the_one_of_the_highest_version_not_the_last() -> None:
    late = Event("purge", "w", "k", SECOND, 2 * SECOND, 1)  # of version 1, acknowledged after that of version 2
    history = [*moved(0.5, 1), *moved(1, 2, acknowledged=1.5), late]
    assert rules([*history, read(5, 1)]) == ["stale"]
    assert rules([*history, read(5, 2)]) == []


def test_a_purge_of_another_key_or_of_unknown_outcome_makes_nothing_old() -> None:
    write, purge = moved(1, 1)
    assert rules([write, replace(purge, key="other"), read(9, 0)]) == []
    assert rules([write, replace(purge, kind="error"), read(9, 0)]) == []


def test_a_read_with_a_token_returns_nothing_older_however_soon() -> None:
    assert rules([*moved(1, 1), read(1.1, 0)]) == []
    assert rules([*moved(1, 1), read(1.1, 0, token=1)]) == ["token"]
    assert rules([*moved(1, 1), read(1.1, 1, token=1)]) == []


def test_a_process_that_reads_backwards_is_caught_where_that_is_promised() -> None:
    write, _ = moved(0, 1)
    backwards = [write, read(1, 1), read(1.2, 0)]
    assert rules(backwards) == []
    assert rules(backwards, monotonic=True) == ["backwards"]
    assert rules([write, read(1, 1, process="other"), read(1.2, 0)], monotonic=True) == []
    assert rules([write, read(1, 1, lasting=1), read(1.2, 0)], monotonic=True) == []  # at the same time


def test_a_version_that_the_source_did_not_have_yet_is_invented() -> None:
    assert rules([read(1, 0)]) == []
    assert rules([read(1, 1)]) == ["invented"]
    assert rules([*moved(2, 1), read(1, 1)]) == ["invented"]
    assert rules([*moved(1.05, 1), read(1, 1)]) == []


def test_the_report_shows_the_first_violation_among_its_neighbours() -> None:
    neighbours = [read(3 + number / 10, 1, process=f"p{number}") for number in range(5)]
    fault = Event("fault", "rig", "", 3 * SECOND, 4 * SECOND, note="pause server")
    culprit = read(3.25, 0, process="culprit")
    other = replace(read(3.25, 0), key="another key", kind="error")
    verdict = check([*moved(1, 1), *neighbours, fault, culprit, read(9, 0), other], max_staleness=2.0)
    report = verdict.report()
    assert report.startswith("2 violations")
    assert re.search(r"the rule 'stale':\nculprit read version 0 of 'k' where 1 was the least allowed", report)
    assert re.search(r"(?m)^>> +2250\.000 +2350\.000  culprit", report)
    assert re.search(r"(?m)^ \^ +0\.000 +100\.000  w +purge k version 1", report)
    assert "pause server" in report
    assert "another key" not in report
    with pytest.raises(AssertionError, match="2 violations"):
        assert_coherent(verdict.events, max_staleness=2.0)


def test_a_history_that_tests_nothing_does_not_pass() -> None:
    with pytest.raises(AssertionError, match="only 0 reads were put to the test"):
        assert_coherent([*moved(1, 1), read(2, 0)], max_staleness=2.0)
    assert assert_coherent([*moved(1, 1), read(4, 1)], max_staleness=2.0).tested == 1


def test_a_log_survives_the_kill_of_its_writer(tmp_path: Path) -> None:
    events = [*moved(1, 1), read(2, 1, token=1)]
    log = Log(tmp_path / "log")
    for event in events:
        log.write(event)
    with (tmp_path / "log").open("ab") as file:
        file.write(b'{"kind": "read", "proc')
    assert load([tmp_path / "log"]) == events


# Random histories: of a perfect cache whose purges are seen late, but within the bound; times in units of 0.1 s.
BOUND = 20
MOVES = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 10)), max_size=8)
READS = st.lists(st.tuples(st.integers(0, 150), st.integers(0, 30), st.integers(0, 2)), max_size=15)


def at(tenths: int) -> int:
    return tenths * SECOND // 10


@st.composite
def legal_histories(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    writes, purges = [], []
    for place, (begin, lasting) in enumerate(sorted(draw(MOVES))):
        version = place + 1
        writes.append((begin, version))
        events.append(Event("write", "w", "k", at(begin), at(begin), version))
        if draw(st.booleans()):  # sometimes nobody tells
            purges.append((begin + lasting, version))
            events.append(Event("purge", "w", "k", at(begin), at(begin + lasting), version))
    for begin, lasting, process in draw(READS):
        known = [version for end, version in purges if end <= begin]
        token = draw(st.sampled_from([None, *known]))
        least = max([version for end, version in purges if end + BOUND <= begin], default=0)
        most = max([version for start, version in writes if start <= begin + lasting], default=0)
        version = draw(st.integers(max(least, token or 0), most))
        events.append(Event("read", f"p{process}", "k", at(begin), at(begin + lasting), version, token))
    return draw(st.permutations(events))


def floors(events: list[Event], one: Event) -> int:
    """The slow reference: the least version that a read may return."""
    purges = [e.version for e in events if e.kind == "purge" and e.end + at(BOUND) <= one.begin]
    return max([*purges, one.token or 0])


@given(legal_histories())
def test_legal_histories_pass(events: list[Event]) -> None:
    assert rules(events) == []


@given(legal_histories(), st.data())
def test_a_planted_violation_is_caught(events: list[Event], data: st.DataObject) -> None:
    victims = [event for event in events if event.kind == "read" and floors(events, event) > 0]
    if not victims:
        return
    victim = data.draw(st.sampled_from(victims))
    planted = replace(victim, version=data.draw(st.integers(0, floors(events, victim) - 1)))
    verdict = check([planted if event is victim else event for event in events], max_staleness=BOUND / 10)
    assert {violation.read for violation in verdict.violations} == {planted}
    assert verdict.report().count(">>") == 1


@given(
    st.lists(st.tuples(st.sampled_from(["read", "purge"]), st.integers(0, 60), st.integers(0, 9), st.integers(0, 4)))
)
def test_the_sweep_finds_what_a_comparison_of_all_pairs_finds(drawn: list[tuple[str, int, int, int]]) -> None:
    events = [Event(kind, f"p{n}", "k", at(begin), at(begin + d), v) for n, (kind, begin, d, v) in enumerate(drawn)]
    expected = {event for event in events if event.kind == "read" and event.version < floors(events, event)}
    found = check(events, max_staleness=BOUND / 10).violations
    assert {violation.read for violation in found if violation.rule == "stale"} == expected


def test_tokens_cross_processes_as_json() -> None:
    token = Token(b"\0\xff")
    assert token_from_json(Token, token_to_json(token)) == token


# The same with real processes, a real server, and faults between them.

MAX_STALENESS = 0.5


@pytest.mark.network
def test_a_cache_that_always_asks_passes_with_every_fault(server: Server) -> None:
    with Proxy(server.address) as proxy:
        options = {"rig": Rig(server, proxy), "max_staleness": MAX_STALENESS, "url": proxy.url}
        events = run_history(AskingCache, 12, 3, ALL, seed=1, **options)
    verdict = assert_coherent(events, max_staleness=MAX_STALENESS, least_tested=200)
    assert verdict.with_token > 10
    assert verdict.counts["fault"] >= 5
    assert not [event for event in events if event.kind == "error" and event.note.startswith("read")]


@pytest.mark.network
@pytest.mark.parametrize("factory", [DeafCache, DeletingCache])
def test_a_cache_that_breaks_the_promise_is_caught(server: Server, factory: type[AskingCache]) -> None:
    with Proxy(server.address) as proxy:
        options = {"rig": Rig(server, proxy), "max_staleness": MAX_STALENESS, "url": proxy.url}
        events = run_history(factory, 5, 3, ["cut", "delay"], seed=1, **options)
    with pytest.raises(AssertionError, match="violations in"):
        assert_coherent(events, max_staleness=MAX_STALENESS)


def test_purges_of_a_cache_without_a_server_are_seen_in_their_process_and_missed_in_others() -> None:
    for processes in (1, 2):
        options = {"max_staleness": 0.2, "share_tokens": False}
        events = run_history(local_cache, 3, processes, ["pause process"], seed=2, **options)
        # Its own process knows of a purge as soon as that is acknowledged.
        if processes == 1:
            assert_coherent(events, max_staleness=0, least_tested=200)
        else:
            with pytest.raises(AssertionError, match="the rule 'stale'"):
                assert_coherent(events, max_staleness=0.2)
