"""The life of TorchServe beside our server: start it, know when it answers, restart it, end it."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

import structlog

from longtide_server.errors import EncoderUnavailable
from longtide_server.torchserve import guard
from longtide_server.torchserve.archive import copy_archive
from longtide_server.torchserve.config import (
    LOOPBACK,
    Folders,
    TorchServeConfig,
    command,
    environment,
    model_settings,
    properties,
    stored_archive,
)
from longtide_server.torchserve.logs import WORKER_FAILED, LogFolder, reason, tail
from longtide_server.torchserve.ports import choose_ports
from longtide_server.torchserve.workers import Worker, WorkersReader

_log = structlog.get_logger(__name__)

_START_POLL_S = 0.1
_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 30.0
_STOP_MARGIN_S = 5.0
# A worker's Unix socket, SCRATCH/.ts.sock.9000, must fit into 107 bytes.
_MAX_SCRATCH_BYTES = 90


class TorchServe:
    """One supervised TorchServe. Its processes end with ours, however ours ends (see `guard`)."""

    def __init__(self, config: TorchServeConfig) -> None:
        self._config = config
        self._ports = choose_ports(config)
        self._folders = Folders(config.work_dir.resolve())
        self._logs = LogFolder(self._folders.logs)
        self._workers: WorkersReader | None = None
        self._process: Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._up = False
        self._on_gpu = False

    @property
    def on_gpu(self) -> bool:
        """Whether every worker has a GPU; known from the start on."""
        return self._on_gpu

    @property
    def grpc_address(self) -> str:
        """Where predictions are served; the same over restarts."""
        return f"{LOOPBACK}:{self._ports.grpc_inference}"

    @property
    def management_url(self) -> str:
        """TorchServe's HTTP management API."""
        return f"http://{LOOPBACK}:{self._ports.http_management}"

    @property
    def is_up(self) -> bool:
        """Whether a worker with the model was ready at the last look."""
        return self._up

    async def workers(self) -> tuple[Worker, ...]:
        """The model's workers now; none while TorchServe is away."""
        return await self._workers.read(self._config.model_name) if self._workers else ()

    async def start(self) -> None:
        """Return when the model answers. Otherwise raises EncoderUnavailable with the reason and the log's tail."""
        begin_s = time.monotonic()
        await asyncio.to_thread(self._prepare)
        self._workers = WorkersReader(f"{LOOPBACK}:{self._ports.grpc_management}")
        try:
            await self._launch(patient=False)
        except BaseException:  # a cancelled start leaves no process either
            await self.stop()
            raise
        _log.info("torchserve started", address=self.grpc_address, seconds=round(time.monotonic() - begin_s, 1))
        self._supervision = asyncio.create_task(self._supervise(), name="torchserve-supervision")
        self._supervision.add_done_callback(_log_if_failed)

    async def stop(self) -> None:
        """Return when every process is gone. Let calls under way end first: they are not waited for."""
        if self._supervision:
            self._supervision.cancel()
            await asyncio.wait([self._supervision])
            self._supervision = None
        await self._end_process()
        if self._workers:
            await self._workers.close()
            self._workers = None

    def _prepare(self) -> None:
        """Write everything TorchServe reads."""
        for folder in (self._folders.work, self._folders.models, self._folders.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        served = stored_archive(self._config, self._folders)
        copy_archive(self._config.archive, served, model_settings(self._config))
        text = properties(self._config, self._ports, self._folders)
        self._folders.properties.write_text(text, encoding="ascii")

    async def _launch(self, *, patient: bool) -> None:
        """Start the processes and wait for the model. Patient: let TorchServe retry a worker that fails to load."""
        scratch = _choose_scratch(self._folders.work)
        self._logs.mark()
        with self._logs.jvm.open("ab") as jvm_log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", guard.__file__),
                *(str(self._folders.lock), str(scratch)),
                *command(self._config, self._folders, scratch),
                stdin=PIPE,  # the guard ends everything when this closes, even by our being killed
                stdout=jvm_log,
                stderr=STDOUT,
                cwd=self._folders.work,
                env=environment(self._config, self._folders, scratch),
                start_new_session=True,  # Ctrl-C is ours: we finish the calls under way first
            )
        try:
            async with asyncio.timeout(self._config.startup_timeout_s):
                await self._wait_ready(self._process, patient=patient)
        except TimeoutError as exc:
            raise self._failure(f"was not ready within {self._config.startup_timeout_s:g} s") from exc
        self._up = True

    async def _wait_ready(self, process: Process, *, patient: bool) -> None:
        while True:
            if process.returncode is not None:
                raise self._failure(f"ended with status {process.returncode}")
            if not patient and WORKER_FAILED in self._logs.text():
                raise self._failure(f"could not load model {self._config.model_name!r}")
            workers = await self.workers()
            if any(worker.ready for worker in workers):
                self._on_gpu = all(worker.on_gpu for worker in workers)
                return self._require_device()
            await asyncio.sleep(_START_POLL_S)

    def _require_device(self) -> None:
        if self._config.device == "cuda" and not self._on_gpu:
            raise EncoderUnavailable("device is 'cuda', but TorchServe sees no GPU; choose 'auto' or 'cpu'")

    def _failure(self, what: str) -> EncoderUnavailable:
        text = self._logs.text()
        return EncoderUnavailable(
            f"TorchServe {what}: {reason(text)}\n--- the end of {self._folders.logs} ---\n{tail(text)}"
        )

    async def _supervise(self) -> None:
        failures = 0
        while True:
            if self._process is not None:
                await self._until_lost(self._process)
                _log.warning(
                    "torchserve lost, restarting", status=self._process.returncode, logs=str(self._folders.logs)
                )
            self._up = False
            await self._end_process()
            await asyncio.sleep(min(_BACKOFF_FIRST_S * 2**failures, _BACKOFF_MAX_S))
            failures = await self._relaunch(failures)

    async def _relaunch(self, failures: int) -> int:
        """Try once; returns how often it has failed in a row."""
        begin_s = time.monotonic()
        try:
            await self._launch(patient=True)
        except (EncoderUnavailable, OSError) as exc:
            _log.error("torchserve restart failed", attempt=failures + 1, error=str(exc))
            await self._end_process()
            return failures + 1
        _log.info("torchserve restarted", seconds=round(time.monotonic() - begin_s, 1))
        return 0

    async def _until_lost(self, process: Process) -> None:
        """Return when the processes ended, or no worker has been ready for `startup_timeout_s`.

        TorchServe restarts a dead worker itself, but gives up after five minutes, for ever: hence the second case.
        """
        ended = asyncio.ensure_future(process.wait())
        ready_s = time.monotonic()
        try:
            while time.monotonic() - ready_s < self._config.startup_timeout_s:
                await asyncio.wait([ended], timeout=self._config.health_interval_s)
                if ended.done():
                    return
                if await self._look():
                    ready_s = time.monotonic()
        finally:
            ended.cancel()

    async def _look(self) -> bool:
        """Whether a worker is ready, told, when it changed, to the log."""
        ready = any(worker.ready for worker in await self.workers())
        if ready and not self._up:
            _log.info("torchserve worker is back")
            self._up = True
        elif not ready and self._up:
            _log.warning("torchserve has no ready worker")
            self._up = False
        return ready

    async def _end_process(self) -> None:
        self._up = False
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(guard.GRACE_S + _STOP_MARGIN_S):
                await process.wait()
        except TimeoutError:
            _log.error("torchserve guard hangs, killing it", pid=process.pid)
            process.kill()  # and the kernel kills what it guards
            await process.wait()


def _choose_scratch(work_dir: Path) -> Path:
    """A folder for unpacked models and the workers' sockets. The guard makes it anew and removes it."""
    inside = work_dir / "tmp"
    return inside if len(bytes(inside)) <= _MAX_SCRATCH_BYTES else Path(tempfile.mkdtemp(prefix="longtide-"))


def _log_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("torchserve supervision ended", exc_info=task.exception())
