"""Requests to several models at once, as popular as real traces are: what eviction is compared on.

The models differ a thousandfold in cost and a hundredfold in size. Each has a stream of requests of its own, of one of
the traces of the shared material, and the streams are interleaved evenly over the whole time.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["DISTURBANCES", "MODELS", "SIZES", "Model", "Workload", "equal", "mixture", "mixtures", "traces"]

Numbers = npt.NDArray[np.int64]

#: Capacities that are tried, in percent of what an answer to each different question takes.
SIZES = (1, 10, 25)


class Model(NamedTuple):
    """What an answer takes: seconds of the model, and bytes."""

    seconds: float
    bytes: int


MODELS = {
    "embedding": Model(0.005, 1536),
    "ranking": Model(0.020, 400),
    "image": Model(0.004, 40),
    "chat": Model(2.0, 3072),
}
#: In this order each of the four mixtures gives each model another trace.
POPULAR = ("web07", "web12", "mooncake", "excite")

#: What comes on top of the plain mixture.
DISTURBANCES = {
    "plain": "nothing else",
    "scan": "60,000 texts are embedded once, 1,011 images asked for in a loop 500 times, 3,000 prompts tried once",
    "retries": "one request in fifty is repeated 3 to 12 times among the next sixty",
    "shift": "at half time other answers of the same model are the popular ones",
    "one-hit wonders": "as many requests again, each for something new",
}


class Workload(NamedTuple):
    """Requests, and what the answers to them take."""

    name: str
    asked: Numbers
    """(n,): the number of what is asked for, request by request."""
    bytes: Numbers
    """(k,): of each answer."""
    seconds: npt.NDArray[np.float64]
    """(k,): what the model takes for it."""


def _numbered(asked: Iterable[object]) -> Numbers:
    """What is asked for as integers in the order of first use."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(one, len(known)) for one in asked], dtype=np.int64)


def traces(shared: Path) -> dict[str, Numbers]:
    """The traces by name, each as integers in the order of first use."""
    folder = shared / "data" / "traces"
    found: dict[str, Numbers] = {}
    for name in ("web07", "web12"):
        with lzma.open(folder / f"cache2k_{name}.trace.xz") as file:
            found[name] = _numbered(np.frombuffer(file.read(), "<i4").tolist())
    with gzip.open(folder / "lirs_loop.trace.gz", "rt") as file:
        found["loop"] = _numbered(file.read().split())
    with (folder / "mooncake_synthetic_trace.jsonl").open() as file:
        found["mooncake"] = _numbered(block for line in file for block in json.loads(line)["hash_ids"])
    with (shared / "data" / "queries" / "excite-small.log").open(errors="replace") as file:
        queries = (line.rstrip("\n").split("\t")[-1].strip().lower() for line in file)
        found["excite"] = _numbered(query for query in queries if query)
    return found


def equal(name: str, asked: Numbers) -> Workload:
    """A trace alone, all of whose answers take the same."""
    different = int(asked.max()) + 1
    return Workload(name, asked, np.full(different, 1000), np.full(different, 0.01))


class _Streams:
    """Streams of requests with keys of their own, on the time from 0 to 1."""

    def __init__(self, draw: np.random.Generator) -> None:
        self._draw = draw
        self._times: list[npt.NDArray[np.float64]] = []
        self._asked: list[Numbers] = []
        self._models: list[tuple[Model, int]] = []
        self.different = 0

    def add(self, model: Model, asked: Numbers, begin: float = 0.0, end: float = 1.0) -> None:
        count, different = len(asked), int(asked.max()) + 1
        self._times.append(begin + (end - begin) * (np.arange(count) + self._draw.random(count)) / count)
        self._asked.append(asked + self.different)
        self._models.append((model, different))
        self.different += different

    def ranges(self) -> Iterator[slice]:
        """The keys of each stream."""
        start = 0
        for _, different in self._models:
            yield slice(start, start + different)
            start += different

    def finish(self, name: str) -> Workload:
        order = np.argsort(np.concatenate(self._times), kind="stable")
        sizes = np.concatenate([np.full(different, model.bytes) for model, different in self._models])
        seconds = np.concatenate([np.full(different, model.seconds) for model, different in self._models])
        return Workload(name, np.concatenate(self._asked)[order], sizes, seconds)


def mixture(found: dict[str, Numbers], number: int, disturbance: str, models: dict[str, Model] = MODELS) -> Workload:
    """One of the four mixtures, disturbed.

    Args:
        found: the traces.
        number: 0 to 3: which trace each model's requests are of.
        disturbance: a key of `DISTURBANCES`.
        models: what their answers take.
    """
    draw = np.random.default_rng(10 * number + 1)
    own = {name: POPULAR[(number + place) % len(POPULAR)] for place, name in enumerate(models)}
    streams = _Streams(draw)
    for name, trace in own.items():
        streams.add(models[name], found[trace])
    if disturbance == "scan":
        streams.add(models["embedding"], np.arange(60_000), 0.3, 0.6)
        streams.add(models["image"], found["loop"], 0.5, 0.9)
        streams.add(models["chat"], np.arange(3_000), 0.4, 0.5)
    if disturbance == "one-hit wonders":
        for name, trace in own.items():
            streams.add(models[name], np.arange(len(found[trace])))
    whole = streams.finish(f"chat as {own['chat']}, {disturbance}")
    if disturbance == "retries":
        return whole._replace(asked=_retried(whole.asked, draw))
    if disturbance == "shift":
        others = np.arange(streams.different)
        for keys in streams.ranges():
            draw.shuffle(others[keys])
        half = len(whole.asked) // 2
        return whole._replace(asked=np.concatenate([whole.asked[:half], others[whole.asked[half:]]]))
    return whole


def _retried(asked: Numbers, draw: np.random.Generator) -> Numbers:
    first = np.flatnonzero(draw.random(len(asked)) < 0.02)
    times = draw.integers(3, 13, len(first))
    later = np.repeat(first, times) + 1 + 60 * draw.random(times.sum())
    order = np.argsort(np.concatenate([np.arange(len(asked)), later]), kind="stable")
    return np.concatenate([asked, np.repeat(asked[first], times)])[order]


def mixtures(found: dict[str, Numbers]) -> Iterator[Workload]:
    """All four, with each disturbance."""
    for number in range(len(POPULAR)):
        for disturbance in DISTURBANCES:
            yield mixture(found, number, disturbance)
