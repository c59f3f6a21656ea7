"""Who is told what happens in a process: metrics and traces, where they are asked for."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from longtide_server.app.addresses import host_and_port
from longtide_server.config import ServerConfig
from longtide_server.errors import InvalidInput
from longtide_server.observer import NOBODY, Observer, StageObserver
from longtide_server.watching.calls import Calls
from longtide_server.watching.exposition import Exposition
from longtide_server.watching.metrics import Metrics
from longtide_server.workers.totals import Totals

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Watching:
    """Who is told what happens."""

    observer: Observer
    metrics: Metrics | None
    """The observer, where it counts."""
    stages: StageObserver
    calls: Calls


async def build_watching(config: ServerConfig, stack: AsyncExitStack) -> Watching:
    """Who is told what happens: nobody, unless metrics or traces are asked for.

    InvalidInput when OpenTelemetry is not installed.
    """
    metrics = Metrics() if config.metrics else None
    observer: Observer = metrics or NOBODY
    if not config.otlp_endpoint:
        return Watching(observer, metrics, observer, Calls(observer))
    try:
        from longtide_server.watching.tracing import Tracing
    except ImportError as exc:
        raise InvalidInput.of("otlp_endpoint", "needs pip install 'longtide[otel]'") from exc
    tracing = Tracing(config.otlp_endpoint)
    stack.push_async_callback(tracing.close)
    return Watching(observer, metrics, tracing.stages(observer), Calls(observer, tracing))


def show(shown: Metrics | Totals, config: ServerConfig, stack: AsyncExitStack) -> None:
    """Show metrics. InvalidInput when their address cannot be listened on."""
    exposition = Exposition(shown.registry, *host_and_port(config.metrics, "metrics"))
    stack.push_async_callback(exposition.close)
    log.info("metrics_shown", url=exposition.url)
