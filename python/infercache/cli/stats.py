"""`infercache stats`: what gateways have done so far, as their operators' side tells it."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infercache.amounts import duration, size
from infercache.cli import complain, source
from infercache.cli.aligned import aligned
from infercache.cli.numbers import whole
from infercache.durations import size as bytes_of
from infercache.errors import InvalidArgument

__all__ = ["add_parser", "run"]

#: Where the token's file is named if `--admin-token-file` is not given.
TOKEN_VARIABLE = "INFERCACHE_ADMIN_TOKEN_FILE"  # noqa: S105 - a variable's name
_DEFAULT = "http://127.0.0.1:8081"
_TIMEOUT = 10.0
_PAGE = "/-/samples"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the arguments of `infercache stats`."""
    parser = subparsers.add_parser(
        "stats",
        help="what gateways have done so far",
        description="Asks gateways for their counters, and shows them side by side.",
        epilog="The counters of a cache in your own process are cache.stats(). Exit status: 0; 1 where a gateway did "
        "not answer; 2 wrong usage.",
    )
    parser.add_argument(
        "urls", nargs="*", default=[_DEFAULT], metavar="URL", help=f"where operators are served ({_DEFAULT})"
    )
    parser.add_argument(
        "--admin-token-file",
        type=Path,
        metavar="FILE",
        help=f"the operators' token (the variable {TOKEN_VARIABLE})",
    )
    parser.add_argument("--json", action="store_true", help="all that they tell, an object a line")
    parser.add_argument(
        "--watch", type=partial(whole, 1, 86_400), metavar="N", help="ask again every N seconds, until Ctrl-C"
    )


def run(arguments: argparse.Namespace) -> int:
    """Asks and shows; returns the exit status."""
    token = _token(arguments.admin_token_file or os.environ.get(TOKEN_VARIABLE))
    while True:
        told = {url: _asked(url, token) for url in arguments.urls}
        status = 0
        for url, state in told.items():
            if isinstance(state, str):
                complain("infercache stats", f"{url}: {state}")
                status = 1
        there = {url: state for url, state in told.items() if not isinstance(state, str)}
        for line in _as_json(there) if arguments.json else _as_table(there):
            print(line)
        if arguments.watch is None:
            return status
        sys.stdout.flush()
        time.sleep(arguments.watch)


def _token(path: str | Path | None) -> str:
    if path is None:
        raise InvalidArgument(f"whose counters? Give --admin-token-file FILE, or set {TOKEN_VARIABLE}")
    return source.text(path).strip()


def _asked(url: str, token: str) -> dict[str, Any] | str:
    """What a gateway tells; text: why there is nothing.

    Raises:
        InvalidArgument: no such URL.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise InvalidArgument(f"{url}: give http://HOST:PORT, where the gateway's operators are served")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, port, timeout=_TIMEOUT)
    try:
        connection.request("GET", _PAGE, headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        content = answer.read()
    except (http.client.HTTPException, OSError) as error:
        return f"no answer: {str(error) or type(error).__name__}"
    finally:
        connection.close()
    if answer.status != 200:
        return {401: "another token is asked for", 403: "it has no token, so nobody is told"}.get(
            answer.status, f"answered {answer.status}: is it a gateway's operators' side?"
        )
    try:
        state = json.loads(content)
        return state if isinstance(state, dict) and "stats" in state else "it is no gateway's operators' side"
    except ValueError:
        return "it is no gateway's operators' side"


def _as_json(states: dict[str, dict[str, Any]]) -> Iterator[str]:
    for url, state in states.items():
        yield json.dumps({"url": url, **{name: value for name, value in state.items() if name != "samples"}})


def _as_table(states: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A column a gateway."""
    if not states:
        return
    columns = [_rows(url, state) for url, state in states.items()]
    yield from aligned([(facts[0][0], *(text for _, text in facts)) for facts in zip(*columns, strict=True)])


def _rows(url: str, state: dict[str, Any]) -> list[tuple[str, str]]:
    stats = state["stats"]
    hits = stats["hits_l1"] + stats["hits_l2"] + stats["stale_hits"]
    faults = sum(state["faults"].values())
    return [
        ("", urlsplit(url if "://" in url else f"//{url}").netloc),
        ("infercache", state["version"] + (", draining" if state["draining"] else "")),
        ("look-ups", f"{hits + stats['misses']:,}"),
        ("hit ratio", f"{stats['hit_ratio']:.1%}"),
        ("  from memory", f"{stats['hits_l1']:,}"),
        ("  from the shared tier", f"{stats['hits_l2']:,}"),
        ("  stale", f"{stats['stale_hits']:,}"),
        ("shared another's run", f"{stats['coalesced']:,}"),
        ("model time saved", duration(stats["saved_seconds"], longest="d")),
        ("entries", f"{stats['entries']:,}"),
        ("bytes", f"{size(stats['bytes'])} of {size(bytes_of(state['capacity'], 'capacity'))}"),
        ("evicted", f"{stats['evictions']:,}"),
        ("expired", f"{stats['expirations']:,}"),
        ("purged, and asked for", f"{stats['invalidated']:,}"),
        ("shared tier", state["tier"]),
        ("  its errors", f"{stats['l2_errors']:,}"),
        ("faults of the cache", f"{faults:,}"),
        ("models of unknown version", ", ".join(state["unknown"]) or "none"),
    ]
