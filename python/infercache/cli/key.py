"""`infercache key`: the key of a JSON document, as the library and every other implementation compute it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infercache import explain_json, key_from_json
from infercache.cli import complain
from infercache.cli.source import content
from infercache.errors import InvalidArgument

__all__ = ["add_parser", "run"]

SECRET_BYTES = 32


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the arguments of `infercache key`."""
    parser = subparsers.add_parser(
        "key",
        help="the key of a JSON document, from a file or standard input",
        description="Prints the key of a JSON document: the one that infercache.key gives the value it parses to.",
    )
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="a file of JSON text; without it, or as -: standard input"
    )
    parser.add_argument("--model", required=True, help="the model's name; keys of different models never meet")
    parser.add_argument("--version", required=True, help="the model's version; keys of different versions never meet")
    parser.add_argument("--namespace", default="default", help="tenant or application (default: %(default)s)")
    parser.add_argument("--operation", default="", help="what the model is asked to do (default: empty)")
    parser.add_argument(
        "--secret-file",
        type=Path,
        metavar="FILE",
        help=f"a file of {SECRET_BYTES} bytes, or of their hexadecimal digits",
    )
    parser.add_argument(
        "--explain", action="store_true", help="also print the canonical document and the scope's fields"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the key; returns the exit status."""
    secret = None if arguments.secret_file is None else secret_of(arguments.secret_file)
    text = content(arguments.file)
    make = explain_json if arguments.explain else key_from_json
    shown = make(
        text,
        model=arguments.model,
        version=arguments.version,
        namespace=arguments.namespace,
        operation=arguments.operation,
        secret=secret,
    )
    if sys.stdout is None:
        complain("infercache key", "standard output is closed")
        return 1
    # UTF-8 whatever the terminal's encoding: a document may hold any text.
    sys.stdout.buffer.write(f"{shown}\n".encode())
    sys.stdout.buffer.flush()
    return 0


def secret_of(path: Path) -> bytes:
    """The secret in a file: as bytes, or as hexadecimal digits and white space.

    Raises:
        InvalidArgument: it is neither, or cannot be read. What is in the file is not shown.
    """
    found = content(path)
    if len(found) == SECRET_BYTES:
        return found
    try:
        secret = bytes.fromhex(found.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise InvalidArgument(
            f"{path}: a secret is {SECRET_BYTES} bytes, or their {2 * SECRET_BYTES} hexadecimal digits; "
            f"this file has {len(found)} bytes that are neither"
        )
    return secret
