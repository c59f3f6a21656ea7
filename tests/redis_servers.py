"""Starts real Redis servers for tests: one, or a cluster of three masters. They end with the test run."""

import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 20.0


def needed():
    """Skips the test where there is no redis-server."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def redis_server(folder, *options, port=None, tls=()):
    """A server that keeps what it acknowledges in `folder`; yields its port and its process.

    tls: what redis-cli must be told, where the port is one of TLS.
    """
    needed()
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    durable = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
    ports = ("--port", "0", "--tls-port", str(port)) if tls else ("--port", str(port))
    command = ["redis-server", *ports, "--bind", "127.0.0.1", "--dir", str(folder), *durable, *options]
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: cli(port, *tls, "ping") in ("PONG", "NOAUTH Authentication required."))
        yield port, process
    finally:
        process.kill()
        process.wait()


@contextmanager
def redis_cluster(folder, node_timeout_ms=5_000):
    """Three masters that share the slots; yields what each was started with, and its process."""
    needed()
    with ExitStack() as stack:
        nodes = []
        for number in range(3):
            # The bus's port is the other one plus 10,000 unless it is said.
            options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            node = Node(folder / str(number), (*options, "--cluster-node-timeout", str(node_timeout_ms)), free_port())
            node.process = stack.enter_context(node.running())
            nodes.append(node)
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        made = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "0", "--cluster-yes"]
        subprocess.run(made, check=True, capture_output=True, timeout=60)
        wait_for(lambda: all("cluster_state:ok" in cli(node.port, "cluster", "info") for node in nodes))
        yield nodes


@dataclass
class Node:
    """A server of a cluster."""

    folder: Path
    options: tuple[str, ...]
    port: int
    process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self):
        """Run it, for the first time or again."""
        with redis_server(self.folder, *self.options, port=self.port) as (_, process):
            yield process


def cli(port: int, *command: str) -> str:
    """What redis-cli prints."""
    found = subprocess.run(
        ["redis-cli", "-p", str(port), *command], check=False, capture_output=True, text=True, timeout=10
    )
    return found.stdout.strip()


def wait_for(done):
    give_up_s = time.monotonic() + START_S
    while not done():
        assert time.monotonic() < give_up_s, "Redis did not get ready"
        time.sleep(0.05)
