"""The encoder as TorchServe hosts it: it encodes what is new of many users at once, and ranks the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longtide_server.training.learning.model import Encoder, Packed

SCORED_CELLS = 64_000_000
"""Scores, users times items, that are in memory at a time: with what is made of them, about half a gigabyte."""
SHORTLIST = 4
"""Of how many times as many items as are wanted, found in half precision, the best are taken in full precision."""
EVENTS_AT_A_TIME = 2_048
"""Of so many events a core's cache holds what is computed: more at a time take a tenth longer, or more."""
EVENTS_ON_GPU = 65_536
"""With fewer at a time, a GPU would wait for the next ones; of 256 dimensions, so many take about a gigabyte."""
MANY_FOR_ONE = 256
"""Items of the catalogue for each of those: with fewer, to compare them costs more than half precision saves."""


class ServingEncoder(nn.Module):
    """What TorchServe hosts: ragged batches in; query vectors, states and the best items out."""

    def __init__(self, encoder: Encoder, chunk: int = EVENTS_AT_A_TIME, scored_cells: int = SCORED_CELLS) -> None:
        """Takes about `chunk` events at a time, and keeps up to `scored_cells` numbers of the scoring in memory."""
        super().__init__()
        self.encoder = encoder
        self.chunk = chunk
        self.chunk_on_gpu = EVENTS_ON_GPU
        self.scored_cells = scored_cells
        self.shortlist = SHORTLIST
        self.many_for_one = MANY_FOR_ONE
        self.state_size = encoder.state_size
        self.candidates: Tensor
        self.register_buffer("candidates", encoder.item_embeddings()[1:].detach().clone())  # (I, D)
        self.candidates_in_half: Tensor
        self.register_buffer("candidates_in_half", torch.empty(0))  # none until they are asked for

    def forward(
        self,
        items: Tensor,
        types: Tensor,
        gaps: Tensor,
        values: Tensor,
        lengths: Tensor,
        state: Tensor,
        top_n: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Encode B users' next events, their rows one after the other in flat arrays, and rank the whole catalogue.

        items, types, gaps, values (sum of lengths,), lengths (B,) each at least 1, state (B, S) -> query vectors
        (B, D), states (B, S), the top_n best items (B, N) as catalogue indexes from 1, their log-probabilities (B, N),
        and log Z (B,): the log-probability of item i is cosine(query, i) / temperature - log Z.
        """
        query, state = self.encode(items, types, gaps, values, lengths, state)
        rows = max(1, self.scored_cells // self.candidates.size(0))
        found: list[Tensor] = []
        best: list[Tensor] = []
        log_z: list[Tensor] = []
        for at in range(0, query.size(0), rows):
            index, logit, z = self.ranked(query[at : at + rows], min(top_n, self.candidates.size(0)))
            found.append(index + 1)
            best.append(logit - z.unsqueeze(1))
            log_z.append(z)
        return query, state, torch.cat(found), torch.cat(best), torch.cat(log_z)

    @torch.jit.export
    def score_in_half(self) -> None:
        """From now on, look through a large catalogue in half precision, and compare what is best in full precision."""
        self.candidates_in_half = self.candidates.half()

    def ranked(self, query: Tensor, top_n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query vectors (R, D) -> the top_n best candidates (R, N) from 0, their logits (R, N), and log Z (R,)."""
        near_count = self.shortlist * top_n
        if self.candidates_in_half.numel() == 0 or self.candidates.size(0) < self.many_for_one * near_count:
            logits = (query / self.encoder.temperature) @ self.candidates.t()  # (R, I)
            best, index = torch.topk(logits, top_n, dim=1)
            return index, best, torch.logsumexp(logits, dim=1)
        logits = (query.half() @ self.candidates_in_half.t()).float() / self.encoder.temperature  # (R, I)
        near = torch.topk(logits, near_count, dim=1)[1]  # (R, M)
        again = torch.bmm(self.candidates[near], query.unsqueeze(2)).squeeze(2) / self.encoder.temperature  # (R, M)
        best, place = torch.topk(again, top_n, dim=1)
        # What has most of the probability must be exact for log Z to be.
        log_z = torch.logsumexp(logits.scatter(1, near, again), dim=1)
        return near.gather(1, place), best, log_z

    def encode(
        self, items: Tensor, types: Tensor, gaps: Tensor, values: Tensor, lengths: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The query vector (B, D) and state (B, S) after each row's last event, in chunks, so memory stays bounded."""
        count = lengths.size(0)
        every = torch.arange(count, device=state.device)
        if items.size(0) == count:  # one event each
            packed = Packed(torch.tensor([count]), every, torch.zeros_like(every), every)
            return self.encoder.last(items, types, gaps, values, packed, state)
        order = torch.argsort(lengths, descending=True, stable=True)  # (B,)
        starts = (torch.cumsum(lengths, dim=0) - lengths)[order]  # (B,)
        lengths, state = lengths[order], state[order]
        query = torch.zeros(count, self.encoder.dim, device=state.device)
        at, longest = 0, int(lengths[0].item())
        chunk = self.chunk_on_gpu if state.is_cuda else self.chunk
        while at < longest:
            rows = int((lengths > at).sum().item())  # that have events left
            end = min(at + max(chunk // rows, 1), longest)
            step = torch.arange(at, end, device=items.device).unsqueeze(1)  # (T, 1)
            inside = step < lengths[:rows]  # (T, R)
            index = (starts[:rows] + step)[inside]  # (N,)
            counts, taken = inside.sum(1), inside.sum(0)  # (T,), (R,)
            row = every[:rows].expand(inside.size(0), rows)[inside]  # (N,)
            lag = (lengths[:rows].clamp(max=end) - 1 - step)[inside]  # (N,)
            last = (torch.cumsum(counts, dim=0) - counts)[taken - 1] + every[:rows]  # (R,)
            packed = Packed(counts.cpu(), row, lag, last)
            query[:rows], state[:rows] = self.encoder.last(
                items[index], types[index], gaps[index], values[index], packed, state[:rows]
            )
            at = end
        back = torch.argsort(order)
        return query[back], state[back]
