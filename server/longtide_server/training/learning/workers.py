"""The processes that train together: one by itself, or those that `torchrun` started, one a GPU or one a process.

Every process holds the whole log and the whole model, takes its share of the rows of each batch, and has its gradients
averaged with the others' (DistributedDataParallel, Li et al. 2020), so all of them take the same step.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

WAIT = timedelta(minutes=30)
"""How long a process waits for the others before it takes them for dead."""
LEADERS_WAIT = timedelta(days=30)
"""How long it waits for what one process does for all of them, such as reading the texts of a large catalogue."""


CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those that train together."""

    rank: int = 0
    """0 to count - 1. The process of rank 0 reports, keeps checkpoints and publishes."""
    count: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports, keeps checkpoints and publishes."""
        return self.rank == 0

    def share(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This process's part of the rows."""
        return rows[self.rank :: self.count]

    def join(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes; each must call it equally often.

        Its buffers must be alike in all of them, and stay so: they are not sent.
        """
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():  # what this release has in its place, those before it do not know
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the process of rank 0 do the work before the others, who find what it left in a cache.

        However long that takes. Of one that dies meanwhile, its closed connections tell the others.
        """
        if self.count == 1:
            yield
            return
        patient = distributed.new_group(backend="gloo", timeout=LEADERS_WAIT)
        if not self.leads:
            distributed.barrier(patient)
        yield
        if self.leads:
            distributed.barrier(patient)

    def total(self, number: float) -> float:
        """The sum of every process's number."""
        if self.count == 1:
            return number
        summed = torch.tensor(number, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        return float(summed)

    def led(self, numbers: Tensor) -> Tensor:
        """The numbers of the process of rank 0, in every process: what is decided by them is decided alike."""
        if self.count > 1:
            numbers = numbers.to(self.device)
            distributed.broadcast(numbers, 0)
        return numbers.cpu()


ALONE = Workers()


def best_device() -> torch.device:
    """This process's GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return CPU
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def workers() -> Iterator[Workers]:
    """This process's place among those that `torchrun` started, or alone; on a GPU where there is one."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = best_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count == 1:
        yield Workers(device=device)
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    try:
        yield Workers(rank, count, device)
    finally:
        distributed.destroy_process_group()
