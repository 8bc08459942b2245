"""A real cluster of six processes: three masters, a replica each. Slots move while traffic runs, masters are killed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot

from leash import Held
from servers import Server, free_port, until
from together import PATIENCE, together

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servers import Binary

SLOTS = 16_384


class Cluster(Held):
    """As a context manager it starts, is made, and ends with all its servers.

    Args:
        binary: The program of every server.
        masters: How many; each has one replica.
        config: Directives for every server, `_` for `-`.

    Attributes:
        servers: The masters of the beginning first, then their replicas in the same order.
    """

    def __init__(self, binary: Binary, masters: int = 3, **config: str | int) -> None:
        settings: dict[str, str | int] = {
            "cluster_enabled": "yes",
            # After so many milliseconds without an answer a master counts as gone; its replica takes a second or two.
            "cluster_node_timeout": 1000,
            "cluster_replica_validity_factor": 0,
        }
        settings |= config
        self.count = masters
        self.servers = [Server(binary, cluster_port=free_port(), **settings) for _ in range(2 * masters)]

    def ready(self) -> None:
        together(*(server.start for server in self.servers))
        self._make()

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def _make(self) -> None:
        """What `--cluster create` does, with a wait at each step for what it only hopes for."""
        first = self.servers[0]
        for place, server in enumerate(self.servers):
            server.admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", place + 1)
            if place < self.count:
                bounds = SLOTS * place // self.count, SLOTS * (place + 1) // self.count - 1
                server.admin.execute_command("CLUSTER", "ADDSLOTSRANGE", *bounds)
            bus = server.directives["cluster-port"]
            if server is not first:
                first.admin.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        until(lambda: all(self._knows_all(server) for server in self.servers), "every node knows every other")
        for master, replica in zip(self.servers[: self.count], self.servers[self.count :], strict=True):
            replica.admin.execute_command("CLUSTER", "REPLICATE", self.id(master))
        self.wait_until_ok()

    def _knows_all(self, server: Server) -> bool:
        nodes = _text(server, "NODES").splitlines()
        return len(nodes) == len(self.servers) and not any("handshake" in node or "noaddr" in node for node in nodes)

    # Asking it.

    @property
    def alive(self) -> list[Server]:
        """The servers that run and are not stopped."""
        return [server for server in self.servers if server.is_alive and server.process and not server.process.paused]

    @property
    def seeds(self) -> list[tuple[str, int]]:
        """The addresses of the masters of the beginning."""
        return [server.address for server in self.servers[: self.count]]

    @property
    def url(self) -> str:
        """The first address, in the form that a cache takes."""
        return f"redis+cluster://127.0.0.1:{self.servers[0].port}/0"

    def client(self, **options: Any) -> RedisCluster:
        """redis-py's client of the cluster."""
        nodes = [ClusterNode(*address) for address in self.seeds]
        return RedisCluster(startup_nodes=nodes, **{"socket_timeout": PATIENCE, **options})

    def id(self, server: Server) -> str:
        """The name of a node within the cluster."""
        return _text(server, "MYID")

    def view(self, server: Server) -> dict[str, list[str]]:
        """The nodes as one of them sees them: name to the words of its line in CLUSTER NODES."""
        return {line.split()[0]: line.split() for line in _text(server, "NODES").splitlines()}

    def masters(self) -> list[Server]:
        """The masters that run, by what each says of itself."""
        return [server for server in self.alive if server.info("replication")["role"] == "master"]

    def replica_of(self, master: Server) -> Server:
        """A replica of that master that runs."""
        name = self.id(master)
        return next(server for server in self.alive if self.view(server)[self.id(server)][3] == name)

    def owner(self, slot: int) -> Server:
        """The master that says that it serves that slot."""
        for server in self.masters():
            ranges = self.view(server)[self.id(server)][8:]
            if any(_holds(words, slot) for words in ranges if not words.startswith("[")):
                return server
        raise AssertionError(f"nobody serves slot {slot}")

    def owner_of(self, key: str | bytes) -> Server:
        return self.owner(key_slot(key.encode() if isinstance(key, str) else key))

    def wait_until_ok(self) -> None:
        """Waits until all who run agree on who serves which slot, and replicas are linked."""

        def agree() -> bool:
            servers = self.alive
            healthy = all("cluster_state:ok" in _text(server, "INFO") for server in servers)
            links = [server.info("replication").get("master_link_status", "up") for server in servers]
            tables = {_table(self.view(server)) for server in servers}
            return healthy and set(links) == {"up"} and len(tables) == 1

        until(agree, "all nodes of the cluster agree, and are linked")

    # Moving slots.

    def move(self, slots: Iterable[int], to: Server) -> None:
        """Moves slots with their keys as resharding does, one after the other, while traffic may run."""
        for slot in slots:
            with Move(self, slot, to) as move:
                while move.migrate():
                    pass

    # Losing masters.

    def kill(self, master: Server) -> Server:
        """Kills a master and waits until its replica serves in its place, and everyone who is left knows."""
        heir = self.replica_of(master)
        master.kill()
        until(lambda: heir.info("replication")["role"] == "master", f"{heir} was promoted")
        self.wait_until_ok()
        return heir


class Move:
    """A slot on its way to another master: in the block a key that has left the source answers ASK, after it MOVED."""

    def __init__(self, cluster: Cluster, slot: int, to: Server) -> None:
        self.cluster, self.slot, self.to = cluster, slot, to
        self.source = cluster.owner(slot)

    def __enter__(self) -> Self:
        names = self.cluster.id(self.source), self.cluster.id(self.to)
        assert names[0] != names[1], f"{self.to} serves slot {self.slot} already"
        self.to.admin.execute_command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", names[0])
        self.source.admin.execute_command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", names[1])
        return self

    def migrate(self, count: int = 100) -> int:
        """Takes that many keys over; returns how many it found."""
        keys = self.source.admin.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        if keys:
            milliseconds = int(PATIENCE * 1000)
            self.source.admin.execute_command(
                "MIGRATE", "127.0.0.1", self.to.port, "", 0, milliseconds, "REPLACE", "KEYS", *keys
            )
        return len(keys)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            name = self.cluster.id(self.to)
            others = [server for server in self.cluster.masters() if server not in (self.to, self.source)]
            for server in (self.to, self.source, *others):
                server.admin.execute_command("CLUSTER", "SETSLOT", self.slot, "NODE", name)
            return
        for server in (self.to, self.source):
            with contextlib.suppress(Exception):  # the error of the block is what a test wants to see
                server.admin.execute_command("CLUSTER", "SETSLOT", self.slot, "STABLE")


def _text(server: Server, command: str) -> str:
    # Past redis-py's callbacks, which differ between its versions.
    client = server.admin
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", command)
        reply = connection.read_response()
    finally:
        client.connection_pool.release(connection)
    return (reply if isinstance(reply, str) else reply.decode()).removeprefix("txt:").strip()


def _holds(words: str, slot: int) -> bool:
    first, _, last = words.partition("-")
    return int(first) <= slot <= int(last or first)


def _table(view: dict[str, list[str]]) -> frozenset[tuple[str, str]]:
    """Who serves what, of those who are not thought to have failed."""
    return frozenset(
        (name, " ".join(word for word in words[8:] if not word.startswith("[")))
        for name, words in view.items()
        if "master" in words[2] and "fail" not in words[2]
    )
