"""A process with a cache, whose fills stop at each of their steps (a scenario for `processes.Worker`).

Steps of `fill`: "before the stamp", "stamped", "model running", "model returned", "stored". Of `memoized`: the model's
two alone, since the rest is one call of the product; of `batch`: "batch running", with the items that it was
given. Between its store in memory and that on a server the proxy holds.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from infercache import Cache, Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker import Line

SCOPE = {"model": "m", "version": "1"}
STEPS = ("before the stamp", "stamped", "model running", "model returned", "stored")


def cache_process(line: Line, **options: Any) -> dict[str, Callable[..., Any]]:
    """Commands around one cache, made with `options`. The model's answer is the word that lets it go on."""
    cache = Cache("16MB", **options)
    tokens: dict[int, Token] = {}

    def model(question: str) -> Any:
        answer = line.hold("model running", question)
        line.hold("model returned")
        return answer

    def key(question: str) -> Any:
        return cache.key({"question": question}, operation="fill", **SCOPE)

    def fill(question: str) -> Any:
        line.hold("before the stamp")
        found = cache.lookup(key(question))
        if found.source != "miss":
            return found.value
        line.hold("stamped")
        answer = model(question)
        cache.set(key(question), answer, tags=[f"question:{question}"], since=found.stamp)
        line.hold("stored")
        return answer

    @cache.memoize(operation="memoized", tags=["question:{question}"], **SCOPE)
    def memoized(question: str) -> Any:
        return model(question)

    @cache.memoize_batch(over="questions", operation="batch", **SCOPE)
    def batched(questions: list[str]) -> list[str]:
        answer = line.hold("batch running", questions)
        return [f"{question}: {answer}" for question in questions]

    def batch(*questions: str) -> list[str]:
        return batched(list(questions))

    def get(question: str, token: int | None = None) -> Any:
        return cache.get(key(question), min_token=tokens.get(token) if token is not None else None)

    def peek(question: str) -> Any:
        return memoized.peek(question)

    def purge(question: str) -> int:
        tokens[len(tokens)] = cache.invalidate(tags=[f"question:{question}"])
        return len(tokens) - 1

    def name(question: str) -> str:
        return str(memoized.key(question))

    commands = {"fill": fill, "memoized": memoized, "batch": batch}
    return {**commands, "get": get, "peek": peek, "purge": purge, "name": name}


def forking_process(line: Line, **options: Any) -> dict[str, Callable[..., Any]]:
    """A process whose threads read and purge all the time, and which forks meanwhile."""
    cache = Cache("16MB", **options)
    wrong: list[str] = []

    @cache.memoize(operation="forked", tags=["question:{question}"], **SCOPE)
    def compute(question: str) -> str:
        return "computed in the child" if "child" in question else f"answer to {question}"

    def busy(number: int) -> None:
        turn = 0
        while True:
            turn += 1
            question = f"{number} {turn % 7}"
            try:
                if compute(question) != f"answer to {question}":
                    wrong.append(question)
                if turn % 50 == 0:
                    cache.invalidate(tags=[f"question:{question}"])
            except Exception as error:
                wrong.append(repr(error))
            time.sleep(0.001)

    for number in range(4):
        threading.Thread(target=busy, args=(number,), daemon=True).start()

    def in_child(turn: int) -> int:
        if cache.token().epoch:
            return 2  # it knows of what only its parent was told
        first = compute("0 0")
        question = f"of the child {turn}"
        if (first, compute(question)) != ("answer to 0 0", "computed in the child"):
            return 3
        cache.invalidate(tags=["question:0 0"])
        if compute.peek("0 0") is not None:
            return 4
        return 0 if any(thread.name == "infercache-follower" for thread in threading.enumerate()) else 5

    def fork(turn: int) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = in_child(turn)
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def name(question: str) -> str:
        return str(compute.key(question))

    return {"fork": fork, "wrong": lambda: wrong, "name": name, "in_child": in_child}


def local_cache() -> Cache:
    """A cache whose purges reach its own process alone."""
    return Cache("16MB")
