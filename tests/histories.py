"""Many processes read through a cache, compute from a source that moves on, and purge, while faults happen to them.

    with Proxy(server.address) as proxy:
        events = run_history(make_cache, seconds=60, processes=4, faults=ALL, seed=1, rig=Rig(server, proxy),
                             url=proxy.url, max_staleness=2.0)
    assert_coherent(events, max_staleness=2.0, least_tested=1000)

`make_cache(url)` is a function or class at the top of its file; what it returns has `memoize`, `get(key, min_token=…)`
and `invalidate(tags=…)`, as `infercache.Cache` has. The source is a file that every process maps.
"""

from __future__ import annotations

import inspect
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import Fault, Faults, Rig, schedule
from historian import Source, historian
from history import Event, load
from processes import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Team:
    """The processes of a history; a killed one is replaced by one of another name, which knows nothing of it."""

    def __init__(self, count: int, start: Callable[[str, int], Worker]) -> None:
        self._start = start
        self._born = count
        self._lock = threading.Lock()
        self.workers = [start(f"process {number}", number) for number in range(count)]
        self.runs = [worker.ready().begin("run") for worker in self.workers]

    def pause(self, whom: int) -> None:
        self.workers[whom % len(self.workers)].pause()

    def resume(self, whom: int) -> None:
        self.workers[whom % len(self.workers)].resume()

    def kill(self, whom: int) -> None:
        self.workers[whom % len(self.workers)].kill()

    def replace(self, whom: int) -> None:
        place = whom % len(self.workers)
        self.workers[place].close()
        with self._lock:
            number, self._born = self._born, self._born + 1
        self.workers[place] = self._start(f"process {number}", number).ready()
        self.runs[place] = self.workers[place].begin("run")

    def stop(self) -> None:
        """Ends every loop and waits for it; raises what one of them raised."""
        for worker in self.workers:
            worker.call("stop")
        for run in self.runs:
            run.result()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def run_history(
    cache_factory: Callable[..., Any],
    seconds: float,
    processes: int,
    faults: Iterable[str] | list[Fault],
    seed: int,
    *,
    rig: Rig | None = None,
    max_staleness: float,
    keys: int = 6,
    threads: int = 3,
    pace: float = 0.005,
    purging: float = 0.03,
    share_tokens: bool = True,
    wall_clocks: Iterable[float] = (),
    ways: Iterable[str] = ("calls",),
    **arguments: Any,
) -> list[Event]:
    """Records what processes read while faults happen, for `history.assert_coherent`.

    Args:
        cache_factory: A function or class at the top of its file that makes a process's cache of `arguments`.
        seconds: How long; the faults end early enough to see the cache recover.
        processes: How many at once.
        faults: Their kinds (`faults.ALL`), from which a schedule is drawn, or a schedule.
        seed: Of faults and processes. What a run does depends on time too: the same seed makes it alike, not equal.
        rig: What the faults of server and network happen to.
        max_staleness: Seconds; how long models take is set by it.
        keys: How many there are, the first one the most asked for.
        threads: Of each process.
        pace: Seconds that a thread rests between two operations, on average.
        purging: The part of operations that are purges, of 0.15 at most.
        share_tokens: Whether processes read with each other's tokens, where these are valid.
        wall_clocks: How wrong the wall clock of each process is, in seconds (`Worker`); in turn.
        ways: How the threads of a process read, in turn: "calls" of a memoized function, a "batch" function, "many"
            keys at once, "tasks" of an event loop.
        arguments: The factory's, JSON.

    Returns:
        The events of all processes and faults.
    """
    ending = min(2 * max_staleness, seconds / 3)
    given = list(faults)
    plan = [f for f in given if isinstance(f, Fault)] or schedule(seed, seconds - ending, [str(kind) for kind in given])
    settings = {
        "keys": keys,
        "threads": threads,
        "pace": pace,
        "purging": purging,
        "share_tokens": share_tokens,
        "max_staleness": max_staleness,
        "ways": list(ways),
    }
    with tempfile.TemporaryDirectory(prefix="ic-history-") as text:
        folder = Path(text)
        (folder / "tokens").touch()
        Source(folder / "source", keys)
        team = Team(processes, _starter(cache_factory, arguments, folder, seed, settings, list(wall_clocks)))
        try:
            begun = time.monotonic()
            happening = Faults(plan, rig, team, folder / "faults.log")
            happening.join()
            time.sleep(max(ending, begun + seconds - time.monotonic()))
            team.stop()
        finally:
            team.close()
        return load(sorted(folder.glob("*.log")))


def _starter(
    cache_factory: Callable[..., Any],
    arguments: dict[str, Any],
    folder: Path,
    seed: int,
    settings: dict[str, Any],
    clocks: list[float],
) -> Callable[[str, int], Worker]:
    """Starts a process of the history, given its name and number."""
    factory = [inspect.getfile(cache_factory), cache_factory.__name__]

    def start(name: str, number: int) -> Worker:
        clock = clocks[number % len(clocks)] if clocks else 0.0
        order = [name, factory, arguments, str(folder), seed * 1000 + number, settings]
        return Worker(historian, *order, wall_clock=clock)

    return start
