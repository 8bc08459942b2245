"""`infercache bench`: the caller's own function or endpoint, with and without a cache."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infercache.amounts import duration
from infercache.cli import complain, source
from infercache.cli.aligned import aligned
from infercache.cli.numbers import exponent, whole
from infercache.errors import InfercacheError, InvalidArgument, shown

if TYPE_CHECKING:
    from infercache.workload.comparison import Comparison
    from infercache.workload.subjects import Subject

__all__ = ["add_parser", "run"]

_MOST = 10_000_000
#: A cache that gains less is not worth having.
_LITTLE = 0.05


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the arguments of `infercache bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="your own function or endpoint, with and without a cache",
        description="Asks a function or an endpoint the same questions with and without a cache in this process, and "
        "says what a hit, a miss and the model take, and from which hit ratio the cache pays.",
        epilog="A function is asked with one argument, the question. With --json each line of the input is a JSON "
        "value, and with --spread it holds the arguments: an object by name, an array by place. Exit status: 0, "
        "whatever it showed; 1 where the function raised.",
    )
    parser.add_argument("target", metavar="TARGET", help="MODULE:FUNCTION, or the URL of an endpoint that answers POST")
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="the questions, one a line ('-': standard input)"
    )
    parser.add_argument("--json", action="store_true", help="each line is a JSON value, and not text")
    parser.add_argument("--spread", action="store_true", help="a line holds the function's arguments (implies --json)")
    parser.add_argument(
        "--body", metavar="JSON", help="of an endpoint: the request's body, with {input} for the question"
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME: VALUE", help="of an endpoint: one more header"
    )
    parser.add_argument(
        "--header-file",
        type=Path,
        metavar="FILE",
        help="the same from a file, a line each: others can read a command line",
    )
    parser.add_argument(
        "--requests", type=partial(whole, 1, _MOST), metavar="N", help="how many (the whole file; with --zipf 1000)"
    )
    parser.add_argument(
        "--zipf", type=exponent, metavar="S",
        help="draw the questions: the k-th different one in proportion to 1/k^S (in the order of the file)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=partial(whole, 1, 86_400), default=10, metavar="N",
        help="how long it may take without the cache, and as long again with it (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout",
        type=partial(whole, 1, 86_400),
        default=60,
        metavar="N",
        help="of an endpoint, in seconds (%(default)s)",
    )
    parser.add_argument("--capacity", default="512MB", metavar="SIZE", help="what the cache may hold (%(default)s)")
    parser.add_argument(
        "--seed", type=partial(whole, 0, 2**64 - 1), default=1, metavar="N", help="of what --zipf draws"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures and reports; returns the exit status."""
    from infercache.progress import bar
    from infercache.workload.comparison import compare
    from infercache.workload.subjects import of

    questions = _questions(arguments)
    asked = _asked(questions, arguments)
    headers = [_header(text) for text in [*arguments.header, *_lines_of(arguments.header_file)]]
    subject = of(
        arguments.target, spread=arguments.spread, body=arguments.body, headers=headers, timeout=arguments.timeout
    )
    try:
        with bar("asking", 2 * len(asked), unit="calls") as tell:
            calls = count(1)
            found = compare(
                subject,
                asked,
                capacity=arguments.capacity,
                seconds=arguments.seconds,
                called=lambda: tell(next(calls)),
            )
    except InfercacheError:
        raise
    except Exception as error:  # noqa: BLE001 - the caller's own
        complain("infercache bench", f"{subject.name} raised {type(error).__name__}: {error}")
        return 1
    finally:
        subject.close()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    for line in report(found, subject, asked):
        print(line)
    return 0


def _questions(arguments: argparse.Namespace) -> list[Any]:
    lines = [line for line in source.text(arguments.input).splitlines() if line.strip()]
    if not lines:
        raise InvalidArgument(f"{arguments.input}: no question in it; one a line is expected")
    if not (arguments.json or arguments.spread):
        return list(lines)
    questions = []
    for number, line in enumerate(lines, 1):
        try:
            questions.append(json.loads(line))
        except ValueError as error:
            raise InvalidArgument(f"{arguments.input}: question {number} is not JSON: {error}") from None
        if arguments.spread and not isinstance(questions[-1], dict | list):
            raise InvalidArgument(
                f"{arguments.input}: question {number}: with --spread it is an object or an array of arguments, not "
                f"{shown(questions[-1])}"
            )
    return questions


def _asked(questions: list[Any], arguments: argparse.Namespace) -> list[Any]:
    """The questions as they are asked."""
    if arguments.zipf is None:
        return questions[: arguments.requests]
    from infercache.cli.traffic import zipf

    different = _different(questions)
    drawn = zipf(len(different), arguments.requests or 1_000, 1, arguments.zipf, arguments.seed)
    return [different[number[0]] for number in drawn]


def _different(questions: list[Any]) -> list[Any]:
    """Each question once, in the order in which they came."""
    return list({json.dumps(each, sort_keys=True): each for each in questions}.values())


def _lines_of(path: Path | None) -> list[str]:
    return [] if path is None else [line for line in source.text(path).splitlines() if line.strip()]


def _header(text: str) -> tuple[str, str]:
    name, parted, value = text.partition(":")
    if not parted or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise InvalidArgument(f"--header: {shown(name)}: give NAME: VALUE")
    return name.lower(), value.strip()


def report(found: Comparison, subject: Subject, asked: list[Any]) -> Iterator[str]:
    """What was measured, a line each."""
    import numpy as np

    calls = len(found.hits) + len(found.misses)
    different = len(_different(asked[:calls]))
    yield (
        f"{subject.name}: {len(found.without):,} calls without the cache, {calls:,} with it ({different:,} different "
        "questions)"
    )
    yield ""
    cached = np.concatenate([found.hits, found.misses])
    rows = [("", "calls", "p50", "p99", "mean", "a second")]
    for name, times in (
        ("without a cache", found.without),
        ("with it", cached),
        ("  a hit", found.hits),
        ("  a miss", found.misses),
    ):
        if len(times):
            p50, p99 = np.quantile(times, [0.50, 0.99])
            mean = float(times.mean())
            rows.append((name, f"{len(times):,}", duration(p50), duration(p99), duration(mean), f"{1 / mean:,.0f}"))
    yield from aligned(rows)
    yield ""
    yield f"hit ratio {found.hit_ratio:.1%}; a miss takes {duration(found.overhead)} more than the model alone"
    yield from _verdict(found)
    yield from _remarks(found, subject)


def _verdict(found: Comparison) -> Iterator[str]:
    """Whether the cache pays."""
    import numpy as np

    hit, even = found.hit, found.break_even
    if hit is None:
        yield "no question came twice, so there was no hit to measure: give a file that repeats, or --zipf 1"
        return
    if even is None:
        yield f"DO NOT CACHE THIS: the model takes {duration(found.model)}, a hit {duration(hit)}"
        return
    gained = found.model + found.overhead - hit
    yield (
        f"break-even hit ratio {even:.2%}: below it the cache costs more than it saves; a hit is "
        f"{found.model / hit:,.1f} × faster than the model"
    )
    before, after = float(found.without.mean()), float(np.concatenate([found.hits, found.misses]).mean())
    if found.hit_ratio <= even or gained * found.hit_ratio - found.overhead < _LITTLE * found.model:
        yield (
            f"not worth it with these questions: a call takes {duration(after)} on average, without the cache "
            f"{duration(before)}"
        )
    else:
        yield f"worth it: a call takes {duration(after)} on average, without the cache {duration(before)}"


def _remarks(found: Comparison, subject: Subject) -> Iterator[str]:
    from infercache.workload.subjects import Endpoint

    if found.uncacheable:
        yield f"{found.uncacheable:,} results could not be stored: see the warning, and docs/values.md"
    if found.repeats is False and isinstance(subject, Endpoint):
        yield "asked the same twice, the endpoint answered differently: an id or a time, or is it not to be cached?"
    elif found.repeats is False:
        yield "asked the same twice, the model gave two different answers: is it to be cached at all?"
    if isinstance(subject, Endpoint) and subject.told:
        yield (
            f"a cache on the way to the endpoint answered {subject.told_hits:,} of {subject.told:,} requests itself "
            "(Cache-Status), so 'without a cache' means without the one in this process"
        )
