"""Cross-entropy over the whole catalogue without ever holding all its logits, or estimated from a sample of it.

The logits of a step (events x items) are by far its largest tensor. In full, they exist one slice of events at a time,
and the gradients are made in the same pass, so memory does not grow with the batch and a slice stays in cache. Where
the catalogue is too large for that, the sum over it is estimated from negatives that all events of a step share.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from longtide_server.training.learning.had import HAD_COUNTS, Past

SLICE_CELLS = 2_000_000
SLICE_STEP = 64
"""All slices of a step have one shape, and steps have few: oneDNN prepares itself for every new shape of a product in
bfloat16, which takes longer than the product."""
LEAST_LENGTH = 1e-12


def _up(count: int, step: int) -> int:
    """The least multiple of a step that is not less."""
    return -(-count // step) * step


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
        past: Past | None,
    ) -> Tensor:
        """query (N, D), items (I, D), target (N,) from 0, weight (N,) -> loss; gradients are kept for backward."""
        events = query.size(0)
        rows = max(1, min(SLICE_CELLS // items.size(0), _up(events, SLICE_STEP)))
        padding = (0, _up(events, rows) - events)  # N to N', of which the last count nothing
        low_query, low_items = pad((query / temperature).to(dtype), (0, 0, *padding)), items.to(dtype)
        target, weight = pad(target, padding).unsqueeze(1), pad(weight, padding).unsqueeze(1)  # (N', 1)
        loss = query.new_zeros(())
        query_grad, items_grad = torch.empty_like(low_query, dtype=query.dtype), torch.zeros_like(items)
        for at in range(0, low_query.size(0), rows):
            part, wanted, counts = low_query[at : at + rows], target[at : at + rows], weight[at : at + rows]
            logits = torch.mm(part, low_items.t()).float()  # (R, I)
            own = logits.gather(1, wanted)  # (R, 1)
            if past is not None:
                moment, item = past.of(slice(at, at + rows)).pairs()  # (Q,) each
                had = moment * items.size(0) + item - 1  # cells of the flat logits, none of them twice
                logits.view(-1).index_add_(0, had, torch.full_like(had, math.log(HAD_COUNTS), dtype=logits.dtype))
                logits.scatter_(1, wanted, own)
            top = logits.amax(dim=1, keepdim=True)  # (R, 1)
            share = logits.sub_(top).exp_()
            total = share.sum(dim=1, keepdim=True)  # (R, 1)
            loss += ((top + total.log() - own) * counts).sum()
            low_share = share.mul_(counts / total).scatter_add_(1, wanted, -counts).to(dtype)  # softmax minus one-hot
            query_grad[at : at + rows] = torch.mm(low_share, low_items)
            items_grad += torch.mm(low_share.t(), part)
        ctx.save_for_backward(query_grad[:events].div_(temperature), items_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:  # noqa: ANN401
        query_grad, items_grad = ctx.saved_tensors
        return query_grad * grad, items_grad * grad, None, None, None, None, None


class _UnitLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ANN401
        """rows (N, D) -> (N, D)."""
        scale = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(LEAST_LENGTH).reciprocal_()  # (N, 1)
        unit: Tensor = rows * scale
        ctx.save_for_backward(unit, scale)
        return unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        unit, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, unit).unsqueeze(1)  # (N, 1)
        across: Tensor = torch.addcmul(grad, unit, along, value=-1.0) * scale
        return across


def unit_length(rows: Tensor) -> Tensor:
    """Vectors (N, D) at length 1, but for those of length 0.

    As `normalize`, whose gradient goes over the whole catalogue twice as often: on a sparse log, an eighth of a step.
    """
    unit: Tensor = _UnitLength.apply(rows)  # type: ignore[no-untyped-call]
    return unit


def full_softmax_loss(
    query: Tensor,
    items: Tensor,
    target: Tensor,
    weight: Tensor,
    temperature: float,
    dtype: torch.dtype = torch.float32,
    past: Past | None = None,
) -> Tensor:
    """Cross-entropy of targets (N,), numbers from 0, by the softmax of query (N, D) times items (I, D).

    The sum over all N, each times its weight (N,). Products are made in `dtype`; sums, the softmax and the gradients
    stay in float32. With a past, items that were had by then count HAD_COUNTS, but for the target itself.
    """
    loss: Tensor = _FullSoftmax.apply(  # type: ignore[no-untyped-call]
        query, items, target, weight, temperature, dtype, past
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
    past: Past | None = None,
) -> Tensor:
    """An estimate of `full_softmax_loss` from M negatives, drawn with replacement and shared by all events.

    query (N, D); positive (N, D) the targets' embeddings; negatives (M, D); target (N,) and negative_ids (M,) item
    numbers; negative_chance (M,) the probability that one draw gives that item; weight (N,). A negative counts as
    1 / (M * its chance) items, which makes the estimated sum over the other items right on average (importance
    sampling, Bengio & Senecal 2008); a negative that is the target itself is left out, and one that was had by then
    counts HAD_COUNTS of that.
    """
    own = (query * positive).sum(dim=1, keepdim=True) / temperature  # (N, 1)
    others = torch.mm(query.to(dtype), negatives.to(dtype).t()).float() / temperature  # (N, M)
    others = others - torch.log(negative_chance * negative_ids.size(0))
    if past is not None:
        others = others + math.log(HAD_COUNTS) * _had(past, negative_ids)
    others = others.masked_fill(target.unsqueeze(1) == negative_ids, float("-inf"))
    log_z = torch.logsumexp(torch.cat([own, others], dim=1), dim=1)  # (N,)
    return ((log_z - own.squeeze(1)) * weight).sum()


def _had(past: Past, negative_ids: Tensor) -> Tensor:
    """(N, M) whether a negative, from 0, was had by then."""
    asked, column = torch.unique(negative_ids, return_inverse=True)
    place = torch.full((int(negative_ids.max()) + 2,), -1, device=negative_ids.device)  # -1 where none was drawn
    place[asked] = torch.arange(len(asked), device=negative_ids.device)
    had = torch.zeros(len(past.count), len(asked), dtype=torch.bool, device=negative_ids.device)
    rows = max(1, SLICE_CELLS // max(1, int(past.count.max()))) if len(had) else 1
    for first in range(0, len(had), rows):
        moment, item = past.of(slice(first, first + rows)).pairs()  # (Q,) each
        at = place[(item - 1).clamp(max=len(place) - 1)]
        there = at >= 0
        had[first + moment[there], at[there]] = True
    return had[:, column]
