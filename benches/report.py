"""Runs the benchmarks and prints ours beside each peer; `--write` puts the tables into the pages.

report.py run [--short] [--write] [-k EXPRESSION]   run all (Python's and Rust's), then report
report.py show [--write]                            report on the last run
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "target" / "benches"
PYTHON_RESULTS = RESULTS / "python.json"
CRITERION = ROOT / "target" / "criterion"
OURS = "infercache"


@dataclass(frozen=True)
class Result:
    """One benchmark of the last run."""

    group: str
    subject: str
    seconds: float  # median, of one operation
    spread: float  # interquartile range ÷ median
    wanted: dict[str, Any] | None = None
    headline: str | None = None

    @property
    def ours(self) -> bool:
        """Whether this is infercache, not a peer."""
        return self.subject.startswith(OURS)


def python_results(path: Path = PYTHON_RESULTS) -> list[Result]:
    """What pytest-benchmark wrote."""
    if not path.is_file():
        return []
    return [python_result(found) for found in json.loads(path.read_text())["benchmarks"]]


def python_result(found: dict[str, Any]) -> Result:
    """One entry of pytest-benchmark's JSON."""
    info, stats = found["extra_info"], found["stats"]
    name = found["name"].partition("[")[0].removeprefix("bench_").removeprefix("test_")
    return Result(
        group=found["group"] or found["fullname"].partition("::")[0],
        subject=name,
        seconds=stats["median"] / info.get("operations", 1),
        spread=stats["iqr"] / stats["median"] if stats["median"] else 0.0,
        wanted=info.get("wanted"),
        headline=info.get("headline"),
    )


def criterion_results(folder: Path = CRITERION) -> list[Result]:
    """What Criterion wrote: a group for each parameter, a subject for each function."""
    results = []
    for path in sorted(folder.rglob("new/benchmark.json")):
        described = json.loads(path.read_text())
        estimates = json.loads(path.with_name("estimates.json").read_text())
        elements = (described.get("throughput") or {}).get("Elements", 1)
        median = estimates["median"]["point_estimate"]
        parameter = f", {described['value_str']}" if described["value_str"] else ""
        interval = estimates["median"]["confidence_interval"]
        results.append(
            Result(
                group=f"Rust: {described['group_id']}{parameter}",
                subject=described["function_id"] or described["title"],
                seconds=median / elements / 1e9,
                spread=(interval["upper_bound"] - interval["lower_bound"]) / median,
            )
        )
    return results


def tables(results: list[Result]) -> str:
    """A Markdown table for each group."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return "\n\n".join(table(group, members) for group, members in groups.items())


def table(group: str, members: list[Result]) -> str:
    """A group: ours first, then the peers from the fastest, each with the ratio of our time to its."""
    ours = [result for result in members if result.ours]
    lines = [
        f"**{group}**",
        "",
        "| | median | spread | infercache takes | wanted |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for result in [*ours, *sorted((r for r in members if not r.ours), key=lambda r: r.seconds)]:
        name = f"**{result.subject}**" if result.ours else result.subject
        ratio = "" if result.ours or len(ours) != 1 else f"{ours[0].seconds / result.seconds:.2f} ×"
        wanted = "; ".join(verdict for one in ours if (verdict := verdict_on(one, result)))
        lines.append(f"| {name} | {duration(result.seconds)} | {result.spread:.0%} | {ratio} | {wanted} |")
    return "\n".join(lines)


def verdict_on(ours: Result, peer: Result) -> str:
    """What was wanted of `ours` beside `peer`, and whether it was reached; empty where nothing was."""
    wanted = ours.wanted
    if wanted is None or wanted["peer"] != peer.subject:
        return ""
    if wanted["at_most"] is not None:
        reached = ours.seconds <= wanted["at_most"] * peer.seconds
        return f"at most {wanted['at_most']:g} ×: {'reached' if reached else 'MISSED'}"
    more = ours.seconds - peer.seconds
    reached = more <= wanted["at_most_more"]
    verdict = "reached" if reached else "MISSED"
    return f"at most {duration(wanted['at_most_more'])} more: {duration(max(more, 0))}, {verdict}"


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
        f"{os.cpu_count()} cores. Medians; the spread is the interquartile range ÷ the median."
    )


def write(page: Path, section: str, text: str) -> None:
    """Replaces what stands between the markers of `section` on a page."""
    content = page.read_text()
    begin, end = f"<!-- {section}: begin, written by benches/report.py -->", f"<!-- {section}: end -->"
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"{page} lacks the markers {begin!r} and {end!r}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def run(*, short: bool, selected: str | None) -> None:
    """Runs Python's benchmarks and, unless some were selected, Rust's."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benches",
        "--benchmark-only",
        f"--benchmark-json={PYTHON_RESULTS}",
        "--quiet",
    ]
    # Peers may warn of what they like, and a benchmark may take longer than a test.
    command += ["-W", "default", "-o", "faulthandler_timeout=1200", "--benchmark-columns=median,iqr,rounds"]
    if selected:
        command += ["-k", selected]
    environment = {**os.environ, "INFERCACHE_BENCH_SHORT": "1" if short else "0"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    if not selected and any((ROOT / "benches" / "rust" / "benches").glob("*.rs")):
        shutil.rmtree(CRITERION, ignore_errors=True)
        quick = ["--", "--quick"] if short else []
        subprocess.run(["cargo", "bench", "--locked", "--package", "infercache-benches", *quick], check=True, cwd=ROOT)


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
    results = [*python_results(), *criterion_results()]
    print(tables(results))
    if arguments.write:
        write(ROOT / "benches" / "README.md", "results", f"{machine()}\n\n{tables(results)}")
        write(ROOT / "README.md", "numbers", f"{headlines(results)}\n\n{machine()}")


if __name__ == "__main__":
    main()
