"""What is measured by `infercache bench`: a function of the caller's, or an endpoint that is asked by HTTP."""

from __future__ import annotations

import asyncio
import http.client
import importlib
import inspect
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from infercache.errors import InvalidArgument, shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Endpoint", "Function", "Subject", "of"]


class Subject(Protocol):
    """Answers questions.

    Attributes:
        name: for people, and for keys.
    """

    name: str

    def ask(self, question: Any) -> Any:
        """The answer to one question."""

    def close(self) -> None:
        """Gives up what it holds."""


class Function:
    """A function by the name of its module and its own: `package.module:function`, `module:Class.method`.

    An `async def` function is run in a loop of its own; a question that is a list or an object of arguments is taken
    apart if `spread`.

    Raises:
        InvalidArgument: there is no such module or function.
    """

    def __init__(self, name: str, *, spread: bool = False) -> None:
        self.name = name
        module, _, path = name.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` has it: the caller's own module is mostly here
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            raise InvalidArgument(f"{name}: cannot import {module!r}: {error}") from None
        for step in path.split("."):
            try:
                found = getattr(found, step)
            except AttributeError:
                raise InvalidArgument(f"{name}: {module!r} has no {path!r}") from None
        if not callable(found):
            raise InvalidArgument(f"{name}: {path!r} is no function, but {shown(found)}")
        self._function: Callable[..., Any] = found
        self._spread = spread
        self._runner = asyncio.Runner() if inspect.iscoroutinefunction(found) else None

    def ask(self, question: Any) -> Any:
        """What the function returns."""
        if not self._spread:
            given: tuple[list[Any], dict[str, Any]] = ([question], {})
        else:
            given = ([], question) if isinstance(question, dict) else (list(question), {})
        found = self._function(*given[0], **given[1])
        return found if self._runner is None else self._runner.run(found)

    def close(self) -> None:
        """Ends the loop."""
        if self._runner is not None:
            self._runner.close()


class Endpoint:
    """An endpoint that answers POST requests of JSON, asked over one connection that is kept open.

    Args:
        url: `http://…` or `https://…`.
        body: the request's, with `{input}` where the question stands, as JSON; None: the question is the body.
        headers: more of the request's.
        timeout: seconds for an answer.

    Attributes:
        told_hits: answers that a cache on the way gave, as their `Cache-Status` says (RFC 9211).
        told: answers that had this header.

    Raises:
        InvalidArgument: no such URL, or a body that is no JSON.
    """

    def __init__(self, url: str, *, body: str | None, headers: list[tuple[str, str]], timeout: float) -> None:
        self.name = url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"{url}: give http://… or https://…, or MODULE:FUNCTION")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        except ValueError as error:
            raise InvalidArgument(f"{url}: {error}") from None
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"content-type": "application/json", **dict(headers)}
        self._body = body
        if body is not None and "{input}" not in body:
            raise InvalidArgument("--body: it has no {input}, so every request would ask the same")
        self.told_hits = self.told = 0

    def ask(self, question: Any) -> bytes:
        """The answer's body.

        Raises:
            InvalidArgument: no answer, or an error in place of one; the text says which.
        """
        text = json.dumps(question)
        sent = (text if self._body is None else self._body.replace("{input}", text)).encode()
        for fresh in (False, True):
            try:
                self._connection.request("POST", self._path, sent, self._headers)
                answer = self._connection.getresponse()
                content = answer.read()
                break
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                # A connection that was kept open may have been closed there meanwhile.
                if fresh or not isinstance(
                    error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError
                ):
                    raise InvalidArgument(f"{self.name}: no answer: {str(error) or type(error).__name__}") from None
        if answer.status != 200:
            said = content[:200].decode("utf-8", "replace")
            raise InvalidArgument(f"{self.name}: answered {answer.status} {answer.reason} to {text[:80]}: {said}")
        status = answer.headers.get("cache-status")
        if status is not None:
            self.told += 1
            self.told_hits += "; hit" in status.partition(",")[0]
        return content

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def of(target: str, *, spread: bool, body: str | None, headers: list[tuple[str, str]], timeout: float) -> Subject:
    """The subject that a command line names.

    Raises:
        InvalidArgument: there is none of this name.
    """
    if "://" in target:
        return Endpoint(target, body=body, headers=headers, timeout=timeout)
    module, parted, function = target.partition(":")
    if not parted or not module or not function:
        raise InvalidArgument(f"{target}: give MODULE:FUNCTION, such as app.models:embed, or a URL")
    return Function(target, spread=spread)
