"""`infercache serve`: a gateway in front of a model server."""

from __future__ import annotations

import argparse
import os
import tomllib
from pathlib import Path
from typing import Any

from infercache.cli.invalidate import URL_VARIABLE
from infercache.edge.logs import configure
from infercache.edge.settings import Settings
from infercache.errors import InvalidArgument, shown

__all__ = ["add_parser", "run"]

#: What the options consist of that are a name and something.
_FORMS = {"--model-version": "NAME=VERSION", "--tokenizer": "NAME=FILE", "--set": "NAME=VALUE"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the arguments of `infercache serve`."""
    parser = subparsers.add_parser(
        "serve",
        help="a gateway in front of a model server, which answers repeated requests itself",
        description="Serves what an OpenAI-compatible or Open Inference Protocol server serves, and answers repeated "
        "inferences from a cache.",
        epilog="docs/edge.md explains every option, and examples/edge.toml has each with its default. Exit status: 0 "
        "after SIGTERM or Ctrl-C, once answers under way have ended; 2 for an option that is wrong.",
    )
    parser.add_argument("--upstream", metavar="URL", help="the model server, such as http://model:8000")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where clients are served (default: 127.0.0.1:8080)")
    parser.add_argument(
        "--l2", metavar="URL", help=f"a shared tier, such as redis://host:6379/0 (default: the variable {URL_VARIABLE})"
    )
    parser.add_argument("--secret-file", metavar="FILE", help="the deployment's secret, to sign what is in the tier")
    parser.add_argument("--config", metavar="FILE", help="options, TOML; those given here come first")
    parser.add_argument(
        "--model-version",
        metavar="NAME=VERSION",
        action="append",
        default=[],
        help="the version of a model, which enters every key; the name '*' is every other model",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="the tokenizer.json of an embedding model, for exact usage; the name '*' is every other model",
    )
    parser.add_argument(
        "--admin-listen", metavar="HOST:PORT", help="where operators are served (default: 127.0.0.1:8081); '': nowhere"
    )
    parser.add_argument("--admin-token-file", metavar="FILE", help="the operators' token")
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls-certificate", metavar="FILE", help="the listeners' certificate, PEM")
    tls.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    tls.add_argument("--tls-client-ca", metavar="FILE", help="clients must show a certificate of this authority, PEM")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="any other option of the configuration file, the value as TOML or as plain text",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serves until a signal; returns the exit status."""
    settings = settings_of(arguments)
    configure(settings.log_level)
    from infercache.edge.serve import run as serve

    serve(settings)
    return 0


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The options of the command line over those of the file.

    Raises:
        InvalidArgument: one of them is wrong.
    """
    given: dict[str, Any] = {}
    for text in arguments.set:
        name, value = _pair(text, "--set")
        given[name] = _value(value)
    for option, form, texts in (
        ("model_versions", "--model-version", arguments.model_version),
        ("embeddings_tokenizers", "--tokenizer", arguments.tokenizer),
    ):
        known = given.get(option, {})
        if texts and isinstance(known, dict):
            given[option] = {**known, **dict(_pair(text, form) for text in texts)}
    for name in (
        *("upstream", "listen", "l2", "secret_file", "admin_listen", "admin_token_file"),
        *("tls_certificate", "tls_key", "tls_client_ca"),
    ):
        value = getattr(arguments, name)
        if value is not None:
            given[name] = value
    settings = Settings.load(arguments.config, **given)
    if settings.l2 is None and os.environ.get(URL_VARIABLE):
        settings = Settings.load(arguments.config, **given, l2=os.environ[URL_VARIABLE])
    if settings.upstream is None:
        raise InvalidArgument("which server is asked for what the cache has not? Give --upstream URL")
    if arguments.config is not None and not Path(arguments.config).is_file():
        raise InvalidArgument(f"--config {arguments.config}: no file")
    return settings


def _pair(text: str, option: str) -> tuple[str, str]:
    name, parted, value = text.partition("=")
    if not parted or not name or not value:
        raise InvalidArgument(f"{option} {shown(text)}: give {_FORMS[option]}")
    return name, value


def _value(text: str) -> Any:
    """As TOML has it; what is none is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
