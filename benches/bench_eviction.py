"""How much model time each eviction policy saves, and its hit ratio: ours, libcachesim's, a reference that knows cost.

`make bench-eviction` runs it and writes the tables of benches/eviction.md. It is a program of its own: nothing is
timed, and every number comes out the same each time. Without libcachesim its policies are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from mixtures import DISTURBANCES, SIZES, Workload, equal, mixture, mixtures, traces
from policies import PEERS, Outcome, capacity, gdsf_of_cost, ours, theirs
from report import write

ROOT = Path(__file__).resolve().parent.parent
REFERENCE, COST, S3FIFO, SHARDS = "GDSF of cost", "ours, cost", "ours, S3-FIFO", "ours, cost, shards"
#: What ours is to reach beside the reference, and how many points of hits it may lose to S3-FIFO where costs are equal.
OF_REFERENCE, HITS_LOST = 0.99, 0.5

Row = tuple[str, int, dict[str, Outcome]]


def peers() -> list[str]:
    """The policies of libcachesim, if it is here."""
    return list(PEERS) if importlib.util.find_spec("libcachesim") else []


def outcomes(workload: Workload, percent: int) -> dict[str, Outcome]:
    """What each policy comes to with a cache of so many percent of all different answers."""
    size = capacity(workload, percent)
    found = {name: theirs(workload, size, name) for name in peers()}
    found[REFERENCE] = gdsf_of_cost(workload, size)
    found[S3FIFO] = ours(workload, size, "s3-fifo")
    found[COST] = ours(workload, size, "cost")
    found[SHARDS] = ours(workload, size, "cost", shards=None)
    return found


def rows(workloads: Iterable[Workload]) -> list[Row]:
    """Each workload with each size."""
    found = []
    for workload in workloads:
        for percent in SIZES:
            found.append((workload.name, percent, outcomes(workload, percent)))
            shown = {name: round(outcome.saved, 2) for name, outcome in found[-1][2].items()}
            print(f"{workload.name}, {percent} %: {shown}", flush=True)
    return found


def table(found: list[Row], what: str) -> str:
    """A line for each workload and size; `what`: "saved" or "hits"."""
    names = list(found[0][2])
    lines = [f"| | cache | {' | '.join(names)} |", f"| --- | ---: {'| ---: ' * len(names)}|"]
    for workload, percent, outcome in found:
        best = max(getattr(outcome[name], what) for name in names if name != SHARDS)
        cells = [getattr(outcome[name], what) for name in names]
        shown = [f"**{cell:.2f}**" if cell == best else f"{cell:.2f}" for cell in cells]
        lines.append(f"| {workload} | {percent} % | {' | '.join(shown)} |")
    return "\n".join(lines)


def verdicts(mixed: list[Row], same: list[Row]) -> str:
    """What was wanted, and where it was missed."""
    lines = []
    for column in (COST, SHARDS):
        lost, short = [], []
        for workload, percent, outcome in mixed:
            found = outcome[column].saved
            name, best = max(((one, outcome[one].saved) for one in [*peers(), S3FIFO]), key=lambda pair: pair[1])
            if found <= best:
                lost.append(f"{workload}, {percent} % ({found:.2f}, {name} {best:.2f})")
            if found < OF_REFERENCE * outcome[REFERENCE].saved:
                short.append(f"{workload}, {percent} % ({found / outcome[REFERENCE].saved:.3f})")
        ratios = [outcome[column].saved / outcome[REFERENCE].saved for *_, outcome in mixed]
        lines += [
            (
                f"- **{column}**: saves more model time than every policy beside it in {len(mixed) - len(lost)} of "
                f"{len(mixed)} cells{': MISSED in ' if lost else ''}{'; '.join(lost)}."
            ),
            (
                f"- At least {OF_REFERENCE:g} of the reference in {len(mixed) - len(short)} of {len(mixed)}, "
                f"{sum(ratios) / len(ratios):.3f} of it on the average"
                f"{': MISSED in ' if short else ''}{'; '.join(short)}."
            ),
        ]
    beside = "S3-FIFO" if peers() else S3FIFO
    points, where = min(
        (outcome[COST].hits - outcome[beside].hits, f"{name}, {percent} %") for name, percent, outcome in same
    )
    verdict = "reached" if points >= -HITS_LOST else "MISSED"
    lines.append(
        f"- Where costs are equal {points:+.2f} points of hits beside {beside}, at the least ({where}): {verdict}."
    )
    return "\n".join(lines)


def report(shared: Path, *, short: bool) -> str:
    """The tables, and what they say of what was wanted."""
    found = traces(shared)
    mixed = rows([mixture(found, 1, name) for name in DISTURBANCES] if short else mixtures(found))
    same = rows(equal(name, trace) for name, trace in found.items())
    return "\n\n".join(
        [
            verdicts(mixed, same),
            "Model time saved, in percent:",
            table(mixed, "saved"),
            "Hit ratio of each trace alone, all of whose answers cost and weigh the same, in percent:",
            table(same, "hits"),
        ]
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into benches/eviction.md")
    parser.add_argument("--short", action="store_true", help="one mixture of the four")
    options = parser.parse_args()
    shared = Path(os.environ.get("INFERCACHE_SHARED") or ROOT.parent / "shared")
    if not shared.is_dir():
        parser.error(f"the traces are not here: no folder {shared} (INFERCACHE_SHARED names another)")
    text = report(shared, short=options.short)
    print(text)
    if options.write:
        write(ROOT / "benches/eviction.md", "eviction", text, by="bench_eviction.py")


if __name__ == "__main__":
    main()
