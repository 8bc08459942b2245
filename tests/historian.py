"""What one process of a history does: a scenario for `processes.Worker`, in a file that imports little."""

from __future__ import annotations

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
        draw = random.Random(f"{self.seed} {number}")
        keys = range(self.settings["keys"])
        weights = [1 / (1 + key) for key in keys]  # a few keys are asked for much more than the others
        while not self.stopped.is_set():
            [key] = draw.choices(keys, weights)
            luck = draw.random()
            begin = now()
            try:
                if luck < self.settings["purging"]:
                    self._purge(key)
                elif luck < 0.15:
                    self._read_with_token(draw)
                else:
                    version = self.answer(key)
                    self.log.write(Event("read", self.name, f"key {key}", begin, now(), version))
            except Exception as error:
                kind = "purge" if luck < self.settings["purging"] else "read"
                self.log.write(Event("error", self.name, f"key {key}", begin, now(), note=f"{kind}: {error!r}"))
            time.sleep(draw.uniform(0, 2 * self.settings["pace"]))

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
