"""The other end of `processes.Worker`: a process that runs a scenario's commands, a thread each, held where it says so.

Started as `worker.py DESCRIPTOR FILE FUNCTION ARGUMENTS`: the scenario is a function at the top of that file, which
gets the `Line` and the arguments, and returns the commands by their names. Messages are lines of JSON on the socket
DESCRIPTOR.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import socket
import sys
import threading
import traceback
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Line:
    """What a scenario speaks to its test with, from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._arrived = threading.Condition()
        self._permissions: dict[str, list[Any]] = defaultdict(list)

    def send(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._sock.sendall(line)

    def tell(self, step: str, fact: Any = None) -> None:
        """Tells the test that `step` was reached, and goes on."""
        self.send(reached=step, fact=fact)

    def hold(self, step: str, fact: Any = None) -> Any:
        """Tells the test that `step` was reached, and waits for its `go`; returns what came with it."""
        self.tell(step, fact)
        with self._arrived:
            self._arrived.wait_for(lambda: self._permissions[step])
            return self._permissions[step].pop(0)

    def permit(self, step: str, word: Any) -> None:
        with self._arrived:
            self._permissions[step].append(word)
            self._arrived.notify_all()

    def run(self, number: int, command: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> None:
        """Carries out one call, and answers it."""
        try:
            result = command(*arguments, **options)
            self.send(answer=number, result=asyncio.run(result) if inspect.iscoroutine(result) else result)
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            self.send(answer=number, error=str(error), kinds=kinds, trace=traceback.format_exc())


def load(file: str, function: str) -> Callable[..., Mapping[str, Callable[..., Any]]]:
    """The scenario, from a file that need not be importable by a name."""
    name = f"scenario_{os.path.basename(file).removesuffix('.py')}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return getattr(module, function)


def main() -> None:
    """Serves until the test is gone, and then ends at once, whatever its threads wait for."""
    descriptor, file, function, arguments = sys.argv[1:]
    sock = socket.socket(fileno=int(descriptor))
    line = Line(sock)
    given = json.loads(arguments)
    commands = load(file, function)(line, *given["arguments"], **given["options"])
    line.send(ready=sorted(commands))
    for text in sock.makefile("rb"):
        message = json.loads(text)
        if "permit" in message:
            line.permit(message["permit"], message["word"])
        else:
            call = message["call"], commands[message["command"]], message["arguments"], message["options"]
            threading.Thread(target=line.run, args=call, daemon=True).start()
    os._exit(0)


if __name__ == "__main__":
    main()
