"""How users call memoized methods and batches, for mypy alone: `test_typing.py` checks this file, nothing runs it.

Each `type: ignore` stands where a type checker must complain; mypy reports one that was not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from infercache import Cache, Key, Lookup, Stats, Token

cache = Cache("1MB")


@cache.memoize(
    model=lambda user, arm: arm,
    version="1",
    operation="arms",
    tags=lambda result, user, arm: [f"user:{user}"],
    document=lambda user, arm: user,
    store_if=lambda result: result > 0,
    ignore=["arm"],
    ttl=None,
    stale_while_revalidate="1m",
    stale_if_error=60,
    copy=True,
)
def score(user: str, arm: str = "a") -> float:
    return float(len(user + arm))


@cache.memoize_batch(model="e5", version="1", over="texts")
async def embed(texts: list[str], *, prefix: str = "") -> list[list[float]]:
    return [[float(len(prefix + text))] for text in texts]


class Service:
    @cache.memoize(model="m", version="1")
    def rank(self, user: str, *, limit: int = 1) -> list[int]:
        return [len(user), limit]

    @cache.memoize(model="m", version="1")
    async def chat(self, prompt: str) -> str:
        return prompt

    @cache.memoize_batch(model="m", version="1", over="items", max_batch=8)
    def scale(self, items: list[int]) -> tuple[int, ...]:
        return tuple(items)

    @cache.memoize(model="m", version="1")
    @classmethod
    def named(cls, name: str, *, limit: int = 1) -> list[str]:
        return [name, cls.__name__][:limit]

    @classmethod
    @cache.memoize(model="m", version="1")
    async def made(cls, name: str) -> bytes:
        return name.encode()

    @cache.memoize_batch(model="m", version="1", over="items")
    @classmethod
    def halves(cls, items: list[int]) -> list[float]:
        return [item / 2 for item in items]

    @staticmethod
    @cache.memoize(model="m", version="1")
    def double(number: int) -> int:
        return 2 * number


assert_type(score("u"), float)
assert_type(score.__wrapped__("u", arm="b"), float)
score.__wrapped__(1)  # type: ignore[arg-type]
service = Service()
assert_type(Service.rank.__wrapped__(service, "u"), list[int])
assert_type(service.rank.__wrapped__("u", limit=2), list[int])
service.rank.__wrapped__(1)  # type: ignore[arg-type]
assert_type(Service.named("n", limit=2), list[str])
assert_type(service.named("n"), list[str])
assert_type(Service.named.key("n"), Key)
assert_type(Service.named.peek("n"), list[str] | None)
assert_type(Service.named.__wrapped__("n"), list[str])
Service.named(1)  # type: ignore[arg-type]
Service.named()  # type: ignore[call-arg]
assert_type(Service.halves([1]), list[float])
assert_type(Service.halves.key([1]), list[Key])
assert_type(service.rank("u", limit=2), list[int])
assert_type(service.rank.key("u"), Key)
assert_type(service.rank.peek("u"), list[int] | None)
assert_type(service.rank.refresh("u"), list[int])
assert_type(service.rank.invalidate("u"), Token)
assert_type(Service.rank(service, "u"), list[int])
assert_type(Service.rank.key(service, "u"), Key)
assert_type(Service.double(1), int)
assert_type(service.scale([1]), tuple[int, ...])
assert_type(service.scale.key([1]), list[Key])
service.rank()  # type: ignore[call-arg]
service.rank(limit="2", user="u")  # type: ignore[arg-type]
service.rank.key(1)  # type: ignore[arg-type]
service.scale(1)  # type: ignore[arg-type]

chat_wrapped: Callable[[str], Coroutine[Any, Any, str]] = service.chat.__wrapped__


async def use() -> None:
    assert_type(await service.chat("p"), str)
    assert_type(await service.chat.peek("p"), str | None)
    pending: Coroutine[Any, Any, str] = service.chat("p")
    assert_type(await pending, str)
    assert_type(await embed(["a"], prefix="b"), list[list[float]])
    assert_type(await embed.refresh(["a"]), list[list[float]])
    assert_type(embed.key(["a"]), list[Key])
    await embed(["a"], prefix=1)  # type: ignore[arg-type]
    await service.chat(1)  # type: ignore[arg-type]
    assert_type(await Service.made("n"), bytes)
    assert_type(await service.made.refresh("n"), bytes)
    assert_type(await chat_wrapped("p"), str)
    assert_type(await embed.__wrapped__(["a"]), list[list[float]])

    async def compute() -> int:
        return 1

    assert_type(await cache.aget_or_compute(cache.key(1, model="m", version="1"), compute), int)


key = cache.key({"text": "a"}, model="m", version="1", operation="embed")
assert_type(key, Key)
assert_type(cache.get_or_compute(key, lambda: 1.5, ttl="1m", tags=["t"]), float)
assert_type(cache.lookup(key), Lookup[Any])
assert_type(cache.stats(), Stats)
assert_type(cache.invalidate(tags=["t"]), Token)
cache.key(1, model="m")  # type: ignore[call-arg]
cache.memoize_batch(model="m", version="1")  # type: ignore[call-arg]
Cache(l2=1)  # type: ignore[arg-type]
