"""The command `infercache`: one module a subcommand, loaded when it is asked for.

Each module has `add_parser(subparsers)`, which declares its arguments, and `run(arguments)`, which does the work and
returns the exit status: 0, 1 where what was asked for failed, 2 where the question was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from infercache import __version__
from infercache.errors import InfercacheError, InvalidArgument

__all__ = ["main"]

COMMANDS = {
    "demo": "a real embedding model answered from memory, measured",
    "key": "the key of a JSON document, from a file or standard input",
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
    parser = argparse.ArgumentParser(prog="infercache", description="Never run the same inference twice.")
    parser.add_argument("--version", action="version", version=f"infercache {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in COMMANDS.items():
        if name == chosen:
            load(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)  # named in the help; its module is not loaded
    arguments = parser.parse_args(given)
    try:
        return load(arguments.command).run(arguments)
    except InfercacheError as error:
        print(f"infercache {arguments.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument) else 1
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`): not an error, and the interpreter must not flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"infercache {arguments.command}: interrupted", file=sys.stderr)
        return 130
