"""Child processes that outlive nothing: neither the test that started them nor, where Linux helps, a killed pytest."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from together import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Linux sends the signal to a child when the thread that started it ends, so one thread that stays starts them all.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="leash")
_LEASHED: set[Leashed] = set()

#: setpriv (util-linux) asks the kernel for that, and then becomes the command: no fork of a process full of threads.
_SETPRIV = shutil.which("setpriv") if sys.platform == "linux" else None


class Leashed:
    """A process in a group of its own, so that a signal reaches its children too and Ctrl-C reaches neither.

    Args:
        arguments: The command line.
        options: What `subprocess.Popen` takes.
    """

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        leash = [_SETPRIV, "--pdeathsig", "KILL", "--"] if _SETPRIV else []
        self.popen = _STARTER.submit(
            lambda: subprocess.Popen([*leash, *arguments], process_group=0, **options)
        ).result()
        self.paused = False
        _LEASHED.add(self)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def _signal(self, number: int) -> None:
        # Asked first: once it is reaped its number may be another's.
        assert self.is_alive, f"process {self.pid} has ended already, with {self.popen.returncode}"
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone; a paused one dies too, and one that is gone stays so."""
        if self.is_alive:
            self._signal(signal.SIGKILL)
        self.popen.wait(PATIENCE)
        self.paused = False
        _LEASHED.discard(self)

    def pause(self) -> None:
        """SIGSTOP, and waits until the kernel has stopped it."""
        self._signal(signal.SIGSTOP)
        # Not reaped by this: `waitid` with WSTOPPED alone tells of the stop and leaves the end to `Popen`.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self.paused = False


class Held:
    """What runs for the length of a `with` block: it is made ready first, and closed at the end."""

    def ready(self) -> object:
        """Starts it, and waits until it can be used."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends it; a second time does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HeldProcess(Held):
    """One that is a process of its own, which a test can stop for a while."""

    process: Leashed | None

    def _running(self) -> Leashed:
        assert self.process is not None, f"{self} does not run"
        return self.process

    def pause(self) -> None:
        """SIGSTOP: connections stay, new ones are even accepted (by the kernel), and nothing answers."""
        self._running().pause()

    def resume(self) -> None:
        """SIGCONT."""
        self._running().resume()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stopped for the length of the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()


@atexit.register
def _end_all() -> None:
    for leashed in list(_LEASHED):
        leashed.kill()
