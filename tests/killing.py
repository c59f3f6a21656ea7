"""Kills a server again and again while a client writes to it, and says what is in the log then."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from longtide import Client, Event, WriteResult

START_S = 90.0
USERS = 50


@dataclass(frozen=True)
class Survived:
    """What became of the events of a client whose server was killed."""

    kills: int
    sent: list[str]
    """The ids of all events, in their order; every one of them was acknowledged."""
    result: WriteResult
    """What the client was told."""


def killed_again_and_again(snapshot: Path, data_dir: Path, kills: int, seed: int, *options: str) -> Survived:
    """One `stream_events` over so many `kill -9` of its server, each at a random moment under load."""
    rng = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"127.0.0.1:{found.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "longtide_server", "serve", "--snapshot", str(snapshot), "--data-dir", str(data_dir)),
        *("--listen", address, "--encoder", "local", *options),
    ]
    sent: list[str] = []
    enough = threading.Event()

    def events() -> Iterator[Event]:
        while not enough.is_set():
            sent.append(f"e{len(sent)}")
            yield Event(f"user-{len(sent) % USERS}", "item", time=1_700_000_000 + len(sent), event_id=sent[-1])

    def write() -> WriteResult:
        with Client(address, timeout=START_S) as client:
            return client.stream_events(events(), batch_size=100, reconnect_timeout=START_S)

    server = _serving(command)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(kills):
                time.sleep(rng.uniform(0.05, 0.6))
                os.kill(server.pid, signal.SIGKILL)
                server.wait()
                server = _serving(command)
            time.sleep(0.3)
            enough.set()
            return Survived(kills, sent, writing.result(START_S))
        finally:
            enough.set()
            server.terminate()
            server.wait(30)


def _serving(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("Serving on "):
        raise RuntimeError(f"the server did not start: {line!r}, status {process.wait()}")
    return process
