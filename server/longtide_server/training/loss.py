"""Cross-entropy over the whole catalogue without ever holding all its logits, or estimated from a sample of it.

The logits of a step (events x items) are by far its largest tensor. In full, they exist one slice of events at a time,
and the gradients are made in the same pass, so memory does not grow with the batch and a slice stays in cache. Where
the catalogue is too large for that, the sum over it is estimated from negatives that all events of a step share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLICE_CELLS = 2_000_000


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: Tensor,
        items: Tensor,
        target: Tensor,
        weight: Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """query (N, D), items (I, D), target (N,) from 0, weight (N,) -> loss; gradients are kept for backward."""
        rows = max(1, SLICE_CELLS // items.size(0))
        loss = query.new_zeros(())
        query_grad, items_grad = torch.empty_like(query), torch.zeros_like(items)
        low_query, low_items = query.to(dtype), items.to(dtype)
        for at in range(0, query.size(0), rows):
            part, wanted = low_query[at : at + rows], target[at : at + rows].unsqueeze(1)
            counts = weight[at : at + rows].unsqueeze(1)  # (R, 1)
            logits = torch.mm(part, low_items.t()).float().div_(temperature)  # (R, I)
            log_z = torch.logsumexp(logits, dim=1, keepdim=True)  # (R, 1)
            loss += ((log_z - logits.gather(1, wanted)) * counts).sum()
            share = logits.sub_(log_z).exp_()
            share.scatter_add_(1, wanted, torch.full_like(log_z, -1.0))  # softmax minus one-hot
            low_share = share.mul_(counts).to(dtype)
            query_grad[at : at + rows] = torch.mm(low_share, low_items)
            items_grad += torch.mm(low_share.t(), part)
        ctx.save_for_backward(query_grad.div_(temperature), items_grad.div_(temperature))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:  # noqa: ANN401
        query_grad, items_grad = ctx.saved_tensors
        return query_grad * grad, items_grad * grad, None, None, None, None


def full_softmax_loss(
    query: Tensor,
    items: Tensor,
    target: Tensor,
    weight: Tensor,
    temperature: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Cross-entropy of targets (N,), numbers from 0, by the softmax of query (N, D) times items (I, D).

    The sum over all N, each times its weight (N,). Products are made in `dtype`; sums, the softmax and the gradients
    stay in float32.
    """
    loss: Tensor = _FullSoftmax.apply(  # type: ignore[no-untyped-call]
        query, items, target, weight, temperature, dtype
    )
    return loss


def sampled_softmax_loss(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    target: Tensor,
    negative_ids: Tensor,
    negative_chance: Tensor,
    weight: Tensor,
    temperature: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """An estimate of `full_softmax_loss` from M negatives, drawn with replacement and shared by all events.

    query (N, D); positive (N, D) the targets' embeddings; negatives (M, D); target (N,) and negative_ids (M,) item
    numbers; negative_chance (M,) the probability that one draw gives that item; weight (N,). A negative counts as
    1 / (M * its chance) items, which makes the estimated sum over the other items right on average (importance
    sampling, Bengio & Senecal 2008); a negative that is the target itself is left out.
    """
    own = (query * positive).sum(dim=1, keepdim=True) / temperature  # (N, 1)
    others = torch.mm(query.to(dtype), negatives.to(dtype).t()).float() / temperature  # (N, M)
    others = others - torch.log(negative_chance * negative_ids.size(0))
    others = others.masked_fill(target.unsqueeze(1) == negative_ids, float("-inf"))
    log_z = torch.logsumexp(torch.cat([own, others], dim=1), dim=1)  # (N,)
    return ((log_z - own.squeeze(1)) * weight).sum()
