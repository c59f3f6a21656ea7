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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEAST_GROUP = 4  # rows: fewer are not worth a pass of their own
MOST_PADDED = 1.25  # steps that a group computes for each of its events
PARALLEL_EVENTS = 512  # from so many in a call on, threads are worth what it costs to bring them together


class LongtideEncoderHandler:
    """A TorchServe custom handler: `initialize` once a worker, `handle` once a call."""

    def __init__(self) -> None:
        self.initialized = False

    def initialize(self, context: Any) -> None:  # noqa: ANN401  (TorchServe's own untyped context)
        """Load the encoder onto the GPU that TorchServe assigned to this worker, or the CPU where there is none."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        use_gpu = torch.cuda.is_available() and gpu is not None
        self.device = torch.device(f"cuda:{gpu}" if use_gpu else "cpu")
        # The same numbers on every device, to the tolerance of float32.
        torch.backends.cudnn.allow_tf32 = False
        weights = Path(properties["model_dir"]) / context.manifest["model"]["serializedFile"]
        self.model = torch.jit.load(str(weights), map_location=self.device).eval()  # type: ignore[no-untyped-call]
        self.threads = torch.get_num_threads()  # what TorchServe's OMP_NUM_THREADS allows
        # Profiling runs would make the first calls slow and their results differ in the last digit.
        torch._C._jit_set_profiling_executor(False)
        self.initialized = True

    def handle(self, data: list[Mapping[str, bytes]], context: Any) -> list[bytes]:  # noqa: ANN401
        """Answer every request of a batch: one packed answer each."""
        return [self.answer(request) for request in data]

    @torch.inference_mode()
    def answer(self, request: Mapping[str, bytes]) -> bytes:
        """One packed request to one packed answer."""
        lengths = np.frombuffer(request["lengths"], np.int32)
        torch.set_num_threads(self.threads if int(lengths.sum()) >= PARALLEL_EVENTS else 1)
        # A GPU computes padding at no cost, and takes every step of every group in turn.
        groups = [np.arange(len(lengths))] if self.device.type == "cuda" else like_lengths(lengths)
        answers = [self._encoded(request, lengths, rows) for rows in groups]
        rows = torch.from_numpy(np.argsort(np.concatenate(groups), kind="stable"))
        query, state, items, log_probability, log_z = (
            torch.cat(parts).index_select(0, rows) for parts in zip(*answers, strict=True)
        )
        header = np.array([*query.shape, state.size(1), items.size(1)], np.int32)
        parts = (query.float(), state.float(), items.int(), log_probability.float(), log_z.float())
        return header.tobytes() + b"".join(part.numpy().tobytes() for part in parts)

    def _encoded(
        self, request: Mapping[str, bytes], lengths: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
    ) -> list[torch.Tensor]:
        """What the model says of some rows of a request."""
        ends = np.cumsum(lengths)
        events = np.concatenate([np.arange(ends[row] - lengths[row], ends[row]) for row in rows])
        states = np.frombuffer(request["states"], np.float32).reshape(len(lengths), -1)
        found = self.model(
            self._tensor(np.frombuffer(request["items"], np.int32)[events]).long(),
            self._tensor(np.frombuffer(request["types"], np.uint8)[events]).long(),
            self._tensor(np.frombuffer(request["gaps"], np.float32)[events]),
            self._tensor(np.frombuffer(request["values"], np.float32)[events]),
            self._tensor(lengths[rows]).long(),
            self._tensor(states[rows]),
            int(np.frombuffer(request["top_n"], np.int32)[0]),
        )
        return [part.cpu() for part in found]

    def _tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def like_lengths(lengths: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The rows in groups of like lengths, so that little of what is computed is padding; steps of one stay together."""
    order = np.argsort(lengths, kind="stable")
    groups, first, events = [], 0, 0
    for at, length in enumerate(lengths[order].tolist()):
        padded = length * (at - first + 1)
        if at - first >= LEAST_GROUP and padded > MOST_PADDED * (events + length):
            groups.append(order[first:at])
            first, events = at, 0
        events += length
    return [*groups, order[first:]]
