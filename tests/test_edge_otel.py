"""OpenTelemetry: one span a request, part of the caller's trace and handed on to the model, without any input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asgi import Call, Model
from infercache.edge import CacheMiddleware
from infercache.edge.exchange import EdgeRequest, Headers, Outcome, Reply

if TYPE_CHECKING:
    from infercache.edge.forwarding import Forward

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Handler:
    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply:
        await forward(request)
        return Reply(200, Headers(), b"x", outcome=Outcome("partial", items=4, hits=3, model="m", saved_seconds=0.5))


@pytest.fixture(scope="module")
def exported() -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    return spans, reader


async def test_a_request_is_a_span_of_the_callers_trace_and_is_counted(
    exported: tuple[InMemorySpanExporter, InMemoryMetricReader],
) -> None:
    spans, reader = exported
    model = Model()
    edge = CacheMiddleware(model, table={("POST", "/r"): Handler()}, capacity="1MB", telemetry=True)
    headers = [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()), (b"authorization", b"secret"), (b"x", b"y")]
    await Call("/r", b"secret input", headers=headers)(edge)
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /r" and span.kind is trace.SpanKind.SERVER
    assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT
    attributes = dict(span.attributes or {})
    assert attributes["infercache.kind"] == "partial" and attributes["infercache.model"] == "m"
    assert (attributes["infercache.items"], attributes["infercache.hits"]) == (4, 3)
    assert attributes["http.response.status_code"] == 200
    assert "secret" not in span.to_json()
    told = dict(model.scopes[0]["headers"])[b"traceparent"].decode()
    assert told == f"00-{TRACE}-{span.get_span_context().span_id:016x}-01", "the model's span is beneath ours"
    assert dict(model.scopes[0]["headers"])[b"x"] == b"y"
    found = {
        each.name: each.data.data_points
        for resource in reader.get_metrics_data().resource_metrics  # type: ignore[union-attr]
        for scope in resource.scope_metrics
        for each in scope.metrics
    }
    assert {point.attributes["infercache.from"]: point.value for point in found["infercache.edge.items"]} == {
        "cache": 3,
        "model": 1,
    }
    assert found["infercache.edge.duration"][0].count == 1


async def test_an_error_is_a_span_too_and_its_text_is_not_in_it(
    exported: tuple[InMemorySpanExporter, InMemoryMetricReader],
) -> None:
    spans, _ = exported
    spans.clear()
    model = Model()
    model.fails = ValueError("secret input")
    edge = CacheMiddleware(model, table={}, capacity="1MB", telemetry=True)
    with pytest.raises(ValueError, match="secret"):
        await Call("/other")(edge)
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert "secret" not in span.to_json()
