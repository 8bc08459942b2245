"""The command `infercache`: one module a subcommand, loaded when it is asked for.

Each module has `add_parser(subparsers)`, which declares its arguments, and `run(arguments)`, which does the work and
returns the exit status: 0, 1 where what was asked for failed, 2 where the question was wrong (`invalidate` has more).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol, cast

from infercache import __version__
from infercache.errors import InfercacheError, InvalidArgument

__all__ = ["main"]

COMMANDS = {
    "bench": "your own function or endpoint, with and without a cache",
    "demo": "a real embedding model answered from memory, measured",
    "fingerprint": "the fingerprint of a model's files, to be used as its version",
    "invalidate": "purges in a deployment that shares a tier, and prints the token",
    "key": "the key of a JSON document, from a file or standard input",
    "serve": "a gateway in front of a model server, which answers repeated requests itself",
    "simulate": "what a cache would have done with a log of requests",
    "stats": "what gateways have done so far",
}


class Subcommand(Protocol):
    """What a module of this package offers."""

    def add_parser(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Declares the subcommand's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Does the work; returns the exit status."""


def load(name: str) -> Subcommand:
    """The module of the subcommand `name`."""
    return cast("Subcommand", importlib.import_module(f"infercache.cli.{name}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `infercache` with the arguments `argv` (default: the process's own) and returns its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in given if not word.startswith("-")), None)
    name = f"infercache {chosen}" if chosen in COMMANDS else "infercache"
    try:
        status = perform(given, chosen)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where what goes wrong is told in one line
    except InfercacheError as error:
        complain(name, str(error))
        return 2 if isinstance(error, InvalidArgument) else 1
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`): not an error.
        give_up_output()
        return 0
    except OSError as error:
        # A full disk, most likely. What commands read is told apart (`source`).
        give_up_output()
        complain(name, f"cannot write the output: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        complain(name, "interrupted")
        return 130
    return status


def perform(given: list[str], chosen: str | None) -> int:
    """Parses the arguments and runs the subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="infercache", description="Never run the same inference twice.")
    parser.add_argument("--version", action="version", version=f"infercache {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in COMMANDS.items():
        if name == chosen:
            load(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)  # named in the help; its module is not loaded
    try:
        arguments = parser.parse_args(given)
    except SystemExit as end:  # --help, --version, bad usage: argparse has said what there is to say
        return end.code if isinstance(end.code, int) else 0
    return load(arguments.command).run(arguments)


def complain(name: str, what: str) -> None:
    """Says in one line what went wrong, where anybody listens."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"{name}: {what}", file=sys.stderr)


def give_up_output() -> None:
    """Sends what is still buffered nowhere: the interpreter would fail on it once more at its end."""
    if sys.stdout is not None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
