"""Traces by OpenTelemetry, sent over OTLP: a span for each RPC, and in it one for each stage of an answer.

How many calls are traced, how often spans are sent and the rest is told to OpenTelemetry as everywhere, by its
environment variables (`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, `OTEL_BSP_...`).
"""

from __future__ import annotations

import asyncio
import os
import time
from contextvars import Token
from urllib.parse import urlsplit

import grpc
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import longtide
from longtide_server.errors import InvalidInput
from longtide_server.observer import Missing, Stage, StageObserver
from longtide_server.watching.calls import Metadata

TRACES_PATH = "/v1/traces"
CLOSE_TIMEOUT_S = 3.0
# A server's own failures; the other codes are the caller's business.
FAILED = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Tracing:
    """Makes spans of calls (see `calls.Tracer`) and sends them to a collector."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is the collector's base URL, such as http://localhost:4318; InvalidInput when it is none."""
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidInput.of("otlp_endpoint", f"{endpoint!r} is not a URL such as http://localhost:4318")
        service = {SERVICE_NAME: os.environ.get(OTEL_SERVICE_NAME, "longtide"), SERVICE_VERSION: longtide.__version__}
        url = endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
        self._exporter = OTLPSpanExporter(url)
        self._provider = TracerProvider(resource=Resource.create(service), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("longtide_server", longtide.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def call(self, service: str, rpc: str, metadata: Metadata, *, stages: bool) -> CallSpan:
        """See Tracer. The span goes on from the caller's `traceparent`, where there is one."""
        carrier = {name: value for name, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{service}/{rpc}",
            self._propagator.extract(carrier, Context()),
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc},
        )
        return CallSpan(span, context.attach(trace.set_span_in_context(span)) if stages else None)

    def stages(self, observer: StageObserver) -> StageObserver:
        """An observer who makes spans of stages, and passes on to another what it is told."""
        return TracedStages(observer, self._tracer)

    async def close(self) -> None:
        """Send what is left; what the collector does not take in time is given up."""
        closing = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        done, _ = await asyncio.wait((closing,), timeout=CLOSE_TIMEOUT_S)
        if not done:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # or it would be tried again and again
        await closing


class CallSpan:
    """The span of a call."""

    def __init__(self, span: trace.Span, attached: Token[Context] | None) -> None:
        self._span = span
        self._attached = attached

    def end(self, code: str) -> None:
        """See `calls.Span`."""
        if self._attached is not None:
            context.detach(self._attached)
        self._span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
        if code in FAILED:
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()


class TracedStages(StageObserver):
    """Makes a span of each stage of a call that is traced, and passes on what it is told."""

    def __init__(self, observer: StageObserver, tracer: trace.Tracer) -> None:
        self._observer = observer
        self._tracer = tracer

    def stage(self, stage: Stage, begun_s: float) -> None:
        """See StageObserver."""
        self._observer.stage(stage, begun_s)
        if trace.get_current_span().is_recording():
            ended_ns = time.time_ns()
            began_ns = ended_ns - int((time.perf_counter() - begun_s) * 1e9)
            self._tracer.start_span(stage, start_time=began_ns).end(ended_ns)

    def degraded(self, missing: Missing) -> None:
        """See StageObserver."""
        self._observer.degraded(missing)
        trace.get_current_span().set_attribute(f"longtide.degraded.{missing}", True)
