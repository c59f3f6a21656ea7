"""The processes that train together: one by itself, or those that `torchrun` started, one a GPU or one a process.

Every process holds the whole log and the whole model, takes its share of the rows of each batch, and has its gradients
added to the others' before each step, so all of them take the same one. (DistributedDataParallel, Li et al. 2020, would
send those of every piece of a step, and where a step touches few items, those of all: NCCL adds no sparse gradients.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from longtide_server.errors import InvalidInput

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

    def add_gradients(self, dense: Iterable[Tensor], sparse: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, so that each has the sum; all must call it, with the same weights.

        dense, sparse: weights by the kind of gradient that they get. One that a process lacks counts as zeros.
        """
        if self.count == 1:
            return
        if whole := list(dense):
            gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in whole]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            for weight, added in zip(whole, torch.split(flat, [weight.numel() for weight in whole]), strict=True):
                weight.grad = added.view_as(weight)
        for weight in sparse:
            weight.grad = self._added_rows(weight)

    def _added_rows(self, weight: Tensor) -> Tensor:
        """The sum of all processes' sparse gradients of a weight (I, D), each row once."""
        if weight.grad is None:
            rows, values = torch.zeros(0, dtype=torch.int64, device=self.device), weight.new_zeros(0, weight.size(1))
        else:
            own = weight.grad.coalesce()
            rows, values = own.indices()[0], own.values()  # (R,), (R, D)
        sizes = [int(size) for size in self._gathered(torch.tensor([len(rows)], device=self.device))]
        room = max(sizes) - len(rows)  # all send equally many, padded with zeros
        rows, values = nn.functional.pad(rows, (0, room)), nn.functional.pad(values, (0, 0, 0, room))
        everyones = [
            torch.cat([part[:size] for part, size in zip(self._gathered(own), sizes, strict=True)])
            for own in (rows, values)
        ]
        return torch.sparse_coo_tensor(everyones[0].unsqueeze(0), everyones[1], weight.shape).coalesce()

    def _gathered(self, own: Tensor) -> list[Tensor]:
        """Every process's tensor, all of one shape."""
        parts = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(parts, own.contiguous())
        return parts

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

    def total(self, numbers: Tensor) -> list[float]:
        """The sums of every process's numbers (N,)."""
        if self.count > 1:
            numbers = numbers.double().to(self.device)
            distributed.all_reduce(numbers)
        sums: list[float] = numbers.tolist()  # at once: a GPU is waited for each time
        return sums

    def led(self, numbers: Tensor) -> Tensor:
        """The numbers of the process of rank 0, in every process: what is decided by them is decided alike."""
        if self.count > 1:
            numbers = numbers.to(self.device)
            distributed.broadcast(numbers, 0)
        return numbers.cpu()


ALONE = Workers()


def best_device() -> torch.device:
    """This process's GPU where there is one, else the CPU. InvalidInput where there are GPUs, but none for it."""
    if not torch.cuda.is_available():
        return CPU
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        raise InvalidInput(
            f"this machine has {count} GPUs, and none is left for process {place}, counted from 0: start no more "
            "processes than there are, or hide them all with CUDA_VISIBLE_DEVICES="
        )
    return torch.device("cuda", place)


@contextmanager
def workers() -> Iterator[Workers]:
    """This process's place among those that `torchrun` started, or alone; on a GPU where there is one.

    InvalidInput where there are GPUs, but fewer than processes.
    """
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
