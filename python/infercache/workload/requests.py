"""Requests as they stand in a log, many at a time; what could not be read; whose they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from infercache.errors import InvalidArgument

__all__ = ["Batch", "Group", "Groups", "LeftOut", "key_bytes", "numbers"]

#: Models and workloads that are told apart; what comes after belongs to "(other)". Names come from the log, where a
#: mistaken member may have a different one in each line.
MOST_GROUPS = 1_000
#: No single answer is larger, nor takes longer: whoever logs more has mixed up units.
LARGEST_BYTES = 1 << 40
LONGEST_COST = 1e6


@dataclass(frozen=True, slots=True)
class Group:
    """Whose requests these are."""

    workload: str
    model: str


class Groups:
    """Numbers pairs of workload and model in the order in which they come."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, workload: str, model: str) -> int:
        """The number of a pair; the last one stands for what is too many."""
        pair = (workload, model)
        known = self._numbers.get(pair)
        if known is None:
            if len(self._numbers) >= MOST_GROUPS - 1:
                return self._numbers.setdefault(("(other)", "(other)"), len(self._numbers))
            known = self._numbers[pair] = len(self._numbers)
        return known

    def listed(self) -> list[Group]:
        """All, by number."""
        return [Group(*pair) for pair in self._numbers]


@dataclass(slots=True)
class Batch:
    """Requests in the order of the log, one an element of each array.

    Attributes:
        keys: (n, 32), uint8: equal for equal questions.
        groups: (n,), uint16: numbers of `Groups`.
        times: (n,), float64: seconds since some moment; None: the log has no times.
        sizes: (n,), float64: bytes of the answers; nan: the line does not say.
        costs: (n,), float64: seconds that the model takes; nan: the line does not say.
    """

    keys: npt.NDArray[np.uint8]
    groups: npt.NDArray[np.uint16]
    times: npt.NDArray[np.float64] | None
    sizes: npt.NDArray[np.float64]
    costs: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True)
class LeftOut:
    """Lines that are no requests: how many for which reason, and the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, line: int, why: str) -> None:
        """Notes one line of a log."""
        if why not in self.counts and len(self.counts) >= 20:
            why = "for another reason"
        self.counts[why] = self.counts.get(why, 0) + 1
        self.first.setdefault(why, f"{where}:{line}")

    def __len__(self) -> int:
        return sum(self.counts.values())

    def listed(self) -> list[str]:
        """A line for each reason, the most frequent first."""
        return [
            f"{count:,} × {why} (first at {self.first[why]})"
            for why, count in sorted(self.counts.items(), key=lambda pair: -pair[1])
        ]


def key_bytes(values: list[object], models: list[str], versions: list[str]) -> list[bytes | str]:
    """32 bytes for each question, equal for equal questions to the same model and version; text: why it has none.

    The text form of a key (`ic1:…`) stands for that key.
    """
    from infercache._core import Key, key
    from infercache.errors import UnsupportedInput

    found: list[bytes | str] = []
    for value, model, version in zip(values, models, versions, strict=True):
        try:
            if type(value) is str and value.startswith("ic1:"):
                found.append(bytes(Key(value)))
            else:
                found.append(bytes(key(value, model=model or "-", version=version or "-", operation="log")))
        except (UnsupportedInput, InvalidArgument) as error:
            found.append(str(error).partition("\n")[0])
    return found


def numbers(values: list[object], scale: float, most: float) -> npt.NDArray[np.float64] | None:
    """Numbers of a column, times `scale`; None and "" are nan. None in place of the array: some are no numbers,
    negative, not finite, or above `most`.
    """
    try:
        found = np.array([np.nan if value is None or value == "" else value for value in values], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    found *= scale
    there = found[~np.isnan(found)]
    if there.size and not (there.min() >= 0 and there.max() <= most):
        return None
    return found
