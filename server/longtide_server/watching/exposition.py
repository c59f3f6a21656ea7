"""Shows a registry of metrics over HTTP, on a port of its own, to whoever scrapes it."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, start_http_server

from longtide_server.errors import InvalidInput


class Exposition:
    """An HTTP server on a thread; `/metrics` is what Prometheus asks for."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Port 0 picks a free one. InvalidInput when the address cannot be listened on."""
        try:
            self._server, self._thread = start_http_server(port, host.strip("[]"), registry)
        except OSError as exc:
            raise InvalidInput.of("metrics", f"{host}:{port} cannot be listened on: {exc.strerror}") from exc
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    async def close(self) -> None:
        """Stop listening."""
        await asyncio.to_thread(self._server.shutdown)
        self._thread.join()
        self._server.server_close()
