"""`Gateway`: listeners, signals and a graceful end around `CacheMiddleware(Upstream(…))`.

One event loop has both listeners. At SIGTERM or SIGINT, in this order: /-/readyz says no; new connections are accepted
for `drain_delay` more; the listener closes; answers under way end, for at most `drain_timeout`; the operators' listener
closes; what waits to be written to the tier is written. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from infercache.edge.making import token_of
from infercache.edge.middleware import CacheMiddleware
from infercache.errors import InvalidArgument, MissingExtra

try:
    import uvicorn

    from infercache.edge.admin import Admin
    from infercache.edge.protocol import protocol_for, sweep
    from infercache.edge.upstream import Upstream
except ImportError as error:
    raise MissingExtra(
        f"the gateway needs what the extra 'edge' brings: pip install 'infercache[edge]' ({error})"
    ) from None

if TYPE_CHECKING:
    from infercache import Cache
    from infercache.edge.routes import Routes, Table
    from infercache.edge.settings import Settings

__all__ = ["Gateway", "run"]

logger = logging.getLogger("infercache.edge")

#: Connections of operators at once.
_OPERATORS = 256
#: Seconds that answers to operators may take to end.
_OPERATORS_DRAIN = 2.0


class Gateway:
    """A gateway in front of `settings.upstream`.

    Args:
        settings: the options.
        cache: the cache to use; by default one is made as the settings say.
        table: handlers, in place of those that the settings ask for.

    Raises:
        InvalidArgument: an option is not acceptable, a certificate cannot be loaded, an address cannot be bound.
    """

    def __init__(self, settings: Settings, *, cache: Cache | None = None, table: Table | Routes | None = None) -> None:
        if settings.listen == settings.admin_listen and not settings.listen.endswith(":0"):
            raise InvalidArgument(
                f"listen, admin_listen: both are {settings.listen}; give operators an address of their own, or '' and "
                "admin_on_listener"
            )
        if settings.admin_listen is not None and settings.admin_token_file is None:
            logger.warning("operators have no token, so only health is answered to them: set admin_token_file")
        token_of(settings)
        self.settings = settings
        self.upstream = Upstream(settings)
        self._stopping = asyncio.Event()
        self._servers: list[_Server] = []
        self._sockets: list[list[socket.socket]] = []
        try:
            self._public = self._server("listen", settings.listen, settings.max_connections, settings.drain_timeout)
            self._private = (
                None
                if settings.admin_listen is None
                else self._server("admin_listen", settings.admin_listen, _OPERATORS, _OPERATORS_DRAIN)
            )
            self.edge = CacheMiddleware(self.upstream, settings=settings, cache=cache, table=table, guard=True)
            self.admin = Admin(self.edge, self.upstream)
        except BaseException:
            for each in self._sockets:
                _close(each)
            raise
        self._public.config.app = self._public.config.loaded_app = self.edge
        if self._private is not None:
            self._private.config.app = self._private.config.loaded_app = self.admin

    def _server(self, name: str, address: str, connections: int, drain: float) -> _Server:
        settings = self.settings
        config = uvicorn.Config(
            _nothing,
            http=protocol_for(settings),
            ws="none",
            lifespan="on" if name == "listen" else "off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=connections,
            timeout_graceful_shutdown=drain,  # type: ignore[arg-type]  # what it is given to takes fractions
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            ssl_ca_certs=settings.tls_client_ca,
            ssl_cert_reqs=ssl.CERT_NONE if settings.tls_client_ca is None else ssl.CERT_REQUIRED,
        )
        try:
            config.load()
        except OSError as error:  # of which ssl.SSLError is one
            raise InvalidArgument(
                f"tls_certificate, tls_key, tls_client_ca: cannot be loaded: {error.strerror or error}"
            ) from None
        self._sockets.append(_bind(name, address))
        server = _Server(config)
        self._servers.append(server)
        return server

    def addresses(self) -> list[str]:
        """Where clients are served, and then where operators are."""
        return [_shown(each[0]) for each in self._sockets]

    def stop(self) -> None:
        """Ends it gracefully; a second time, at once."""
        if self._stopping.is_set():
            for server in self._servers:
                server.should_exit = server.force_exit = True
        self._stopping.set()

    async def run(self, started: Callable[[], None] | None = None) -> None:
        """Serves until `stop` is called; `started` is called once both listeners accept."""
        serving = [
            asyncio.create_task(server.serve(sockets=sockets))
            for server, sockets in zip(self._servers, self._sockets, strict=True)
        ]
        sweeps = [
            asyncio.create_task(sweep(server.server_state.connections, self.settings)) for server in self._servers
        ]
        try:
            while not all(server.started for server in self._servers):
                if any(each.done() for each in serving):
                    break
                await asyncio.sleep(0.005)
            logger.info(
                "listening", extra={"edge": dict(zip(("listen", "admin_listen"), self.addresses(), strict=False))}
            )
            if started is not None:
                started()
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([stopping, *serving], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            self.admin.draining = True
            logger.info("draining", extra={"edge": {"in_flight": self.edge.metrics.in_flight}})
            if not any(server.force_exit for server in self._servers):
                await asyncio.sleep(self.settings.drain_delay)
            for server, each in zip(self._servers, serving, strict=True):
                server.should_exit = True
                await each
        finally:
            for each in (*sweeps, *serving):
                each.cancel()
            await self.edge.cache.aclose()
            await self.upstream.aclose()
        logger.info("stopped")


class _Server(uvicorn.Server):
    """One listener. Signals are the gateway's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: two listeners would take them from each other."""
        yield


async def _nothing(scope: object, receive: object, send: object) -> None:
    """Stands for the application until that is made."""


def _bind(name: str, address: str) -> list[socket.socket]:
    """Sockets for every address that the host has."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, (at, chosen, *more) in dict.fromkeys(found):
            if opened:  # a port that the system chose is the same for all
                chosen = opened[0].getsockname()[1]  # noqa: PLW2901 - of this one
            made = socket.socket(family, socket.SOCK_STREAM)
            opened.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            made.bind((at, chosen, *more))
            made.setblocking(False)
    except OSError as error:
        _close(opened)
        raise InvalidArgument(f"{name}={address}: cannot listen there: {error.strerror or error}") from None
    return opened


def _close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def run(settings: Settings) -> None:
    """Serves until a signal ends it. The command `infercache serve`.

    Raises:
        InvalidArgument: as `Gateway`.
    """
    gateway = Gateway(settings)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends it
                loop.add_signal_handler(number, gateway.stop)
        await gateway.run()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return None
    return uvloop.new_event_loop
