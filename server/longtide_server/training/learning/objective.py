"""What a training step makes small: the cross-entropy of the next item and, in fine-tuning, of the next behaviour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from longtide_server.training.learning.had import Past
from longtide_server.training.learning.heads import BehaviorHead
from longtide_server.training.learning.loss import full_softmax_loss, sampled_softmax_loss, unit_length
from longtide_server.training.learning.model import Encoder

POPULARITY_POWER = 0.75


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One piece of B histories, T events each, and what came next; item 0 where there is nothing."""

    past: Past
    """What had been had by each of the events whose successor counts, in the order of the rows."""
    items: Tensor
    types: Tensor
    gaps: Tensor
    values: Tensor
    next_items: Tensor
    next_types: Tensor
    next_gaps: Tensor
    next_values: Tensor
    next_counts: Tensor
    """What each next event counts as one to foresee; 0 where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """Sums over the events that have a successor, and parts of a step's loss: the head's has yet to be scaled to what
    the items count."""

    items: Tensor
    """Cross-entropy of the next items, each times what it counts."""
    counted: Tensor
    """What the next items count."""
    behavior: Tensor
    """The head's part, times its weight: every event's, whatever its item counts."""
    events: Tensor
    """How many there are."""

    def sums(self) -> Tensor:
        """(4,) the four of them."""
        return torch.stack([self.items, self.counted, self.behavior, self.events]).detach()


class Objective(nn.Module):
    """An encoder with the loss it is trained by, and the head where there is one, in one module with one state."""

    def __init__(
        self, encoder: Encoder, popularity: Tensor, negatives: int, bfloat16: bool,
        head: BehaviorHead | None = None, head_weight: float = 0.0,
    ) -> None:  # fmt: skip
        """popularity (I + 1,): the items' event counts; negatives: how many to sample, 0 for the full softmax.

        head_weight: what the next type and the next value count, the next item counting 1.
        """
        super().__init__()
        self.encoder, self.head, self.head_weight = encoder, head, head_weight
        self.negatives, self.dtype = negatives, torch.bfloat16 if bfloat16 else torch.float32
        chance = popularity[1:].double() ** POPULARITY_POWER
        self.chance: Tensor
        self.register_buffer("chance", (chance / chance.sum()).float(), persistent=False)
        self._dice: torch.Generator | None = None

    def draw_by(self, seed: int) -> None:
        """From now on, the samples are those of a seed: processes that train together draw the same ones."""
        self._dice = torch.Generator(self.chance.device).manual_seed(seed)

    @property
    def sparse(self) -> bool:
        """Whether the gradient of the items' embeddings is: a sample needs few of them."""
        return self.negatives > 0

    def forward(self, batch: Batch, state: Tensor) -> tuple[Loss, Tensor]:
        """The loss of all events that have a successor, and state (B, S)."""
        drawn = self._drawn() if self.negatives else None
        table, read, nexts, negatives = self._looked_up(batch, drawn)
        low = self.dtype == torch.bfloat16
        with torch.autocast(table.device.type, torch.bfloat16, enabled=low):
            query, state = self.encoder.encode(embedding(read, table), batch.types, batch.gaps, batch.values, state)
        query, embeddings = query.float(), unit_length(table)
        asks, there = batch.next_counts > 0, batch.next_items > 0  # (B, T)
        count, item = batch.next_counts[asks], batch.next_items[asks]  # (N,) each
        asked = query[asks]  # (N, D)
        if self.encoder.request_time is not None:
            asked = self.encoder.request_time.of_known(asked, batch.next_gaps[asks])
        if drawn is None:
            loss = self.item_loss(asked, item, count, embeddings, batch.past)
        else:
            own, others = embeddings[nexts[asks]], embeddings[negatives]
            loss = self._sampled(asked, own, item, others, drawn, count, batch.past)
        behavior = loss.new_zeros(())
        if self.head is not None:
            told = batch.next_types[there], batch.next_values[there]
            error = self._behavior_loss(self.head, query[there], embeddings[nexts[there]], *told)
            behavior = self.head_weight * error
        return Loss(loss, count.sum(), behavior, there.sum().float()), state.detach().float()

    def _drawn(self) -> Tensor:
        """(M,) the items, from 0, that a step's softmax is estimated from."""
        return torch.multinomial(self.chance, self.negatives, replacement=True, generator=self._dice)

    def _looked_up(self, batch: Batch, drawn: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Items' vectors (R, D), and where among them are the batch's items (B, T), the next ones (B, T) and the drawn.

        With negatives, these items' vectors alone: a step must not cost what the catalogue holds.
        """
        if drawn is None:
            return self.encoder.items(), batch.items, batch.next_items, batch.items[:0]
        asked = (batch.items, batch.next_items, drawn + 1)
        rows, places = torch.unique(torch.cat([part.flatten() for part in asked]), return_inverse=True)
        read, nexts, negatives = places.split([part.numel() for part in asked])
        table = self.encoder.items.some(rows)
        return table, read.view_as(batch.items), nexts.view_as(batch.next_items), negatives

    def item_loss(self, query: Tensor, item: Tensor, count: Tensor, embeddings: Tensor, past: Past) -> Tensor:
        """How far query vectors (N, D) are from the items (N,) that came next, each times what it counts (N,), summed.

        embeddings (I + 1, D): the items' vectors, of length 1; past: of the N moments.
        """
        if not self.negatives:
            return full_softmax_loss(query, embeddings[1:], item - 1, count, self.encoder.temperature, self.dtype, past)
        drawn = self._drawn()
        return self._sampled(query, embeddings[item], item, embeddings[drawn + 1], drawn, count, past)

    def _sampled(
        self, query: Tensor, positive: Tensor, item: Tensor, negatives: Tensor, drawn: Tensor, count: Tensor,
        past: Past,
    ) -> Tensor:  # fmt: skip
        return sampled_softmax_loss(
            query, positive, negatives, item - 1, drawn, self.chance[drawn], count, self.encoder.temperature,
            self.dtype, past,
        )  # fmt: skip

    @staticmethod
    def _behavior_loss(head: BehaviorHead, query: Tensor, item: Tensor, types: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy of the next types, and absolute error of the next values where there are any, in deviations."""
        valued = ~torch.isnan(values)
        error = (head.values(query, item) - torch.nan_to_num(values)).abs() / head.value_std
        return cross_entropy(head.type_logits(query), types, reduction="sum") + (error * valued).sum()
