"""`infercache invalidate`: purges in a deployment whose processes share a tier, from outside them all.

The exit status says what became of it: 0, done; 1, not done, or in part; 2, the question was wrong, so nothing was
done; 3, nobody knows whether it was done; 4, done, but fewer replicas than asked for have it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from infercache import Cache, Key, RedisTier, Token
from infercache.cli import complain
from infercache.cli.key import SECRET_BYTES, secret_of
from infercache.errors import InvalidArgument, PurgeFailed, TierUnavailable

__all__ = ["add_parser", "run"]

#: Where the URL is taken from if `--l2` is not given: a command line can be read by every user of the machine.
URL_VARIABLE = "INFERCACHE_L2"
#: Tags of one purge. Of more, each part is done for itself, so that it is known how far it came.
TAGS_AT_ONCE = 1_000

NOT_DONE, UNKNOWN, NOT_DURABLE = 1, 3, 4


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the arguments of `infercache invalidate`."""
    parser = subparsers.add_parser(
        "invalidate",
        help="purges in a deployment that shares a tier, and prints the token",
        description="Purges entries in every process that shares a tier, and prints the token that reads can wait for "
        "(min_token=). Several targets mean 'or'.",
        epilog="Exit status: 0 done; 1 not done, or in part; 2 wrong usage; 3 unknown whether it was done; 4 done, but "
        "fewer replicas than --durable asks for have it. A purge may be repeated.",
    )
    parser.add_argument(
        "--l2", metavar="URL", help=f"the tier, such as redis://host:6379/0 (default: the variable {URL_VARIABLE})"
    )
    parser.add_argument("--l2-prefix", default="ic", metavar="P", help="the deployment (default: %(default)s)")
    parser.add_argument(
        "--namespace", default="default", metavar="N", help="whose tags and models are meant (default: %(default)s)"
    )
    parser.add_argument(
        "--secret-file",
        type=Path,
        metavar="FILE",
        help=f"the deployment's secret, if it has one: {SECRET_BYTES} bytes, or their hexadecimal digits. With another "
        "one nothing is found to purge",
    )
    targets = parser.add_argument_group("targets, at least one")
    targets.add_argument("--tag", nargs="+", action="extend", metavar="T", help="entries with one of these tags")
    targets.add_argument("--key", metavar="K", help="the entry of this key, ic1:…")
    targets.add_argument("--model", metavar="M", help="entries of this model in the namespace")
    targets.add_argument("--version", metavar="V", help="with --model: of this version only")
    targets.add_argument("--all", action="store_true", help="every entry of the deployment, in every namespace")
    parser.add_argument("--soft", action="store_true", help="mark stale instead of hiding")
    parser.add_argument(
        "--durable", type=int, default=0, metavar="N", help="wait until N of the primary's replicas have it"
    )
    parser.add_argument(
        "--timeout", default="5s", metavar="D", help="how long it may take, for each 1,000 tags (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Purges and prints the token; returns the exit status."""
    url = arguments.l2 or os.environ.get(URL_VARIABLE)
    if not url:
        raise InvalidArgument(f"which deployment? Give --l2 URL, or set {URL_VARIABLE}")
    if arguments.durable < 0:
        raise InvalidArgument(f"--durable {arguments.durable}: give a number of replicas")
    purges = _purges(arguments)
    if not purges:
        raise InvalidArgument("what is to be purged? Give --tag, --key, --model or --all")
    secret = None if arguments.secret_file is None else secret_of(arguments.secret_file)
    try:
        tier = RedisTier(url, timeout=arguments.timeout)
    except InvalidArgument as error:
        raise InvalidArgument(f"--l2, --timeout: {error}") from None
    options: dict[str, Any] = {"l2_prefix": arguments.l2_prefix, "namespace": arguments.namespace, "secret": secret}
    with Cache("1MB", l2=tier, timeout=arguments.timeout, **options) as cache:
        try:
            return _perform(cache, purges, soft=arguments.soft, durable=arguments.durable)
        finally:
            tier.close()


def _purges(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The arguments of `Cache.invalidate` for each part, in order."""
    if arguments.version is not None and arguments.model is None:
        raise InvalidArgument("--version: of which model? Give --model too")
    tags = list(dict.fromkeys(arguments.tag or ()))
    parts: list[dict[str, Any]] = [
        {"tags": tags[start : start + TAGS_AT_ONCE]} for start in range(0, len(tags), TAGS_AT_ONCE)
    ]
    others: dict[str, Any] = {}
    if arguments.key is not None:
        others["key"] = Key(arguments.key)
    if arguments.model is not None:
        others |= {"model": arguments.model, "version": arguments.version}
    if arguments.all:
        others["all"] = True
    if others:
        # What names no tag goes with the first ones: mostly one purge, whatever is asked for.
        parts = [{**(parts[0] if parts else {}), **others}, *parts[1:]]
    return parts


def _perform(cache: Cache, purges: list[dict[str, Any]], *, soft: bool, durable: int) -> int:
    token: Token | None = None
    before = ""
    status = 0
    for number, purge in enumerate(purges):
        if number:
            before = f"; the first {number * TAGS_AT_ONCE} tags were purged, and those after them were not tried"
        try:
            token = cache.invalidate(**purge, soft=soft, durable=durable)
        except PurgeFailed as error:
            why = error.__cause__ or error
            if error.outcome == "not durable":
                # Every part has its say on replicas, and all are purged.
                token, status = cache.token(), NOT_DURABLE
                complain("infercache invalidate", str(error))
                continue
            if error.outcome == "not done":
                was_told = not isinstance(why, TierUnavailable)
                known = "the authority's server refused it" if was_told else "the authority was not told"
                complain("infercache invalidate", f"not purged: {known}: {why}{before}")
                return NOT_DONE
            complain(
                "infercache invalidate",
                f"it is unknown whether it was purged: {why}{before}. Call again: a purge may be repeated",
            )
            return UNKNOWN
    if sys.stdout is None:
        complain("infercache invalidate", f"purged, but standard output is closed; the token is {token}")
        return 1
    print(token)
    return status
