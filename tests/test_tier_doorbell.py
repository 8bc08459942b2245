"""A tier's doorbell: it rings, it comes back by itself, its silence proves nothing, and closing ends a wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from asking import eventually
from infercache.tiers import Command, RedisTier, doorbell
from proxy import BlackHole, Proxy
from together import PATIENCE, Started

if TYPE_CHECKING:
    from infercache.tiers.doorbell import Doorbell
    from servers import Server

pytestmark = pytest.mark.network


@pytest.fixture
def tier(server: Server) -> Iterator[RedisTier]:
    tier = RedisTier(server.url, timeout="5s")
    yield tier
    tier.close()


@pytest.fixture
def bell(tier: RedisTier) -> Iterator[Doorbell]:
    bell = tier.listen("bell")
    assert not bell.wait(0.0)
    yield bell
    bell.close()


def ring(server: Server) -> None:
    assert server.admin.publish("bell", "") == 1


def test_it_rings_when_something_is_published_and_once_for_what_came_together(bell: Doorbell, server: Server) -> None:
    ring(server)
    assert bell.wait(PATIENCE)
    assert not bell.wait(0.05)
    for _ in range(5):
        ring(server)
    time.sleep(0.1)
    assert bell.wait(PATIENCE)
    assert not bell.wait(0.05)


def test_it_wakes_a_thread_that_waits(bell: Doorbell, server: Server) -> None:
    waiting = Started(lambda: bell.wait(PATIENCE))
    time.sleep(0.1)
    ring(server)
    assert waiting.results() == [True]


def test_it_does_not_ring_for_another_channel(bell: Doorbell, server: Server) -> None:
    server.admin.publish("other", "")
    assert not bell.wait(0.1)


def test_a_wait_takes_no_longer_than_it_is_told(bell: Doorbell, server: Server) -> None:
    began = time.monotonic()
    assert not bell.wait(0.2)
    assert 0.19 < time.monotonic() - began < 1


def test_closing_ends_a_wait_on_another_thread_promptly(bell: Doorbell) -> None:
    began = time.monotonic()
    waiting = Started(lambda: bell.wait(PATIENCE))
    time.sleep(0.1)
    bell.close()
    assert waiting.results() == [False]
    assert time.monotonic() - began < 5
    assert not bell.wait(PATIENCE)
    bell.close()


def test_closing_ends_a_wait_for_a_server_that_is_gone(server: Server) -> None:
    tier = RedisTier(server.url, timeout="250ms")
    server.kill()
    bell = tier.listen("bell")
    began = time.monotonic()
    waiting = Started(lambda: bell.wait(PATIENCE))
    time.sleep(0.5)
    bell.close()
    assert waiting.results() == [False]
    assert time.monotonic() - began < 5
    tier.close()


def test_it_subscribes_again_by_itself_and_rings_since_something_may_have_been_missed(
    bell: Doorbell, tier: RedisTier, server: Server
) -> None:
    server.kill()
    assert not bell.wait(0.5)
    assert not bell.is_connected
    server.start()
    assert bell.wait(PATIENCE)
    assert bell.is_connected
    assert tier.stats()["doorbell_reconnects"] == 1
    ring(server)
    assert bell.wait(PATIENCE)


def test_attempts_to_connect_are_further_and_further_apart(server: Server) -> None:
    with Proxy(server.address) as proxy:
        tier = RedisTier(proxy.url.replace("localhost", "127.0.0.1"), timeout="250ms")
        bell = tier.listen("bell")
        bell.wait(0.0)
        proxy.set(requests=BlackHole())
        proxy.cut()
        before = len(proxy.connections)
        assert not bell.wait(4.0)
        # 0.25 s for each attempt, and pauses of up to 0.1, 0.2, 0.4, 0.8, 1.6 s between them.
        assert 2 <= len(proxy.connections) - before <= 10
        bell.close()
        tier.close()


def test_a_connection_that_is_half_open_is_noticed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "_SILENCE", 0.3)
    with Proxy(server.address) as proxy:
        tier = RedisTier(proxy.url.replace("localhost", "127.0.0.1"), timeout="250ms")
        bell = tier.listen("bell")
        assert not bell.wait(1.0)
        assert proxy.commands["PING"] >= 2  # it asks, and is answered, and stays
        assert len(proxy.connections) == 1
        proxy.connections[0].set(requests=BlackHole(), replies=BlackHole())
        assert bell.wait(PATIENCE)
        assert len(proxy.connections) == 2
        server.admin.publish("bell", "")
        assert bell.wait(PATIENCE)
        bell.close()
        tier.close()


def test_it_costs_no_connection_of_the_pool_and_leaves_none(tier: RedisTier, bell: Doorbell, server: Server) -> None:
    tier.exchange([Command("PING")])
    assert server.info("clients")["connected_clients"] == 3
    bell.close()
    assert not bell.wait(0.0)
    eventually(lambda: server.info("clients")["connected_clients"] == 2, "the subscription is gone", PATIENCE)


def test_no_thread_is_its_own(tier: RedisTier, bell: Doorbell) -> None:
    assert not [thread for thread in threading.enumerate() if "bell" in thread.name]
