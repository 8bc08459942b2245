"""An explorable model of the coherence protocol (docs/coherence.md), as it is built, and each rule taken out.

    python tests/coherence_model.py [NAME …]     protocols and mutations, with the shortest counterexamples

Every state that a few processes, one authority, one tag of the key, one tag of noise and one value of the shared tier
can reach in small bounds is visited, breadth first, so a counterexample is a shortest one. In every state every read
that some process could finish now is asked for: does it return a version older than the one that is owed?

TIME is counted in ticks; `max_staleness` is one. Ages (of proofs, of answers under way, of purges) go 0, 1, 2 = "more
than one". A purge that was acknowledged is *mature* when it is older than one tick: from then on no read anywhere may
return what was current before it. The process that purged owes it to itself at once.

It is built in authority.lua (poll and purge in one), rust/core/src/fence/follower.rs (questions, answers, proof),
fence.rs and cache.rs (stamps and judgement), shared.py and flights.py (promotion, late stores, joins, nesting).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

OLD = 2
TAG, NOISE = 0, 1


class Authority(NamedTuple):
    """The server's one key. `foreign`: it runs on another server than the one that began its epoch."""

    epoch: int = 1
    lsn: int = 0
    horizon: int = 0
    hard: tuple[int, int] = (0, 0)
    soft: int = 0
    foreign: bool = False


class Answer(NamedTuple):
    """An answer on its way: what the authority said, the question's age, and which epoch the asker knew."""

    asked_in: int
    age: int
    epoch: int
    upto: int
    whole: bool
    horizon: int
    hard: tuple[int, int]
    soft: int
    purge: int  # the version that this purge makes old, if it is the answer to one


class Value(NamedTuple):
    """A cached answer: the version of the source that it was computed from, and its stamp."""

    version: int
    epoch: int
    lsn: int


class Flight(NamedTuple):
    """One computation: 1 stamped, 2 computed or promoted. `owed` is what a caller who joined it may demand."""

    stage: int
    epoch: int
    lsn: int
    version: int = 0
    owed: int = 0
    stores: int = 3  # 1: in memory, 2: in the shared tier


class Process(NamedTuple):
    """What one process has applied. Epoch 0: it knows none."""

    epoch: int = 0
    lsn: int = 0
    horizon: int = 0
    hard: tuple[int, int] = (0, 0)
    soft: int = 0
    proof: int = OLD
    pending: bool = False  # a purge of the tag that the authority has not acknowledged
    answers: tuple[Answer, ...] = ()
    memory: Value | None = None
    flight: Flight | None = None
    own: int = 0  # the version that this process's own purges owe it


class State(NamedTuple):
    """Everything. `owed` are versions by the age of the purge: 0, 1, mature; `owed_soft` likewise."""

    source: int
    authority: Authority
    replica: Authority | None
    tier: Value | None
    owed: tuple[int, int, int]
    owed_soft: tuple[int, int, int]
    left: tuple[int, int, int, int]  # flushes, failovers, prunes, lost messages
    epochs: int
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Protocol:
    """Bounds of an exploration, and the rules; each may be taken out."""

    processes: int = 1
    purges: int = 2
    flushes: int = 0
    failovers: int = 0
    prunes: int = 0
    losses: int = 0
    polls: int = 1
    soft: bool = False
    join: bool = False
    own: bool = False  # the processes purge, and must see their own purges at once
    nested: bool = False  # a computation may ask another process that caches
    noise: bool = True
    cut: bool = False  # an answer holds one change at most
    # the rules
    stamp_before_the_run: bool = True
    proof_is_asked_for: bool = True
    proof_dates_from_sending: bool = True
    a_cut_answer_is_no_proof: bool = True
    epochs_are_compared: bool = True
    a_new_server_begins_an_epoch: bool = True
    late_answers_of_another_epoch_are_discarded: bool = True
    answers_merge_by_maximum: bool = True
    the_horizon_rises: bool = True
    promotion_keeps_the_stamp: bool = True
    stamps_rise_to_what_was_checked: bool = True
    softly_purged_stamps_stay: bool = True
    joins_are_checked_at_delivery: bool = True
    shared_values_need_proof: bool = True
    an_own_purge_is_applied: bool = True
    a_failed_purge_hides_locally: bool = True
    nested_requests_carry_a_token: bool = True


def beginning(p: Protocol) -> State:
    replica = Authority() if p.failovers else None
    none = (0, 0, 0)
    left = (p.flushes, p.failovers, p.prunes, p.losses)
    return State(1, Authority(), replica, None, none, none, left, 2, (Process(),) * p.processes)


# ----------------------------------------------------------------------------------------------------- the read rules


def trusts(p: Protocol, process: Process) -> bool:
    return process.epoch != 0 and (process.proof < OLD or not p.proof_is_asked_for)


def is_hidden(p: Protocol, process: Process, value: Value) -> bool:
    if p.epochs_are_compared and value.epoch != process.epoch:
        return True
    if process.pending:
        return True
    if value.lsn >= process.lsn:  # the fast path: nothing was applied since
        return False
    return value.lsn < process.horizon or process.hard[TAG] > value.lsn


def is_stale(process: Process, value: Value) -> bool:
    return value.lsn < process.lsn and process.soft > value.lsn


def violation(p: Protocol, s: State) -> str | None:
    owed = s.owed[2]
    for number, process in enumerate(s.processes):
        for where, value in (("memory", process.memory), ("the shared tier", s.tier)):
            if value is None or process.epoch == 0 or is_hidden(p, process, value):
                continue
            if not trusts(p, process) and (p.shared_values_need_proof or where == "memory"):
                continue
            demanded = max(owed, process.own if p.own else 0)
            if value.version < demanded:
                return f"process {number} answers version {value.version} from {where}; {demanded} is owed"
            if p.soft and not is_stale(process, value) and value.version < max(owed, s.owed_soft[2]):
                return f"process {number} answers version {value.version} as fresh; {s.owed_soft[2]} is owed"
        flight = process.flight
        if flight and flight.stage == 2 and flight.owed > flight.version:
            value = Value(flight.version, flight.epoch, flight.lsn)
            delivered = not p.joins_are_checked_at_delivery or (trusts(p, process) and not is_hidden(p, process, value))
            if delivered:
                return f"process {number} hands version {flight.version} to a caller who is owed {flight.owed}"
    return None


# ----------------------------------------------------------------------------------------- the authority's one script


def ask(p: Protocol, s: State, process: Process, purge: str = "") -> tuple[State, Answer]:
    """One run of the script: a purge ("hard", "soft" or none), and every change since what the asker has applied."""
    a, epochs, source = s.authority, s.epochs, s.source
    if a.foreign and p.a_new_server_begins_an_epoch:
        a, epochs = Authority(epoch=epochs), epochs + 1
    owed, owed_soft, made_old = s.owed, s.owed_soft, 0
    if purge:
        a = a._replace(lsn=a.lsn + 1)
        source, made_old = source + 1, source + 1
        if purge == "hard":
            a = a._replace(hard=(a.lsn, a.hard[NOISE]))
            owed = (source, owed[1], owed[2])
        else:
            a = a._replace(soft=a.lsn)
            owed_soft = (source, owed_soft[1], owed_soft[2])
    since = process.lsn if process.epoch == a.epoch else 0
    upto, hard, soft = a.lsn, a.hard, a.soft
    if p.cut:
        changes = sorted(lsn for lsn in (*a.hard, a.soft) if lsn > since)
        if len(changes) > 1:
            upto = changes[0]
            hard = (hard[0] if hard[0] <= upto else 0, hard[1] if hard[1] <= upto else 0)
            soft = soft if soft <= upto else 0
    whole = upto == a.lsn or not p.a_cut_answer_is_no_proof
    answer = Answer(process.epoch, 0, a.epoch, upto, whole, a.horizon, hard, soft, made_old)
    return s._replace(authority=a, epochs=epochs, source=source, owed=owed, owed_soft=owed_soft), answer


def applied(p: Protocol, process: Process, answer: Answer) -> Process:
    """The follower has an answer."""
    proof = (answer.age if p.proof_dates_from_sending else 0) if answer.whole else OLD
    own = max(process.own, answer.purge)
    changed_meanwhile = answer.asked_in != process.epoch
    if answer.epoch != process.epoch:
        if changed_meanwhile and p.late_answers_of_another_epoch_are_discarded:
            return process
        fresh = {"lsn": answer.upto, "horizon": answer.horizon, "hard": answer.hard, "soft": answer.soft}
        return process._replace(epoch=answer.epoch, **fresh, proof=proof, own=own, pending=False)
    if not p.an_own_purge_is_applied and answer.purge:
        return process._replace(own=own)
    if not p.answers_merge_by_maximum:
        fresh = {"lsn": answer.upto, "horizon": answer.horizon, "hard": answer.hard, "soft": answer.soft}
        return process._replace(**fresh, own=own, proof=min(proof, process.proof), pending=False)
    return process._replace(
        lsn=max(process.lsn, answer.upto),
        horizon=max(process.horizon, answer.horizon),
        hard=(max(process.hard[0], answer.hard[0]), max(process.hard[1], answer.hard[1])),
        soft=max(process.soft, answer.soft),
        proof=min(proof, process.proof),
        own=own,
        pending=process.pending and not answer.purge,
    )


# ------------------------------------------------------------------------------------------------------- what happens


def steps(p: Protocol, s: State) -> Iterator[tuple[str, State]]:
    yield from world(p, s)
    for number, process in enumerate(s.processes):
        for what, after, changed in acts(p, s, process, number):
            others = s.processes[:number] + (changed,) + s.processes[number + 1 :]
            yield f"process {number} {what}", after._replace(processes=others)


def world(p: Protocol, s: State) -> Iterator[tuple[str, State]]:
    a = s.authority
    if a.lsn < p.purges and not p.own:
        for kind in ("hard", "soft") if p.soft else ("hard",):
            after, _ = ask(p, s, Process(), kind)
            yield (
                f"the source is at version {after.source}; a {kind} purge is acknowledged, {after.authority[:2]}",
                after,
            )
    if a.lsn < p.purges and p.noise:
        after, _ = ask(p, s, Process())
        a = after.authority
        a = a._replace(lsn=a.lsn + 1, hard=(a.hard[0], a.lsn + 1))
        yield f"another tag is purged, LSN {a.lsn}", after._replace(authority=a)
    yield (
        "a tick",
        s._replace(
            owed=(0, s.owed[0], max(s.owed[1:])),
            owed_soft=(0, s.owed_soft[0], max(s.owed_soft[1:])),
            processes=tuple(
                q._replace(
                    proof=min(OLD, q.proof + 1), answers=tuple(x._replace(age=min(OLD, x.age + 1)) for x in q.answers)
                )
                for q in s.processes
            ),
        ),
    )
    flushes, failovers, prunes, losses = s.left
    if flushes:
        yield (
            "FLUSHALL",
            s._replace(
                authority=Authority(epoch=s.epochs), epochs=s.epochs + 1, tier=None, left=(0, failovers, prunes, losses)
            ),
        )
    if s.replica is not None:
        if s.replica != s.authority:
            yield "the replica catches up", s._replace(replica=s.authority)
        if failovers:
            promoted = s.replica._replace(foreign=True)
            yield (
                "the replica takes over",
                s._replace(authority=promoted, replica=None, left=(flushes, 0, prunes, losses)),
            )
    if prunes and s.authority.lsn > 1 and 0 < min(s.authority.hard) < s.authority.lsn:
        oldest = min(s.authority.hard)
        hard = tuple(0 if lsn == oldest else lsn for lsn in s.authority.hard)
        horizon = oldest if p.the_horizon_rises else s.authority.horizon
        pruned = s.authority._replace(hard=(hard[0], hard[1]), horizon=horizon)
        yield "the oldest fence is pruned", s._replace(authority=pruned, left=(flushes, failovers, 0, losses))


def acts(p: Protocol, s: State, q: Process, number: int) -> Iterator[tuple[str, State, Process]]:
    if len(q.answers) < p.polls:
        after, answer = ask(p, s, q)
        yield f"polls; the answer is {answer[2:8]}", after, q._replace(answers=(*q.answers, answer))
    if p.own and s.authority.lsn < p.purges and len(q.answers) < p.polls:
        after, answer = ask(p, s, q, "hard")
        yield f"purges the tag, LSN {after.authority.lsn}", after, q._replace(answers=(*q.answers, answer))
        if s.left[3]:
            fewer = (*s.left[:3], s.left[3] - 1)
            gone = q._replace(pending=p.a_failed_purge_hides_locally, own=after.source)
            yield "purges the tag, and the answer is lost", after._replace(left=fewer), gone
            failed = s._replace(source=s.source + 1, left=fewer)
            gone = gone._replace(own=failed.source)
            yield "purges the tag, but the authority is never told", failed, gone
    for answer in q.answers:
        rest = list(q.answers)
        rest.remove(answer)
        yield (
            f"applies an answer of age {answer.age}: {answer[2:8]}",
            s,
            applied(p, q._replace(answers=tuple(rest)), answer),
        )
    yield from fills(p, s, q, number)


def fills(p: Protocol, s: State, q: Process, number: int) -> Iterator[tuple[str, State, Process]]:
    flight = q.flight
    if flight is None:
        if q.epoch:
            yield f"begins a computation, stamp {q.epoch}:{q.lsn}", s, q._replace(flight=Flight(1, q.epoch, q.lsn))
        if s.tier is not None and (trusts(p, q) or not p.shared_values_need_proof) and not is_hidden(p, q, s.tier):
            lsn = s.tier.lsn if p.promotion_keeps_the_stamp else s.authority.lsn
            promoted = Flight(2, s.tier.epoch, lsn, s.tier.version, stores=1)
            yield f"takes version {s.tier.version} from the shared tier", s, q._replace(flight=promoted)
        value = q.memory
        behind = value is not None and value.lsn < q.lsn and trusts(p, q) and not is_hidden(p, q, value)
        if value is not None and behind and not (is_stale(q, value) and p.softly_purged_stamps_stay):
            lsn = q.lsn if p.stamps_rise_to_what_was_checked else s.authority.lsn
            yield (
                f"answers from memory and raises the stamp to {lsn}",
                s,
                q._replace(memory=value._replace(lsn=lsn)),
            )
        return
    if p.join and flight.owed == 0 and s.owed[2]:
        yield f"has a caller join who is owed {s.owed[2]}", s, q._replace(flight=flight._replace(owed=s.owed[2]))
    if flight.stage == 1:
        run = flight._replace(stage=2, version=s.source)
        yield f"has computed, from version {s.source} of the source", s, q._replace(flight=run)
        for other, upstream in enumerate(s.processes):
            value = upstream.memory
            if not p.nested or other == number or value is None:
                continue
            behind = p.nested_requests_carry_a_token and (upstream.epoch != flight.epoch or upstream.lsn < flight.lsn)
            if trusts(p, upstream) and not is_hidden(p, upstream, value) and not behind:
                run = flight._replace(stage=2, version=value.version)
                yield (
                    f"has computed, from version {value.version} in the memory of process {other}",
                    s,
                    q._replace(flight=run),
                )
        return
    value = Value(flight.version, flight.epoch, flight.lsn)
    if not p.stamp_before_the_run:
        value = Value(flight.version, q.epoch, q.lsn)
    if flight.stores & 1:
        left = flight._replace(stores=flight.stores & 2)
        yield (
            f"keeps version {value.version} in memory",
            s,
            q._replace(memory=value, flight=left if left.stores else None),
        )
    if flight.stores & 2:
        left = flight._replace(stores=flight.stores & 1)
        after = s._replace(tier=value)
        yield (
            f"stores version {value.version} in the shared tier",
            after,
            q._replace(flight=left if left.stores else None),
        )


# -------------------------------------------------------------------------------------------------------- exploration


class Found(NamedTuple):
    """How an exploration ended: a violation and the way to it, or none in all the states there are (`whole`)."""

    states: int
    violation: str | None
    trace: list[str]
    whole: bool


def explore(p: Protocol, most: int = 4_000_000) -> Found:
    """Visits states breadth first until a read goes wrong, or there are no more, or `most` were seen."""
    first = beginning(p)
    came: dict[State, tuple[State, str] | None] = {first: None}
    queue = deque([first])
    while queue and len(came) < most:
        state = queue.popleft()
        for what, after in steps(p, state):
            if len(after.processes) > 1:  # processes are interchangeable
                after = after._replace(processes=tuple(sorted(after.processes, key=repr))) if not p.nested else after
            if after in came:
                continue
            came[after] = (state, what)
            wrong = violation(p, after)
            if wrong is not None:
                trace = []
                at: State | None = after
                while at is not None and (step := came[at]) is not None:
                    at, what = step
                    trace.append(what)
                return Found(len(came), wrong, trace[::-1], False)
            queue.append(after)
    return Found(len(came), None, [], not queue)


BASE = Protocol()
FLUSH = replace(BASE, flushes=1, purges=1, noise=False)
OWN = replace(BASE, own=True, purges=2, noise=False)
#: Protocols that are right.
SAFE: dict[str, Protocol] = {
    "one process": BASE,
    "soft purges": replace(BASE, soft=True, noise=False),
    "joins": replace(BASE, join=True, noise=False),
    "two polls at once": replace(BASE, polls=2, noise=False),
    "answers cut short": replace(BASE, cut=True),
    "pruning": replace(BASE, prunes=1),
    "the authority lost": FLUSH,
    "own purges": OWN,
    "own purges that fail": replace(OWN, losses=1),
    "own purges and the authority lost": replace(OWN, flushes=1, purges=1, polls=2),
    "two processes": replace(BASE, processes=2, purges=1, noise=False),
    "a server behind a server": replace(BASE, processes=2, purges=1, noise=False, nested=True),
}
#: One rule taken out at a time; each must be caught.
MUTATIONS: dict[str, Protocol] = {
    "stamp_before_the_run": BASE,
    "proof_is_asked_for": BASE,
    "proof_dates_from_sending": BASE,
    "a_cut_answer_is_no_proof": replace(BASE, cut=True),
    "epochs_are_compared": replace(FLUSH, purges=2),
    "a_new_server_begins_an_epoch": replace(BASE, failovers=1, noise=False),
    "late_answers_of_another_epoch_are_discarded": replace(OWN, flushes=1, polls=2),
    "answers_merge_by_maximum": replace(BASE, polls=2, noise=False),
    "the_horizon_rises": replace(BASE, prunes=1),
    "promotion_keeps_the_stamp": BASE,
    "stamps_rise_to_what_was_checked": BASE,
    "softly_purged_stamps_stay": replace(BASE, soft=True, noise=False),
    "joins_are_checked_at_delivery": replace(BASE, join=True),
    "shared_values_need_proof": BASE,
    "an_own_purge_is_applied": OWN,
    "a_failed_purge_hides_locally": replace(OWN, losses=1),
    "nested_requests_carry_a_token": replace(BASE, processes=2, purges=1, noise=False, nested=True),
}


def without(rule: str) -> Protocol:
    """The protocol of `MUTATIONS` with this rule taken out."""
    return replace(MUTATIONS[rule], **{rule: False})


def main(names: list[str]) -> int:
    """Explores what is named, or everything; the number of surprises."""
    surprises = 0
    runs = [(name, p, False) for name, p in SAFE.items()] + [(rule, without(rule), True) for rule in MUTATIONS]
    for name, p, caught in runs:
        if names and name not in names:
            continue
        begun = time.perf_counter()
        found = explore(p)
        surprises += (found.violation is not None) != caught
        what = "caught" if found.violation else "safe" if found.whole else "safe so far"
        lines = [f"{what:12}{found.states:>9} states {time.perf_counter() - begun:6.1f} s  {name}"]
        lines += [
            f"    {number:2}. {step}" for number, step in enumerate((*found.trace, *filter(None, [found.violation])), 1)
        ]
        print(*lines, sep="\n", flush=True)
    return surprises


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
