"""A TCP proxy between a client and a server whose faults a test switches, each direction for itself. Loopback only.

    with Proxy(server.address) as proxy:
        client = redis.Redis(port=proxy.port)
        proxy.set(replies=Delay(5))                          # every connection, those of later too
        proxy.set(replies=Cut(after=0, when="EVALSHA"))      # the server has run it, the client never learns
        proxy.set(requests=BlackHole())                      # half open: one direction is dead, nobody is told
        proxy.refuse()                                       # nobody listens
        proxy.set()                                          # all is well again

TCP neither duplicates nor reorders, so the proxy does not: answers overtake one another on different connections only
(`proxy.connections[i].set(replies=Hold())`). A fault holds from the moment that `set` returns, for bytes that were not
forwarded before; `set` counts anew. A chunk that waits (`Delay`) or is held keeps its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from servers import free_port, until
from together import PATIENCE

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine

_CHUNK = 65_536


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to the bytes of one direction.

    Args:
        when: The fault holds for a connection from the moment that a command with this name passed on it as a request
            after the fault was set, that command included: `"EVALSHA"`, `"GET"`. None: at once.
        times: How many connections it hits before it is spent; None: every one. For `Cut`.
    """

    when: str | None = None


@dataclass(frozen=True)
class Pass(Fault):
    """Bytes go through."""


@dataclass(frozen=True)
class Delay(Fault):
    """Bytes arrive `seconds` later, and up to `jitter` more; in order."""

    seconds: float
    jitter: float = 0.0


@dataclass(frozen=True)
class Trickle(Fault):
    """`size` bytes at a time, one portion every `every` seconds."""

    size: int = 1
    every: float = 0.01


@dataclass(frozen=True)
class BlackHole(Fault):
    """Read and dropped, the end of the stream too: the sender believes that it was heard."""


@dataclass(frozen=True)
class Hold(Fault):
    """Read and kept; what was kept goes on in order once another fault is set."""


@dataclass(frozen=True)
class Cut(Fault):
    """`after` further bytes go through, then both sides are reset (RST), before the next byte.

    As a fault of replies with `after=0`: the request was carried out and its outcome is unknown.
    """

    after: int = 0
    times: int | None = None


PASS = Pass()


class Requests:
    """Names the commands in a stream of requests (arrays of bulk strings), however its bytes are cut."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skip = 0  # bytes of a bulk string, its end included, that are still to come
        self._arguments = 0  # bulk strings of the command that are still to come
        self._first = False  # whether the next one is the name

    def feed(self, chunk: bytes) -> list[str]:
        """The names of the commands whose name ends in this chunk."""
        names = []
        self._rest += chunk
        while True:
            if self._skip:
                taken = min(self._skip, len(self._rest))
                del self._rest[:taken]
                self._skip -= taken
                if self._skip:
                    return names
            end = self._rest.find(b"\r\n")
            if end < 0:
                return names
            kind, number = self._rest[:1], self._rest[1:end]
            if self._arguments == 0 and kind != b"*":  # an inline command, as a person types it
                names.append(self._rest[:end].split(b" ")[0].decode("ascii", "replace").upper())
            elif kind == b"*":
                self._arguments, self._first = int(number), True
            elif self._first:
                length = int(number)
                if len(self._rest) < end + 2 + length + 2:
                    return names
                name = self._rest[end + 2 : end + 2 + length]
                names.append(name.decode("ascii", "replace").upper())
                self._skip, self._first, self._arguments = length + 2, False, self._arguments - 1
            else:
                self._skip, self._arguments = int(number) + 2, self._arguments - 1
            del self._rest[: end + 2]


class _Direction:
    """One direction of one connection: reads, and forwards what its fault lets through."""

    def __init__(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection = connection
        self.reader, self.writer = reader, writer
        self.fault: Fault = PASS
        self.armed = True
        self.passed = 0  # bytes since the fault holds
        self.changed = asyncio.Event()
        self.waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

    def set(self, fault: Fault) -> None:
        self.fault, self.armed, self.passed = fault, fault.when is None, 0
        self.changed.set()

    def arm(self, names: list[str]) -> None:
        if not self.armed and self.fault.when is not None and self.fault.when.upper() in names:
            self.armed, self.passed = True, 0
            self.changed.set()

    @property
    def current(self) -> Fault:
        return self.fault if self.armed else PASS

    async def read(self) -> None:
        """Reads until the end, which is an empty chunk."""
        chunk = b"-"
        while chunk:
            chunk = await self.reader.read(_CHUNK)
            self.connection.saw(self, chunk)
            fault, due = self.current, time.monotonic()
            if isinstance(fault, Delay):
                due += fault.seconds + self.connection.proxy.random.uniform(0, fault.jitter)
            await self.waiting.put((due, chunk))

    async def forward(self) -> None:
        """Sends what was read, when it is due and as the fault of that moment has it."""
        while True:
            due, chunk = await self.waiting.get()
            while (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            while isinstance(self.current, Hold):
                self.changed.clear()
                await self.changed.wait()
            if isinstance(self.current, BlackHole):
                continue
            if not chunk:
                if self.writer.can_write_eof():
                    self.writer.write_eof()
                return
            await self._send(chunk)

    async def _send(self, chunk: bytes) -> None:
        fault = self.current
        if isinstance(fault, Trickle):
            for start in range(0, len(chunk), fault.size):
                if self.current is not fault:  # switched off: the rest is not slow
                    await self._send(chunk[start:])
                    return
                self.writer.write(chunk[start : start + fault.size])
                await self.writer.drain()
                await asyncio.sleep(fault.every)
            return
        if isinstance(fault, Cut) and self.passed + len(chunk) > fault.after:
            self.writer.write(chunk[: fault.after - self.passed])
            await self.writer.drain()
            self.connection.proxy.spend(fault)
            raise ConnectionAbortedError("cut by the proxy")
        self.passed += len(chunk)
        self.writer.write(chunk)
        await self.writer.drain()


class Connection:
    """One connection through the proxy.

    Attributes:
        commands: How often each command was asked for, by its name in capitals.
        bytes_requested, bytes_replied: What was read from the client, and from the server.
        is_open: Whether it is carried on.
    """

    def __init__(self, proxy: Proxy, faults: tuple[Fault, Fault]) -> None:
        self.proxy = proxy
        self.faults = faults
        self.commands: Counter[str] = Counter()
        self.bytes_requested = self.bytes_replied = 0
        self.is_open = True
        self._parser = Requests()
        self.requests: _Direction | None = None
        self.replies: _Direction | None = None
        self.task: asyncio.Task[None] | None = None

    def set(self, *, requests: Fault = PASS, replies: Fault = PASS) -> None:
        """Sets the faults of this connection alone, until the proxy's are set again."""
        self.proxy.call(self.switch(requests, replies))

    async def switch(self, requests: Fault, replies: Fault) -> None:
        self.faults = requests, replies  # for one that is still on its way to the server, too
        if self.requests and self.replies:
            self.requests.set(requests)
            self.replies.set(replies)

    def cut(self) -> None:
        """Resets both sides now."""
        self.proxy.call(self.abort())

    async def abort(self) -> None:
        if self.task:
            self.task.cancel()

    def saw(self, direction: _Direction, chunk: bytes) -> None:
        """Counts; a command arms the faults of both directions that wait for it."""
        if direction is self.replies:
            self.bytes_replied += len(chunk)
            return
        self.bytes_requested += len(chunk)
        names = self._parser.feed(chunk)
        self.commands.update(names)
        for each in (self.requests, self.replies):
            if each:
                each.arm(names)

    def start(self, sock: socket.socket) -> None:
        """Begins to carry what was accepted."""

        def ended(_: object) -> None:
            # Here, since a task that is cancelled before it runs at all has no `finally`.
            self.is_open = False
            sock.close()

        self.task = asyncio.get_running_loop().create_task(self.carry(sock, self.proxy.tls, self.proxy.target))
        self.task.add_done_callback(ended)

    async def carry(self, sock: socket.socket, tls: ssl.SSLContext | None, target: tuple[str, int] | str) -> None:
        """Carries bytes until both directions have ended, or one was cut."""
        writers: list[asyncio.StreamWriter] = []
        try:
            client = await _serve(sock, tls)
            writers.append(client[1])
            server = await (
                asyncio.open_unix_connection(target) if isinstance(target, str) else asyncio.open_connection(*target)
            )
            writers.append(server[1])
            self.requests = _Direction(self, client[0], server[1])
            self.replies = _Direction(self, server[0], client[1])
            await self.switch(*self.faults)
            async with asyncio.TaskGroup() as group:
                for direction in (self.requests, self.replies):
                    group.create_task(direction.read())
                    group.create_task(direction.forward())
            for writer in writers:
                writer.close()
        except* (OSError, asyncio.CancelledError):
            for writer in writers:
                _reset(writer)
        finally:
            for writer in writers:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()


async def _serve(sock: socket.socket, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The streams of a connection that was accepted."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=tls)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST: what lingers for no time at all is not sent, and the peer is told so."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    """Listens on a loopback port of its own and carries each connection to `target`.

    Args:
        target: `(host, port)`, or the path of a unix socket.
        tls: The proxy speaks TLS to its clients (and none to the server), for servers that were built without.
        seed: Of the jitter.

    Attributes:
        port: What clients connect to; it stays the same through `refuse` and `listen`.
        connections: Every connection since the start, the oldest first.
    """

    def __init__(self, target: tuple[str, int] | str, *, tls: ssl.SSLContext | None = None, seed: int = 0) -> None:
        self.target = target
        self.port = free_port()
        self.connections: list[Connection] = []
        self.random = random.Random(seed)
        self.tls = tls
        self._faults: tuple[Fault, Fault] = (PASS, PASS)
        self._spent: Counter[int] = Counter()
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __repr__(self) -> str:
        return f"<proxy on port {self.port} to {self.target}>"

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Resets every connection and ends the thread."""
        if not self._loop.is_closed():
            self.refuse(cut=True)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE)
            self._loop.close()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs work in the proxy's thread, and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    # What a test switches.

    def set(self, *, requests: Fault = PASS, replies: Fault = PASS) -> None:
        """Sets the faults of every connection, those that are open and those that come; without arguments: none."""
        self.call(self._set(requests, replies))

    async def _set(self, requests: Fault, replies: Fault) -> None:
        self._faults = requests, replies
        self._spent.clear()
        for connection in self.connections:
            await connection.switch(requests, replies)

    @contextlib.contextmanager
    def fault(self, *, requests: Fault = PASS, replies: Fault = PASS) -> Any:
        """As `set`, for the time of a block."""
        self.set(requests=requests, replies=replies)
        try:
            yield
        finally:
            self.set()

    def refuse(self, *, cut: bool = False) -> None:
        """Stops listening, so that connecting is refused; with `cut` what is open is reset too."""
        self.call(self._refuse())
        if cut:
            self.cut()

    async def _refuse(self) -> None:
        if self._listener:
            self._accept(self._listener)  # whoever has connected, as the kernel sees it, is carried on
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def listen(self) -> None:
        """Listens (again)."""
        self.call(self._listen())

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def cut(self) -> None:
        """Resets every open connection now."""
        self.call(self._cut())

    async def _cut(self) -> None:
        tasks = [connection.task for connection in self.connections if connection.task and connection.is_open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def retarget(self, target: tuple[str, int] | str) -> None:
        """Leads to another server from now on, as an address that moves in a failover does: what is open is reset."""
        self.target = target
        self.cut()

    # What a test asks.

    @property
    def url(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://localhost:{self.port}/0"

    @property
    def commands(self) -> Counter[str]:
        """How often each command was asked for through the proxy."""
        return sum((connection.commands for connection in list(self.connections)), Counter())

    @property
    def open_connections(self) -> list[Connection]:
        return [connection for connection in list(self.connections) if connection.is_open]

    def wait_for(self, command: str, count: int = 1) -> None:
        """Waits until that many of a command have come to the proxy since its start."""
        until(lambda: self.commands[command.upper()] >= count, f"{count} {command} at {self} (came: {self.commands})")

    # Its own work, in its thread.

    def _accept(self, listener: socket.socket) -> None:
        # Not `loop.sock_accept`: cancelled at the wrong moment it loses a connection.
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = listener.accept()
                connection = Connection(self, self._faults)
                self.connections.append(connection)
                connection.start(sock)

    def spend(self, fault: Cut) -> None:
        """Counts a cut; one that was to happen a number of times is over then."""
        self._spent[id(fault)] += 1
        if fault.times is not None and self._spent[id(fault)] >= fault.times:
            self._faults = tuple(PASS if each is fault else each for each in self._faults)  # type: ignore[assignment]
            for connection in self.connections:
                connection.faults = tuple(PASS if each is fault else each for each in connection.faults)  # type: ignore[assignment]
                for direction in (connection.requests, connection.replies):
                    if direction and direction.fault is fault:
                        direction.set(PASS)
