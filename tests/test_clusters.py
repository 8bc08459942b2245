"""The cluster of the tests: whole from the start, MOVED and ASK where slots move, a replica for a killed master."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import redis
from redis.crc import key_slot

import servers
from clusters import SLOTS, Cluster, Move
from together import Started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Binary

pytestmark = pytest.mark.network


@pytest.fixture
def cluster(binary: Binary) -> Iterator[Cluster]:
    with Cluster(binary) as cluster:
        yield cluster


@pytest.mark.parametrize("binary", servers.NAMES, indirect=True)
def test_a_cluster_serves_every_slot_moves_one_and_survives_the_kill_of_a_master(cluster: Cluster) -> None:
    owners = {cluster.owner(slot) for slot in range(0, SLOTS, 1000)}
    assert owners == set(cluster.servers[:3]) == set(cluster.masters())
    with cluster.client() as client:
        for number in range(50):
            client.set(f"key {number}", number)
        source = cluster.owner_of("key 7")
        target = next(server for server in cluster.masters() if server is not source)
        cluster.move([key_slot(b"key 7")], target)
        assert cluster.owner_of("key 7") is target
        assert client.get("key 7") == b"7"
        replica = cluster.replica_of(target)
        replica.wait_in_step(target)
        assert cluster.kill(target) is replica
        assert cluster.owner_of("key 7") is replica
        assert [client.get(f"key {number}") for number in range(50)] == [b"%d" % number for number in range(50)]
        target.start()  # the old master comes back, and follows
        cluster.wait_until_ok()
        assert cluster.replica_of(replica) is target


def test_a_key_that_has_left_answers_ask_and_after_the_move_moved(cluster: Cluster) -> None:
    key, slot = "here", key_slot(b"here")
    source = cluster.owner(slot)
    target = next(server for server in cluster.masters() if server is not source)
    with source.client() as client:
        client.set(key, "value")
        with Move(cluster, slot, target) as move:
            assert client.get(key) == b"value"
            assert move.migrate() == 1
            with pytest.raises(redis.exceptions.AskError) as asked:
                client.get(key)
            assert asked.value.port == target.port
        with pytest.raises(redis.exceptions.MovedError) as moved:
            client.get(key)
        assert moved.value.port == target.port
    with cluster.client() as client:
        assert client.get(key) == b"value"


def test_traffic_runs_while_slots_move(cluster: Cluster) -> None:
    tag, slot = "{moving}", key_slot(b"moving")
    keys = [f"{tag}:{number}" for number in range(300)]
    stop = threading.Event()

    def read_and_write() -> int:
        rounds = 0
        with cluster.client() as client:
            while not stop.is_set() or rounds < 2:
                for place, key in enumerate(keys):
                    client.set(key, rounds + place)
                    assert int(client.get(key)) == rounds + place
                rounds += 1
        return rounds

    traffic = Started(read_and_write)
    try:
        for _ in range(4):
            target = next(server for server in cluster.masters() if server is not cluster.owner(slot))
            cluster.move([slot], target)
            assert cluster.owner(slot) is target
    finally:
        stop.set()
    [rounds] = traffic.results()
    assert rounds >= 2


def test_the_move_of_a_slot_that_fails_is_taken_back(cluster: Cluster) -> None:
    slot = key_slot(b"here")
    source = cluster.owner(slot)
    target = next(server for server in cluster.masters() if server is not source)
    with pytest.raises(RuntimeError, match="in the middle"), Move(cluster, slot, target):
        raise RuntimeError("in the middle")
    assert cluster.owner(slot) is source
    assert not any("[" in word for words in cluster.view(source).values() for word in words)
