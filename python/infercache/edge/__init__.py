"""The edge: a cache in front of a model server, as ASGI middleware in its process or as a gateway before it.

`CacheMiddleware(app)` answers what it has, and asks the app for the rest. `Gateway` is that middleware around
`Upstream`, an ASGI app that asks another server (`infercache serve`). What is imported is what is used: the middleware
needs neither a server nor a client for HTTP.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infercache.edge.middleware import CacheMiddleware
    from infercache.edge.serve import Gateway
    from infercache.edge.settings import Settings

__all__ = ["CacheMiddleware", "Gateway", "Settings"]

_HOMES = {"CacheMiddleware": "middleware", "Gateway": "serve", "Settings": "settings"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
