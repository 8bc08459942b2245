"""Durations and sizes as people write them.

A duration is a number of seconds, a `timedelta`, or text of numbers with units, largest first: `"250ms"`, `"90s"`,
`"15m"`, `"1h30m"`, `"7d"`, `"2w"`. A size is a number of bytes or text with a unit: `"512MB"` (10⁶), `"1.5GiB"` (2³⁰).
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TypeAlias

from infercache.errors import InvalidArgument, shown

__all__ = ["Duration", "Size", "milliseconds", "positive_milliseconds", "size"]

Duration: TypeAlias = float | str | timedelta
Size: TypeAlias = int | str

_UNITS_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[wdhms])", re.ASCII)
_LONGEST_MS = 36_525 * _UNITS_MS["d"]  # a hundred years: beyond it somebody mixed up units
_LONGEST_TEXT = 64  # more digits than any duration or size has; reading them all could take long

_UNITS_BYTES = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)
_LARGEST = (1 << 63) - 1  # sys.maxsize: more is no number of bytes that any machine counts


def milliseconds(value: Duration, name: str) -> int:
    """The duration in whole milliseconds, rounded down but for what would become 0. `name` is the option's name.

    Raises:
        InvalidArgument: it is no duration, negative, not finite, or longer than a hundred years.
    """
    given: object = value  # whatever a caller without a type checker passes
    exact: float
    if isinstance(given, str):
        exact = _parse(given, name)
    elif isinstance(given, timedelta):
        exact = given / timedelta(milliseconds=1)
    elif isinstance(given, int | float) and not isinstance(given, bool):
        if isinstance(given, float) and not math.isfinite(given):
            raise InvalidArgument(f"{name}={value!r}: a duration is finite; None means no limit where that is allowed")
        exact = min(max(given, -1), _LONGEST_MS) * 1_000  # integers can be larger than any float
    else:
        raise InvalidArgument(
            f"{name}={shown(value)}: a duration is seconds, a timedelta, or text such as '90s', '15m' or '1h30m'"
        )
    if exact < 0:
        raise InvalidArgument(f"{name}={shown(value)}: a duration is not negative")
    if exact > _LONGEST_MS:
        raise InvalidArgument(
            f"{name}={shown(value)}: longer than a hundred years; numbers are seconds, and None means no limit where "
            "that is allowed"
        )
    return max(int(exact), 1 if exact > 0 else 0)


def positive_milliseconds(
    value: Duration | None, name: str, *, without: str | None = "to keep entries until evicted"
) -> int | None:
    """As `milliseconds`, for a time that is not 0, or None, which stays None.

    `without` is what the error for 0 says of None.

    Raises:
        InvalidArgument: as `milliseconds`, or it is 0, which is "never" for some caches and "at once" for others.
    """
    if value is None:
        return None
    found = milliseconds(value, name)
    if found == 0:
        advice = "" if without is None else f", or None {without}"
        raise InvalidArgument(f"{name}={shown(value)}: give a positive duration{advice}")
    return found


def _parse(text: str, name: str) -> float:
    if len(text) > _LONGEST_TEXT:
        raise InvalidArgument(f"{name}={shown(text)}: longer than any duration, such as '90s' or '1h30m'")
    parts = _PART.findall(text)
    units = [_UNITS_MS[unit] for _, unit in parts]
    # Re-assembling shows whether the pattern left anything out: signs, spaces, unknown units.
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgument(
            f"{name}={shown(text)}: write numbers with units (ms, s, m, h, d, w), such as '90s' or '1h30m'"
        )
    if units != sorted(set(units), reverse=True):
        raise InvalidArgument(f"{name}={text!r}: write each unit once, the largest first, such as '1h30m'")
    return sum(float(number) * unit for (number, _), unit in zip(parts, units, strict=True))


def size(value: Size, name: str) -> int:
    """The size in bytes. `name` is the option's name.

    Raises:
        InvalidArgument: it is no size, not positive, or more than any machine has.
    """
    given: object = value
    if isinstance(given, str):
        if len(given) > _LONGEST_TEXT:
            raise InvalidArgument(f"{name}={shown(value)}: longer than any size, such as '512MB' or '1.5GiB'")
        match = _SIZE.fullmatch(given.strip().lower())
        factor = _UNITS_BYTES.get(match[2]) if match else None
        if match is None or factor is None:
            raise InvalidArgument(
                f"{name}={shown(value)}: write a number with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, such as '512MB'"
            )
        # Whole numbers stay exact whatever their size; a fraction of a byte is cut.
        found = int(match[1]) * factor if "." not in match[1] else int(float(match[1]) * factor)
    elif isinstance(given, int) and not isinstance(given, bool):
        found = given
    else:
        raise InvalidArgument(
            f"{name}={shown(value)}: a size is a whole number of bytes, or text such as '512MB' or '1.5GiB'"
        )
    if found <= 0:
        raise InvalidArgument(f"{name}={shown(value)}: a size is positive")
    if found > _LARGEST:
        raise InvalidArgument(f"{name}={shown(value)}: more bytes than any machine counts; give at most 2**63 - 1")
    return found
