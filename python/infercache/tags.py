"""Tags of an answer: templates of the arguments, checked when decorating, or a function of the result.

`"user:{user}"` takes the argument `user` of the call; `{item.sku}` and `{ids[0]}` reach into it, as `str.format` does.
A function `f(result, **arguments)` returns the tags: what an answer contains decides what purges it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Self, TypeAlias

from infercache.errors import InvalidArgument, is_encodable, shown

__all__ = ["TagSource", "Tags", "check_tags"]

TagSource: TypeAlias = Iterable[str] | Callable[..., Iterable[str]]


def check_tags(tags: object, where: str = "tags") -> list[str]:
    """The tags as a list, in order, each once.

    Raises:
        InvalidArgument: it is one text instead of several, or a member is not text that has UTF-8.
    """
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        raise InvalidArgument(f"{where}={shown(tags)}: give a list of texts, such as ['product:42']")
    given = list(tags)
    for tag in given:
        if not isinstance(tag, str):
            raise InvalidArgument(f"{where}: {shown(tag)} is no tag; a tag is text")
        if not is_encodable(tag):
            raise InvalidArgument(f"{where}: {shown(tag)} contains a lone surrogate, which has no UTF-8")
    return list(dict.fromkeys(given))


class Tags:
    """The tags of one decorated function.

    Args:
        source: templates, or a function of the result and the arguments.
        parameters: names of the function's parameters.
        owner: the function's name, for error texts.

    Raises:
        InvalidArgument: a template names no parameter, or is malformed.
    """

    __slots__ = ("_fixed", "_function", "_templates")

    def __init__(self, source: TagSource, parameters: Collection[str], owner: str) -> None:
        self._function: Callable[..., Iterable[str]] | None = None
        self._templates: list[str] = []
        self._fixed: list[str] = []
        if callable(source):
            self._function = source
            return
        for template in check_tags(source):
            if _fields(template, parameters, owner):
                self._templates.append(template)
            else:
                self._fixed.append(template.format())

    @classmethod
    def fixed(cls, tags: list[str]) -> Self:
        """Tags that are what they are."""
        made = cls((), (), "")
        made._fixed = tags
        return made

    @property
    def needs_arguments(self) -> bool:
        """Whether a call's arguments must be bound to know its tags."""
        return bool(self._templates) or self._function is not None

    def before(self, arguments: Mapping[str, Any]) -> list[str]:
        """What is known before the model runs: all but the tags from the result."""
        if not self._templates:
            return self._fixed
        return check_tags([*self._fixed, *(template.format_map(arguments) for template in self._templates)])

    def after(self, result: object, arguments: Mapping[str, Any]) -> list[str]:
        """The tags that the result itself decides."""
        if self._function is None:
            return []
        return check_tags(self._function(result, **arguments), f"{self._function!r} returned")

    @property
    def from_result(self) -> bool:
        """Whether the result decides its tags."""
        return self._function is not None


def _fields(template: str, parameters: Collection[str], owner: str) -> bool:
    """Checks a template; whether it takes any argument."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidArgument(f"tags: {template!r} is malformed ({error}); write {{name}} for an argument") from None
    named = [field for _, field, _, _ in parts if field is not None]
    for field in named:
        name = field.split(".")[0].split("[")[0]
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise InvalidArgument(
                f"tags: {template!r} takes the argument {name!r}, which {owner} does not have; its parameters: {known}"
            )
    if any(spec and ("{" in spec) for _, _, spec, _ in parts):
        raise InvalidArgument(f"tags: {template!r} nests fields within a format; write one field each")
    for conversion in (conversion for _, _, _, conversion in parts):
        if conversion not in (None, "r", "s", "a"):
            raise InvalidArgument(f"tags: {template!r} has the unknown conversion !{conversion}; use !r, !s or !a")
    return bool(named)
