"""LiteLLM: its response cache, kept by infercache. `litellm.cache = litellm_cache(cache)`, and that is all.

LiteLLM decides what is cached and under which key; this module keeps it: bounded by bytes, shared by processes where
the cache has a tier, purged by model, tag and version, and stored as plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from infercache.adapters.begun import Begun
from infercache.adapters.terms import Terms
from infercache.effects import MISSING
from infercache.errors import MissingExtra, is_encodable
from infercache.functions import UNSET

try:
    import litellm
    from litellm.caching.base_cache import BaseCache
except ImportError as error:
    raise MissingExtra(f"the adapter for LiteLLM needs it ({error}): pip install 'infercache[litellm]'") from None

if TYPE_CHECKING:
    from infercache import Cache
    from infercache._core import Key
    from infercache.durations import Duration
    from infercache.lookup import Stamp

__all__ = ["LiteLLMBackend", "litellm_cache", "request_tags"]


def request_tags(request: Mapping[str, Any]) -> list[str]:
    """The tags that an answer has by default.

    `model:NAME` for the model, and for the group that LiteLLM's router chose it from; and each of `metadata["tags"]`,
    which is where LiteLLM's callers put their own: `litellm.completion(…, metadata={"tags": ["user:u1"]})`.
    """
    named, given = [request.get("model")], list[Any]()
    for source in (request.get("metadata"), request.get("litellm_metadata")):
        if isinstance(source, Mapping):
            named.append(source.get("model_group"))
            tags = source.get("tags")
            given += tags if isinstance(tags, list | tuple) else ()
    told = [f"model:{name}" for name in named if isinstance(name, str)] + given
    return [tag for tag in dict.fromkeys(told) if isinstance(tag, str) and is_encodable(tag)]


def litellm_cache(
    cache: Cache,
    *,
    model: str = "litellm",
    version: str = "1",
    ttl: Duration | None = UNSET,
    tags: Iterable[str] | Callable[[Mapping[str, Any]], Iterable[str]] = request_tags,
    **options: Any,
) -> litellm.Cache:
    """What `litellm.cache` is to be: LiteLLM's own cache, with its entries in one of infercache.

    Args:
        cache: an `infercache.Cache`, which may serve others, too.
        model: part of every key; `cache.invalidate(model=…)` with it purges all that LiteLLM stored. LiteLLM's own key
            tells its models apart.
        version: likewise; raise it where models behind the same names were replaced.
        ttl: how long an answer is fresh, unless a request says `cache={"ttl": seconds}`; by default the cache's.
        tags: what a purge may name, or `f(request)` that returns it: the arguments of LiteLLM's call, by name. By
            default the model's name and the request's own tags: `cache.invalidate(tags=["model:gpt-5"])`.
        options: those of `litellm.Cache`: `mode`, `namespace`, `supported_call_types`, `max_messages`, …

    Raises:
        InvalidArgument: an option's value is not acceptable.
        MissingExtra: LiteLLM lacks a package without which it cannot serve from any cache.
    """
    _check_whole()
    backend = LiteLLMBackend(cache, model=model, version=version, ttl=ttl, tags=tags)
    made = litellm.Cache(type="local", **options)
    made.cache = backend
    return made


def _check_whole() -> None:
    """Makes sure now that a hit will find what LiteLLM imports at the first one."""
    try:
        import litellm.llms.anthropic.pass_through.messages.response_cache  # noqa: F401 - whether it can be
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("litellm"):  # it has not been there always
            raise MissingExtra(
                f"LiteLLM imports {error.name} at the first hit of any cache: pip install 'infercache[litellm]'"
            ) from None


class LiteLLMBackend(BaseCache):  # type: ignore[misc]  # LiteLLM's types are not read: they take minutes
    """What `litellm.Cache` asks and tells; `litellm_cache` puts it in place, and explains the arguments."""

    def __init__(
        self,
        cache: Cache,
        *,
        model: str = "litellm",
        version: str = "1",
        ttl: Duration | None = UNSET,
        tags: Iterable[str] | Callable[[Mapping[str, Any]], Iterable[str]] = request_tags,
    ) -> None:
        super().__init__()
        self.cache = cache
        self.model = model
        self.version = version
        self._terms = Terms(cache, model, version, ttl, tags)
        self._begun = Begun(cache)

    def _key(self, key: str) -> Key:
        return self.cache.key(key, model=self.model, version=self.version, operation="litellm")

    def _found(self, key: Key, found: Any) -> Any:
        if found is MISSING:
            self._begun.missed(key)
            return None
        return found

    def _options(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """For how long and under which tags an answer is kept; None: not at all."""
        life = self._terms.ttl
        if (given := request.get("ttl")) is not None:
            life = float(given)
            if life <= 0:
                return None
        return {"ttl": life, "tags": self._terms.tags_of(request)}

    def get_cache(self, key: str, **_: Any) -> Any:
        """What is stored under LiteLLM's key; None if there is nothing."""
        found = self._key(key)
        return self._found(found, self.cache.get(found, MISSING))

    async def async_get_cache(self, key: str, **_: Any) -> Any:
        """As `get_cache`."""
        found = self._key(key)
        return self._found(found, await self.cache.aget(found, MISSING))

    def batch_get_cache(self, keys: Iterable[str], **_: Any) -> list[Any]:
        """What is stored under each of the keys."""
        wanted = [self._key(key) for key in keys]
        return [self._found(*pair) for pair in zip(wanted, self.cache.get_many(wanted, MISSING), strict=True)]

    async def async_batch_get_cache(self, keys: Iterable[str], **_: Any) -> list[Any]:
        """As `batch_get_cache`."""
        wanted = [self._key(key) for key in keys]
        return [self._found(*pair) for pair in zip(wanted, await self.cache.aget_many(wanted, MISSING), strict=True)]

    def set_cache(self, key: str, value: Any, **request: Any) -> None:
        """Stores a value, unless a purge came while it was made."""
        if (options := self._options(request)) is not None:
            kept = self._key(key)
            self.cache.set(kept, value, since=self._begun.began(kept), **options)

    async def async_set_cache(self, key: str, value: Any, **request: Any) -> None:
        """As `set_cache`."""
        if (options := self._options(request)) is not None:
            kept = self._key(key)
            await self.cache.aset(kept, value, since=self._begun.began(kept), **options)

    async def async_set_cache_pipeline(self, cache_list: Iterable[tuple[str, Any]], **request: Any) -> None:
        """Stores many values, the items of one call's embeddings."""
        if (options := self._options(request)) is None:
            return
        together: dict[Stamp | None, list[tuple[Key, Any]]] = {}
        for key, value in cache_list:
            kept = self._key(key)
            together.setdefault(self._begun.began(kept), []).append((kept, value))
        for since, pairs in together.items():
            await self.cache.aset_many(pairs, since=since, **options)

    async def batch_cache_write(self, key: str, value: Any, **request: Any) -> None:
        """As `set_cache`; what is to be written to a tier is gathered by the cache itself."""
        await self.async_set_cache(key, value, **request)

    def delete_cache(self, key: str) -> None:
        """Purges what is stored under a key of LiteLLM's."""
        self.cache.delete(self._key(key))

    async def delete_cache_keys(self, keys: Iterable[str]) -> None:
        """Purges what is stored under keys of LiteLLM's."""
        for key in keys:
            await self.cache.adelete(self._key(key))

    def flush_cache(self) -> None:
        """Purges all that LiteLLM stored with this `model` and `version`, and nothing else that the cache holds."""
        self.cache.invalidate(model=self.model, version=self.version)

    async def ping(self) -> bool:
        """True: this process's memory is always there, and a tier that is not is no fault of a request's."""
        return True

    async def test_connection(self) -> dict[str, Any]:
        """What LiteLLM shows of a cache's connection."""
        return {"status": "success", "message": "infercache answers from this process's memory"}

    async def disconnect(self) -> None:
        """Nothing: the cache is its maker's to close."""
