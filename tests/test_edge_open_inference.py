"""Open Inference Protocol at the edge: whatever the encoding, the answer is the one that the server would give."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infer_server
from asgi import Call
from infercache import Cache
from infercache.edge import CacheMiddleware
from leash import Leashed
from servers import free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateways import Gateway
    from infercache.testing import ManualClock

PATH = "/v2/models/m/infer"


def edge(**options: Any) -> CacheMiddleware:
    infer_server.ASKED.clear()
    return CacheMiddleware(infer_server.app, **{"capacity": "4MB", "model_versions": {"*": "1"}, **options})


class Body:
    """A request's body, as JSON or with the binary extension."""

    def __init__(self, asked: dict[str, Any], binary: dict[str, bytes] | None = None) -> None:
        tail = b""
        for tensor in asked["inputs"]:
            content = (binary or {}).get(tensor["name"])
            if content is not None:
                tensor["parameters"] = {"binary_data_size": len(content)}
                tensor.pop("data", None)
                tail += content
        head = json.dumps(asked).encode()
        self.content = head + tail
        self.head = len(head) if binary else None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [] if self.head is None else [(b"inference-header-content-length", b"%d" % self.head)]


async def ask(app: Any, body: Body | dict[str, Any], *headers: tuple[bytes, bytes], path: str = PATH) -> Call:
    body = body if isinstance(body, Body) else Body(body)
    return await Call(path=path, body=body.content, headers=[*body.headers, *headers])(app)


def read(call: Call) -> dict[str, Any]:
    """An answer, tensors as (kind, shape, values)."""
    head = call.answered.get(b"inference-header-content-length")
    content = call.content
    said = json.loads(content if head is None else content[: int(head)])
    tail = b"" if head is None else content[int(head) :]
    for output in said["outputs"]:
        value, tail = infer_server.read(output, tail)
        # As text, so that every bit of a number counts.
        output["value"] = [output["datatype"], list(value.shape), [repr(each) for each in value.ravel().tolist()]]
        output.pop("data", None)
        output.pop("parameters", None)
    assert tail == b""
    return said


def status_of(call: Call) -> bytes:
    return call.answered.get(b"cache-status", b"")


KINDS = sorted({*infer_server.DTYPES, "BYTES"} - {"FP16"})


def values(kind: str) -> st.SearchStrategy[Any]:
    if kind == "BYTES":
        return st.text(max_size=5)
    if kind == "BOOL":
        return st.booleans()
    dtype = np.dtype(infer_server.DTYPES[kind])
    if dtype.kind == "f":
        return st.floats(-(2.0**100), 2.0**100, width=64 if dtype.itemsize == 8 else 32)
    return st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Inputs as JSON, and the native bytes of each."""
    inputs, native = [], {}
    for name in draw(st.sampled_from([["a"], ["a", "b"]])):
        kind = draw(st.sampled_from(KINDS))
        given_ = draw(st.lists(values(kind), min_size=1, max_size=4))
        inputs.append({"name": name, "datatype": kind, "shape": [1, len(given_)], "data": given_})
        if kind == "BYTES":
            texts = [text.encode() for text in given_]
            native[name] = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        else:
            native[name] = np.array(given_, infer_server.DTYPES[kind]).tobytes()
    return {"inputs": inputs}, native


@settings(max_examples=200, deadline=None)
@given(asked=requests(), first=st.booleans(), second=st.booleans(), wants=st.tuples(st.booleans(), st.booleans()))
def test_any_encoding_is_answered_from_what_was_kept_of_any_other(
    asked: Any, first: bool, second: bool, wants: tuple[bool, bool]
) -> None:
    request, native = asked

    async def run() -> None:
        app = edge()
        await ask(app, {"inputs": [{"name": "proves", "datatype": "INT8", "shape": [1], "data": [1]}]})
        answers = []
        for number, (binary, wanted) in enumerate(zip((first, second), wants, strict=True)):
            body = {**json.loads(json.dumps(request)), "id": f"call {number}"}
            if wanted:
                body["parameters"] = {"binary_data_output": True}
            call = await ask(app, Body(body, native if binary else None))
            assert call.status == 200
            said = read(call)
            assert said.pop("id") == f"call {number}"
            assert (b"inference-header-content-length" in call.answered) is wanted
            answers.append(said)
        assert answers[0] == answers[1]
        assert b"hit" in status_of(call)
        assert len(infer_server.ASKED) == 2

    asyncio.run(run())


def test_one_output_is_binary_and_another_is_not() -> None:
    async def run() -> None:
        app = edge()
        inputs = [{"name": name, "datatype": "FP32", "shape": [2], "data": [0.1, 2]} for name in "ab"]
        outputs = [{"name": "Y_a", "parameters": {"binary_data": True}}, {"name": "Y_b"}]
        for _ in range(2):
            call = await ask(app, {"inputs": inputs, "outputs": outputs})
            said = read(call)
            assert [output["name"] for output in said["outputs"]] == ["Y_a", "Y_b"]
            assert said["outputs"][0]["value"] == said["outputs"][1]["value"]
        assert b"hit" in status_of(call)

    asyncio.run(run())


def test_shape_dtype_parameters_outputs_and_the_models_version_part_answers() -> None:
    async def run() -> None:
        app = edge()
        tensor = {"name": "a", "datatype": "INT32", "shape": [2], "data": [1, 2]}
        await ask(app, {"inputs": [tensor]})
        for body, path in [
            ({"inputs": [{**tensor, "shape": [1, 2]}]}, PATH),
            ({"inputs": [{**tensor, "datatype": "INT64"}]}, PATH),
            ({"inputs": [{**tensor, "parameters": {"x": 1}}]}, PATH),
            ({"inputs": [tensor], "parameters": {"x": 1}}, PATH),
            ({"inputs": [tensor], "outputs": [{"name": "Y_a"}]}, PATH),
            ({"inputs": [tensor]}, "/v2/models/n/infer"),
            ({"inputs": [tensor]}, "/v2/models/m/versions/2/infer"),
            ({"inputs": [tensor]}, "/v2/models/%6d/infer"),  # as ASGI has it: decoded already
        ]:
            assert b"fwd=miss" in status_of(await ask(app, body, path=path)), (body, path)
            assert b"hit" in status_of(await ask(app, body, path=path))

    asyncio.run(run())


def test_a_version_in_the_path_is_a_version() -> None:
    async def run() -> None:
        app = edge(model_versions={})
        body = {"inputs": [{"name": "a", "datatype": "INT32", "shape": [1], "data": [1]}]}
        for path in ("/v2/models/m/versions/1/infer", "/v2/models/m/versions/2/infer"):
            assert b"fwd=miss" in status_of(await ask(app, body, path=path))
            assert b"hit" in status_of(await ask(app, body, path=path))
        assert b"version-unknown" in status_of(await ask(app, body))

    asyncio.run(run())


@pytest.mark.parametrize(
    "parameters", [{"sequence_id": 7}, {"sequence_id": 7, "sequence_start": True}], ids=["within", "at the start of"]
)
def test_what_keeps_state_on_the_server_is_never_cached(parameters: dict[str, Any]) -> None:
    async def run() -> None:
        app = edge()
        body = {"parameters": parameters, "inputs": [{"name": "a", "datatype": "INT8", "shape": [1], "data": [1]}]}
        for _ in range(2):
            assert status_of(await ask(app, body)) == b"infercache; fwd=bypass; fwd-status=200; detail=not-understood"
        assert len(infer_server.ASKED) == 2

    asyncio.run(run())


def test_an_answer_that_has_no_json_form_is_asked_for_again() -> None:
    async def run() -> None:
        app = edge()
        half = np.array([0.5, 2], np.float16).tobytes()
        tensor = {"name": "a", "datatype": "FP16", "shape": [2]}
        binary = {"inputs": [dict(tensor)], "parameters": {"binary_data_output": True}}
        for _ in range(2):
            call = await ask(app, Body(json.loads(json.dumps(binary)), {"a": half}))
        assert b"hit" in status_of(call)
        call = await ask(app, Body({"inputs": [dict(tensor)]}, {"a": half}))
        assert call.status == 400 and json.loads(call.content) == {"error": "FP16 has no JSON form"}

    asyncio.run(run())


def test_an_answer_that_is_too_old_or_ends_too_soon_for_a_request_is_asked_for(clock: ManualClock) -> None:
    async def run() -> None:
        cache = Cache("16MB", ttl="100s", clock=clock)
        app = edge(cache=cache, ttl="100s", auth_ttl="1h")
        body = {"inputs": [{"name": "a", "datatype": "INT8", "shape": [1], "data": [1]}]}
        for _ in range(2):
            await ask(app, body)
        clock.advance(60)
        before = len(infer_server.ASKED)
        for wanted, asks in ((b"max-age=61", 0), (b"min-fresh=39", 0), (b"max-age=59", 1), (b"min-fresh=100", 2)):
            call = await ask(app, body, (b"cache-control", wanted))
            assert (len(infer_server.ASKED) - before, b"; hit" in status_of(call)) == (asks, not asks), wanted
            clock.advance(0.5 if asks else 0)

    asyncio.run(run())


def test_a_hit_has_these_headers_and_saves_what_it_took() -> None:
    async def run() -> None:
        app = edge()
        body = {"inputs": [{"name": "a", "datatype": "INT8", "shape": [1], "data": [1]}], "id": "mine"}
        await ask(app, body)
        call = await ask(app, body)
        assert set(call.answered) == {b"content-type", b"content-length", b"age", b"cache-status"}
        hits = [series for (_, _, kind, _), series in app.metrics.series() if kind == "hit"]
        assert hits[0].saved > 0

    asyncio.run(run())


def test_errors_are_passed_on_and_never_kept() -> None:
    async def run() -> None:
        app = edge()
        body = {"inputs": [{"name": "a", "datatype": "INT8", "shape": [1], "data": [1]}], "outputs": [{"name": "no"}]}
        for _ in range(2):
            call = await ask(app, body)
            assert call.status == 400 and b"hit" not in status_of(call)
        for content in (b"{", b"[]", b"", b'{"inputs": 5}'):
            call = await Call(path=PATH, body=content)(app)
            assert (
                call.status == 400
                and status_of(call) == b"infercache; fwd=bypass; fwd-status=400; detail=not-understood"
            )
        call = await Call(path=PATH, body=b'{"inputs":' + b"[" * 100 + b"]" * 100 + b"}")(app)
        assert call.status == 400 and json.loads(call.content)["error"]["code"] == "json_too_deep"

    asyncio.run(run())


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    for package in ("uvicorn", "aiohttp", "tritonclient", "gevent"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from gateways import Gateway

    port = free_port()
    served = Leashed(
        [sys.executable, "-m", "uvicorn", "infer_server:app", "--port", str(port), "--log-level", "warning"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.DEVNULL,
    )
    with Gateway(f"http://127.0.0.1:{port}", model_versions={"*": "1"}) as made:
        until(lambda: made.ask("/v2/health/ready").status == 200, "the model server answers")
        yield made
    served.kill()


@pytest.mark.network
def test_tritons_client_gets_what_the_server_computes(gateway: Gateway) -> None:
    # gevent changes the process that imports it.
    script = f"""
import numpy as np, tritonclient.http as triton
client = triton.InferenceServerClient("127.0.0.1:{gateway.port}")
assert client.is_server_ready()
rng = np.random.default_rng(0)
for shape in ((1, 16), (3, 5), (2, 0)):
    for kind, array in {{
        "FP32": rng.standard_normal(shape).astype(np.float32), "INT64": rng.integers(-9, 9, shape),
        "BOOL": rng.random(shape) < 0.5, "FP64": rng.standard_normal(shape),
        "UINT8": rng.integers(0, 255, shape).astype(np.uint8),
        "BYTES": np.array([b"caf\\xc3\\xa9"] * int(np.prod(shape)), object).reshape(shape),
    }}.items():
        answers = []
        for binary_in in (True, False):
            for binary_out in (True, False):
                given = triton.InferInput("x", list(shape), kind)
                given.set_data_from_numpy(array, binary_data=binary_in)
                wanted = [triton.InferRequestedOutput("Y_x", binary_data=binary_out)]
                got = client.infer("m", [given], outputs=wanted, request_id="mine")
                assert got.get_response()["id"] == "mine"
                answers.append(got.as_numpy("Y_x"))
        for answer in answers:
            if kind == "BYTES":
                wanted = [text.decode()[::-1] for text in array.ravel()]
                assert [text if isinstance(text, str) else text.decode() for text in answer.ravel()] == wanted
            else:
                np.testing.assert_array_equal(answer, ~array if kind == "BOOL" else array + array)
                assert answer.dtype == array.dtype or not array.size  # this client makes empty arrays of floats
print("good")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout == "good\n", ran.stderr
