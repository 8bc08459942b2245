"""Whether what many processes read was fresh enough: the record of a run, and the rules that it must keep.

A source gives each key a version that only rises; a purge is acknowledged after the source moved, and makes older
versions old. All times are those of one machine's CLOCK_BOOTTIME, in nanoseconds. The rules:

- **stale**: a read that begins `max_staleness` after a purge was acknowledged, or later, returns none that it made old;
- **token**: a read that was given a purge's token returns none, however soon it begins;
- **backwards** (where promised): of two reads of one process, one after the other, the second returns no older version;
- **invented**: no version is returned before the source began to have it.

A rule is a floor under the version that a read may return, so one sweep over the sorted times finds who breaks it.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

#: What counts while the machine sleeps, as the product's own clock of staleness does.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> int:
    """Nanoseconds; comparable between the processes of one machine."""
    return time.clock_gettime_ns(CLOCK)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a process did.

    Attributes:
        kind: "read"; "write": the source moves to `version`; "purge": acknowledged at `end`, versions below `version`
            are old; "error": an operation that raised (a purge whose outcome is unknown makes nothing old); "fault".
        process: Who did it.
        key: Of what; "" for a fault.
        begin, end: Before it was asked, and after it was answered.
        version: What a read returned, what the source moved to, or what a purge no longer allows to be less.
        token: For a read: the version of the purge whose token it was given.
        note: For people: how it was read, what was raised.
    """

    kind: Literal["read", "write", "purge", "error", "fault"]
    process: str
    key: str
    begin: int
    end: int
    version: int = 0
    token: int | None = None
    note: str = ""


class Log:
    """Appends events to a file, each at once, so that a killed process leaves what it had seen."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, event: Event) -> None:
        os.write(self._file, json.dumps(asdict(event)).encode() + b"\n")


def load(paths: Iterable[Path]) -> list[Event]:
    """The events of several logs; a last line that a kill cut short is left out."""
    events: list[Event] = []
    for path in paths:
        lines = path.read_bytes().splitlines(keepends=True)
        events += [Event(**json.loads(line)) for line in lines if line.endswith(b"\n")]
    return events


@dataclass(frozen=True)
class Violation:
    """A read that broke a rule, and the event that set the version which it fell below."""

    rule: Literal["stale", "token", "backwards", "invented"]
    read: Event
    floor: Event | None
    least: int


@dataclass
class Verdict:
    """What a history showed.

    Attributes:
        violations: By the begin of their reads.
        counts: How many events of each kind there were.
        tested: How many reads had a purge before them, by `max_staleness` at least: those that could have been stale.
        with_token: How many reads were given a token.
    """

    events: list[Event]
    violations: list[Violation] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tested: int = 0
    with_token: int = 0

    def report(self, around: int = 8) -> str:
        """The first violation with the events of its key around it, and the faults of that time."""
        if not self.violations:
            return f"no violation in {dict(self.counts)}; {self.tested} reads tested, {self.with_token} with a token"
        first = self.violations[0]
        read, start = first.read, min(event.begin for event in self.events)
        near = [event for event in self.events if event.key == read.key or event.kind == "fault"]
        near.sort(key=lambda event: (event.begin, event.end))
        place = near.index(read)
        chosen = set(range(max(0, place - around), min(len(near), place + around + 1)))
        chosen |= {near.index(first.floor)} if first.floor else set()
        why = "before the source had it" if first.rule == "invented" else f"where {first.least} was the least allowed"
        lines = [
            f"{len(self.violations)} violations in {dict(self.counts)}. The first, of the rule '{first.rule}':",
            f"{read.process} read version {read.version} of {read.key!r} {why}",
            "     begin ms     end ms",
        ]
        last = None
        for index in sorted(chosen):
            if last is not None and index > last + 1:
                lines.append(f"   … {index - last - 1} more")
            last = index
            lines.append(_line(near[index], start, first))
        return "\n".join(lines)


def _line(event: Event, start: int, violation: Violation) -> str:
    mark = ">>" if event is violation.read else " ^" if event is violation.floor else "  "
    times = f"{(event.begin - start) / 1e6:11.3f} {(event.end - start) / 1e6:11.3f}"
    what = "" if event.kind in {"fault", "error"} else f" version {event.version}"
    token = "" if event.token is None else f" with the token of version {event.token}"
    return f"{mark} {times}  {event.process:10} {event.kind} {event.key}{what}{token} {event.note}".rstrip()


def _sweep(floors: Iterable[tuple[int, Event]], reads: Iterable[Event], found: Callable[[Event, Event], None]) -> int:
    """Calls `found` for each read below a floor that held when it began; returns how many reads had a floor at all.

    Args:
        floors: When each begins to hold, and the event whose version it is.
        reads: Of the same key.
        found: Called with the read and the event of the floor.
    """
    rising = sorted(floors, key=lambda floor: floor[0])
    place, highest, tested = 0, None, 0
    for read in sorted(reads, key=lambda event: event.begin):
        while place < len(rising) and rising[place][0] <= read.begin:
            event = rising[place][1]
            if highest is None or event.version > highest.version:
                highest = event
            place += 1
        if highest is not None:
            tested += 1
            if read.version < highest.version:
                found(read, highest)
    return tested


def check(events: list[Event], *, max_staleness: float, monotonic: bool = False) -> Verdict:
    """Tries every rule on a history.

    Args:
        events: In any order.
        max_staleness: Seconds.
        monotonic: Whether a process was promised never to read backwards.
    """
    verdict = Verdict(events)
    by_key: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        verdict.counts[event.kind] += 1
        by_key[event.key][event.kind].append(event)
    bound = round(max_staleness * 1e9)
    violations = verdict.violations

    def note(rule: Any) -> Callable[[Event, Event], None]:
        return lambda read, floor: violations.append(Violation(rule, read, floor, floor.version))

    for kinds in by_key.values():
        reads, purges = kinds["read"], kinds["purge"]
        verdict.tested += _sweep(((purge.end + bound, purge) for purge in purges), reads, note("stale"))
        _check_tokens(reads, purges, verdict)
        _check_invented(reads, kinds["write"], violations)
        if monotonic:
            by_process = defaultdict(list)
            for read in reads:
                by_process[read.process].append(read)
            for own in by_process.values():
                _sweep(((read.end, read) for read in own), own, note("backwards"))
    violations.sort(key=lambda violation: violation.read.begin)
    return verdict


def _check_tokens(reads: list[Event], purges: list[Event], verdict: Verdict) -> None:
    for read in reads:
        if read.token is None:
            continue
        verdict.with_token += 1
        if read.version < read.token:
            purge = next((purge for purge in purges if purge.version == read.token), None)
            verdict.violations.append(Violation("token", read, purge, read.token))


def _check_invented(reads: list[Event], writes: list[Event], violations: list[Violation]) -> None:
    """Version 0 is what the source begins with."""
    begun: dict[int, Event] = {}
    for write in sorted(writes, key=lambda event: -event.begin):
        begun[write.version] = write
    for read in reads:
        write = begun.get(read.version)
        if (write is None and read.version != 0) or (write is not None and read.end < write.begin):
            violations.append(Violation("invented", read, write, read.version))


def assert_coherent(
    events: list[Event], *, max_staleness: float, monotonic: bool = False, least_tested: int = 1
) -> Verdict:
    """Fails with a report of the first violation; also where too few reads could have been stale to show anything."""
    verdict = check(events, max_staleness=max_staleness, monotonic=monotonic)
    assert not verdict.violations, verdict.report()
    assert verdict.tested >= least_tested, f"only {verdict.tested} reads were put to the test: {verdict.report()}"
    return verdict
