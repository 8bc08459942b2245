"""For tests and simulators of code that uses the cache: `Cache(…, clock=ManualClock())` ages by hand."""

from __future__ import annotations

from infercache._core import ManualClock

__all__ = ["ManualClock"]
