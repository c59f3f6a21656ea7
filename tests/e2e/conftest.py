"""A trained snapshot of a tiny log, and real servers in processes of their own in front of it."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from longtide import Client, Event

COMMAND = Path(sys.executable).with_name("longtide")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
RING = [f"item-{letter}" for letter in "abcdefghijkl"]
USERS = 24
STEPS = 5
FIRST_S = 1_700_000_000
STOP_S = 15
START_S = 90


def walk(user: int) -> list[tuple[str, float]]:
    """Items and times: everyone walks the ring from a place of their own."""
    return [(RING[(user + k) % 12], FIRST_S + 86_400.0 * user + 3_600.0 * k) for k in range(STEPS)]


@dataclass(frozen=True)
class World:
    """A log and its published snapshot."""

    log: Path
    items: Path
    snapshot: Path

    @property
    def users(self) -> list[str]:
        return [f"user-{n}" for n in range(USERS)]

    def events(self) -> list[Event]:
        """The log, as events whose ids stay the same."""
        return [
            Event(f"user-{n}", item, time=time_s, event_id=f"{n}-{k}")
            for n in range(USERS)
            for k, (item, time_s) in enumerate(walk(n))
        ]


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    found = World(folder / "log.csv", folder / "items.csv", folder / "snapshot")
    rows = [f"user-{n},{item},{time_s:.0f}" for n in range(USERS) for item, time_s in walk(n)]
    found.log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    found.items.write_text("\n".join(["item_id,title", *(f"{item},Title of {item}" for item in RING)]) + "\n")
    settings = {
        "train.epochs": "15", "train.learning_rate": "0.01", "train.bfloat16": "false",
        "model.dim": "16", "model.hidden": "16", "model.dropout": "0.1",
    }  # fmt: skip
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    run("train", found.log, "--items", found.items, "--out", found.snapshot, "--text-model", "none", *sets)
    return found


@pytest.fixture(scope="session")
def command():
    """Runs a `longtide` command that must succeed; returns what it printed."""
    return run


def run(*args: object) -> str:
    """A command that must succeed; returns what it printed."""
    command = [str(arg) for arg in (COMMAND, *args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Longtide:
    """A `longtide` process that serves until it is stopped."""

    def __init__(self, *args: object) -> None:
        self.process = subprocess.Popen(
            [str(arg) for arg in (COMMAND, *args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.printed: list[str] = []
        self.errors: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        for stream, lines in ((self.process.stdout, self.printed), (self.process.stderr, self.errors)):
            threading.Thread(target=self._read, args=(stream, lines), daemon=True).start()

    def _read(self, stream, lines: list[str]) -> None:
        for line in stream:
            lines.append(line)
            if lines is self.printed:
                self._lines.put(line)
        if lines is self.printed:
            self._lines.put(None)

    def wait_serving(self) -> str:
        """Where it serves, once it does."""
        give_up_s = time.monotonic() + START_S
        while (line := self._lines.get(timeout=max(0.1, give_up_s - time.monotonic()))) is not None:
            if line.startswith("Serving on "):
                return line.split()[2]
        self.process.wait()
        raise AssertionError(f"ended with status {self.process.returncode}:\n{''.join(self.errors)}")

    def tree(self) -> list[psutil.Process]:
        """Its processes: itself, the guard, TorchServe, the worker."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal; returns the exit status, which must come within STOP_S."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """Whatever is left, at the end of a test."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def alive():
    """Says which processes do not end within ten seconds."""

    def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
        _, left = psutil.wait_procs(processes, timeout=10)
        return [process for process in left if process.status() != psutil.STATUS_ZOMBIE]

    return alive


@pytest.fixture(scope="session")
def until():
    """Asks until the answer is true, and returns it."""

    def until(condition, within_s: float, what: str):
        give_up_s = time.monotonic() + within_s
        while not (found := condition()):
            assert time.monotonic() < give_up_s, f"not within {within_s} s: {what}"
            time.sleep(0.05)  # between two looks, not instead of one
        return found

    return until


@pytest.fixture(scope="module")
def quickstart():
    """Starts `longtide quickstart` on a free port; whatever a test leaves running is ended."""
    started: list[Longtide] = []

    def quickstart(*args: object) -> Longtide:
        started.append(Longtide("quickstart", *args, "--listen", "127.0.0.1:0"))
        return started[-1]

    yield quickstart
    for shown in started:
        shown.kill()


@pytest.fixture(scope="module")
def start(world, tmp_path_factory):
    """Starts servers, of the world's snapshot or of another one; whatever a test leaves running is ended."""
    started: list[Longtide] = []

    def start(data: Path | None = None, *options: object, snapshot: Path | None = None) -> Longtide:
        data = data or tmp_path_factory.mktemp("data")
        serve = ("serve", "--snapshot", snapshot or world.snapshot, "--data-dir", data, "--listen", "127.0.0.1:0")
        server = Longtide(*serve, *options)
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def torchserve_address() -> str:
    """Where the shared server's TorchServe takes predictions."""
    return free_address()


@pytest.fixture(scope="module")
def metrics_address() -> str:
    """Where the shared server shows its metrics."""
    return free_address()


@pytest.fixture(scope="module")
def server_address(start, torchserve_address, metrics_address) -> str:
    """One server over TorchServe, shared by a module."""
    ports = torchserve_address.rpartition(":")[2] + ",0,0,0"
    return start(None, "--torchserve-ports", ports, "--metrics", metrics_address).wait_serving()


@pytest.fixture(scope="module")
def client(server_address, world):
    """The SDK in front of it, the world's log written."""
    with Client(server_address, timeout=20.0) as connected:
        connected.wait_ready(20.0)
        result = connected.write_events(world.events())
        assert result.written_count == USERS * STEPS
        yield connected
