"""A batch's share of what is to be computed: what no other process has a lease of.

    missing ── take the leases that nobody has, in one pipeline ── run what they are of ── give them back
            ── then wait for the bell, or a while ── ask the shared tier for what is left ── …

What this call has leases of is computed, and the leases are given back, before it waits for anybody: so batches that
need one another's items never hold each other up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from infercache.effects import Failure, Steps

if TYPE_CHECKING:
    from infercache import _core
    from infercache._core import Key
    from infercache.filling import Filling
    from infercache.leases import Leases

__all__ = ["compute_leased", "compute_led"]

Led: TypeAlias = "list[tuple[Key, _core.Run]]"


def compute_led(filling: Filling, led: Led, missing: Mapping[Key, int], within: _core.Computation | None) -> Steps:
    """Computes what no other process does, and waits for what others do; a `Failure`, or None."""
    leases = _leases(filling)
    if leases is None or not led:
        return (yield from filling.compute(led, missing, within))
    from infercache.leases import Waiting, pauses

    given_up = time.monotonic() + leases.longest
    for pause in pauses():
        may_wait = filling.mode.may_wait(within) and time.monotonic() < given_up
        left = yield from compute_leased(filling, led, missing, within, leaves=may_wait)
        if type(left) is Failure:
            return left
        if not left:
            break
        interrupted = yield Waiting(leases, pause)
        if interrupted is not None:
            return interrupted
        # What was waited for is another's model, not the tier.
        filling.budget = filling.cache.shared.budget()  # type: ignore[union-attr]
        failure = yield from filling.ask_tier(left, missing)
        if failure is not None or not left:
            return failure
        led = left
    return None


def compute_leased(
    filling: Filling, led: Led, missing: Mapping[Key, int], within: _core.Computation | None, *, leaves: bool
) -> Steps:
    """Computes under the leases that can be had.

    A `Failure`, or what is left since another process computes it; nothing is, unless this call `leaves` it.
    """
    from infercache.leases import ELSEWHERE

    leases, shared = _leases(filling), filling.cache.shared
    taken: Any = [None] * len(led)
    if leases is not None and shared is not None and not shared.tier.is_out:
        taken = yield from leases.acquire([shared.lease_of(key) for key, _ in led], filling.budget)
        if type(taken) is Failure:
            return taken
    left = [one for one, lease in zip(led, taken, strict=True) if leaves and lease is ELSEWHERE]
    mine = [one for one, lease in zip(led, taken, strict=True) if not (leaves and lease is ELSEWHERE)]
    try:
        failure = yield from filling.compute(mine, missing, within)
        return left if failure is None else failure
    finally:
        for lease in taken:
            if lease is not None and lease is not ELSEWHERE:
                leases.give_back(lease)  # type: ignore[union-attr]


def _leases(filling: Filling) -> Leases | None:
    """The leases of the cache, where this call takes any."""
    cache = filling.cache
    return None if filling.fresh or cache.disabled or cache.shared is None else cache.shared.leases
