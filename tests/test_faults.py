"""Faults come as their seed says, do what they are called, and leave a rig that works."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from faults import ALL, FAILOVER, NETWORK, PROCESS, SERVER, Fault, Faults, Rig, schedule
from history import load
from proxy import Proxy
from servers import Server, until

if TYPE_CHECKING:
    from pathlib import Path


@given(st.integers(0, 1 << 32), st.floats(1, 90))
def test_a_schedule_depends_on_its_seed_alone_fits_its_time_and_is_one_fault_at_a_time_and_track(
    seed: int, seconds: float
) -> None:
    faults = schedule(seed, seconds)
    assert faults == schedule(seed, seconds)
    for kinds in ((*SERVER, *NETWORK), PROCESS):
        track = [fault for fault in faults if fault.kind in kinds]
        assert all(one.at + one.seconds < other.at for one, other in pairwise(track))
        assert all(fault.at + fault.seconds <= seconds + 1e-9 for fault in track)


def test_a_minute_of_faults_has_every_kind() -> None:
    assert {fault.kind for fault in schedule(0, 60)} == set(ALL)
    assert schedule(0, 60) != schedule(1, 60)


# What a client that waits for half a second sees of each while it lasts: an error, or the answer (late, or none kept).
ANSWERS = {"flush", "flush scripts", "cut", "delay", "trickle", "failover"}


@pytest.mark.network
@pytest.mark.parametrize("kind", [*SERVER, *NETWORK, *FAILOVER])
def test_a_fault_is_felt_while_it_lasts_and_gone_when_it_has_ended(server: Server, kind: str) -> None:
    with Proxy(server.address) as proxy, server.client(port=proxy.port, socket_timeout=2) as client:
        rig = Rig(server, proxy, replicated=kind in FAILOVER)
        client.set("key", "value" * 20)
        if kind in FAILOVER:
            rig.replica.wait_in_step(server)
        client.connection_pool.disconnect()
        client.connection_pool.connection_kwargs["socket_timeout"] = 0.5
        rig.begin(kind)
        if kind in ANSWERS:
            client.connection_pool.connection_kwargs["socket_timeout"] = 20
            assert client.get("key") == (None if kind == "flush" else b"value" * 20)
        else:
            with pytest.raises(redis.ConnectionError if kind in {"refuse", "cut replies"} else redis.RedisError):
                client.get("key")
        rig.end(kind)
        until(lambda: client.set("key", "again"), "it works again")
        assert client.get("key") == b"again"
        assert rig.server.admin.get("key") == b"again"


class Team:
    """Notes what is done to whom."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> object:
        return lambda whom: self.done.append((name, whom))


def test_faults_happen_in_their_order_and_are_logged(tmp_path: Path) -> None:
    team = Team()
    plan = [Fault(0, 0.05, "pause process", 1), Fault(0.1, 0.05, "kill process", 2)]
    begun = time.monotonic()
    Faults(plan, None, team, tmp_path / "log").join()
    assert time.monotonic() - begun >= 0.15
    assert team.done == [("pause", 1), ("resume", 1), ("kill", 2), ("replace", 2)]
    events = load([tmp_path / "log"])
    assert [event.note for event in events] == ["pause process", "kill process"]
    assert all(event.end - event.begin >= 50_000_000 for event in events)


def test_a_fault_that_cannot_be_carried_out_fails_the_test(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="flush needs a rig"):
        Faults([Fault(0, 0.01, "flush")], None, Team(), tmp_path / "log").join()
