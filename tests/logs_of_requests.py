"""Logs of requests for the tests of the simulator: drawn with a seed, written in the formats that it reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Asked:
    """One request."""

    time: float
    model: str
    key: str
    bytes: int
    cost: float


MODELS = {"embed": (1536, 0.005), "rank": (400, 0.02), "chat": (3000, 2.0)}


def drawn(count: int, *, keys: int = 400, seed: int = 1, seconds: float = 3_600.0) -> list[Asked]:
    """Requests to three models, popular keys among them, in the order of their times (whole milliseconds)."""
    draw = np.random.default_rng(seed)
    times = np.sort(draw.integers(0, round(seconds * 1_000), count)) / 1_000
    weights = 1.0 / np.arange(1, keys + 1) ** 0.9
    numbers = draw.choice(keys, count, p=weights / weights.sum())
    names = list(MODELS)
    found = []
    for time, number in zip(times.tolist(), numbers.tolist(), strict=True):
        model = names[number % len(names)]
        size, cost = MODELS[model]
        found.append(Asked(time, model, f"q{number}", size + number % 7 * 16, cost * (1 + number % 3)))
    return found


def json_lines(path: Path, requests: list[Asked], **renamed: str) -> Path:
    """Writes them as JSON Lines; `renamed`: other names of members."""
    lines = ({renamed.get(name, name): value for name, value in asdict(each).items()} for each in requests)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def table(path: Path, requests: list[Asked], delimiter: str = ",") -> Path:
    """Writes them with named columns."""
    rows = [list(asdict(requests[0])), *(list(map(str, asdict(each).values())) for each in requests)]
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    return path
