"""One server: an exchange with it, its breaker, and what is sent again.

Written once for threads and event loops: `wires` is a `BlockingWires`, whose coroutines never suspend, or an
`EventedWires`.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import hiredis

from infercache.errors import InvalidArgument, TierError, TierUnavailable, shown
from infercache.tiers.commands import Reads
from infercache.tiers.opening import shown_address

if TYPE_CHECKING:
    from infercache.tiers.breaker import Breaker
    from infercache.tiers.commands import Argument, Command, Delivery
    from infercache.tiers.target import Address, Target

__all__ = ["Counts", "Node", "Pools", "Single", "packed"]

#: What a server says that cannot serve now: it counts as a failure, though it answered.
_UNABLE = frozenset({"LOADING", "BUSY", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN"})
#: After these the connections lead to the wrong place, or are not logged in any more: new ones are made.
_STRAYED = frozenset({"READONLY", "NOAUTH", "MASTERDOWN"})
#: Bytes of an argument that hiredis had better not pack.
_LONG = 4_096
#: Reasons that say nothing about the server.
_OURS = frozenset({"busy", "shut", "client"})
#: Seconds before something is sent again, jittered from none up to this.
_LONGEST_PAUSE = 0.05


class Counts:
    """Counters of a tier, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        """Counts. Only what is not the ordinary course is counted, so the lock is of no weight."""
        with self._lock:
            self._counts[name] += number

    def copy(self) -> dict[str, int]:
        """All of them."""
        with self._lock:
            return dict(self._counts)


def packed(commands: Sequence[Command]) -> list[bytes]:
    """The commands as the protocol has them, in parts to be sent one after the other.

    A server writes no reply before it has gone through all that it could read. Given parts it reads the names of the
    first values alone, and works on the others while those are on their way.

    Raises:
        InvalidArgument: an argument is neither bytes, memoryview, text nor number.
    """
    parts: list[list[bytes]] = [[]]
    try:
        for command in commands:
            if type(command) is Reads:
                first, *others = command.packed()
                parts[-1].append(first)
                parts += [[other] for other in others]
            else:
                parts[-1].append(_packed(command))
        return [b"".join(part) for part in parts]
    except (TypeError, ValueError) as error:
        for command in commands:
            for argument in command.args:
                if not isinstance(argument, bytes | memoryview | str | int | float):
                    raise InvalidArgument(
                        f"{command!r}: {shown(argument)} is a {type(argument).__name__}; an argument of a command is "
                        "bytes, memoryview, text or a number"
                    ) from error
        raise InvalidArgument(f"{commands[0]!r}: {error}") from error


def _packed(command: Command) -> bytes:
    args = command.args
    return hiredis.pack_command(args) if len(args) < 3 else _packed_large(args)  # type: ignore[arg-type]


def _packed_large(args: tuple[Argument, ...]) -> bytes:
    """As hiredis packs, which takes some 10 ns for each byte of a long argument; here it is copied."""
    for argument in args:
        if isinstance(argument, bytes | memoryview) and len(argument) > _LONG:
            break
    else:
        packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]
        return packed
    parts: list[bytes | memoryview] = [b"*%d\r\n" % len(args)]
    for argument in args:
        if isinstance(argument, bytes | memoryview):
            parts += (b"$%d\r\n" % memoryview(argument).nbytes, argument, b"\r\n")
        else:
            # What hiredis makes of one argument, without the header of its array.
            parts.append(hiredis.pack_command((argument,))[4:])
    return b"".join(parts)


def _wanted(commands: Sequence[Command]) -> tuple[int, Callable[[list[Any]], None] | None]:
    """How many replies the commands have, and who is to be told of those that have come; None: nobody."""
    count = 0
    due: list[Delivery] = []
    for command in commands:
        due += command.deliveries(count)
        count += command.replies
    if not due:
        return count, None
    due.reverse()

    def arrived(replies: list[Any]) -> None:
        while due and due[-1][0] <= len(replies):
            due.pop()[1](replies)

    return count, arrived


def _gathered(commands: Sequence[Command], replies: list[Any]) -> list[Any]:
    """A reply for each command."""
    found: list[Any] = []
    start = 0
    for command in commands:
        end = start + command.replies
        found.append(command.gathered(replies[start:end]) if isinstance(command, Reads) else replies[start])
        start = end
    return found


def _mark_repeated(replies: Sequence[Any]) -> None:
    """Has errors say that what they are of was sent before."""
    for reply in replies:
        if isinstance(reply, TierError):
            reply.repeated = True


class Node:
    """A server and what is known of its health.

    Args:
        address: where it is.
        breaker: its breaker.
        counts: where what goes wrong is counted.
        retries: how often an exchange is sent again whose outcome is unknown, and whose commands may run twice.
        patience: seconds; a timeout of a caller that gave less says nothing about the server.
        uniform: gives a number in [low, high).
    """

    def __init__(
        self,
        address: Address,
        breaker: Breaker,
        counts: Counts,
        *,
        retries: int,
        patience: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.address = address
        self.breaker = breaker
        self._counts = counts
        self._retries = retries
        self._patience = patience
        self._uniform = uniform
        #: When (monotonic) an exchange last failed; 0 if none has, or one went well since.
        self.failed_at = 0.0

    async def exchange(self, wires: Any, commands: Sequence[Command], deadline: float) -> list[Any]:
        """Sends the commands in one pipeline; their replies in order, an error reply as a `TierError` in its place.

        Raises:
            TierUnavailable: the server could not be asked, or did not answer all of it by the deadline (monotonic).
            InvalidArgument: an argument is of no type that can be sent.
        """
        payload = packed(commands)
        permit = self.breaker.enter()
        if permit is None:
            self._counts.add("refused")
            raise TierUnavailable(
                f"{shown_address(self.address)} failed repeatedly and is taken for out of reach; it is tried again "
                "within seconds",
                sent=False,
                reason="out",
            )
        began = time.monotonic()
        try:
            replies = await self._insist(wires, commands, payload, deadline)
        except TierUnavailable as error:
            self._counts.add(f"errors_{error.reason}")
            if error.reason not in _OURS:
                self.failed_at = time.monotonic()
            if self._is_failure(error, deadline - began):
                self._fail(permit)
            else:
                self.breaker.abandoned(permit)
            raise
        except BaseException:
            self.breaker.abandoned(permit)
            raise
        if TierError in set(map(type, replies)):
            replies = await self._heed(wires, commands, replies, deadline, permit)
        else:
            self.breaker.succeeded(permit)
        if self.failed_at:
            self.failed_at = 0.0
        return replies if len(replies) == len(commands) else _gathered(commands, replies)

    def _is_failure(self, error: TierUnavailable, budget: float) -> bool:
        if error.reason in _OURS:
            return False
        return error.reason != "timeout" or budget >= self._patience * 0.95

    def _fail(self, permit: int) -> None:
        before = self.breaker.openings
        self.breaker.failed(permit)
        if self.breaker.openings != before:
            self._counts.add("breaker_openings")

    async def _insist(
        self, wires: Any, commands: Sequence[Command], payload: Sequence[bytes], deadline: float
    ) -> list[Any]:
        """Sends, and sends again what may be and has time left; all that the server replied."""
        sent_before = False
        attempt = 0
        fresh = False
        while True:
            wire, was_used = None, False
            try:
                wire = await wires.take(deadline, fresh=fresh)
                was_used = wire.is_used
                replies: list[Any] = await wire.exchange(payload, *_wanted(commands), deadline)
            except TierUnavailable as error:
                if wire is not None:
                    wires.give_back(wire, broken=True)
                error.sent = error.sent or sent_before
                sent_before = error.sent
                if error.reason not in {"closed", "connect"} or time.monotonic() >= deadline:
                    raise
                if error.sent and not all(command.idempotent for command in commands):
                    raise
                if error.reason == "closed" and was_used and not fresh:
                    # It died while it lay idle, and the others with it: no failure, and no reason to wait.
                    self._counts.add("reconnects")
                    fresh = True
                    continue
                attempt += 1
                pause = self._uniform(0.0, _LONGEST_PAUSE)
                if attempt > self._retries or time.monotonic() + pause >= deadline:
                    raise
                self._counts.add("retries")
                await wires.sleep(pause)
            except BaseException:
                if wire is not None:
                    wires.give_back(wire, broken=True)
                raise
            else:
                wires.give_back(wire)
                if sent_before:
                    _mark_repeated(replies)
                return replies

    async def _heed(
        self, wires: Any, commands: Sequence[Command], replies: list[Any], deadline: float, permit: int
    ) -> list[Any]:
        """Acts on error replies: scripts that the server does not know are sent whole, and what ails it is noted."""
        codes = {reply.code for reply in replies if isinstance(reply, TierError)}
        if codes & _STRAYED:
            wires.drop_idle()
        if codes & _UNABLE:
            self._fail(permit)
        else:
            self.breaker.succeeded(permit)
        places = accumulate([command.replies for command in commands], initial=0)
        unknown = {
            place: command
            for place, command in zip(places, commands, strict=False)
            if command.script is not None and getattr(replies[place], "code", None) == "NOSCRIPT"
        }
        if unknown:
            self._counts.add("scripts_sent")
            again = [command.with_source() for command in unknown.values()]
            try:
                found = await self._insist(wires, again, packed(again), deadline)
            except TierUnavailable as error:
                self._counts.add(f"errors_{error.reason}")
                if len(unknown) == len(replies):
                    raise
                found = [error] * len(unknown)  # the others were answered, and their answers count
            for place, reply in zip(unknown, found, strict=True):
                if replies[place].repeated:
                    _mark_repeated([reply])
                replies[place] = reply
        self._counts.add("error_replies", sum(isinstance(reply, TierError) for reply in replies))
        return replies


class Pools:
    """The connections of one kind of callers, by server, each pool made at its first use."""

    def __init__(self, wires: Any, target: Target, most: int) -> None:
        self._wires = wires
        self._target = target
        self._most = most
        self.sleep = wires.sleep
        self.together = wires.together
        self._pools: dict[Address, Any] = {}
        self._shut = False

    def at(self, address: Address) -> Any:
        """The connections to one server."""
        found = self._pools.get(address)
        if found is None:
            found = self._pools.setdefault(address, self._wires(self._target, address, self._most))
            if self._shut:
                found.shut()
        return found

    def keep(self, addresses: Collection[Address]) -> None:
        """Closes the connections to every other server."""
        for address in [address for address in self._pools if address not in addresses]:
            pool = self._pools.pop(address, None)
            if pool is not None:
                pool.shut()

    def shut(self) -> None:
        """Closes them all; what is asked for later is closed, too."""
        self._shut = True
        for pool in list(self._pools.values()):
            pool.shut()

    def forget(self) -> None:
        """In the child of a fork: closes the child's copies of what threads of the parent use."""
        for pool in list(self._pools.values()):
            pool.forget()


class Single:
    """All commands go to one server."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def refuses(self) -> bool:
        """Whether an exchange would fail at once."""
        return self._node.breaker.refuses

    def anywhere(self) -> Address:
        """A server that hears what is published."""
        return self._node.address

    def exchange(self, pools: Pools, commands: Sequence[Command], deadline: float) -> Coroutine[Any, Any, list[Any]]:
        """See `Node.exchange`."""
        return self._node.exchange(pools.at(self._node.address), commands, deadline)
