"""Every option of the edge, with what it means, its default and what it accepts: the one place that says so.

The command's options, `--config FILE` (TOML), `examples/edge.toml` and the table in docs/edge.md are made from here,
the latter two by `option_tables`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from infercache.durations import milliseconds, size
from infercache.errors import InvalidArgument, shown

__all__ = ["CONFIG_VARIABLE", "Settings", "address"]

#: Names the file of options where nobody can say which.
CONFIG_VARIABLE = "INFERCACHE_EDGE_CONFIG"

Check = Callable[[Any, str], Any]


def address(value: Any, name: str) -> str:
    """`HOST:PORT`, with an IPv6 address in brackets.

    Raises:
        InvalidArgument: it is none.
    """
    host, parted, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not parted or not bare or (":" in bare) != (bare is not host) or not port.isascii() or not port.isdigit():
        raise InvalidArgument(f"{name}={shown(value)}: give HOST:PORT, such as 0.0.0.0:8080 or [::]:8080")
    if int(port) > 65_535:
        raise InvalidArgument(f"{name}={shown(value)}: a port is at most 65535")
    return str(value)


def _optional(check: Check) -> Check:
    return lambda value, name: None if value is None else check(value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{name}={shown(value)}: give text that is not empty")
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name}={shown(value)}: give true or false")
    return value


def _seconds(value: Any, name: str) -> float:
    return milliseconds(value, name) / 1_000


def _some_seconds(value: Any, name: str) -> float:
    found = _seconds(value, name)
    if found <= 0:
        raise InvalidArgument(f"{name}={shown(value)}: give a time that is longer than none")
    return found


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(f"{name}={shown(value)}: give a whole number from 1 on")
    return value


def _size(value: Any, name: str) -> int:
    return size(value, name)


def _one_of(*words: str) -> Check:
    def check(value: Any, name: str) -> str:
        if value not in words:
            raise InvalidArgument(f"{name}={shown(value)}: give one of {', '.join(words)}")
        return str(value)

    return check


def _header(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value or not all(c.isascii() and (c.isalnum() or c in "-_") for c in value):
        raise InvalidArgument(f"{name}={shown(value)}: give the name of a header, such as x-model-version")
    return value.lower()


def _several(check: Check) -> Check:
    def checked(value: Any, name: str) -> tuple[Any, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise InvalidArgument(f"{name}={shown(value)}: give a list")
        return tuple(check(each, name) for each in value)

    return checked


def _network(value: Any, name: str) -> str:
    try:
        return str(ip_network(_text(value, name), strict=False))
    except ValueError as error:
        raise InvalidArgument(
            f"{name}={shown(value)}: give an address or a network, as 192.0.2.0/24: {error}"
        ) from None


def _path(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "?" in value or not value.isascii():
        raise InvalidArgument(f"{name}={shown(value)}: give a path that begins with '/'")
    return value


def _url(value: Any, name: str) -> str:
    wrong = f"{name}={shown(value)}: give the server's URL, such as http://model:8000"
    try:
        parts = urlsplit(_text(value, name))
        _ = parts.port
    except ValueError:
        raise InvalidArgument(wrong) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidArgument(wrong)
    if parts.username is not None or parts.password is not None:
        raise InvalidArgument(f"{name}: a URL with a password in it ends up in logs; clients bring their credentials")
    return str(value).rstrip("/")


def _by_model(what: str) -> Check:
    def check(value: Any, name: str) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise InvalidArgument(f"{name}={shown(value)}: give a table of names and {what}s; '*' is every other model")
        for model, each in value.items():
            _text(model, name)
            if not isinstance(each, str) or not each:
                raise InvalidArgument(f"{name}: the {what} of {shown(model)} is {shown(each)}; give text")
        return dict(value)

    return check


@dataclass(frozen=True, slots=True)
class _About:
    """What an option means."""

    section: str
    text: str
    check: Check
    example: str | None = None  # of an option that has no default


def _option(section: str, default: Any, check: Check, text: str, example: str | None = None) -> Any:
    about = {"about": _About(section, text, check, example)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


LISTEN, CACHE, VERSIONS, TENANTS = "Listeners", "Cache", "Model versions", "Tenants and credentials"
UPSTREAM, LIMITS, ROUTES, WATCH = "Upstream", "Limits", "Routes", "Logs and telemetry"
POLICY = "Policy: which chat, completion and rerank requests are cached (docs/edge-protocols.md)"

#: What identifies a caller, unless it is configured otherwise.
IDENTITY = (
    "authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "cookie",
    "openai-organization",
    "openai-project",
)


@dataclass(frozen=True)
class Settings:
    """The edge's options, checked. docs/edge.md explains each.

    Durations are given as `infercache.Cache` takes them and held in seconds; sizes likewise and held in bytes.

    Raises:
        InvalidArgument: an option's value is not acceptable; the text names it.
    """

    upstream: str | None = _option(
        UPSTREAM, None, _optional(_url), "The server that is asked for what the cache has not.", '"http://model:8000"'
    )
    listen: str = _option(LISTEN, "127.0.0.1:8080", address, "Where clients are served.")
    admin_listen: str | None = _option(
        LISTEN,
        "127.0.0.1:8081",
        lambda value, name: None if value in (None, "") else address(value, name),
        'Where operators are served: purges, metrics, health, the page. "" opens none.',
    )
    admin_token_file: str | None = _option(
        LISTEN,
        None,
        _optional(_text),
        "A file that holds the operators' token. Without one only /-/healthz and /-/readyz are answered there.",
        '"/run/secrets/infercache-admin"',
    )
    admin_on_listener: bool = _option(
        LISTEN,
        False,
        _flag,
        "Whether /-/… is answered beside the model's paths too: for the middleware, which has no listener of its own.",
    )
    tls_certificate: str | None = _option(
        LISTEN, None, _optional(_text), "The listeners' certificate and those above it, PEM.", '"/etc/tls/edge.pem"'
    )
    tls_key: str | None = _option(LISTEN, None, _optional(_text), "Its private key, PEM.", '"/etc/tls/edge.key"')
    tls_client_ca: str | None = _option(
        LISTEN,
        None,
        _optional(_text),
        "Clients must show a certificate of this authority, PEM.",
        '"/etc/tls/clients.pem"',
    )
    drain_timeout: float = _option(
        LISTEN, "30s", _seconds, "After SIGTERM: how long answers under way may take to end."
    )
    drain_delay: float = _option(
        LISTEN,
        "0s",
        _seconds,
        "After SIGTERM: how long new connections are still accepted while /-/readyz says no, which a balancer notices.",
    )

    capacity: int = _option(CACHE, "512MB", _size, "Memory of the cache: keys, values and overhead.")
    ttl: float = _option(CACHE, "1h", _some_seconds, "How long an answer is fresh where the upstream says nothing.")
    stale_while_revalidate: float = _option(
        CACHE, "0s", _seconds, "For how long after that it is served while it is asked for anew."
    )
    stale_if_error: float = _option(
        CACHE, "0s", _seconds, "For how long after that it stands in while the upstream fails."
    )
    namespace: str = _option(CACHE, "default", _text, "Parts what would otherwise share entries.")
    l2: str | None = _option(
        CACHE, None, _optional(_text), "A tier that gateways share, in Redis or Valkey.", '"redis://localhost:6379/0"'
    )
    l2_prefix: str = _option(CACHE, "ic", _text, "Names the deployment within it.")
    secret_file: str | None = _option(
        CACHE,
        None,
        _optional(_text),
        "A file of 32 bytes, or their hexadecimal digits: keys and values of the tier that nobody else can compute.",
        '"/run/secrets/infercache"',
    )
    max_staleness: float = _option(CACHE, "2s", _seconds, "No purge is unseen by any gateway for longer.")
    l2_timeout: float = _option(CACHE, "250ms", _some_seconds, "Budget of one operation of the tier.")

    model_versions: dict[str, str] = _option(  # noqa: RUF009 - a field with a factory
        VERSIONS,
        {},
        _by_model("version"),
        "The versions of models by their names; '*' is every other one.",
        '{ "e5" = "2026-11" }',
    )
    version_header: str | None = _option(
        VERSIONS,
        None,
        _optional(_header),
        "A header of the upstream's answers that tells the model's version.",
        '"x-model-version"',
    )
    version_field: str | None = _option(
        VERSIONS,
        None,
        _optional(_text),
        "A field of the upstream's model list that tells it. vLLM's `created` is the time of the request, no version.",
        '"root"',
    )
    model_list: str = _option(VERSIONS, "/v1/models", _path, "Where the upstream's model list is.")
    version_ttl: float = _option(
        VERSIONS, "5s", _some_seconds, "How long a version that the upstream told is taken to be the current one."
    )

    identity: tuple[str, ...] = _option(
        TENANTS, IDENTITY, _several(_header), "The headers that together identify a caller."
    )
    sharing: str = _option(
        TENANTS,
        "none",
        _one_of("none", "all"),
        '"none": a caller sees what its own credentials asked for; "all": every caller sees every answer.',
    )
    tenant_header: str | None = _option(
        TENANTS,
        None,
        _optional(_header),
        "A header that names the tenant instead, believed of `trusted_proxies` alone.",
        '"x-tenant"',
    )
    trusted_proxies: tuple[str, ...] = _option(
        TENANTS, (), _several(_network), "Addresses or networks of proxies whose `tenant_header` is believed."
    )
    auth_ttl: float = _option(
        TENANTS, "5m", _seconds, "How long a credential that the upstream accepted is taken to be good."
    )
    auth_ttl_if_error: float = _option(
        TENANTS, "0s", _seconds, "How long beyond that an answer may stand in for it while the upstream fails."
    )

    upstream_connect_timeout: float = _option(UPSTREAM, "5s", _some_seconds, "Time to open a connection.")
    upstream_timeout: float = _option(UPSTREAM, "10m", _some_seconds, "Time until an answer begins.")
    upstream_idle_timeout: float = _option(
        UPSTREAM, "2m", _some_seconds, "Time between two pieces of an answer that has begun."
    )
    upstream_concurrency: int = _option(
        UPSTREAM, 512, _count, "Requests under way at once; more are told 503 with Retry-After."
    )
    upstream_keep_alive: float = _option(
        UPSTREAM, "4s", _seconds, "How long an idle connection is kept; less than the upstream keeps it (uvicorn: 5s)."
    )
    upstream_health: str | None = _option(
        UPSTREAM,
        None,
        _optional(_path),
        "A path of the upstream that answers 2xx when it is ready, for /-/readyz; else a connection has to do.",
        '"/health"',
    )
    upstream_ca: str | None = _option(
        UPSTREAM, None, _optional(_text), "The authority that its certificate must be of, PEM.", '"/etc/tls/model.pem"'
    )
    upstream_certificate: str | None = _option(
        UPSTREAM, None, _optional(_text), "A certificate that is shown to it, PEM.", '"/etc/tls/client.pem"'
    )
    upstream_key: str | None = _option(
        UPSTREAM, None, _optional(_text), "That certificate's private key, PEM.", '"/etc/tls/client.key"'
    )
    upstream_verify: bool = _option(
        UPSTREAM, True, _flag, "Whether its certificate is checked. Without, anybody on the way can be the upstream."
    )
    preserve_host: bool = _option(
        UPSTREAM, False, _flag, "Whether it is told the `Host` that the client asked for, instead of its own."
    )

    max_body: int = _option(LIMITS, "32MB", _size, "Largest body of a request (413).")
    max_buffered: int = _option(LIMITS, "512MB", _size, "Bodies of all requests that are being read, together (503).")
    max_answer: int = _option(LIMITS, "64MB", _size, "Largest answer that is looked at and stored; others pass.")
    max_headers: int = _option(LIMITS, "32KiB", _size, "Largest head of a request: its line and headers (431).")
    max_connections: int = _option(LIMITS, 16_384, _count, "Connections at once; more are told 503.")
    max_items: int = _option(LIMITS, 2_048, _count, "Most items of one batch (400).")
    max_json_depth: int = _option(LIMITS, 64, _count, "Deepest nesting of JSON (400).")
    header_timeout: float = _option(LIMITS, "10s", _some_seconds, "Time for a request's head to arrive (408).")
    body_timeout: float = _option(LIMITS, "60s", _some_seconds, "Time for its body to arrive (408).")
    write_timeout: float = _option(
        LIMITS, "30s", _some_seconds, "Time for a client to take what waits for it; then the connection is closed."
    )
    keep_alive: float = _option(LIMITS, "75s", _some_seconds, "How long an idle connection of a client is kept.")

    embeddings_tokenizers: dict[str, str] = _option(  # noqa: RUF009 - likewise
        ROUTES,
        {},
        _by_model("tokenizer"),
        "Files (tokenizer.json) by models' names, '*' for every other: `usage` of embeddings is then exact for any "
        "mixture of hits and misses. Needs the extra `tokenizers`.",
        '{ "e5" = "/models/e5/tokenizer.json" }',
    )
    json_routes: tuple[str, ...] = _option(
        ROUTES, (), _several(_path), "Routes of deterministic JSON requests that are cached whole, by declaration."
    )
    cdn_ttl: float = _option(
        ROUTES,
        "1m",
        _seconds,
        "Longest time for which a CDN in front is told to hold answers to the GET form of those.",
    )

    policy_sampling: str = _option(
        POLICY,
        "greedy-or-seed",
        _one_of("greedy-or-seed", "greedy", "any"),
        "What counts as deterministic: temperature 0, or a seed as well, or whatever is asked.",
    )
    policy_choices: int = _option(POLICY, 1, _count, "Most choices of an answer (`n`, `best_of`).")
    policy_tools: tuple[str, ...] = _option(
        POLICY,
        ("function", "custom"),
        _several(_text),
        "Types of tools that only describe what the caller may run. All others are run by the server.",
    )
    policy_modalities: tuple[str, ...] = _option(
        POLICY, ("text",), _several(_text), "What an answer may consist of (`modalities`)."
    )
    policy_refuse: tuple[str, ...] = _option(
        POLICY,
        ("store", "background", "conversation", "previous_response_id", "web_search_options", "mcp_servers", "audio"),
        _several(_text),
        "Members of a request that ask for more than an answer: one that is there, not null, false or empty, bars it.",
    )
    policy_ignore: tuple[str, ...] = _option(
        POLICY,
        ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        _several(_text),
        "Members of chat and completion requests that do not change the answer: they do not enter the key.",
    )
    policy_remote_content: bool = _option(
        POLICY, False, _flag, "Whether images and files that the server fetches by address are taken never to change."
    )
    policy_stream_end: tuple[str, ...] = _option(
        POLICY, ("[DONE]",), _several(_text), "The data of the last event of a whole stream. Others are never stored."
    )

    log_level: str = _option(WATCH, "info", _one_of("debug", "info", "warning", "error"), "The least that is logged.")
    access_log: bool = _option(WATCH, False, _flag, "Whether each request is a line of the log.")
    telemetry: bool = _option(
        WATCH,
        False,
        _flag,
        "Whether spans and metrics go to OpenTelemetry (the extra `otel`), as its environment says.",
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            about: _About = option.metadata["about"]
            object.__setattr__(self, option.name, about.check(getattr(self, option.name), option.name))
        self._check_together()

    def _check_together(self) -> None:
        for first, second in (("tls_certificate", "tls_key"), ("upstream_certificate", "upstream_key")):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                raise InvalidArgument(f"{first}, {second}: give both, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise InvalidArgument("tls_client_ca: clients show certificates over TLS only; give tls_certificate too")
        if self.admin_on_listener and self.admin_token_file is None:
            raise InvalidArgument("admin_on_listener: clients reach that; give admin_token_file too")
        if self.tenant_header is not None and not self.trusted_proxies:
            raise InvalidArgument("tenant_header: from whom is it believed? Give trusted_proxies too")
        if not self.identity and self.sharing == "none" and self.tenant_header is None:
            raise InvalidArgument(
                'identity: without any header all callers are one; say sharing="all" if that is meant'
            )

    @classmethod
    def load(cls, path: str | Path | None = None, **given: Any) -> Self:
        """The options of a TOML file, with those of `given` in their place; tables by model are put together.

        Without a path the file is the one that the environment's INFERCACHE_EDGE_CONFIG names, if it names one: servers
        that take middleware by its name give it no arguments.

        Raises:
            InvalidArgument: the file cannot be read or parsed, or an option is unknown or not acceptable.
        """
        path = path or os.environ.get(CONFIG_VARIABLE) or None
        found = {} if path is None else _read(Path(path))
        unknown = [name for name in (*found, *given) if name not in cls.__dataclass_fields__]
        if unknown:
            raise InvalidArgument(f"{shown(unknown[0])} is no option; docs/edge.md lists them{_like(unknown[0])}")
        for name in ("model_versions", "embeddings_tokenizers"):
            if isinstance(found.get(name), dict) and isinstance(given.get(name), dict):
                given[name] = {**found[name], **given[name]}
        try:
            return cls(**{**found, **given})
        except InvalidArgument as error:
            named = next((name for name in found if str(error).startswith(name) and name not in given), None)
            raise InvalidArgument(str(error) if named is None else f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InvalidArgument(f"config {path}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"config {path}: no TOML: {error}") from None


def _like(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, [option.name for option in fields(Settings)], 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
