"""Faults in a row, drawn from a seed: what happens to server, network and processes while a history is recorded."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from history import Event, Log, now
from proxy import BlackHole, Cut, Delay, Trickle
from together import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from proxy import Proxy
    from servers import Server

#: One at a time of these, and beside it one at a time of the processes' faults.
SERVER = ("kill server", "pause server", "flush", "flush scripts")
NETWORK = ("refuse", "cut", "delay", "trickle", "black hole", "lost requests", "lost replies", "cut replies")
PROCESS = ("pause process", "kill process")
#: Only where the protocol survives what asynchronous replication loses; so not among `ALL`.
FAILOVER = ("failover",)
ALL = (*SERVER, *NETWORK, *PROCESS)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at: Seconds after the beginning.
        seconds: How long it lasts.
        kind: One of the names above.
        whom: For a process's fault: which one, modulo their number.
    """

    at: float
    seconds: float
    kind: str
    whom: int = 0


def schedule(
    seed: int, seconds: float, kinds: Iterable[str] = ALL, *, longest: float = 2.5, gap: float = 1.0
) -> list[Fault]:
    """Faults that begin and end within the given time; each kind comes once before any comes twice.

    Args:
        seed: Of everything that is drawn.
        seconds: The time that there is.
        kinds: Those that may come.
        longest: Seconds that one lasts at most.
        gap: Seconds at most from the end of one to the begin of the next of the same track.
    """
    draw = random.Random(seed)
    kinds = tuple(kinds)
    faults = []
    for track in ([kind for kind in kinds if kind not in PROCESS], [kind for kind in kinds if kind in PROCESS]):
        at, deck = draw.uniform(0, gap), list[str]()
        while track and at < seconds:
            deck = deck or draw.sample(track, len(track))
            lasting = min(draw.uniform(0.05, longest), seconds - at)
            faults.append(Fault(at, lasting, deck.pop(), draw.randrange(1 << 16)))
            at += lasting + draw.uniform(0.05, gap)
    return sorted(faults, key=lambda fault: fault.at)


class Rig:
    """What faults happen to: a server, the proxy before it, and processes that `team` knows how to pause and replace.

    Args:
        server: Where clients are led to; after a failover the promoted replica.
        proxy: What clients connect to.
        replicated: Whether the server has a replica, for failovers.
    """

    def __init__(self, server: Server, proxy: Proxy, *, replicated: bool = False) -> None:
        self.server, self.proxy = server, proxy
        self.replica = server.replica() if replicated else None

    def begin(self, kind: str) -> None:
        """Lets a fault of the server or the network begin."""
        proxy, server = self.proxy, self.server
        match kind:
            case "kill server":
                server.kill()
            case "pause server":
                server.pause()
            case "flush":
                server.flush()
            case "flush scripts":
                server.flush_scripts()
            case "refuse":
                proxy.refuse(cut=True)
            case "cut":
                proxy.cut()
            case "delay":
                proxy.set(requests=Delay(0.01, 0.1), replies=Delay(0.01, 0.4))
            case "trickle":
                proxy.set(replies=Trickle(3, 0.02))
            case "black hole":
                proxy.set(requests=BlackHole(), replies=BlackHole())
            case "lost requests":
                proxy.set(requests=BlackHole())
            case "lost replies":
                proxy.set(replies=BlackHole())
            case "cut replies":
                proxy.set(replies=Cut(after=40))
            case "failover":
                self._fail_over()
            case _:
                raise AssertionError(f"no fault is called {kind!r}")

    def end(self, kind: str) -> None:
        """Lets it end; what passes by itself has ended already."""
        match kind:
            case "kill server":
                self.server.restart(empty=not self.server.persistent)
            case "pause server":
                self.server.resume()
            case "refuse":
                self.proxy.listen()
            case "delay" | "trickle" | "cut replies":
                self.proxy.set()
            case "black hole" | "lost requests" | "lost replies":
                # Bytes of a stream are missing: nobody could go on with these connections.
                self.proxy.cut()
                self.proxy.set()

    def _fail_over(self) -> None:
        assert self.replica is not None, "a failover needs Rig(replicated=True)"
        self.server.kill()
        self.server, self.replica = self.replica, None
        self.server.promote()
        self.proxy.retarget(self.server.address)
        self.replica = self.server.replica()


class Faults:
    """Carries out a schedule beside the test's own thread; each fault is an event of the history.

    Args:
        schedule: Sorted by time.
        rig: What happens to the server and the network.
        team: What happens to processes: has `pause(whom)`, `resume(whom)`, `kill(whom)`, `replace(whom)`.
        path: The log to write.
    """

    def __init__(self, schedule: list[Fault], rig: Rig | None, team: Any, path: Path) -> None:
        self._schedule, self._rig, self._team = schedule, rig, team
        self._log = Log(path)
        self._errors: list[BaseException] = []
        tracks = [fault for fault in schedule if fault.kind not in PROCESS], [f for f in schedule if f.kind in PROCESS]
        begun = time.monotonic()
        self._threads = [threading.Thread(target=self._track, args=(begun, track), daemon=True) for track in tracks]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Waits for the end of the last one; raises what went wrong with the rig itself."""
        last = max((fault.at + fault.seconds for fault in self._schedule), default=0.0)
        for thread in self._threads:
            thread.join(last + PATIENCE)
            assert not thread.is_alive(), "a fault hangs"
        if self._errors:
            raise self._errors[0]

    def _track(self, begun: float, track: list[Fault]) -> None:
        try:
            for fault in track:
                time.sleep(max(0.0, begun + fault.at - time.monotonic()))
                start = now()
                self._begin(fault)
                time.sleep(fault.seconds)  # from when it began, which is later where the one before ended late
                self._end(fault)
                self._log.write(Event("fault", "rig", "", start, now(), note=fault.kind))
        except BaseException as error:
            self._errors.append(error)

    def _begin(self, fault: Fault) -> None:
        if fault.kind == "pause process":
            self._team.pause(fault.whom)
        elif fault.kind == "kill process":
            self._team.kill(fault.whom)
        else:
            assert self._rig is not None, f"{fault.kind} needs a rig"
            self._rig.begin(fault.kind)

    def _end(self, fault: Fault) -> None:
        if fault.kind == "pause process":
            self._team.resume(fault.whom)
        elif fault.kind == "kill process":
            self._team.replace(fault.whom)
        elif self._rig is not None:
            self._rig.end(fault.kind)
