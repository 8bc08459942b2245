"""`infercache simulate`: what a cache would have done with a log of requests."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infercache.durations import positive_milliseconds
from infercache.durations import size as size_of
from infercache.errors import InvalidArgument, shown

if TYPE_CHECKING:
    from infercache.workload.simulation import Bars, Options, Simulation

__all__ = ["add_parser", "run"]

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?(?:e-?\d+)?)\s*([a-zµ]*)")
_LEAST_SIZE = 64 << 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the arguments of `infercache simulate`."""
    from infercache.workload.formats import FORMATS

    parser = subparsers.add_parser(
        "simulate",
        help="what a cache would have done with a log of requests",
        description="Replays a log of requests through caches of several sizes and lives, and says what each would "
        "have answered and saved. What serves is what replays: the cache's own code, on the log's clock.",
        epilog="docs/simulate.md explains formats, method, how sure the figures are, and what they cannot tell.",
    )
    parser.add_argument("logs", nargs="+", metavar="LOG", help="a file, gzip and xz too; '-': standard input")
    given = parser.add_argument_group("the log")
    given.add_argument(
        "--format", choices=FORMATS, metavar="F", help=f"in place of what it begins as: {', '.join(FORMATS)}"
    )
    given.add_argument(
        "--field", action="append", default=[], metavar="FIELD=NAME",
        help="where a field stands (time, model, version, workload, key, input, bytes, cost), such as key=prompt_hash; "
        "of times with their unit: cost=latency:ms",
    )  # fmt: skip
    given.add_argument(
        "--bytes",
        action="append",
        default=[],
        metavar="[MODEL=]SIZE",
        help="of an answer, for lines that do not say (1536)",
    )
    given.add_argument(
        "--cost", action="append", default=[], metavar="[MODEL=]TIME",
        help="what a run of the model takes, such as 20ms, for lines that do not say",
    )  # fmt: skip
    pace = given.add_mutually_exclusive_group()
    pace.add_argument("--requests-per-second", metavar="N", help="for a log without times")
    pace.add_argument(
        "--arrivals", metavar="FILE", help="the same: a file with the times of arrivals, such as Azure's traces"
    )
    tried = parser.add_argument_group("what is tried")
    tried.add_argument(
        "--size", action="append", default=[], metavar="SIZE,…",
        help="capacities: 64MB, or percent of what all different answers take: 10%% (1, 2, 5, 10, 20, 50 and 100 %%)",
    )  # fmt: skip
    tried.add_argument(
        "--ttl", action="append", default=[], metavar="TTL,…",
        help="lives of entries: 10m, 1h30m, none (none, and some that the log is long enough for)",
    )  # fmt: skip
    tried.add_argument(
        "--eviction", action="append", default=[], metavar="NAME,…",
        help="what decides which entry has to go, as Cache(eviction=) names it: s3-fifo, cost (s3-fifo)",
    )  # fmt: skip
    tried.add_argument("--hit-time", metavar="TIME", help="what a hit takes (1.2us; of a gateway's log 100us)")
    tried.add_argument(
        "--price", metavar="P", help="of an hour of the GPU that the model runs on, in whatever currency"
    )
    tried.add_argument(
        "--sample", metavar="RATE", default="auto",
        help="the part of the keys to try with, such as 0.01; 1: all (auto: all, or as many as can be tried quickly)",
    )  # fmt: skip
    tried.add_argument("--seed", default="1", metavar="N", help="of the sample and of the caches (%(default)s)")
    out = parser.add_argument_group("what is written")
    out.add_argument(
        "--json", type=Path, metavar="FILE", help="everything, as JSON; '-': to standard output, and nothing else"
    )
    out.add_argument("--html", type=Path, metavar="FILE", help="a page with plots, in one file")
    out.add_argument("--png", type=Path, metavar="DIR", help="the plots, as images (needs the extra 'workload')")
    out.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Simulates and reports; returns the exit status."""
    options = options_of(arguments)
    from infercache.workload.simulation import simulate

    if arguments.png is not None:
        from infercache.workload.plots import check

        check()

    simulation = simulate(arguments.logs, options, bar=_bars(quiet=arguments.quiet))
    if str(arguments.json) != "-":
        from infercache.workload.report import Style, lines

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without bars is no reason to fail
        for line in lines(simulation, Style(_is_coloured())):
            print(line)
    _write(simulation, arguments)
    return 0


def _write(simulation: Simulation, arguments: argparse.Namespace) -> None:
    """The files that were asked for."""
    if arguments.json is not None:
        from infercache.workload.document import document

        text = json.dumps(document(simulation), indent=1, allow_nan=False) + "\n"
        if str(arguments.json) == "-":
            sys.stdout.write(text)
        else:
            _keep(arguments.json, text)
    if arguments.html is not None:
        from infercache.workload.page import page

        _keep(arguments.html, page(simulation))
    if arguments.png is not None:
        from infercache.workload.plots import save

        save(simulation, arguments.png)


def _keep(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror or error}") from None


def options_of(arguments: argparse.Namespace) -> Options:
    """The options of the command line.

    Raises:
        InvalidArgument: one of them is wrong.
    """
    from infercache.workload.fields import parse
    from infercache.workload.log import Defaults
    from infercache.workload.simulation import Options

    pace = arguments.requests_per_second
    rate = (
        None
        if arguments.sample == "auto"
        else _number(arguments.sample, "--sample", 1.0, "auto, or a part such as 0.01")
    )
    return Options(
        format=arguments.format,
        fields=parse(arguments.field),
        sizes=[_capacity(text) for text in _listed(arguments.size)],
        ttls=[_life(text) for text in _listed(arguments.ttl)],
        evictions=_listed(arguments.eviction),
        defaults=Defaults(
            _by_model(arguments.bytes, lambda text: float(size_of(text, "--bytes"))),
            _by_model(arguments.cost, lambda text: _time(text, "--cost")),
        ),
        hit_seconds=None if arguments.hit_time is None else _time(arguments.hit_time, "--hit-time"),
        price=None if arguments.price is None else _number(arguments.price, "--price", 1e9, "a price, such as 2.50"),
        rate=rate,
        seed=_seed(arguments.seed),
        requests_per_second=None
        if pace is None
        else _number(pace, "--requests-per-second", 1e9, "a number, such as 100"),
        arrivals=arguments.arrivals,
    )


def _listed(texts: list[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _capacity(text: str) -> int | float:
    """Bytes, or percent (a float)."""
    if not text.endswith("%"):
        found = size_of(text, "--size")
        if found < _LEAST_SIZE:
            raise InvalidArgument(f"--size {text}: a cache has at least {_LEAST_SIZE} bytes")
        return found
    return _number(text.removesuffix("%"), "--size", 1e6, "percent, such as 10%")


def _life(text: str) -> float | None:
    if text in ("none", "never"):
        return None
    found = positive_milliseconds(text, "--ttl")
    return None if found is None else found / 1_000


def _by_model(texts: list[str], read: Callable[[str], float]) -> dict[str, float]:
    found = {}
    for text in texts:
        model, parted, amount = text.rpartition("=")
        found[model if parted else ""] = read(amount)
    return found


def _time(text: str, option: str) -> float:
    """Seconds of a time that may be shorter than what lives are counted in."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or (match[2] and match[2] not in _SECONDS):
        raise InvalidArgument(f"{option} {shown(text)}: give a time such as 20ms, 1.5s or 2us")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def _number(text: str, option: str, most: float, advice: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found <= most:
        raise InvalidArgument(f"{option} {shown(text)}: give {advice}, above 0 and at most {most:g}")
    return found


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d{1,19}", text):
        raise InvalidArgument(f"--seed {shown(text)}: give a whole number")
    return int(text)


def _is_coloured() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _bars(*, quiet: bool) -> Bars:
    """Progress bars on standard error."""
    from infercache.progress import bar

    return lambda label, total, unit: bar(label, total, unit=unit, wanted=not quiet)
