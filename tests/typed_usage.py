"""How users call memoized functions, for mypy alone: `test_types.py` checks this file, nothing runs it.

Each `type: ignore` stands where a type checker must complain; mypy reports one that was not needed.
"""

from __future__ import annotations

from typing import assert_type

import numpy as np
import numpy.typing as npt

from infercache import Cache, Key

cache = Cache(capacity="1MB", ttl="1h")


@cache.memoize(model="ranker", version="1", ttl="10m", tags=["user:{user}"])
def rank(user: str, limit: int = 10) -> list[int]:
    return [len(user), limit]


@cache.memoize(model="chat", version="1")
async def chat(prompt: str, *, temperature: float = 0.0) -> str:
    return prompt * int(temperature)


@cache.memoize_batch(model="e5", version="1", over="texts", max_batch=64)
def embed(texts: list[str]) -> npt.NDArray[np.float32]:
    return np.zeros((len(texts), 4), dtype=np.float32)


class Ranker:
    @cache.memoize(model="ranker", version="1")
    def rank(self, user: str) -> list[int]:
        return [len(user)]


assert_type(rank("u1"), list[int])
assert_type(rank("u1", limit=3), list[int])
assert_type(rank.key("u1"), Key)
assert_type(rank.peek("u1"), list[int] | None)
assert_type(rank.refresh("u1"), list[int])
rank.invalidate("u1")
rank(1)  # type: ignore[arg-type]
rank()  # type: ignore[call-arg]
rank("u1", colour="red")  # type: ignore[call-arg]
rank.key(1)  # type: ignore[arg-type]

assert_type(embed(["a"]), npt.NDArray[np.float32])
embed("a")  # type: ignore[arg-type]

assert_type(Ranker().rank("u1"), list[int])
Ranker().rank(1)  # type: ignore[arg-type]


async def use() -> None:
    assert_type(await chat("hello", temperature=1.0), str)
    assert_type(await chat.refresh("hello"), str)
    await chat(3)  # type: ignore[arg-type]
