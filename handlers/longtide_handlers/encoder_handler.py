"""Hosts the TorchScript encoder inside TorchServe: packed arrays in, packed arrays out.

One request carries many users. Its inputs are little-endian arrays by name, the users' rows one after the other:

    lengths  int32   (B,)    events of each user, at least 1
    items    int32   (sum,)  catalogue indexes from 1
    types    uint8   (sum,)  event types
    gaps     float32 (sum,)  seconds since the event before
    values   float32 (sum,)  NaN where absent
    states   float32 (B, S)  the users' states before these events
    top_n    int32   (1,)    how many items to return, at least 1

The answer is int32 B, D, S, N, then query (B, D), state (B, S) float32, items (B, N) int32, log-probability (B, N) and
log Z (B,) float32.

TorchServe unpacks this file alone, so it imports nothing of Longtide.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

PARALLEL_EVENTS = 512  # from so many in a call on, threads are worth what it costs to bring them together


class LongtideEncoderHandler:
    """A TorchServe custom handler: `initialize` once a worker, `handle` once a call."""

    def __init__(self) -> None:
        self.initialized = False

    def initialize(self, context: Any) -> None:  # noqa: ANN401  (TorchServe's own untyped context)
        """Load the encoder onto the GPU that TorchServe assigned to this worker, or the CPU where there is none."""
        # TorchServe's worker prints two lines a call at "info", and its frontend parses both.
        logging.getLogger().setLevel(logging.WARNING)
        properties = context.system_properties
        weights = Path(properties["model_dir"]) / context.manifest["model"]["serializedFile"]
        self.load(weights, properties.get("gpu_id"))

    def load(self, weights: Path, gpu: int | None) -> None:
        """Load the encoder onto a GPU, or the CPU where there is none."""
        use_gpu = torch.cuda.is_available() and gpu is not None
        self.device = torch.device(f"cuda:{gpu}" if use_gpu else "cpu")
        # The same numbers on every device, to the tolerance of float32.
        torch.backends.cudnn.allow_tf32 = False
        self.model = torch.jit.load(str(weights), map_location=self.device).eval()  # type: ignore[no-untyped-call]
        if use_gpu and hasattr(self.model, "score_in_half"):
            self.model.score_in_half()
        self.threads = torch.get_num_threads()  # what TorchServe's OMP_NUM_THREADS allows
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        if not use_gpu and hasattr(self.model, "scored_cells"):  # each thread scores rows of its own
            self.model.scored_cells = max(1, self.model.scored_cells // self.threads)
        # Profiling runs would make the first calls slow and their results differ in the last digit; on a GPU they end
        # the process (torch 2.11). The executor without them fuses operations on a GPU, and fails at it.
        torch._C._jit_set_profiling_executor(False)
        torch._C._jit_override_can_fuse_on_gpu(False)
        self.initialized = True

    def handle(self, data: list[Mapping[str, bytes]], context: Any) -> list[bytes]:  # noqa: ANN401
        """Answer every request of a batch: one packed answer each."""
        return [self.answer(request) for request in data]

    @torch.inference_mode()
    def answer(self, request: Mapping[str, bytes]) -> bytes:
        """One packed request to one packed answer."""
        lengths = np.frombuffer(request["lengths"], np.int32)
        rows = shares(lengths, self.threads if self.device.type == "cpu" else 1)
        if len(rows) == 1:
            # What one thread has alone may be a long history, whose events share some of the work.
            with using(self.threads if int(lengths.sum()) >= PARALLEL_EVENTS else 1):
                parts = self._encoded(request, lengths, rows[0])
        else:
            found = list(self.pool.map(partial(self._encoded, request, lengths), rows))
            back = torch.from_numpy(np.argsort(np.concatenate(rows), kind="stable"))
            parts = [torch.cat(part)[back] for part in zip(*found, strict=True)]
        query, state, items, log_probability, log_z = parts
        header = np.array([*query.shape, state.size(1), items.size(1)], np.int32)
        answer = (query.float(), state.float(), items.int(), log_probability.float(), log_z.float())
        return header.tobytes() + b"".join(part.cpu().numpy().tobytes() for part in answer)

    def close(self) -> None:
        """Let go of the threads."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    @torch.inference_mode()
    def _encoded(
        self, request: Mapping[str, bytes], lengths: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
    ) -> list[torch.Tensor]:
        """What the model says of some rows, ascending."""
        events: slice | np.ndarray[Any, Any] = slice(None)
        if len(rows) < len(lengths):
            begins = np.cumsum(lengths) - lengths
            events = np.concatenate([np.arange(begins[row], begins[row] + lengths[row]) for row in rows])
        found: tuple[torch.Tensor, ...] = self.model(
            self._tensor(np.frombuffer(request["items"], np.int32)[events]).long(),
            self._tensor(np.frombuffer(request["types"], np.uint8)[events]).long(),
            self._tensor(np.frombuffer(request["gaps"], np.float32)[events]),
            self._tensor(np.frombuffer(request["values"], np.float32)[events]),
            self._tensor(lengths[rows]).long(),
            self._tensor(np.frombuffer(request["states"], np.float32).reshape(len(lengths), -1)[rows]),
            int(np.frombuffer(request["top_n"], np.int32)[0]),
        )
        return list(found)

    def _tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        # The model only reads; torch warns of arrays that it could write to although they are not to be written to.
        return torch.from_numpy(array.copy()).to(self.device)


def shares(lengths: np.ndarray[Any, Any], threads: int) -> list[np.ndarray[Any, Any]]:
    """The rows of each thread, for rows of some lengths (B,): about as many events each, if they are worth a thread.

    Threads that have rows of their own wait for each other once; those that share every operation, at each of them.
    The longest row goes first, always to the thread with the least (LPT, Graham 1969).
    """
    count = min(threads, len(lengths), max(1, 2 * int(lengths.sum()) // PARALLEL_EVENTS))
    if count == 1:
        return [np.arange(len(lengths))]
    owner, events = np.empty(len(lengths), np.int64), np.zeros(count, np.int64)
    for row in np.argsort(-lengths, kind="stable").tolist():
        owner[row] = events.argmin()
        events[owner[row]] += lengths[row]
    return [np.flatnonzero(owner == thread) for thread in range(count)]


@contextmanager
def using(threads: int) -> Iterator[None]:
    """So many threads for an operation of torch, and then as many as before: the number is everybody's default."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
