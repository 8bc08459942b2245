"""A tier in a cluster of six: a pipeline for each node, redirections followed, a lost node fails only its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from asking import LATE, Asker, asking, refused
from clusters import Cluster, Move
from infercache import Key, _core
from infercache.errors import TierError, TierUnavailable
from infercache.tiers import Command, RedisTier
from infercache.tiers.commands import Reads
from servers import Server, binary
from together import PATIENCE, Started

pytestmark = pytest.mark.network

AMPLE = "20s"
KEYS = [f"key{number}" for number in range(300)]


@pytest.fixture(scope="module")
def steady() -> Iterator[Cluster]:
    """A cluster that the tests leave as it was."""
    with Cluster(binary()) as cluster:
        yield cluster


@pytest.fixture
def tier(steady: Cluster, ask: Asker) -> Iterator[RedisTier]:
    tier = RedisTier(steady.url, timeout=AMPLE)
    yield tier
    ask.close(tier)


@pytest.fixture
def doomed() -> Iterator[Cluster]:
    """A cluster that the test breaks."""
    with Cluster(binary()) as cluster:
        yield cluster


def calls(cluster: Cluster, command: str) -> int:
    return sum(server.calls(command) for server in cluster.alive)


def test_many_values_are_asked_of_the_nodes_that_have_them(tier: RedisTier, ask: Asker) -> None:
    reads = Reads(_core.Names("value ", [Key(number.to_bytes(32, "big")) for number in range(200)]))
    names = [b"value %064x" % number for number in range(200)]
    ask(tier, *[Command("SET", name, name, "PX", 60_000) for name in names[:100]])
    (values, lives), echoed = ask(tier, reads, Command("ECHO", "x"))
    assert echoed == b"x"
    assert values == [*names[:100], *[None] * 100]
    assert all(0 < life <= 60_000 for life in lives[:100])
    assert lives[100:] == [-2] * 100


def test_replies_of_a_batch_over_all_nodes_come_in_order_and_errors_in_their_places(
    tier: RedisTier, ask: Asker
) -> None:
    assert ask(tier, *[Command("SET", key, key) for key in KEYS]) == [b"OK"] * len(KEYS)
    mixed = [Command("GET", key) if place % 3 else Command("LPUSH", key, 1) for place, key in enumerate(KEYS)]
    for place, reply in enumerate(ask(tier, *mixed)):
        if place % 3:
            assert reply == KEYS[place].encode()
        else:
            assert reply.code == "WRONGTYPE"
    assert "moved" not in tier.stats()


def test_a_batch_is_one_pipeline_for_each_node(tier: RedisTier, steady: Cluster, ask: Asker) -> None:
    ask(tier, Command("PING"))
    ask(tier, *[Command("GET", key) for key in KEYS])
    before = [server.info("stats")["total_reads_processed"] for server in steady.servers[:3]]
    ask(tier, *[Command("GET", key) for key in KEYS])
    after = [server.info("stats")["total_reads_processed"] for server in steady.servers[:3]]
    for earlier, later in zip(before, after, strict=True):
        assert 1 <= later - earlier <= 12  # the pipeline, the rig's own questions; never one for each of a hundred keys


def test_scripts_run_where_their_keys_are_and_are_sent_to_each_node_that_lacks_them(
    tier: RedisTier, steady: Cluster, ask: Asker
) -> None:
    script = tier.script(b"return {KEYS[1], redis.call('GET', KEYS[1])}")
    ask(tier, *[Command("SET", key, key) for key in KEYS])
    for _ in range(2):
        replies = ask(tier, *[script.call([key]) for key in KEYS])
        assert replies == [[key.encode(), key.encode()] for key in KEYS]
    for server in steady.servers[:3]:
        server.flush_scripts()
    assert ask(tier, script.call([KEYS[0]])) == [[KEYS[0].encode()] * 2]


def test_a_slot_in_mid_move_is_asked_where_each_key_is(tier: RedisTier, steady: Cluster, ask: Asker) -> None:
    keys = [f"{{moving}}{number}" for number in range(20)]
    script = tier.script(b"return redis.call('GET', KEYS[1]) -- in mid-move")
    ask(tier, *[Command("SET", key, key) for key in keys])
    source = steady.owner_of("moving")
    target = next(server for server in steady.masters() if server is not source)
    with Move(steady, key_slot(b"moving"), target) as move:
        move.migrate(10)
        assert ask(tier, *[Command("GET", key) for key in keys]) == [key.encode() for key in keys]
        assert ask(tier, *[script.call([key]) for key in keys]) == [key.encode() for key in keys]
        assert tier.stats()["asked"] >= 10
        while move.migrate():
            pass
    assert ask(tier, *[Command("GET", key) for key in keys]) == [key.encode() for key in keys]
    assert tier.stats()["moved"] >= 1
    moved = tier.stats()["moved"]
    assert ask(tier, *[Command("GET", key) for key in keys]) == [key.encode() for key in keys]
    assert tier.stats()["moved"] == moved  # the map knows
    steady.move([key_slot(b"moving")], source)


def test_commands_go_on_while_slots_move(steady: Cluster) -> None:
    tier = RedisTier(steady.url, timeout=AMPLE)
    tier.exchange([Command("SET", key, key) for key in KEYS])
    slots = [key_slot(key.encode()) for key in KEYS[:20]]
    homes = {slot: steady.owner(slot) for slot in slots}
    done = False

    def reading() -> int:
        rounds = 0
        while not done or not rounds:
            assert tier.exchange([Command("GET", key) for key in KEYS]) == [key.encode() for key in KEYS]
            rounds += 1
        return rounds

    reader = Started(reading)
    try:
        for slot, home in homes.items():
            steady.move([slot], next(server for server in steady.servers[:3] if server is not home))
        for slot, home in homes.items():
            steady.move([slot], home)
    finally:
        done = True
    assert reader.results()[0] >= 1
    tier.close()


def test_what_is_published_is_heard_on_any_node(steady: Cluster) -> None:
    tier = RedisTier(steady.url, timeout=AMPLE)
    bell = tier.listen("bell")
    bell.wait(0.0)
    for _ in range(5):
        tier.exchange([Command("PUBLISH", "bell", "")])
        assert bell.wait(PATIENCE)
    bell.close()
    tier.close()


def test_a_cluster_client_of_the_caller_s_serves_both_kinds(steady: Cluster, ask: Asker) -> None:
    with steady.client() as client:
        tier = RedisTier(client, timeout=AMPLE)
    assert tier.identity.startswith("redis+cluster://127.0.0.1:")
    assert ask(tier, Command("SET", "k", 1), Command("GET", "k")) == [b"OK", b"1"]
    ask.close(tier)


def test_a_server_that_is_no_cluster_is_named(ask: Asker) -> None:
    with Server(binary()) as server:
        tier = RedisTier(server.url.replace("redis://", "redis+cluster://"), timeout=AMPLE)
        with refused("cluster") as caught:
            ask(tier, Command("PING"))
        assert "redis://" in str(caught.value)
        ask.close(tier)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_node_that_is_down_fails_only_its_commands_within_the_budget(how: str) -> None:
    with Cluster(binary(), cluster_node_timeout=60_000, cluster_require_full_coverage="no") as cluster:
        lost = cluster.servers[1]
        lost_keys = {key for key in KEYS if cluster.owner_of(key) is lost}
        assert lost_keys
        for kind in ("thread", "task"):
            with asking(kind) as ask:
                tier = RedisTier(cluster.url, timeout="500ms")
                assert ask(tier, *[Command("SET", key, key) for key in KEYS], budget=20) == [b"OK"] * len(KEYS)
                if how == "stopped":
                    lost.pause()
                else:
                    lost.kill()
                for _ in range(8):  # the breaker of the one node opens meanwhile
                    began = time.monotonic()
                    replies = ask(tier, *[Command("GET", key) for key in KEYS])
                    assert time.monotonic() - began < 0.5 + LATE
                    for key, reply in zip(KEYS, replies, strict=True):
                        if key in lost_keys:
                            assert isinstance(reply, TierUnavailable)
                        else:
                            assert reply == key.encode()
                assert not tier.is_out
                with refused("timeout", "connect", "closed", "out", within=0.5):
                    ask(tier, Command("GET", next(iter(lost_keys))))
                if how == "stopped":
                    lost.resume()
                else:
                    lost.start()
                    cluster.wait_until_ok()
                ask.close(tier)


def test_a_replica_that_takes_over_is_used_within_five_seconds(doomed: Cluster, ask: Asker) -> None:
    tier = RedisTier(doomed.url, timeout="500ms")
    assert ask(tier, *[Command("SET", key, key) for key in KEYS], budget=20) == [b"OK"] * len(KEYS)
    for master in doomed.servers[:3]:
        doomed.replica_of(master).wait_in_step(master)
    lost = doomed.servers[0]  # the very seed that the URL names
    heir = doomed.replica_of(lost)
    doomed.kill(lost)
    assert heir in doomed.masters()
    promoted = time.monotonic()
    while True:
        try:
            replies = ask(tier, *[Command("GET", key) for key in KEYS])
            if replies == [key.encode() for key in KEYS]:
                break
            assert all(isinstance(reply, bytes | TierError) for reply in replies)
        except TierUnavailable:
            pass
        assert time.monotonic() < promoted + 5
        time.sleep(0.05)
    ask.close(tier)
