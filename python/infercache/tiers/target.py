"""Which server a tier talks to: a URL or a client of the caller's own, as what redis-py needs to open a connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from infercache.errors import InvalidArgument, MissingExtra, TierUnavailable, shown

if TYPE_CHECKING:
    import ssl

__all__ = ["Address", "Target", "target_of"]

#: Host and port, or a socket's path and 0.
Address = tuple[str, int]

_SCHEMES = {
    "redis": False,
    "rediss": False,
    "unix": False,
    "redis+cluster": True,
    "rediss+cluster": True,
}
# What redis-py would understand in a URL and what is the tier's own business here.
_REFUSED_OPTIONS = {
    "socket_timeout": "RedisTier(timeout=…)",
    "socket_connect_timeout": "RedisTier(timeout=…)",
    "timeout": "RedisTier(timeout=…)",
    "retry_on_timeout": "RedisTier(retries=…)",
    "retry_on_error": "RedisTier(retries=…)",
    "max_connections": "RedisTier(connections=…)",
    "health_check_interval": "nothing: connections are looked at before each use",
    "protocol": "nothing: RESP3 is spoken",
    "decode_responses": "nothing: replies are bytes",
}
# What of a client's settings a connection is made from; its timeouts, retries and parser are the tier's own.
_KEPT = frozenset({
    "host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "socket_keepalive",
    "socket_keepalive_options", "socket_type", "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs",
    "ssl_include_verify_flags", "ssl_exclude_verify_flags", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path",
    "ssl_check_hostname", "ssl_password", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl_ocsp_context",
    "ssl_ocsp_expected_cert", "ssl_min_version", "ssl_ciphers",
})  # fmt: skip


_PLACES = ("host", "port", "path")


class Target(NamedTuple):
    """A server, or a cluster's first known nodes.

    Attributes:
        blocking: redis-py's connection class for threads, or None where the caller's own class has no twin.
        evented: the one for event loops, or None.
        options: what both classes are called with, host and port (or path) aside.
        seeds: where to begin; one of them but for clusters.
        is_cluster: whether commands go to the node that holds their slot.
        identity: the same for tiers that reach the same data; without password.
        context: the TLS settings, read once; None without TLS, or where redis-py has to do more than open it (OCSP).
    """

    blocking: type[Any] | None
    evented: type[Any] | None
    options: Mapping[str, Any]
    seeds: tuple[Address, ...]
    is_cluster: bool
    identity: str
    context: ssl.SSLContext | None

    def options_at(self, address: Address) -> dict[str, Any]:
        """The arguments for a connection to `address`."""
        host, port = address
        place = {"host": host, "port": port} if port else {"path": host}
        return {**self.options, **place, "protocol": 3, "driver_info": None, "socket_timeout": None}

    def class_for(self, kind: str) -> type[Any]:
        """redis-py's class for `"blocking"` or `"evented"` connections.

        Raises:
            TierUnavailable: the caller's client has a connection class of its own, which has no twin of this kind.
        """
        found: type[Any] | None = self.blocking if kind == "blocking" else self.evented
        if found is None:
            caller = "synchronous" if kind == "blocking" else "asyncio"
            raise TierUnavailable(
                f"the tier's client has a connection class of its own, and redis-py has no {caller} twin of it: give "
                "RedisTier a URL, or use it from the other kind of function",
                sent=False,
                reason="client",
            )
        return found


def target_of(given: object) -> Target:
    """What `RedisTier` was given.

    Raises:
        InvalidArgument: no URL of a known kind, a URL with an option that is not understood, certificates that cannot
            be read, or no client of redis-py.
        MissingExtra: redis-py or hiredis is not installed.
    """
    try:
        import hiredis  # noqa: F401
        import redis  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"a tier in Redis or Valkey needs redis-py with hiredis ({error}): pip install 'infercache[redis]'"
        ) from error
    return _from_url(given) if isinstance(given, str) else _from_client(given)


def without_password(url: str) -> str:
    """The URL as an error may show it."""
    head, mark, tail = url.rpartition("@")
    if mark:
        url = f"{head.split('://')[0]}://…@{tail}"
    return url.partition("?")[0]


def _from_url(url: str) -> Target:
    from redis import connection

    parse: Any = connection.parse_url  # it has no types
    scheme, mark, rest = url.partition("://")
    named = f"l2={shown(without_password(url))}"
    if not mark or scheme not in _SCHEMES:
        raise InvalidArgument(
            f"{named}: a tier's URL begins with one of {', '.join(f'{name}://' for name in _SCHEMES)}"
        )
    try:
        split = urlsplit(url)
        options: dict[str, Any] = dict(parse(f"{scheme.removesuffix('+cluster')}://{rest}"))
    except ValueError as error:
        raise InvalidArgument(f"{named}: {error}") from error
    for option in parse_qs(split.query):
        if option in _REFUSED_OPTIONS:
            raise InvalidArgument(f"{named}: the URL's option {option!r} is not taken; use {_REFUSED_OPTIONS[option]}")
    path = split.path.strip("/")
    if scheme != "unix" and path and not path.isdecimal():
        raise InvalidArgument(f"{named}: what follows the host is the database's number, and {path!r} is none")
    options.pop("connection_class", None)
    kind = "unix" if scheme == "unix" else "tls" if scheme.startswith("rediss") else "tcp"
    if kind == "unix" and not options.get("path"):
        raise InvalidArgument(f"{named}: the path of the server's socket is missing, as in unix:///run/redis.sock")
    return _target(named, kind, _classes(kind), options, is_cluster=_SCHEMES[scheme])


def _classes(kind: str) -> tuple[type[Any], type[Any]]:
    import redis
    import redis.asyncio

    if kind == "unix":
        return redis.UnixDomainSocketConnection, redis.asyncio.UnixDomainSocketConnection
    if kind == "tls":
        return redis.SSLConnection, redis.asyncio.SSLConnection
    return redis.Connection, redis.asyncio.Connection


def _from_client(client: object) -> Target:
    import redis
    import redis.asyncio

    named = f"l2={shown(type(client).__name__)}"
    if isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster):
        nodes: Any = client.nodes_manager
        options = _kept(nodes.connection_kwargs)
        made = nodes.connection_kwargs.get("connection_class", object)
        is_tls = nodes.connection_kwargs.get("ssl") or issubclass(
            made, redis.SSLConnection | redis.asyncio.SSLConnection
        )
        kind = "tls" if is_tls else "tcp"
        seeds = tuple((str(node.host), int(node.port)) for node in nodes.startup_nodes.values())
        return _target(named, kind, _classes(kind), options, is_cluster=True, seeds=seeds)
    if not isinstance(client, redis.Redis | redis.asyncio.Redis):
        raise InvalidArgument(f"{named}: a tier is a URL such as 'redis://localhost:6379', or a client of redis-py")
    pool: Any = client.connection_pool
    options, own = _kept(pool.connection_kwargs), pool.connection_class
    for kind in ("unix", "tls", "tcp"):
        classes = _classes(kind)
        if own in classes:
            return _target(named, kind, classes, options)
    for kind in ("unix", "tls", "tcp"):  # a subclass of the caller's own: only for the kind of caller that it is for
        blocking, evented = _classes(kind)
        if issubclass(own, blocking):
            return _target(named, kind, (own, None), options)
        if issubclass(own, evented):
            return _target(named, kind, (None, own), options)
    raise InvalidArgument(f"{named}: connections of class {own.__name__} are not understood; give RedisTier a URL")


def _target(
    named: str,
    kind: str,
    classes: tuple[type[Any] | None, type[Any] | None],
    options: dict[str, Any],
    *,
    is_cluster: bool = False,
    seeds: tuple[Address, ...] = (),
) -> Target:
    database = int(options.get("db") or 0)
    if is_cluster and database:
        raise InvalidArgument(f"{named}: a cluster has database 0 only")
    known = {name: value for name, value in options.items() if value is not None and name not in _PLACES}
    if not seeds:
        place = (
            (options["path"], 0) if kind == "unix" else (options.get("host", "localhost"), options.get("port", 6379))
        )
        seeds = ((str(place[0]), int(place[1])),)
    places = ",".join(sorted(f"{host}:{port}" if port else host for host, port in seeds))
    scheme = {"unix": "unix", "tls": "rediss", "tcp": "redis"}[kind] + ("+cluster" if is_cluster else "")
    target = Target(*classes, known, seeds, is_cluster, f"{scheme}://{places}/{database}", None)
    if kind == "tls" and {"ssl_validate_ocsp", "ssl_validate_ocsp_stapled"} & set(known):
        # Only redis-py's blocking class checks revocation, and does it in a way of its own.
        target = target._replace(evented=None)
    for made in (target.blocking, target.evented):
        if made is not None:
            connection = _try(named, made, target.options_at(seeds[0]))
    if kind == "tls" and target.evented is not None:
        return target._replace(context=_context(named, connection))
    return target


def _kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a client's settings is taken over."""
    return {name: value for name, value in options.items() if name in _KEPT}


def _try(named: str, made: type[Any], options: Mapping[str, Any]) -> Any:
    """A connection that is not opened: whether redis-py understands the options."""
    from redis import RedisError

    try:
        return made(**options)
    except (TypeError, ValueError, RedisError) as error:
        raise InvalidArgument(f"{named}: redis-py does not take these options: {error}") from error


def _context(named: str, connection: Any) -> ssl.SSLContext:
    """The TLS settings of a connection for event loops, which the other kind shares.

    Read once: the system's certificates alone take some 20 ms.
    """
    try:
        built: ssl.SSLContext = connection.ssl_context.get()
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{named}: the certificates cannot be read: {error}") from error
    return built
