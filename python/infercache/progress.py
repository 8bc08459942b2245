"""How far something is: a bar on a terminal, or whatever the caller wants to do with the numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from infercache.errors import InvalidArgument, shown

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

__all__ = ["Wish", "bar", "told"]

#: None: a bar where it is of use; False: nothing; or a function of the bytes done and of all.
Wish = Callable[[int, int], object] | Literal[False] | None

#: Less is done before anybody could read a bar.
_LARGE = 128 << 20
_PATIENCE = 0.5  # seconds
_BETWEEN = 0.1  # seconds from one call of the caller's function to the next


@contextmanager
def told(wish: Wish, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to be called with the bytes done so far."""
    if callable(wish):
        yield from _calls(wish, total)
    else:
        with bar(label, total, unit="bytes", wanted=wish is not False and total >= _LARGE) as tell:
            yield tell


@contextmanager
def bar(label: str, total: int, *, unit: str, wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar, where it is wanted and somebody looks: a function to be called with how much is done so far.

    Args:
        label: what is done.
        total: how much of it; 0: nobody knows.
        unit: of that; "bytes" are written as GB.
        wanted: False: there is no bar, and the function does nothing.
    """
    if not (wanted and _is_terminal()):
        yield lambda done: None
        return
    made = _Bar(label, total, unit)
    try:
        yield made
    finally:
        made.close()


def check(wish: object) -> None:
    """Refuses what is no wish."""
    if wish is not None and wish is not False and not callable(wish):
        raise InvalidArgument(f"progress is None, False or a function of (bytes done, bytes in all), not {shown(wish)}")


def _calls(function: Callable[[int, int], object], total: int) -> Iterator[Callable[[int], None]]:
    before = time.monotonic()
    function(0, total)

    def tell(done: int) -> None:
        nonlocal before
        now = time.monotonic()
        if now - before >= _BETWEEN:
            before = now
            function(done, total)

    yield tell
    function(total, total)


def _is_terminal() -> bool:
    """Whether somebody looks: standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (ValueError, AttributeError):  # closed, or replaced by something that is less than a file
        return False


class _Bar:
    """rich's bar where it is installed, otherwise a line for each tenth."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label = label
        self._total = total
        self._unit = unit
        self._begun = time.monotonic()
        self._rich: Progress | None = None
        self._tried = False
        self._tenths = 0

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._begun < _PATIENCE:
            return
        if not self._tried:
            self._tried = True
            self._rich = _rich_bar(self._label, self._total, self._unit)
        if self._rich is not None:
            self._rich.update(self._rich.task_ids[0], completed=done)
        elif self._total and (tenths := 10 * done // self._total) > self._tenths:
            self._tenths = tenths
            sys.stderr.write(f"{self._label}: {self._amounts(done)}\n")
            sys.stderr.flush()

    def _amounts(self, done: int) -> str:
        if self._unit == "bytes":
            return f"{done / 1e9:.1f} of {self._total / 1e9:.1f} GB"
        return f"{done:,} of {self._total:,} {self._unit}"

    def close(self) -> None:
        """Takes the bar away."""
        if self._rich is not None:
            self._rich.stop()


def _rich_bar(label: str, total: int, unit: str) -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
    except ImportError:
        return None
    amounts: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
    if unit != "bytes":
        amounts = (MofNCompleteColumn(), TextColumn(unit))
    columns = (TextColumn(label), BarColumn(), *amounts, TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(label, total=total or None)
    bar.start()
    return bar
