"""Amounts for a person: three digits and the unit that fits."""

from __future__ import annotations

__all__ = ["duration", "life", "size", "three_digits"]

_LONG = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))
_SHORT = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def duration(seconds: float, *, longest: str = "s") -> str:
    """Seconds as text; `longest`: the largest unit, "s" or "d"."""
    units = _SHORT if longest == "s" else (*_LONG, *_SHORT)
    for scale, unit in units:
        if seconds >= 0.9995 * scale:  # 999.6 µs are 1.00 ms
            return f"{three_digits(seconds / scale)} {unit}"
    return "under 1 ns" if seconds > 0 else "0 s"


def life(seconds: float | None) -> str:
    """A time to live as an option says it: `1h30m`; None: until evicted."""
    if seconds is None:
        return "until evicted"
    parts, left = [], round(seconds * 1_000)
    for unit, scale in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, left = divmod(left, scale)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def size(count: float) -> str:
    """Bytes for a person, in decimal units, as `capacity` takes them."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * scale:
            return f"{three_digits(count / scale)} {unit}"
    return f"{count:.0f} B"


def three_digits(value: float) -> str:
    """A number of at least three significant digits, no exponent."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
