"""Under which model and version, for how long and with which tags a library's answers are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, ParamSpec

from infercache.tags import check_tags

if TYPE_CHECKING:
    from infercache import Cache
    from infercache.durations import Duration

__all__ = ["Terms"]

_Asked = ParamSpec("_Asked")


class Terms(Generic[_Asked]):
    """What an adapter was told once, checked then.

    Args:
        cache: whose answers they are.
        model: the model's name.
        version: its version.
        ttl: how long an answer is fresh.
        tags: what a purge may name, or a function of what was asked that returns it.

    Raises:
        InvalidArgument: one of them is not acceptable.
    """

    def __init__(
        self,
        cache: Cache,
        model: str,
        version: str,
        ttl: Duration | None,
        tags: Iterable[str] | Callable[_Asked, Iterable[str]],
    ) -> None:
        cache._kept(ttl, ())
        cache.key("", model=model, version=version)
        self.ttl = ttl
        self._tags = tags if callable(tags) else check_tags(tags)

    def tags_of(self, *args: _Asked.args, **kwargs: _Asked.kwargs) -> Iterable[str]:
        """The tags of the answer to what was asked."""
        return self._tags(*args, **kwargs) if callable(self._tags) else self._tags
