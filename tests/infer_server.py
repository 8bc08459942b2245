"""A server of the Open Inference Protocol of the tests' own: `python -m uvicorn infer_server:app`.

Each input X is answered by an output `Y_X`: numbers doubled (wrapping), booleans turned around, texts reversed. It
speaks JSON and the binary extension as Triton does, refuses what Triton refuses, and counts what it is asked.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from asgi import body_of

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
ASKED: list[str] = []


def texts_of(content: bytes) -> list[bytes]:
    found = []
    while content:
        length = int.from_bytes(content[:4], "little")
        found.append(content[4 : 4 + length])
        content = content[4 + length :]
    return found


def read(tensor: dict[str, Any], tail: bytes) -> tuple[Any, bytes]:
    kind, size = tensor["datatype"], tensor.get("parameters", {}).get("binary_data_size")
    content, rest = (None, tail) if size is None else (tail[:size], tail[size:])
    if kind == "BYTES":
        given = (
            texts_of(content)
            if content is not None
            else [text.encode() for text in np.ravel(np.array(tensor["data"], object))]
        )
        return np.array(given, object).reshape(tensor["shape"]), rest
    if content is not None:
        return np.frombuffer(content, DTYPES[kind]).reshape(tensor["shape"]), rest
    if kind == "FP16":
        raise ValueError("FP16 has no JSON form")
    return np.array(tensor["data"], DTYPES[kind]).reshape(tensor["shape"]), rest


def computed(value: Any, kind: str) -> Any:
    if kind == "BYTES":
        return np.array([text.decode()[::-1].encode() for text in value.ravel()], object).reshape(value.shape)
    if kind == "BOOL":
        return ~value
    with np.errstate(over="ignore"):
        return value + value


def answer(body: bytes, head: int | None, model: str) -> tuple[bytes, int | None]:
    asked = json.loads(body[:head])
    tail = b"" if head is None else body[head:]
    values = {}
    for tensor in asked["inputs"]:
        values["Y_" + tensor["name"]], tail = read(tensor, tail)
    kinds = {"Y_" + tensor["name"]: tensor["datatype"] for tensor in asked["inputs"]}
    wanted = asked.get("outputs") or [{"name": name} for name in values]
    every = asked.get("parameters", {}).get("binary_data_output", False)
    outputs, tails = [], []
    for each in wanted:
        name = each["name"]
        value, kind = computed(values[name], kinds[name]), kinds[name]
        output: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(value.shape)}
        if each.get("parameters", {}).get("binary_data", every):
            texts = value.ravel() if kind == "BYTES" else ()
            content = b"".join(len(text).to_bytes(4, "little") + text for text in texts) or value.tobytes()
            content = content if kind != "BYTES" or value.size else b""
            output["parameters"] = {"binary_data_size": len(content)}
            tails.append(content)
        elif kind == "FP16":
            raise ValueError("FP16 has no JSON form")
        else:
            flat = value.ravel()
            output["data"] = [text.decode() for text in flat] if kind == "BYTES" else flat.tolist()
        outputs.append(output)
    said: dict[str, Any] = {"model_name": model, "model_version": "7", "outputs": outputs}
    if "id" in asked:
        said["id"] = asked["id"]
    text = json.dumps(said).encode()
    return text + b"".join(tails), len(text) if tails else None


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = await body_of(receive)
    path = scope["path"].split("/")
    status, headers = 200, [(b"content-type", b"application/json")]
    if path[-1] == "infer":
        ASKED.append(scope["path"])
        given = dict(scope["headers"]).get(b"inference-header-content-length")
        try:
            content, head = answer(body, None if given is None else int(given), path[3])
            if head is not None:
                headers = [
                    (b"content-type", b"application/octet-stream"),
                    (b"inference-header-content-length", b"%d" % head),
                ]
        except (ValueError, KeyError, UnicodeDecodeError, OverflowError, TypeError) as error:
            status, content = 400, json.dumps({"error": str(error)}).encode()
    else:
        content = json.dumps({"path": scope["path"], "asked": len(ASKED), "ready": True}).encode()
    headers.append((b"content-length", b"%d" % len(content)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
