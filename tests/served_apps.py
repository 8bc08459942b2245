"""Applications with the middleware in them, for servers that are given an application by name."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

ASKED = [0]


def fastapi() -> Any:
    """A model server in FastAPI. What `MIDDLEWARE` names is added by name, as vLLM's `--middleware` does."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/v1/embeddings")
    async def embeddings(request: dict[str, Any]) -> dict[str, Any]:
        ASKED[0] += 1
        given = request["input"]
        texts = [given] if isinstance(given, str) else given
        data = [
            {"object": "embedding", "index": index, "embedding": [len(text) / 7, 0.5]}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return {"object": "list", "data": data, "model": request["model"], "usage": usage}

    @app.get("/asked")
    async def asked() -> int:
        return ASKED[0]

    named = os.environ.get("MIDDLEWARE")
    if named:
        module, _, name = named.rpartition(".")
        app.add_middleware(getattr(import_module(module), name))
    else:
        from infercache.edge import CacheMiddleware

        app.add_middleware(CacheMiddleware, model_versions={"*": "1"}, capacity="4MB")
    return app


app = fastapi() if os.environ.get("SERVE_APP") else None
