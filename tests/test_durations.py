"""Durations and sizes as people write them."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache import Cache, InvalidArgument, RedisTier
from infercache.durations import milliseconds, positive_milliseconds, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 90_000),
        ("15m", 900_000),
        ("1h30m", 5_400_000),
        ("7d", 604_800_000),
        ("250ms", 250),
        ("2w", 1_209_600_000),
        ("1.5h", 5_400_000),
        ("1m500ms", 60_500),
        ("0s", 0),
        (2, 2_000),
        (0.25, 250),
        (0.0001, 1),
        (timedelta(minutes=1, milliseconds=7), 60_007),
        (timedelta(microseconds=1), 1),
    ],
    ids=repr,
)
def test_a_duration_is_read(text: Any, expected: int) -> None:
    assert milliseconds(text, "ttl") == expected


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "90",
        "s",
        "-5s",
        "1h 30m",
        "30m1h",
        "1h1h",
        "1y",
        "1e3s",
        "٣s",
        "1.s",
        -1,
        -0.5,
        True,
        None,
        [],
        b"90s",
        float("nan"),
        float("inf"),
        timedelta(seconds=-1),
        10**12,
        "99999999999d",
        timedelta.max,
    ],
    ids=repr,
)
def test_what_is_no_duration_is_refused_with_the_options_name(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_staleness="):
        milliseconds(wrong, "max_staleness")


@given(st.integers(0, 500), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_every_way_to_write_a_duration_means_the_same(d: int, h: int, m: int, s: int, ms: int) -> None:
    exact = timedelta(days=d, hours=h, minutes=m, seconds=s, milliseconds=ms)
    assert (
        milliseconds(f"{d}d{h}h{m}m{s}s{ms}ms", "ttl")
        == milliseconds(exact, "ttl")
        == exact // timedelta(milliseconds=1)
    )


def test_a_time_to_live_of_zero_is_refused_and_none_is_for_ever() -> None:
    assert positive_milliseconds(None, "ttl") is None
    assert positive_milliseconds("1ms", "ttl") == 1
    for zero in (0, 0.0, "0s", timedelta()):
        with pytest.raises(InvalidArgument, match=r"positive duration, or None to keep entries until evicted$"):
            positive_milliseconds(zero, "ttl")


def test_a_duration_of_zero_is_refused_with_what_none_means_for_the_option() -> None:
    for lease in ("0s", 0):
        expected = rf"^lease={lease!r}: give a positive duration, or None for no leases$"
        with pytest.raises(InvalidArgument, match=expected):
            Cache("1MB", lease=lease)
    with pytest.raises(InvalidArgument, match=r"on_partition: 'tagged' entries can .* \(tagged='0s': .* duration\)$"):
        Cache("1MB", on_partition={"tagged": "0s"})
    with pytest.raises(InvalidArgument, match=r"^timeout='0s': give a positive duration$"):
        RedisTier("redis://192.0.2.1", timeout="0s")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1, 1),
        ("1", 1),
        ("512MB", 512_000_000),
        ("1.5GiB", 3 << 29),
        ("64 KiB", 65_536),
        ("10kb", 10_000),
        ("2TB", 2 * 10**12),
        ("1TiB", 1 << 40),
        ("100B", 100),
        (f"{2**53 + 1}B", 2**53 + 1),
    ],
    ids=repr,
)
def test_a_size_is_read(text: Any, expected: int) -> None:
    assert size(text, "capacity") == expected


@pytest.mark.parametrize(
    "wrong", ["", "MB", "-1MB", "1 M B", "1XB", "0", 0, -1, 1.5, True, None, "1e3", "0.1B", b"1MB"], ids=repr
)
def test_what_is_no_size_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="capacity="):
        size(wrong, "capacity")


HUGE = {
    "400 digits": 10**400,
    "400 digits, negative": -(10**400),
    "more digits than Python writes": 10**5000,
    "more digits than Python writes, negative": -(10**5000),
    "64 bits and one": 2**64,
    "5,000 digits as text": "9" * 5000,
    "5,000 digits of seconds": "9" * 5000 + "s",
    "5,000 digits of megabytes": "9" * 5000 + "MB",
    "5,000 digits of a fraction": "0." + "1" * 5000 + "GB",
    "a million digits": "1" * 1_000_000,
    "a million units": "1h" * 1_000_000,
}


@pytest.mark.parametrize("what", HUGE)
@pytest.mark.parametrize("read", [milliseconds, positive_milliseconds, size])
def test_numbers_larger_than_any_machine_has_are_told_in_a_short_line(read: Any, what: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^option=") as caught:
        read(HUGE[what], "option")
    assert len(str(caught.value)) < 300


def test_the_limits_are_what_the_errors_say() -> None:
    assert size(sys.maxsize, "capacity") == 2**63 - 1
    for wrong in (2**63, "99999999TB"):
        with pytest.raises(InvalidArgument, match=r"more bytes than any machine counts; give at most 2\*\*63 - 1"):
            size(wrong, "capacity")
    century = 36_525 * 86_400
    assert milliseconds(century, "ttl") == century * 1_000
    with pytest.raises(InvalidArgument, match="longer than a hundred years"):
        milliseconds(century + 1, "ttl")


@given(
    st.integers() | st.floats() | st.text(max_size=12) | st.text(st.sampled_from("0123456789.hdmsGMKiB "), max_size=80)
)
def test_whatever_is_given_is_read_or_refused_by_name(given_value: Any) -> None:
    for read in (milliseconds, positive_milliseconds, size):
        try:
            assert read(given_value, "option") >= 0  # type: ignore[operator]
        except InvalidArgument as error:
            assert str(error).startswith("option=")


class Hostile(int):
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_number_that_cannot_be_shown_is_refused_all_the_same() -> None:
    with pytest.raises(InvalidArgument, match=r"^ttl=<Hostile>: a duration is not negative"):
        milliseconds(Hostile(-1), "ttl")
