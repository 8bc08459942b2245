"""Caches that are no caches of ours: as simple as can be, to see that the checker of histories passes and catches.

Each has what a history asks of a cache: `memoize`, `get`, `invalidate`. None keeps anything in the process.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable

# The tag's fence and the value. A missing fence begins here: what was stamped before a flush fits none after it.
_LOOK = """
local fence = redis.call('GET', KEYS[2])
if not fence then
  fence = ARGV[1]
  redis.call('SET', KEYS[2], fence)
end
return {fence, redis.call('GET', KEYS[1])}
"""


@dataclass(frozen=True)
class Token:
    """Whoever always asks needs none."""

    fence: bytes


class AskingCache:
    """Correct and slow: every read asks the server for value and fence at once, and a value fits one fence alone."""

    def __init__(self, url: str) -> None:
        self.client = redis.from_url(url, socket_timeout=0.25, socket_connect_timeout=0.25, retry=Retry(NoBackoff(), 0))

    def memoize(self, **_: Any) -> Callable[[Callable[[int], int]], Any]:
        def decorate(function: Callable[[int], int]) -> Any:
            def ask(key: int) -> int:
                try:
                    stamp, found = self._look(key)
                except redis.RedisError:
                    return function(key)
                if found is None:
                    found = function(key)
                    self._store(key, found, stamp)
                return found

            ask.key = lambda key: key
            return ask

        return decorate

    def get(self, key: int, *, min_token: Token | None = None) -> int | None:
        try:
            return self._look(key)[1]
        except redis.RedisError:
            return None

    def invalidate(self, *, tags: list[str]) -> Token:
        fence = secrets.token_bytes(8)
        for tag in tags:
            self.client.set(f"fence:{tag}", fence)
        return Token(fence)

    def _look(self, key: int) -> tuple[bytes, int | None]:
        fence, stored = self.client.eval(_LOOK, 2, f"value:{key}", f"fence:key:{key}", secrets.token_bytes(8))
        fits = stored is not None and stored[:8] == fence
        return fence, int(stored[8:]) if fits else None

    def _store(self, key: int, value: int, stamp: bytes) -> None:
        try:
            self.client.set(f"value:{key}", stamp + b"%d" % value)
        except redis.RedisError:
            pass


class DeafCache(AskingCache):
    """Broken: it acknowledges purges and tells nobody."""

    def invalidate(self, *, tags: list[str]) -> Token:
        return Token(b"")


class DeletingCache(AskingCache):
    """Broken as most are: a purge deletes, and a fill that was on its way puts the old value back."""

    def invalidate(self, *, tags: list[str]) -> Token:
        self.client.delete(*(tag.replace("key:", "value:") for tag in tags))
        return Token(b"")
