"""`infercache key`: the key of a JSON document, as the library and every other implementation compute it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infercache import explain_json, key_from_json
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
    parser.add_argument("file", metavar="FILE", help="a file of JSON text, or - for standard input")
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
    try:
        text = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
        secret = None if arguments.secret_file is None else secret_of(arguments.secret_file)
    except OSError as error:
        print(f"infercache key: {error}", file=sys.stderr)
        return 2
    make = explain_json if arguments.explain else key_from_json
    shown = make(
        text,
        model=arguments.model,
        version=arguments.version,
        namespace=arguments.namespace,
        operation=arguments.operation,
        secret=secret,
    )
    sys.stdout.buffer.write(
        f"{shown}\n".encode()
    )  # UTF-8 whatever the terminal's encoding: a document may hold any text
    sys.stdout.buffer.flush()
    return 0


def secret_of(path: Path) -> bytes:
    """The secret in a file: as bytes, or as hexadecimal digits and white space.

    Raises:
        InvalidArgument: it is neither. What is in the file is not shown.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    if len(content) == SECRET_BYTES:
        return content
    try:
        secret = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise InvalidArgument(
            f"{path}: a secret is {SECRET_BYTES} bytes, or their {2 * SECRET_BYTES} hexadecimal digits; "
            f"this file has {len(content)} bytes that are neither"
        )
    return secret
