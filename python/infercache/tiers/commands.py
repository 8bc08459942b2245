"""What is asked of a server: commands, and scripts that are run by their digest."""

from __future__ import annotations

import hashlib
from binascii import crc_hqx
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["SLOTS", "Argument", "Command", "Script", "slot_of"]

#: What an argument may be; numbers go as their decimal text, text as UTF-8.
Argument: TypeAlias = bytes | str | int | float | memoryview

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
    """

    __slots__ = ("_idempotent", "_key", "args", "script")

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

    def with_source(self) -> Command:
        """The same call of a script with its source in place of its digest."""
        assert self.script is not None  # noqa: S101 - only asked of calls that have one
        name = "EVAL_RO" if self.name == "EVALSHA_RO" else "EVAL"
        return Command(name, self.script.source, *self.args[2:], idempotent=self._idempotent, key=self._key)

    def __repr__(self) -> str:
        return f"<Command {self.name} of {len(self.args) - 1} arguments>"  # values are nobody's business


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
