"""What the demo shows: progress bars while it runs, a table at the end; plain lines where rich is not installed."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from infercache.amounts import duration, size

if TYPE_CHECKING:
    from infercache.cli.demo import Outcome
    from infercache.cli.traffic import Measurement

__all__ = ["Report", "duration", "rows", "size", "sparkline"]

Row = tuple[str, str, str, str]  # what, without the cache, with it, how many times better
BARS = "▁▂▃▄▅▆▇█"


class Report:
    """Where the demo's lines, bars and table go."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without µ or bars is no reason to fail
        try:
            from rich.console import Console
        except ImportError:
            self._console = None
        else:
            self._console = Console(highlight=False, soft_wrap=True)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def say(self, line: str) -> None:
        """Prints one line."""
        print(line, flush=True)

    @contextlib.contextmanager
    def progress(
        self, label: str, unit: str, total: int, seconds: float | None = None
    ) -> Iterator[Callable[[int], None]]:
        """A bar that the function it gives moves on; where `seconds` bounds the work, time moves it too."""
        begun = time.perf_counter()
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more

        if self._console is None or not self._console.is_terminal:
            yield count
        else:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:28}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
            with Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True) as bars:
                task = bars.add_task(label, total=1.0)

                def move(more: int) -> None:
                    count(more)
                    by_time = (time.perf_counter() - begun) / seconds if seconds else 0.0
                    bars.update(task, completed=min(1.0, max(done / total, by_time)))

                yield move
        number, _, noun = counted(done, unit).partition(" ")
        self.say(f"{label:28} {number:>7} {noun:8} in {duration(time.perf_counter() - begun)}")

    def show(self, outcome: Outcome) -> None:
        """Prints the table and the verdict."""
        table = rows(outcome)
        title = "the same model, the same requests"
        if len(outcome.uncached.seconds) < len(outcome.cached.seconds):
            title += f" (without the cache {len(outcome.uncached.seconds):,} of them)"
        if self._console is None:
            widths = [max(len(row[column]) for row in table) for column in range(4)]
            self.say(f"\n{title}")
            for what, without, with_cache, gain in table:
                cells = (
                    what.ljust(widths[0]),
                    without.rjust(widths[1]),
                    with_cache.rjust(widths[2]),
                    gain.rjust(widths[3]),
                )
                self.say("  ".join(cells).rstrip())
        else:
            from rich.table import Table

            head, *body = table
            drawn = Table(title=title, title_justify="left", header_style="bold")
            for column, name in enumerate(head):
                drawn.add_column(name, justify="left" if column == 0 else "right", no_wrap=True)
            for row in body:
                drawn.add_row(*row, style="bold green" if row[0] == "hit ratio" else None)
            with self._console.capture() as captured:
                self._console.print(drawn)
            self.say(f"\n{captured.get().rstrip()}")
        self.say(f"texts not run, as the cache fills  {sparkline(not_run(outcome.cached))}")
        self.say(verdict(outcome.asked, outcome.differing))


def verdict(asked: int, differing: int) -> str:
    """What comparing the cached answers with the model's own showed."""
    if differing:
        return f"WRONG: the cached answers of {counted(differing, 'text')} differ from the model's"
    answers = f"all {asked:,} answers are" if asked > 1 else "the answer is"
    return f"{answers} the model's own, bit for bit"


def counted(number: int, noun: str) -> str:
    """`1 text`, `2 texts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def texts_each(sizes: Iterable[int]) -> str:
    """How many texts requests of these sizes ask for: `8 texts`, `at most 8 texts`."""
    different = set(sizes)
    return ("" if len(different) == 1 else "at most ") + counted(max(different), "text")


def rows(outcome: Outcome) -> list[Row]:
    """The table, its head first."""
    without, cached, stats = outcome.uncached, outcome.cached, outcome.stats

    def part(count: int) -> str:
        return f"{count:,} ({count / outcome.asked:.1%})"

    table = [
        ("", "no cache", "infercache", "faster"),
        (
            f"requests (of {texts_each(cached.asked.tolist())})",
            f"{len(without.seconds):,}",
            f"{len(cached.seconds):,}",
            "",
        ),
        ("texts asked for", f"{int(without.asked.sum()):,}", f"{outcome.asked:,}", ""),
        ("  different ones", "", f"{outcome.distinct:,}", ""),
        ("hit ratio", "", f"{stats.hit_ratio:.1%}", ""),
        ("  texts answered from memory", "", part(stats.hits_l1 + stats.stale_hits), ""),
        ("  texts that shared a run", "", part(stats.coalesced), ""),
        ("  texts that the model ran", f"{int(without.computed.sum()):,}", part(int(cached.computed.sum())), ""),
        compared("request, p50", without.quantile(0.50), cached.quantile(0.50)),
        compared("request, p99", without.quantile(0.99), cached.quantile(0.99)),
        compared("text, mean", without.mean_of_text(), cached.mean_of_text()),
    ]
    idle = cached.where(cached.computed == 0)
    if len(idle.seconds):
        table += [
            ("requests that ran no text", "", f"{len(idle.seconds) / len(cached.seconds):.0%}", ""),
            compared("  request, p50", without.quantile(0.50), idle.quantile(0.50)),
            compared("  request, p99", without.quantile(0.99), idle.quantile(0.99)),
            compared("  text, mean", without.mean_of_text(), idle.mean_of_text()),
        ]
    table += [
        ("model time saved by hits", "", duration(stats.saved_seconds), ""),
        ("held in memory", "", size(stats.bytes), ""),
        ("  entries", "", f"{stats.entries:,}", ""),
    ]
    return table


def compared(what: str, without: float, with_cache: float) -> Row:
    """A row of two durations and their ratio."""
    if with_cache <= 0:  # a clock too coarse to see it
        return (what, duration(without), duration(with_cache), "")
    ratio = without / with_cache
    return (what, duration(without), duration(with_cache), f"{ratio:,.0f} ×" if ratio >= 9.95 else f"{ratio:.1f} ×")


def not_run(measured: Measurement, parts: int = 40) -> list[float]:
    """The share of the texts that were not run through the model, in each of at most `parts` parts of the run."""
    parts = min(parts, len(measured.asked))
    computed, asked = (np.array_split(counts, parts) for counts in (measured.computed, measured.asked))
    return [1.0 - float(ran.sum()) / float(of.sum()) for ran, of in zip(computed, asked, strict=True)]


def sparkline(ratios: list[float]) -> str:
    """Ratios between 0 and 1 as a row of bars."""
    bars = "".join(BARS[min(len(BARS) - 1, max(0, int(ratio * len(BARS))))] for ratio in ratios)
    return f"{ratios[0]:.0%} {bars} {ratios[-1]:.0%}"
