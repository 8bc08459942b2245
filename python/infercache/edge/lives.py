"""How long entries of the edge live, what they are tagged with, and in whose namespace they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infercache import _core

if TYPE_CHECKING:
    from infercache.cache import Cache
    from infercache.edge.directives import AnswerDirectives
    from infercache.edge.settings import Settings

__all__ = ["Lives"]

#: Headers that may be named by `Vary` without parting answers: ours never depend on them.
_VARY_KNOWN = frozenset({b"accept-encoding"})


class Lives:
    """What the settings say of entries' lives, with what an upstream's answer says over them.

    Args:
        settings: the edge's.
    """

    def __init__(self, settings: Settings) -> None:
        self._ttl = settings.ttl
        self._stale_while_revalidate = settings.stale_while_revalidate
        self._stale_if_error = settings.stale_if_error
        #: Seconds for which stale entries are served while they are asked for anew; None: not at all.
        self.stale_while_revalidate = settings.stale_while_revalidate or None
        #: Milliseconds for which they stand in for an error; None: not at all.
        self.rescue = round(settings.stale_if_error * 1_000) or None
        #: Headers of requests that enter the key or the tenant.
        self.vary_known = (
            _VARY_KNOWN if settings.sharing == "all" else (_VARY_KNOWN | {name.encode() for name in settings.identity})
        )

    def terms(self, said: AnswerDirectives) -> _core.Terms:
        """How an answer that says this is stored."""
        return _core.Terms(round(self.life(said) * 1_000), round(max(self.stale(said)) * 1_000), None, False)

    def life(self, said: AnswerDirectives) -> float:
        """For how many seconds it is fresh."""
        return self._ttl if said.life is None else said.life

    def stale(self, said: AnswerDirectives) -> tuple[float, float]:
        """For how many seconds beyond that it is served while it is asked for anew, and while the upstream fails."""
        revalidate, rescue = said.stale_while_revalidate, said.stale_if_error
        return (
            self._stale_while_revalidate if revalidate is None else revalidate,
            self._stale_if_error if rescue is None else rescue,
        )

    @staticmethod
    def namespace(cache: Cache, tenant: str) -> str:
        """Where a tenant's entries are."""
        return f"{cache.namespace}:{tenant}" if tenant else cache.namespace

    @staticmethod
    def tags(model: str, version: str, tenant: str) -> list[str]:
        """By what every entry can be purged, whoever's it is: tags are of the cache's own namespace."""
        tags = [f"edge:model:{model}", f"edge:version:{model}={version}"]
        return [*tags, f"edge:tenant:{tenant}"] if tenant else tags
