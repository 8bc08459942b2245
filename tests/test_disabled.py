"""`INFERCACHE_DISABLED`: every look-up is a miss, and everything else as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infercache import Cache


@pytest.mark.parametrize(("value", "runs"), [("1", 2), ("true", 2), ("0", 1), ("", 1)])
def test_infercache_disabled_turns_every_look_up_into_a_miss(
    monkeypatch: pytest.MonkeyPatch, value: str, runs: int
) -> None:
    calls: list[Any] = []
    monkeypatch.setenv("INFERCACHE_DISABLED", value)
    mine = Cache("1MB")

    @mine.memoize(model="m", version="1", operation="one")
    def one(x: int) -> np.ndarray[Any, Any]:
        calls.append(x)
        return np.arange(x)

    @mine.memoize_batch(model="m", version="1", over="xs", operation="many")
    def many(xs: list[int]) -> list[int]:
        calls.extend(xs)
        return xs

    first, second = one(3), one(3)
    assert np.array_equal(first, second)
    assert not first.flags.writeable
    assert calls == [3] * runs
    calls.clear()
    assert many([1, 2, 1]) == many([1, 2, 1]) == [1, 2, 1]
    assert len(calls) == 2 * runs if runs == 1 else len(calls) >= 4
    key = mine.key("q", model="m", version="1")
    assert mine.set(key, 1) is (runs == 1)
    assert mine.get(key) == (1 if runs == 1 else None)
    assert mine.get_or_compute(key, lambda: 2) == (1 if runs == 1 else 2)
    if runs == 2:
        assert mine.stats().hit_ratio == 0
        assert mine.stats().misses > 0
