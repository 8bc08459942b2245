"""Connections for threads. redis-py opens them and logs in; from then on the socket is ours, and each wait is bounded.

redis-py's own reads set a timeout for each `recv`, so a server that sends a byte now and then holds them for ever. Here
the socket does not block at all: who has to wait polls for what is left until the deadline.

The interface is the one of `evented`: coroutines, so that what is built on both is written once. These never suspend;
`run` drives them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import hiredis

from infercache.errors import TierError, TierUnavailable
from infercache.tiers.opening import refusal, shown_address, timed_out
from infercache.tiers.polling import IN, OUT, poller

if TYPE_CHECKING:
    from infercache.tiers.target import Address, Target

__all__ = ["BlockingWire", "BlockingWires", "open_wire", "run"]

T = TypeVar("T")

_MORE = object()  # hiredis needs more bytes
_PUSH = hiredis.PushNotification  # what the server says unasked
_READ_SIZE = 65_536
#: Seconds: a socket takes 0 for "do not block".
_LEAST = 0.001


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that never suspends returns."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking operation was suspended")


class BlockingWire:
    """One connection, used by one thread at a time. What ends it in mid-exchange closes it."""

    def __init__(self, sock: Any, address: Address) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._address = address
        self._reader = hiredis.Reader(notEnoughData=_MORE, replyError=TierError)
        self._buffer = bytearray(_READ_SIZE)
        self._poll = poller(sock)
        self._has_sent = False  # something of the present exchange
        self.is_used = False  # it has carried an exchange since it was opened

    def is_quiet(self) -> bool:
        """Whether it may carry the next exchange: the peer has not closed it, and nothing unasked has come."""
        pending = getattr(self._sock, "pending", None)
        return not self._poll(IN, 0) and not (pending is not None and pending())

    async def exchange(
        self, payload: Sequence[bytes], count: int, arrived: Callable[[list[Any]], None] | None, deadline: float
    ) -> list[Any]:
        """Sends the parts of `payload` and gives back the next `count` replies.

        `arrived` is told of those that have come while others have not.

        Raises:
            TierUnavailable: by the deadline not all had come, or the connection broke; it is closed then.
        """
        try:
            self._has_sent = False
            for part in payload:
                self._send(part, deadline)
            replies: list[Any] = []
            gets, put = self._reader.gets, replies.append
            while True:
                while (reply := gets()) is not _MORE:
                    if type(reply) is _PUSH:
                        continue
                    put(reply)
                    count -= 1
                    if not count:
                        self.is_used = True
                        if self._reader.has_data():  # what nobody asked for: the next exchange must not read it
                            self.close()
                        return replies
                if arrived is not None:
                    arrived(replies)
                self._receive(deadline)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | hiredis.HiredisError) and not isinstance(error, TierError):
                raise refusal(error, self._address, sent=self._has_sent) from error
            raise

    def send_only(self, payload: bytes, deadline: float) -> None:
        """Sends what is answered by messages; see `read_push`.

        Raises:
            TierUnavailable: it could not be sent by the deadline; the connection is closed then.
        """
        self._has_sent = False
        try:
            self._send(payload, deadline)
        except OSError as error:
            self.close()
            raise refusal(error, self._address, sent=self._has_sent) from error

    def read_push(self, deadline: float) -> list[Any] | None:
        """The next message that the server sends by itself, or a reply; None at the deadline, which breaks nothing.

        Raises:
            TierUnavailable: the connection broke.
        """
        try:
            while (reply := self._reader.gets()) is _MORE:
                if not self._poll(IN, max(0.0, deadline - time.monotonic())):
                    return None
                with contextlib.suppress(TimeoutError):
                    self._receive(deadline)
        except (OSError, hiredis.HiredisError) as error:
            self.close()
            raise refusal(error, self._address, sent=False) from error
        return reply if isinstance(reply, list) else [reply]

    def fileno(self) -> int:
        """The socket's descriptor, -1 once it is closed."""
        found: int = self._sock.fileno()
        return found

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self.fileno() < 0

    def has_pending(self) -> bool:
        """Whether bytes have been read from the socket and not yet handed out."""
        pending = getattr(self._sock, "pending", None)
        return self._reader.has_data() or bool(pending is not None and pending())

    def close(self) -> None:
        """Closes the socket; a second time does nothing."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def _send(self, payload: bytes, deadline: float) -> None:
        sent = 0
        while sent < len(payload):
            try:
                sent += self._sock.send(memoryview(payload)[sent:] if sent else payload)
                self._has_sent = True
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(OUT, deadline)
            except ssl.SSLWantReadError:
                self._wait(IN, deadline)

    def _receive(self, deadline: float) -> None:
        """Feeds the reader what has come, waiting for something if need be."""
        while True:
            try:
                length = self._sock.recv_into(self._buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(IN, deadline)
            except ssl.SSLWantWriteError:
                self._wait(OUT, deadline)
            else:
                if not length:
                    raise ConnectionResetError("the server closed the connection")
                self._reader.feed(self._buffer, 0, length)  # type: ignore[arg-type]
                # A server that trickles keeps the socket readable: the deadline is asked here, too.
                if time.monotonic() > deadline:
                    raise timed_out()
                return

    def _wait(self, event: int, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not self._poll(event, left):
            raise timed_out()


class BlockingWires:
    """The connections to one server that threads share: at most `most`, made when needed, the last used taken first."""

    kind = "blocking"

    def __init__(self, target: Target, address: Address, most: int) -> None:
        self._target = target
        self._address = address
        self._most = most
        self._idle: list[BlockingWire] = []  # appended and popped without the lock: each is one step of the interpreter
        self._freed = threading.Condition(threading.Lock())
        self._open = 0
        self._waiting = 0
        self._shut = False
        self._owner = os.getpid()

    async def take(self, deadline: float, *, fresh: bool = False) -> BlockingWire:
        """A connection that nobody else uses; `fresh`: opened now, and what lies idle is closed.

        Raises:
            TierUnavailable: none could be opened, or was given back, by the deadline.
        """
        if fresh:
            self.drop_idle()
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                taken = self._wait_for_one(deadline)
                if taken is None:
                    break
                wire = taken
            if wire.is_quiet():
                return wire
            self.give_back(wire, broken=True)
        try:
            return open_wire(self._target, self._address, deadline)
        except BaseException:
            self._count_down()
            raise

    def _wait_for_one(self, deadline: float) -> BlockingWire | None:
        """Another's connection; None: a new one may be opened, and is counted already."""
        with self._freed:
            # Announced before the look at what is idle: who gives back appends first and looks for waiters then.
            self._waiting += 1
            try:
                while True:
                    if self._shut:
                        raise TierUnavailable("the tier is closed: make another one", sent=False, reason="shut")
                    if self._idle:
                        with contextlib.suppress(IndexError):
                            return self._idle.pop()
                    if self._open < self._most:
                        self._open += 1
                        return None
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._freed.wait(left):
                        raise TierUnavailable(
                            f"all {self._most} connections to {shown_address(self._address)} were in use until the "
                            "budget was spent: raise RedisTier(connections=…), or look why the server is slow",
                            sent=False,
                            reason="busy",
                        )
            finally:
                self._waiting -= 1

    def give_back(self, wire: BlockingWire, *, broken: bool = False) -> None:
        """Ends a caller's use of a connection."""
        if broken or self._shut or wire.is_closed:
            wire.close()
            self._count_down()
            return
        self._idle.append(wire)
        if self._waiting:
            with self._freed:
                self._freed.notify()
        if self._shut:  # it was shut in between
            self.drop_idle()

    def drop_idle(self) -> None:
        """Closes what nobody uses: the server restarted, or is no longer the primary."""
        while self._idle:
            with contextlib.suppress(IndexError):
                self.give_back(self._idle.pop(), broken=True)

    def shut(self) -> None:
        """Closes every idle connection now, and each other one when it is given back."""
        with self._freed:
            self._shut = True
            self._freed.notify_all()
        self.drop_idle()

    def forget(self) -> None:
        """In the child of a fork: closes the child's copies of the descriptors, which the parent does not notice."""
        idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()

    @staticmethod
    async def sleep(seconds: float) -> None:
        """Lets time pass."""
        time.sleep(seconds)  # noqa: ASYNC251 - no event loop runs this

    @staticmethod
    async def together(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """The results of coroutines that run side by side, each but the first on a thread of its own."""
        first, *others = parts
        results: list[Any] = [None] * (len(others) + 1)

        def work(place: int, part: Coroutine[Any, Any, T]) -> None:
            try:
                results[place] = run(part)
            except BaseException as error:  # noqa: BLE001 - raised below, where there is somebody to raise it to
                results[place] = error

        threads = [
            threading.Thread(target=work, args=(place, part), name="infercache-tier-node", daemon=True)
            for place, part in enumerate(others, 1)
        ]
        for thread in threads:
            thread.start()
        work(0, first)
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def _count_down(self) -> None:
        with self._freed:
            self._open -= 1
            self._freed.notify()


class _Until:
    """A socket as redis-py uses it to log in, all of whose waits end at one deadline."""

    def __init__(self, sock: Any, deadline: float) -> None:
        self.sock = sock
        self._deadline = deadline

    def recv_into(self, buffer: Any, *rest: Any) -> int:
        self._bound()
        got: int = self.sock.recv_into(buffer, *rest)
        return got

    def sendall(self, data: Any) -> None:
        self._bound()
        self.sock.sendall(data)

    def settimeout(self, _seconds: float | None) -> None:
        """The deadline is the only timeout."""

    def _bound(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise timed_out()
        self.sock.settimeout(left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def _bounded(made: type[Any]) -> type[Any]:
    """redis-py's connection class with one deadline for everything from the connection to the login."""
    import redis

    class Bounded(made):  # type: ignore[misc]
        deadline: float
        context: ssl.SSLContext | None

        @property
        def socket_timeout(self) -> float | None:
            # Asked between the making of a socket and what closes it on an error, so it raises none.
            return max(_LEAST, self.deadline - time.monotonic()) if hasattr(self, "deadline") else 1.0

        @socket_timeout.setter
        def socket_timeout(self, value: float | None) -> None:
            """The deadline is the only timeout."""

        socket_connect_timeout = socket_timeout

        def _connect(self) -> _Until:
            try:
                if self.deadline <= time.monotonic():
                    raise timed_out()
                return _Until(super()._connect(), self.deadline)
            except TimeoutError as error:
                # redis-py counts one by the connection's port, which one to a Unix socket has not: AttributeError.
                raise redis.TimeoutError(str(error)) from error

        def _wrap_socket_with_ssl(self, sock: Any) -> Any:
            if self.context is None:
                return super()._wrap_socket_with_ssl(sock)
            return self.context.wrap_socket(sock, server_hostname=self.host)

    return Bounded


def _open(target: Target, address: Address, deadline: float) -> BlockingWire:
    import redis

    connection: Any = _bounded(target.class_for("blocking"))(**target.options_at(address))
    connection.deadline, connection.context = deadline, target.context
    try:
        connection.connect()
        sock, connection._sock = connection._sock.sock, None  # from here on it is ours: it would close it
    except (OSError, redis.RedisError) as error:
        connection.disconnect()
        raise refusal(error, address, sent=False) from error
    connection.disconnect()
    return BlockingWire(sock, address)


def open_wire(target: Target, address: Address, deadline: float) -> BlockingWire:
    """A new connection, logged in.

    The resolver takes no timeout, so a host with a name is opened on a thread that may be left behind.

    Raises:
        TierUnavailable: there was none by the deadline; nothing was sent.
    """
    host, port = address
    if not port or _is_literal(host):
        return _open(target, address, deadline)
    done = threading.Lock()
    done.acquire()
    outcome: list[Any] = []
    gone = threading.Event()

    def work() -> None:
        try:
            outcome.append(_open(target, address, deadline))
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            outcome.append(error)
        done.release()
        if gone.is_set() and isinstance(outcome[0], BlockingWire):
            outcome[0].close()

    threading.Thread(target=work, name="infercache-tier-open", daemon=True).start()
    if not done.acquire(timeout=max(0.0, deadline - time.monotonic())):
        gone.set()
        if outcome and isinstance(outcome[0], BlockingWire):
            outcome[0].close()
        raise refusal(timed_out(), address, sent=False)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    wire: BlockingWire = outcome[0]
    return wire


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
