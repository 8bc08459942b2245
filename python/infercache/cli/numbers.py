"""Numbers from the command line."""

from __future__ import annotations

import argparse

__all__ = ["exponent", "whole"]


def whole(least: int, most: int, text: str) -> int:
    """A whole number from the command line."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not between {least} and {most:,}")
    return value


def exponent(text: str) -> float:
    """An exponent of Zipf's law, from the command line."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number") from None
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 (all alike) and 10")
    return value
