"""What is asked of a server: commands, and scripts that are run by their digest."""

from __future__ import annotations

import hashlib
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from infercache._core import Names

__all__ = ["SLOTS", "Argument", "Command", "Reads", "Script", "slot_of"]

#: What an argument may be; numbers go as their decimal text, text as UTF-8.
Argument: TypeAlias = bytes | str | int | float | memoryview
#: How many replies must have come, and what is to be done with all that have.
Delivery: TypeAlias = tuple[int, Callable[[list[Any]], object]]

#: Slots of a cluster, by its specification.
SLOTS = 16_384

# Commands that change nothing, or leave the same state however often they run: sent again after an outcome that is
# unknown. SET is not among them: sent twice, the second may overwrite what somebody else wrote in between.
_READS = frozenset({
    "DBSIZE", "ECHO", "EVALSHA_RO", "EVAL_RO", "EXISTS", "GET", "GETRANGE", "HGET", "HGETALL", "HMGET", "INFO",
    "LLEN", "LRANGE", "MGET", "OBJECT", "PING", "PTTL", "SCARD", "SCAN", "SISMEMBER", "SMEMBERS", "STRLEN", "TIME",
    "TTL", "TYPE", "WAIT", "XLEN", "XRANGE", "ZCARD", "ZCOUNT", "ZRANGE", "ZRANGEBYSCORE", "ZSCORE",
})  # fmt: skip
# Commands whose first argument is no key.
_KEYLESS = frozenset({
    "ACL", "CLIENT", "CLUSTER", "CONFIG", "DBSIZE", "ECHO", "FLUSHALL", "FLUSHDB", "FUNCTION", "HELLO", "INFO",
    "KEYS", "MEMORY", "PING", "PUBLISH", "ROLE", "SCAN", "SCRIPT", "SELECT", "TIME", "WAIT",
})  # fmt: skip
_SCRIPTS = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"})


class Command:
    """One command: its name and arguments, and whether it may be sent twice.

    Attributes:
        args: the name and the arguments, as they are sent.
        heed: is told the reply as soon as it has come, while those behind it are still on their way (never in a
            cluster); once more if the exchange had to begin anew.
    """

    __slots__ = ("_idempotent", "_key", "args", "heed", "script")
    #: How many the server gives.
    replies = 1

    def __init__(
        self,
        *args: Argument,
        idempotent: bool | None = None,
        key: bytes | str | None = None,
        script: Script | None = None,
    ) -> None:
        """Args:
        args: name and arguments. The name is one word (`"CONFIG", "GET"`, not `"CONFIG GET"`).
        idempotent: running it twice does no harm, so that it may be sent again when its outcome is unknown. None: true
            of the commands that only read.
        key: decides which node of a cluster runs it. None: its first key, by the command's name.
        script: what EVAL is given if the server does not know the digest; see `Script.call`.
        """
        self.args = args
        self._idempotent = idempotent
        self._key = key
        self.heed: Callable[[Any], object] | None = None
        self.script = script

    @property
    def name(self) -> str:
        """The command's name, in capitals."""
        name = self.args[0]
        return (name if isinstance(name, str) else bytes(name).decode("ascii", "replace")).upper()  # type: ignore[arg-type]

    @property
    def idempotent(self) -> bool:
        """Whether it may be sent again when its outcome is unknown."""
        return self.name in _READS if self._idempotent is None else self._idempotent

    @property
    def key(self) -> bytes | None:
        """The key that decides which node of a cluster runs it; None: any."""
        found: Argument | None = self._key
        if found is None:
            name = self.name
            if name in _SCRIPTS:
                found = self.args[3] if int(self.args[2]) > 0 else None
            elif name not in _KEYLESS and len(self.args) > 1:
                found = self.args[1]
        if found is None or isinstance(found, bytes):
            return found
        return bytes(found) if isinstance(found, memoryview) else str(found).encode()

    def deliveries(self, start: int) -> list[Delivery]:
        """What is told to `heed` of the replies of an exchange, of which this command's begin at `start`."""
        heed = self.heed
        return [] if heed is None else [(start + 1, lambda replies: heed(replies[start]))]

    def with_source(self) -> Command:
        """The same call of a script with its source in place of its digest."""
        assert self.script is not None  # noqa: S101 - only asked of calls that have one
        name = "EVAL_RO" if self.name == "EVALSHA_RO" else "EVAL"
        return Command(name, self.script.source, *self.args[2:], idempotent=self._idempotent, key=self._key)

    def __repr__(self) -> str:
        return f"<Command {self.name} of {len(self.args) - 1} arguments>"  # values are nobody's business


class Reads(Command):
    """Many values at once, and the lives that are left to them.

    It stands for several commands of one pipeline, and its reply is a pair of lists: values (bytes; None), and what
    PTTL says (milliseconds; -1: no end; -2: there is none), an error in the place of what it befell. A life is asked
    for before its value: a value that comes in between is taken for older than it is, never for younger.
    """

    __slots__ = ("_names",)
    #: Values of one MGET: as many as a server reads without making others wait.
    CHUNK = 64

    def __init__(self, names: Names) -> None:
        super().__init__("MGET", idempotent=True)
        self._names = names

    @property
    def replies(self) -> int:  # type: ignore[override]
        """How many the server gives: one for each life, and one for each chunk of values."""
        return len(self._names) + -(-len(self._names) // self.CHUNK)

    def packed(self) -> list[bytes]:
        """As the protocol has it, chunk by chunk."""
        return self._names.packed(self.CHUNK)

    def deliveries(self, start: int) -> list[Delivery]:
        """Each chunk: the number of its first name, values, lives.

        Values that `heed` says it is done with (True) are let go of at once: the next ones take their memory, which is
        warm. The reply has None in their places.
        """
        heed = self.heed
        if heed is None:
            return []
        found: list[Delivery] = []
        for first in range(0, len(self._names), self.CHUNK):
            end = start + min(self.CHUNK, len(self._names) - first)

            def deliver(replies: list[Any], first: int = first, start: int = start, end: int = end) -> None:
                values = replies[end]
                values = values if type(values) is list else [values] * (end - start)
                if heed((first, values, replies[start:end])) is True:
                    replies[end] = None

            found.append((end + 1, deliver))
            start = end + 1
        return found

    def gathered(self, replies: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The reply, of the server's."""
        values: list[Any] = []
        lives: list[Any] = []
        start = 0
        while start < len(replies):
            size = min(self.CHUNK, len(self._names) - len(lives))
            lives += replies[start : start + size]
            start += size
            found = replies[start]
            values += found if type(found) is list else [found] * size
            start += 1
        return values, lives

    def parts(self) -> list[Command]:
        """The same name by name, as a cluster needs it: life, value, life, value, …"""
        return [
            part
            for name in map(self._names.__getitem__, range(len(self._names)))
            for part in (Command("PTTL", name), Command("GET", name))
        ]

    @staticmethod
    def assembled(replies: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The reply, of those to `parts`."""
        return list(replies[1::2]), list(replies[::2])


class Script:
    """A Lua script, run by its SHA-1; a server that does not know it is sent the source, once."""

    __slots__ = ("digest", "source")

    def __init__(self, source: bytes) -> None:
        self.source = source
        #: What EVALSHA takes: the protocol's name for the source, no matter of security.
        self.digest = hashlib.sha1(source, usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[Argument], args: Sequence[Argument] = (), *, idempotent: bool = False) -> Command:
        """One run of it.

        Args:
            keys: what it names in KEYS, all in one slot of a cluster.
            args: ARGV.
            idempotent: a second run does no harm, so it may be sent again when the outcome of the first is unknown.
        """
        return Command("EVALSHA", self.digest, len(keys), *keys, *args, idempotent=idempotent, script=self)


def slot_of(key: bytes) -> int:
    """A key's slot in a cluster: CRC-16 (XMODEM) of it, or of what stands in its first braces, if that is not empty."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS
