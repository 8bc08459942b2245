"""`infercache fingerprint`: the fingerprint of a model's files, as `infercache.model_fingerprint` gives it."""

from __future__ import annotations

import argparse
import sys

from infercache import model_fingerprint
from infercache.cli import complain
from infercache.errors import InfercacheError, InvalidArgument

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the arguments of `infercache fingerprint`."""
    parser = subparsers.add_parser(
        "fingerprint",
        help="the fingerprint of a model's files, to be used as its version",
        description="Prints the fingerprint of a model: equal for equal parameters, however these are sharded.",
    )
    parser.add_argument("path", metavar="PATH", help="a file or folder of weights")
    parser.add_argument(
        "--by",
        choices=["parameters", "content"],
        default="parameters",
        help="content: each file counts by its bytes, whatever its format (default: %(default)s)",
    )
    parser.add_argument("--no-cache", action="store_true", help="read every file, and write nothing down")
    parser.add_argument("--cache-dir", metavar="DIR", help="where digests of files are kept (INFERCACHE_CACHE_DIR)")
    parser.add_argument("--no-progress", action="store_true", help="no bar, even on a terminal")


def run(arguments: argparse.Namespace) -> int:
    """Prints the fingerprint; returns the exit status."""
    if arguments.no_cache and arguments.cache_dir is not None:
        raise InvalidArgument("--no-cache and --cache-dir exclude each other")
    try:
        found = model_fingerprint(
            arguments.path,
            by=arguments.by,
            progress=False if arguments.no_progress else None,
            cache_dir=False if arguments.no_cache else arguments.cache_dir,
        )
    except InfercacheError as error:
        raise type(error)(str(error).replace('pass by="content"', "pass --by content")) from error
    except OSError as error:
        # Told here: whoever called would take it for a fault of the output.
        complain("infercache fingerprint", f"{error.filename or arguments.path}: {error.strerror or error}")
        return 1
    if sys.stdout is None:
        complain("infercache fingerprint", "standard output is closed")
        return 1
    print(found)
    return 0
