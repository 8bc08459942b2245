"""A cluster: each command goes to the node that holds its slot, one pipeline for each node, side by side.

The map of slots is fetched at the first use, and again after a node has moved or failed. A node that is out of reach
fails its own commands only. Redirections are followed within the budget: MOVED changes the map, ASK does not, and what
a cluster in mid-change refuses (TRYAGAIN, CLUSTERDOWN) is asked again a little later. None of these has been run, so
any command may be sent again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from infercache.errors import TierError, TierUnavailable
from infercache.tiers.commands import SLOTS, Command, Reads, slot_of

if TYPE_CHECKING:
    from infercache.tiers.node import Counts, Node, Pools
    from infercache.tiers.target import Address

__all__ = ["Cluster"]

#: Redirections of one command. A chain longer than this is a cluster that disagrees with itself.
_MOST_ROUNDS = 8
#: Seconds between two fetches of the map, and before what a cluster in mid-change refused is asked again; jittered.
_BETWEEN_FETCHES = (0.1, 0.3)
_PAUSE = (0.005, 0.03)
_SLOTS_COMMAND = Command("CLUSTER", "SLOTS", idempotent=True)
_ASKING = Command("ASKING", idempotent=True)


class Cluster:
    """The nodes, and which holds what.

    Args:
        seeds: where the map is first asked for.
        make: a node at an address.
        counts: gets `moved`, `asked`, `refreshes`.
    """

    def __init__(self, seeds: Sequence[Address], make: Callable[[Address], Node], counts: Counts) -> None:
        self._seeds = tuple(seeds)
        self._make = make
        self._counts = counts
        self._nodes: dict[Address, Node] = {}
        self._slots: list[Address | None] = []  # replaced as a whole, its items one by one after MOVED
        self._is_stale = True
        self._fetch_after = 0.0

    @property
    def refuses(self) -> bool:
        """Whether an exchange would fail at once, whatever its keys."""
        nodes = list(self._nodes.values())
        return bool(nodes) and all(node.breaker.refuses for node in nodes)

    def anywhere(self) -> Address:
        """A node that hears what is published: any of them, one that failed last."""
        return self._candidates()[0].address

    async def exchange(self, pools: Pools, commands: Sequence[Command], deadline: float) -> list[Any]:
        """The replies in order; a node that cannot be asked leaves a `TierUnavailable` in each place of its commands.

        Raises:
            TierUnavailable: no command was answered.
        """
        parts = [command.parts() if isinstance(command, Reads) else [command] for command in commands]
        replies = iter(await self._ask_all(pools, [part for each in parts for part in each], deadline))
        return [
            command.assembled([next(replies) for _ in each]) if isinstance(command, Reads) else next(replies)
            for command, each in zip(commands, parts, strict=True)
        ]

    async def _ask_all(self, pools: Pools, commands: Sequence[Command], deadline: float) -> list[Any]:
        """`exchange` of commands that have one key each."""
        if self._is_stale or not self._slots:
            await self._fetch(pools, deadline)
        replies: list[Any] = [None] * len(commands)
        anyone = self._candidates()[0].address
        todo = [(place, self._home(command) or anyone, False) for place, command in enumerate(commands)]
        for turn in range(_MOST_ROUNDS):
            groups: dict[tuple[Address, bool], list[int]] = {}
            for place, address, asking in todo:
                groups.setdefault((address, asking), []).append(place)
            parts = [
                self._ask(pools, address, [commands[place] for place in places], deadline, asking=asking)
                for (address, asking), places in groups.items()
            ]
            answers = [await parts[0]] if len(parts) == 1 else await pools.together(parts)
            todo, must_pause = [], False
            for ((address, _), places), answer in zip(groups.items(), answers, strict=True):
                for place, reply in zip(places, answer, strict=True):
                    replies[place] = reply
                    if isinstance(reply, TierError):
                        again, pausing = self._redirected(reply, address)
                        must_pause = must_pause or pausing
                        if again is not None:
                            todo.append((place, *again))
            pause = random.uniform(*_PAUSE) * 2**turn if must_pause else 0.0  # noqa: S311 - a jitter
            if not todo or time.monotonic() + pause >= deadline:
                break
            if must_pause:
                await pools.sleep(pause)
                await self._fetch(pools, deadline)
        if all(isinstance(reply, TierUnavailable) for reply in replies):
            first: TierUnavailable = replies[0]
            first.sent = any(reply.sent for reply in replies)
            raise first
        return replies

    def _home(self, command: Command) -> Address | None:
        key = command.key
        return None if key is None or not self._slots else self._slots[slot_of(key)]

    async def _ask(
        self, pools: Pools, address: Address, commands: Sequence[Command], deadline: float, *, asking: bool
    ) -> list[Any]:
        """One node's replies, or its failure in each place."""
        sent = commands
        if asking:
            # The node takes one command after each ASKING, so a script goes whole: nothing could follow a NOSCRIPT.
            sent = [
                part
                for command in commands
                for part in (_ASKING, command if command.script is None else command.with_source())
            ]
        try:
            replies = await self._node(address).exchange(pools.at(address), sent, deadline)
        except TierUnavailable as error:
            self._is_stale = True
            return [error] * len(commands)
        return replies[1::2] if asking else replies

    def _redirected(self, reply: TierError, asked: Address) -> tuple[tuple[Address, bool] | None, bool]:
        """Where a command goes again, with ASKING or not, or None; and whether only after a pause."""
        code = reply.code
        if code in {"MOVED", "ASK"}:
            _, slot, place = str(reply).split()[:3]
            host, _, port = place.rpartition(":")
            address = (host or asked[0], int(port))
            if code == "ASK":
                self._counts.add("asked")
                return (address, True), False
            self._counts.add("moved")
            self._is_stale = True
            if self._slots:
                self._slots[int(slot)] = address
            return (address, False), False
        if code in {"TRYAGAIN", "CLUSTERDOWN"}:
            self._is_stale = True
            return (asked, False), True
        return None, False

    def _node(self, address: Address) -> Node:
        found = self._nodes.get(address)
        return found if found is not None else self._nodes.setdefault(address, self._make(address))

    def _candidates(self) -> list[Node]:
        """Every node that is known, those that failed lately last."""
        nodes = list(self._nodes.values()) or [self._node(seed) for seed in self._seeds]
        random.shuffle(nodes)
        return sorted(nodes, key=lambda node: node.failed_at)

    async def _fetch(self, pools: Pools, deadline: float) -> None:
        """Asks one node after the other for the map, each with half of the time that is left.

        Raises:
            TierUnavailable: there is no map at all, and no node that gives one.
        """
        now = time.monotonic()
        if self._slots and now < self._fetch_after:
            return
        self._fetch_after = now + random.uniform(*_BETWEEN_FETCHES)  # noqa: S311 - a jitter
        error: TierError = TierUnavailable("no node of the cluster is known", sent=False, reason="cluster")
        nodes = self._candidates()
        nodes += [self._node(seed) for seed in self._seeds if seed not in self._nodes]
        for place, node in enumerate(nodes):
            now = time.monotonic()
            if now >= deadline:
                break
            until = deadline if place == len(nodes) - 1 else now + (deadline - now) / 2
            try:
                (reply,) = await node.exchange(pools.at(node.address), [_SLOTS_COMMAND], until)
            except TierUnavailable as failed:
                error = failed
                continue
            if isinstance(reply, TierError):
                error = reply
                continue
            if reply:
                self._take_over(pools, node.address, reply)
                return
            error = TierUnavailable(f"{node.address} knows no slots", sent=False, reason="cluster")
        if not self._slots:
            raise TierUnavailable(
                f"no node gave the cluster's slots; the last said: {error} (a server that is no cluster is redis://…)",
                sent=False,
                reason=error.reason if isinstance(error, TierUnavailable) else "cluster",
            )

    def _take_over(self, pools: Pools, asked: Address, reply: list[Any]) -> None:
        slots: list[Address | None] = [None] * SLOTS
        known: set[Address] = set()
        for first, last, *holders in reply:
            primary, *replicas = [_address(holder, asked) for holder in holders]
            slots[first : last + 1] = [primary] * (last + 1 - first)
            known |= {primary, *replicas}
        self._slots = slots
        self._is_stale = None in slots
        primaries = {address for address in slots if address is not None}
        for address in primaries:
            self._node(address)
        for address in [address for address in self._nodes if address not in primaries]:
            self._nodes.pop(address, None)
        pools.keep(known | set(self._seeds))
        self._counts.add("refreshes")


def _address(holder: list[Any], asked: Address) -> Address:
    """Host and port of a node in the map; no host, or one that the node itself does not know, is the asked one's."""
    host = (holder[0] or b"").decode()
    return (host if host not in {"", "?"} else asked[0], int(holder[1]))
