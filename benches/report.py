"""Runs the benchmarks and prints ours beside each peer; `--write` puts the tables into the pages.

report.py run [--short] [--write] [-k EXPRESSION]   run all (Python's and Rust's), then report
report.py show [--write]                            report on the last run
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "target" / "benches"
RUST_RESULTS = RESULTS / "rust-peers.json"
RUST_CELL = ("threads", "writes_percent", "holds_one_in")
RUST_RATIO = "ours_over_faster_peer"
RUST_WANTED = 0.95
OURS = "infercache"
PASSES = 5  # Python's benchmarks run so often, one after the other; ratios are taken within a pass


@dataclass(frozen=True)
class Result:
    """One benchmark of the last run."""

    group: str
    subject: str
    seconds: float  # median, of one operation; of several passes their median
    spread: float  # interquartile range ÷ median
    wanted: tuple[dict[str, Any], ...] = ()
    headline: str | None = None
    note: str = ""
    passes: tuple[float, ...] = ()  # the seconds of each pass

    @property
    def ours(self) -> bool:
        """Whether this is infercache, not a peer."""
        return self.subject.startswith(OURS)

    def times(self, peer: Result) -> float:
        """How many times the peer's time this takes: the median of the ratios within each pass.

        Thus it does not matter that a machine is fast for some minutes and slow for others.
        """
        return statistics.median(mine / its for mine, its in zip(self.passes, peer.passes, strict=True))


def python_results() -> list[Result]:
    """What pytest-benchmark wrote at each pass, merged."""
    return merged(
        [
            [python_result(found) for found in json.loads(path.read_text())["benchmarks"]]
            for path in sorted(RESULTS.glob("python-*.json"))
        ]
    )


def python_result(found: dict[str, Any]) -> Result:
    """One entry of pytest-benchmark's JSON."""
    info, stats = found["extra_info"], found["stats"]
    name = found["name"].partition("[")[0].removeprefix("bench_").removeprefix("test_")
    return Result(
        group=found["group"] or found["fullname"].partition("::")[0],
        subject=name,
        seconds=stats["median"] / info.get("operations", 1),
        spread=stats["iqr"] / stats["median"] if stats["median"] else 0.0,
        wanted=tuple(info.get("wanted", ())),
        headline=info.get("headline"),
        note=info.get("note", ""),
    )


def merged(passes: list[list[Result]]) -> list[Result]:
    """The median over the passes of each benchmark."""
    every: dict[tuple[str, str], list[Result]] = {}
    for result in (result for one in passes for result in one):
        every.setdefault((result.group, result.subject), []).append(result)
    return [
        dataclasses.replace(
            found[0],
            seconds=statistics.median(one.seconds for one in found),
            spread=statistics.median(one.spread for one in found),
            passes=tuple(one.seconds for one in found),
        )
        for found in every.values()
    ]


def rust_table(path: Path = RUST_RESULTS) -> str:
    """The core beside its peers in Rust: what benches/rust/benches/peers.rs wrote; empty where it was not run."""
    if not path.is_file():
        return ""
    rows = json.loads(path.read_text())
    peers = [name for name in rows[0] if name not in {*RUST_CELL, RUST_RATIO}]
    lines = [
        "**Rust: million look-ups and stores a second, Zipf 0.99**",
        "",
        f"| threads | writes | holds | {' | '.join(peers)} | ours ÷ the faster peer | wanted |",
        "| ---: " * (4 + len(peers)) + "| --- |",
    ]
    for row in rows:
        speeds = " | ".join(f"{row[peer]:.1f}" for peer in peers)
        verdict = f"at least {RUST_WANTED:g}: {'reached' if row[RUST_RATIO] >= RUST_WANTED else 'MISSED'}"
        share = "all" if row["holds_one_in"] == 1 else f"1/{row['holds_one_in']}"
        cell = f"| {row['threads']} | {row['writes_percent']} % | {share} "
        lines.append(f"{cell}| {speeds} | {row[RUST_RATIO]:.2f} | {verdict} |")
    return "\n".join(lines)


def tables(results: list[Result]) -> str:
    """A Markdown table for each group."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return "\n\n".join(table(group, members) for group, members in groups.items())


def table(group: str, members: list[Result]) -> str:
    """A group: ours, then the peers from the fastest, each with the ratio of our time (the first of ours) to its."""
    ours = [result for result in members if result.ours]
    lines = [
        f"**{group}**",
        "",
        "| | median | spread | infercache takes | wanted |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for result in [*ours, *sorted((r for r in members if not r.ours), key=lambda r: r.seconds)]:
        name = f"**{result.subject}**" if result.ours else result.subject
        ratio = "" if result.ours or not ours else f"{ours[0].times(result):.2f} ×"
        notes = [result.note] if result.note else []
        wanted = "; ".join([*notes, *(verdict for one in ours for verdict in verdicts(one, result))])
        lines.append(f"| {name} | {duration(result.seconds)} | {result.spread:.0%} | {ratio} | {wanted} |")
    return "\n".join(lines)


def verdicts(ours: Result, beside: Result) -> Iterator[str]:
    """What was wanted of `ours`, alone or beside the peer `beside`, and whether it was reached."""
    for wanted in ours.wanted:
        if wanted["peer"] != (None if beside is ours else beside.subject):
            continue
        if wanted["under"] is not None:
            reached, text = ours.seconds < wanted["under"], f"under {duration(wanted['under'])}"
        elif wanted["at_most"] is not None:
            reached, text = ours.times(beside) <= wanted["at_most"], f"at most {wanted['at_most']:g} ×"
        else:
            more = ours.seconds - beside.seconds
            text = f"at most {duration(wanted['at_most_more'])} more (it is {duration(max(more, 0))})"
            reached = more <= wanted["at_most_more"]
        yield f"{text}: {'reached' if reached else 'MISSED'}"


def headlines(results: list[Result]) -> str:
    """The few lines for the page that introduces the project."""
    lines = ["| | infercache | beside it |", "| --- | ---: | --- |"]
    for ours in results:
        if ours.headline is None:
            continue
        peers = sorted((r for r in results if r.group == ours.group and not r.ours), key=lambda r: r.seconds)
        beside = ", ".join(f"{peer.subject} {duration(peer.seconds)}" for peer in peers)
        lines.append(f"| {ours.headline} | {duration(ours.seconds)} | {beside} |")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds with three digits and the unit that fits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def machine() -> str:
    """What the numbers were taken on, in words."""
    rust = subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    processor = model.group(1) if model else platform.processor() or platform.machine()
    return (
        f"CPython {platform.python_version()}, rustc {rust}, {platform.system()}, {processor}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[1]:.1f} over five minutes (1 is the benchmark's own). "
        "Medians; the spread is the interquartile range ÷ the median."
    )


def write(page: Path, section: str, text: str, by: str = "report.py") -> None:
    """Replaces what stands between the markers of `section`, which name the program that writes it, on a page."""
    content = page.read_text()
    begin, end = f"<!-- {section}: begin, written by benches/{by} -->", f"<!-- {section}: end -->"
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"{page} lacks the markers {begin!r} and {end!r}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def run(*, short: bool, selected: str | None) -> None:
    """Runs Python's benchmarks and, unless some were selected, Rust's."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for old in RESULTS.glob("*.json"):
        old.unlink()
    environment = {**os.environ, "INFERCACHE_BENCH_SHORT": "1" if short else "0"}
    for number in range(1 if short else PASSES):
        command = [sys.executable, "-m", "pytest", "benches", "--quiet", "--benchmark-only", "--benchmark-disable-gc"]
        command += [f"--benchmark-json={RESULTS / f'python-{number}.json'}", "--benchmark-columns=median,iqr,rounds"]
        # Peers may warn of what they like, and a benchmark may take longer than a test.
        command += ["-W", "default", "-o", "faulthandler_timeout=1200"]
        if selected:
            command += ["-k", selected]
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
    if not selected:
        command = ["cargo", "bench", "--locked", "--package", "infercache-benches", "--bench", "peers", "--"]
        command += ["--json", str(RUST_RESULTS), *(["--short"] if short else [])]
        subprocess.run(command, check=True, cwd=ROOT)


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description="Runs the benchmarks and prints infercache beside its peers.")
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--short", action="store_true", help="fewer rounds: coarse numbers in a few minutes")
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    parser.add_argument("-k", dest="selected", metavar="EXPRESSION", help="only Python's benchmarks that match")
    arguments = parser.parse_args()
    if arguments.write and (arguments.short or arguments.selected):
        parser.error("--write takes a whole run: neither --short nor -k")
    if arguments.what == "run":
        run(short=arguments.short, selected=arguments.selected)
    results = python_results()
    report = "\n\n".join(part for part in (tables(results), rust_table()) if part)
    print(report)
    if arguments.write:
        write(ROOT / "benches" / "README.md", "results", f"{machine()}\n\n{report}")
        write(ROOT / "README.md", "numbers", f"{headlines(results)}\n\n{machine()}")


if __name__ == "__main__":
    main()
