"""OpenTelemetry: a span and two instruments for each request (the extra `otel`, `telemetry = true`).

Where they go is for the SDK to say, by its environment or by what the process set up: `opentelemetry-instrument
infercache serve …` does both. Attributes hold routes, models and counts; no input and no credential.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from infercache import __version__
from infercache.errors import MissingExtra

try:
    from opentelemetry import metrics, propagate, trace
except ImportError as error:
    raise MissingExtra(f"telemetry needs the extra 'otel': pip install 'infercache[otel]' ({error})") from None

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from infercache.edge.exchange import Outcome, Scope

__all__ = ["Telemetry"]

_NAME = "infercache.edge"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class Telemetry:
    """Spans and metrics of one middleware."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(_NAME, __version__)
        meter = metrics.get_meter(_NAME, __version__)
        self._seconds = meter.create_histogram(
            "infercache.edge.duration", unit="s", description="Time to an answer's end."
        )
        self._items = meter.create_counter("infercache.edge.items", description="Questions, by how they were answered.")

    @contextmanager
    def span(self, scope: Scope, route: str) -> Iterator[Ending]:
        """The span of one request, beneath that of the caller's `traceparent`; the application is told of ours."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            context=propagate.extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
            record_exception=False,  # its text may quote a request
            set_status_on_exception=False,
        ) as span:
            told: dict[str, str] = {}
            propagate.inject(told)
            if told:
                fields = [(name.lower().encode(), value.encode()) for name, value in told.items()]
                names = {name for name, _ in fields}
                scope["headers"] = [*(pair for pair in scope["headers"] if pair[0] not in names), *fields]
            try:
                yield Ending(self, span, method)
            except BaseException as error:
                span.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise

    def record(self, outcome: Outcome, method: str, status: int, seconds: float) -> None:
        """Counts one request."""
        common = {"http.request.method": method, "http.route": outcome.route, "infercache.kind": outcome.kind}
        self._seconds.record(seconds, {**common, "http.response.status_code": status})
        if outcome.hits:
            self._items.add(outcome.hits, {**common, "infercache.from": "cache"})
        if outcome.items > outcome.hits:
            self._items.add(outcome.items - outcome.hits, {**common, "infercache.from": "model"})


class Ending:
    """What is known of a request once it was answered."""

    def __init__(self, telemetry: Telemetry, span: Span, method: str) -> None:
        self._telemetry, self._span, self._method = telemetry, span, method

    def ends(self, outcome: Outcome, status: int, seconds: float) -> None:
        """It was answered so."""
        self._span.set_attributes(
            {
                "http.response.status_code": status,
                "infercache.kind": outcome.kind,
                "infercache.model": outcome.model[:256],
                "infercache.items": outcome.items,
                "infercache.hits": outcome.hits,
                "infercache.stored": outcome.stored,
                "infercache.saved_seconds": outcome.saved_seconds,
            }
        )
        if status >= 500:
            self._span.set_status(trace.StatusCode.ERROR)
        self._telemetry.record(outcome, self._method, status, seconds)
