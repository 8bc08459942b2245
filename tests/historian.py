"""What one process of a history does: a scenario for `processes.Worker`, in a file that imports little."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import mmap
import os
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from history import Event, Log, now
from worker import load as load_function

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker import Line


class Source:
    """A version for each key, in a file that all processes map. It only rises, by one."""

    def __init__(self, path: Path, keys: int) -> None:
        self._path = path
        with path.open("a+b") as file:
            file.truncate(8 * keys)
            self._versions = memoryview(mmap.mmap(file.fileno(), 8 * keys)).cast("Q")

    def read(self, key: int) -> int:
        return self._versions[key]

    def advance(self, key: int, log: Log, process: str) -> int:
        """Moves a key on; it is logged before it can be seen, so that a process killed in between leaves no riddle."""
        with self._path.open("rb") as lock:  # a lock of this call alone: the process's threads exclude each other too
            fcntl.flock(lock, fcntl.LOCK_EX)
            version = self._versions[key] + 1
            begin = now()
            log.write(Event("write", process, f"key {key}", begin, begin, version))
            self._versions[key] = version
        return version


class Historian:
    """What one process does, in several threads: reads mostly, now and then a purge, some reads with a token."""

    def __init__(self, name: str, cache: Any, folder: Path, seed: int, settings: dict[str, Any]) -> None:
        self.name, self.cache, self.settings = name, cache, settings
        self.seed = seed
        self.source = Source(folder / "source", settings["keys"])
        self.log = Log(folder / f"{name}.{os.getpid()}.log")
        self.tokens_path = folder / "tokens"
        self.stopped = threading.Event()
        self.draw = random.Random(seed)  # the models': shared by threads, which only makes it less predictable
        self.tokens: list[tuple[int, int, Any]] = []

        @cache.memoize(model="source", version="1", operation="history", tags=["key:{key}"])
        def answer(key: int) -> int:
            version = self.source.read(key)
            time.sleep(self._thinking())
            return version

        self.answer = answer
        self.ways = [getattr(self, f"_read_{way}") for way in settings["ways"]]
        if "tasks" in settings["ways"]:

            @cache.memoize(model="source", version="1", operation="tasks", tags=["key:{key}"])
            async def answer_task(key: int) -> int:
                version = self.source.read(key)
                await asyncio.sleep(self._thinking())
                return version

            self.answer_task = answer_task
        if "batch" in settings["ways"]:

            @cache.memoize_batch(
                over="key", model="source", version="1", operation="batch", max_batch=3, tags=["key:{key}"]
            )
            def answers(key: list[int]) -> list[int]:
                versions = [self.source.read(one) for one in key]
                time.sleep(self._thinking())
                return versions

            self.answers = answers

    def _thinking(self) -> float:
        """Seconds that the model takes: some runs outlast what any purge is waited for."""
        luck = self.draw.random()
        if luck < 0.85:
            return self.draw.uniform(0, 0.005)
        return self.draw.uniform(0, 0.1 if luck < 0.97 else 2 * self.settings["max_staleness"])

    def run(self) -> None:
        """Until it is stopped."""
        threads = [threading.Thread(target=self._loop, args=(n,)) for n in range(self.settings["threads"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _loop(self, number: int) -> None:
        with asyncio.Runner() as runner:
            self._read_and_purge(number, runner)

    def _read_and_purge(self, number: int, runner: asyncio.Runner) -> None:
        draw = random.Random(f"{self.seed} {number}")
        keys = range(self.settings["keys"])
        weights = [1 / (1 + key) for key in keys]  # a few keys are asked for much more than the others
        read = self.ways[number % len(self.ways)]
        while not self.stopped.is_set():
            chosen = draw.choices(keys, weights, k=3)
            key = chosen[0]
            luck = draw.random()
            begin = now()
            try:
                if luck < self.settings["purging"]:
                    self._purge(key)
                elif luck < 0.15:
                    self._read_with_token(draw)
                else:
                    read(chosen, begin, runner)
            except Exception as error:
                kind = "purge" if luck < self.settings["purging"] else "read"
                self.log.write(Event("error", self.name, f"key {key}", begin, now(), note=f"{kind}: {error!r}"))
            time.sleep(draw.uniform(0, 2 * self.settings["pace"]))

    def _read_calls(self, keys: list[int], begin: int, _: asyncio.Runner) -> None:
        version = self.answer(keys[0])
        self.log.write(Event("read", self.name, f"key {keys[0]}", begin, now(), version))

    def _read_batch(self, keys: list[int], begin: int, _: asyncio.Runner) -> None:
        """One call for several items; they may stand in it twice."""
        for key, version in zip(keys, self.answers(keys), strict=True):
            self.log.write(Event("read", self.name, f"key {key}", begin, now(), version, note="batch"))

    def _read_many(self, keys: list[int], begin: int, _: asyncio.Runner) -> None:
        """By their keys, what there is; the first by a call, so that there is something."""
        found = self.cache.get_many([self.answer.key(key) for key in keys])
        for key, version in zip(keys, found, strict=True):
            if version is not None:
                self.log.write(Event("read", self.name, f"key {key}", begin, now(), version, note="get_many"))
        self._read_calls(keys, now(), _)

    def _read_tasks(self, keys: list[int], begin: int, runner: asyncio.Runner) -> None:
        """Several tasks of one event loop at once, as many asking the same as it happens."""

        async def one(key: int) -> None:
            version = await self.answer_task(key)
            self.log.write(Event("read", self.name, f"key {key}", begin, now(), version, note="task"))

        async def all_of_them() -> None:
            for outcome in await asyncio.gather(*(one(key) for key in keys), return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

        runner.run(all_of_them())

    def _purge(self, key: int) -> None:
        begin = now()
        version = self.source.advance(key, self.log, self.name)
        token = self.cache.invalidate(tags=[f"key:{key}"])
        self.log.write(Event("purge", self.name, f"key {key}", begin, now(), version))
        self.tokens = [*self.tokens[-20:], (key, version, token)]
        if self.settings["share_tokens"]:
            with self.tokens_path.open("a") as file:
                file.write(json.dumps([key, version, token_to_json(token)]) + "\n")

    def _read_with_token(self, draw: random.Random) -> None:
        """Reads a key with the token of a purge of it: one of the process's own, or of another's."""
        tokens = self.tokens
        if tokens and self.settings["share_tokens"] and draw.random() < 0.5:
            lines = self.tokens_path.read_text().splitlines(keepends=True)[-20:]
            shared = [json.loads(line) for line in lines if line.endswith("\n")]
            kind = type(tokens[-1][2])
            tokens = [(key, version, token_from_json(kind, fields)) for key, version, fields in shared]
        if not tokens:
            return
        key, version, token = draw.choice(tokens)
        begin = now()
        found = self.cache.get(self.answer.key(key), min_token=token)
        if found is not None:
            self.log.write(Event("read", self.name, f"key {key}", begin, now(), found, version, "get"))


def token_to_json(token: Any) -> dict[str, Any]:
    """The fields of a token, which is a dataclass of integers, text and bytes."""
    fields = {field.name: getattr(token, field.name) for field in dataclasses.fields(token)}
    return {name: {"hex": value.hex()} if isinstance(value, bytes) else value for name, value in fields.items()}


def token_from_json(kind: type, fields: dict[str, Any]) -> Any:
    return kind(**{n: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for n, value in fields.items()})


def historian(
    _: Line,
    name: str,
    factory: list[str],
    arguments: dict[str, Any],
    folder: str,
    seed: int,
    settings: dict[str, Any],
) -> dict[str, Callable[..., Any]]:
    """The scenario of one process."""
    cache = load_function(*factory)(**arguments)
    one = Historian(name, cache, Path(folder), seed, settings)
    return {"run": one.run, "stop": one.stopped.set}
