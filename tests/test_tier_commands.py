"""Commands of a tier: what may be sent twice, which node runs it, and what cannot be sent."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache.errors import InvalidArgument
from infercache.tiers import Command, Script
from infercache.tiers.commands import slot_of


@pytest.mark.parametrize("name", ["GET", "get", b"PTTL", "MGET", "PING", "WAIT"])
def test_a_read_may_be_sent_twice(name: str | bytes) -> None:
    assert Command(name, "k").idempotent


@pytest.mark.parametrize("name", ["SET", "DEL", "EVAL", "EVALSHA", "INCR", "PUBLISH", "XREADGROUP", "UNHEARD-OF"])
def test_what_may_change_something_is_not_sent_twice_unless_its_caller_says_so(name: str) -> None:
    assert not Command(name, "k").idempotent
    assert Command(name, "k", idempotent=True).idempotent


def test_a_script_may_be_sent_twice_only_if_its_caller_says_so() -> None:
    script = Script(b"return 1")
    assert not script.call(["k"]).idempotent
    assert script.call(["k"], idempotent=True).idempotent


def test_a_script_is_called_by_its_digest_and_after_noscript_by_its_source() -> None:
    call = Script(b"return ARGV[1]").call(["k"], [b"v", 2], idempotent=True)
    assert call.args == ("EVALSHA", hashlib.sha1(b"return ARGV[1]", usedforsecurity=False).hexdigest(), 1, "k", b"v", 2)
    again = call.with_source()
    assert again.args == ("EVAL", b"return ARGV[1]", 1, "k", b"v", 2)
    assert again.idempotent


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (Command("GET", "k"), b"k"),
        (Command("SET", b"k", b"v"), b"k"),
        (Command("GET", memoryview(b"k")), b"k"),
        (Command("GET", 12), b"12"),
        (Command("PING"), None),
        (Command("PUBLISH", "channel", "message"), None),
        (Command("CONFIG", "GET", "save"), None),
        (Command("EVAL", "return 1", 0, "argument"), None),
        (Command("PUBLISH", "channel", "message", key="k"), b"k"),
        (Script(b"return 1").call([b"k", b"l"], ["v"]), b"k"),
        (Script(b"return 1").call([], ["v"]), None),
    ],
    ids=lambda value: str(value.args if isinstance(value, Command) else value),
)
def test_the_key_decides_which_node_runs_it(command: Command, key: bytes | None) -> None:
    assert command.key == key


def test_a_command_shows_no_value() -> None:
    assert "secret" not in repr(Command("SET", "secret-key", b"secret-value"))


def reference_slot(key: bytes) -> int:
    """The specification's, bit by bit: CRC-16/XMODEM of what stands between the first { and the next }."""
    before, brace, rest = key.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    hashed = tag if brace and closing and tag else key
    crc = 0
    for byte in hashed:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    del before
    return crc % 16_384


@given(st.binary(max_size=30) | st.lists(st.sampled_from([b"{", b"}", b"a", b"b"]), max_size=12).map(b"".join))
def test_slots_are_the_specification_s(key: bytes) -> None:
    assert slot_of(key) == reference_slot(key)


def test_slots_of_the_specification_s_examples() -> None:
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"{user1000}.following") == slot_of(b"{user1000}.followers")
    assert slot_of(b"foo{}{bar}") == reference_slot(b"foo{}{bar}")


@pytest.mark.parametrize("argument", [None, [1], object(), bytearray(b"x")], ids=["None", "list", "object", "other"])
def test_an_argument_that_cannot_be_sent_is_named(argument: object) -> None:
    from infercache.tiers.node import packed

    with pytest.raises(InvalidArgument, match=rf"<Command SET of 2 arguments>: .* is a {type(argument).__name__}"):
        packed([Command("PING"), Command("SET", "k", argument)])  # type: ignore[arg-type]


@given(
    st.lists(
        st.binary(max_size=20)
        | st.text(max_size=20)
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False)
        | st.integers(4_000, 5_000).map(lambda size: b"\r\n" * size)
        | st.binary(max_size=9_000).map(memoryview),
        min_size=1,
        max_size=6,
    )
)
def test_commands_are_packed_as_the_protocol_has_them(arguments: list[bytes | str | int | float | memoryview]) -> None:
    from infercache.tiers.node import packed

    def shown(argument: bytes | str | int | float | memoryview) -> bytes:
        if isinstance(argument, bytes | memoryview):
            return bytes(argument)
        return argument.encode("utf-8", "surrogatepass") if isinstance(argument, str) else repr(argument).encode()

    expected = b"*%d\r\n" % (len(arguments) + 1) + b"$4\r\nECHO\r\n"
    expected += b"".join(b"$%d\r\n%b\r\n" % (len(shown(one)), shown(one)) for one in arguments)
    command = Command("ECHO", *arguments)
    assert packed([command, command]) == [2 * expected]
