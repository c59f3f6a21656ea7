"""Cross-entropy over the whole catalogue without ever holding all its logits.

The logits of a step (events x items) are by far its largest tensor. Here they exist one slice of events at a time, and
the gradients are made in the same pass, so memory does not grow with the batch and a slice stays in cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLICE_CELLS = 2_000_000


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, items: Tensor, target: Tensor, temperature: float, dtype: torch.dtype  # noqa: ANN401
    ) -> Tensor:  # fmt: skip
        """query (N, D), items (I, D), target (N,) from 0 -> mean loss; gradients are kept for backward."""
        count, rows = query.size(0), max(1, SLICE_CELLS // items.size(0))
        loss = query.new_zeros(())
        query_grad, items_grad = torch.empty_like(query), torch.zeros_like(items)
        low_query, low_items = query.to(dtype), items.to(dtype)
        for at in range(0, count, rows):
            part, wanted = low_query[at : at + rows], target[at : at + rows].unsqueeze(1)
            logits = torch.mm(part, low_items.t()).float().div_(temperature)  # (R, I)
            log_z = torch.logsumexp(logits, dim=1, keepdim=True)  # (R, 1)
            loss += (log_z - logits.gather(1, wanted)).sum()
            share = logits.sub_(log_z).exp_()
            share.scatter_add_(1, wanted, torch.full_like(log_z, -1.0))  # softmax minus one-hot
            low_share = share.to(dtype)
            query_grad[at : at + rows] = torch.mm(low_share, low_items)
            items_grad += torch.mm(low_share.t(), part)
        scale = 1.0 / (temperature * count)
        ctx.save_for_backward(query_grad.mul_(scale), items_grad.mul_(scale))
        return loss / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # noqa: ANN401
        query_grad, items_grad = ctx.saved_tensors
        return query_grad * grad, items_grad * grad, None, None, None


def full_softmax_loss(
    query: Tensor, items: Tensor, target: Tensor, temperature: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mean cross-entropy of targets (N,), numbers from 0, by the softmax of query (N, D) times items (I, D).

    Products are made in `dtype`; sums, the softmax and the gradients stay in float32.
    """
    loss: Tensor = _FullSoftmax.apply(  # type: ignore[no-untyped-call]
        query, items, target, temperature, dtype
    )
    return loss
