"""The product's cache as `histories.run_history` makes it, and builds of it that are broken on purpose.

Each `without_…` makes a cache of a product that lacks one rule of coherence. It patches the process that calls it,
which had better be one of its own (`histories`, `processes.Worker`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

from infercache import Cache, Key, _core, coherence, entries, flights, shared
from infercache.effects import Plain
from infercache.tiers import Script

STALENESS = 0.5


def cohering(url: str, **options: Any) -> Cache:
    """The product as it is."""
    return Cache("8MB", l2=url, **{"max_staleness": STALENESS, "timeout": "250ms", **options})


def without_proof(url: str, **options: Any) -> Cache:
    """No reader asks how old the proof is; the follower follows all the same."""
    opened = Cache._open

    @functools.wraps(opened)
    def trusting(self: Any, *args: Any, **named: Any) -> Any:
        return opened(self, *args, **{**named, "trust": (1e9, math.inf, math.inf)})

    Cache._open = trusting  # type: ignore[method-assign]
    shared.Shared._is_proven = lambda self: self._authority.proof_age is not None  # type: ignore[method-assign]
    return cohering(url, **options)


def without_stamps_of_values(url: str, **options: Any) -> Cache:
    """What comes from the tier is stamped anew on its way into memory."""
    take = _core.tier_take
    one = cohering(url, **options)

    def anew(data: Any) -> Any:
        key = Key(data[8:40]) if isinstance(data, bytes) and len(data) > 40 else None  # where an envelope has it
        parts: Any = "" if key is None else _core.envelope_decode(data, key)
        if isinstance(parts, str):
            return data
        epoch, lsn = one._position(one._stamp()) or (parts["epoch"], parts["lsn"])
        return _core.envelope_encode(key, **{**parts, "epoch": epoch, "lsn": lsn})

    def stamped_anew(store: Any, finds: Any, first: int, upto: int, values: Any, *rest: Any, **named: Any) -> Any:
        values = values and [anew(data) for data in values]
        return take(store, finds, first, upto, values, *rest, **named)

    _core.tier_take = stamped_anew
    return one


def without_the_stamp_before(url: str, **options: Any) -> Cache:
    """A result is stamped after its model has run, and not before. (Callers of the blocking kind only.)"""
    compute = flights.compute

    def stamped_late(request: Any, *rest: Any, **named: Any) -> Any:
        result = yield Plain(request.call)
        request.call = lambda: result
        return (yield from compute(request, *rest, **named))

    flights.compute = stamped_late
    return cohering(url, **options)


def without_epochs(url: str, **options: Any) -> Cache:
    """An authority that was lost goes on under the same epoch."""
    source = coherence._SCRIPT.source.replace(b"'E' .. ARGV[1] ..", b"'E' .. string.rep('e', 16) ..")
    assert source != coherence._SCRIPT.source
    coherence._SCRIPT = Script(source)
    return cohering(url, **options)


def without_tokens(url: str, **options: Any) -> Cache:
    """Nobody asks whether what a token says is known here."""

    def known(self: Any, token: Any, budget: Any) -> Any:
        yield from ()
        return True

    entries.Entries._reach_steps = known  # type: ignore[method-assign]
    return cohering(url, **options)
