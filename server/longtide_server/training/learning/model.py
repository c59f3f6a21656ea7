"""The encoder: a recurrent network whose whole past is a fixed-size state.

Residual blocks of layer norm, LSTM and feed-forward follow the sequence; along their sums, the last item reaches the
output directly. Beside them, decaying memories of the items: one of the last few keeps the short-term interest, others
of dozens to hundreds the long-term interest, and a gate per dimension, which sees the time since the event before,
joins the two. Items are scored by the cosine with their embeddings over a temperature. Where the time of a request is
known, it moves the query vector at the end.

Sources: LSTM, Hochreiter & Schmidhuber (1997); tied embeddings, Press & Wolf (2017); pre-norm residual blocks, Xiong et
al. (2020); gated long- and short-term interest, SLi-Rec, Yu et al. (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting
from torch.nn.functional import embedding, normalize

from longtide_server.training.dataset import TYPE_COUNT
from longtide_server.training.learning.content import Content, ContentPart
from longtide_server.training.learning.request_time import RequestTime

GAP_BUCKETS = 32
MAX_DEVIATIONS = 1_000.0
"""A value counts as no farther from the mean: prices get there, but a slip must not drown what else is remembered."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of the encoder. Stored in the snapshot's manifest."""

    item_count: int
    """Items of the catalogue, without the padding item 0."""
    dim: int = 128
    """Width D of embeddings and query vectors."""
    hidden: int = 256
    """Width H of each LSTM."""
    blocks: int = 2
    """Residual blocks, 1 or more."""
    dropout: float = 0.2
    """Share of activations dropped in training, 0 to below 1."""
    temperature: float = 0.07
    """Cosines are divided by this before the softmax; above 0."""
    half_lives: tuple[float, ...] = (2.0, 16.0, 128.0)
    """Where the learned decays of the memories start, in events, two or more in ascending order: of the short-term
    one, then of the long-term ones."""
    use_types: bool = False
    """Whether the type of an event is an input."""
    use_gaps: bool = False
    """Whether the time between events is an input."""
    use_values: bool = False
    """Whether the value of an event is an input."""
    use_request_time: bool = False
    """Whether the time of a request can be an input."""
    value_mean: float = 0.0
    """Mean of the values of the log."""
    value_std: float = 1.0
    """Standard deviation of the values of the log; above 0."""

    @property
    def state_size(self) -> int:
        """Floats S of one user's state."""
        return self.blocks * 2 * self.hidden + len(self.half_lives) * self.dim


class Packed(NamedTuple):
    """How the events of R rows of different lengths lie one after the other: the first of all rows, the second ...

    The longest row comes first, as cuDNN wants it. N events, none of them padding.
    """

    counts: Tensor
    """(T,) on the CPU: how many rows take each step."""
    row: Tensor
    """(N,) whose event it is."""
    lag: Tensor
    """(N,) how many more the row has."""
    last: Tensor
    """(R,) where each row's last event is."""


def deviations(values: Tensor, mean: float, std: float, most: float = MAX_DEVIATIONS) -> Tensor:
    """Values of any shape, NaN where absent -> how many standard deviations each is from the mean, at most `most`."""
    return ((values - mean) / std).clamp(-most, most)


class Dropout(nn.Module):
    """Dropout whose mask comes from whole random words: on a CPU, `nn.Dropout` takes a fifth of a training step.

    The share dropped is rounded to a 256th.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.dropped = round(share * 256)

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> x in evaluation; in training, some of it 0 and the rest scaled to the same mean."""
        if is_scripting() or not self.training or self.dropped == 0:  # a scripted encoder only serves
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * kept.to(x.dtype).mul_(256.0 / (256 - self.dropped))


class Block(nn.Module):
    """x + LSTM(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.lstm = nn.LSTM(config.dim, config.hidden, batch_first=True)
        self.project = nn.Linear(config.hidden, config.dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.dim),
            nn.Linear(config.dim, 4 * config.dim),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(4 * config.dim, config.dim),
            Dropout(config.dropout),
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D), h and c (B, H) -> x (B, T, D), h and c after the last event."""
        y, (h, c) = self.lstm(self.norm(x), (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()))
        return self.added(x, y), h.squeeze(0), c.squeeze(0)

    def stepped(self, x: Tensor, counts: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The recurrence alone, of packed events: x (N, D), h and c (R, H) -> y (N, H), h and c after each row's last.

        counts (T,), on the CPU: how many rows take each step.
        """
        if x.size(0) == h.size(0):
            # A single step, as most are that are served: oneDNN would lay out the weights anew, which takes longer.
            # (An LSTM makes its weights by name, so nobody can tell their types.)
            by = self.lstm
            h, c = torch.lstm_cell(
                self.norm(x), [h, c], by.weight_ih_l0, by.weight_hh_l0, by.bias_ih_l0, by.bias_hh_l0  # type: ignore[arg-type]
            )  # fmt: skip
            return h, h, c
        packed = nn.utils.rnn.PackedSequence(self.norm(x), counts, None, None)
        out, (h, c) = self.lstm(packed, (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()))
        return out.data, h.squeeze(0), c.squeeze(0)

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows the recurrence, of each event by itself: x (..., D), y (..., H) -> (..., D)."""
        x = x + self.dropout(self.project(y))
        after: Tensor = x + self.feed_forward(x)
        return after


class Memories(nn.Module):
    """Exponentially decaying sums of the inputs, one per learned half-life: m_t = a m_{t-1} + (1 - a) x_t."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        starts = [0.5 ** (1.0 / half_life) for half_life in config.half_lives]
        self.decay_logit = nn.Parameter(torch.tensor([math.log(a / (1.0 - a)) for a in starts]))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), m (B, K, D) -> normalised memories (B, T, K, D), raw memories (B, T, K, D)."""
        steps = torch.arange(x.size(1), device=x.device, dtype=x.dtype)
        log_a = nn.functional.logsigmoid(self.decay_logit)  # (K,)
        lag = steps.unsqueeze(1) - steps.unsqueeze(0)  # (T, T)
        kernel = torch.exp(log_a.view(-1, 1, 1) * lag.clamp(min=0.0)) * (lag >= 0.0)  # (K, T, T)
        kernel = kernel * (1.0 - log_a.exp()).view(-1, 1, 1)
        raw = torch.einsum("kts,bsd->btkd", kernel, x)
        carried = torch.exp(log_a.view(1, -1) * (steps + 1.0).unsqueeze(1))  # (T, K)
        raw = raw + carried.view(1, x.size(1), -1, 1) * m.unsqueeze(1)
        return self.norm(raw), raw

    def last(self, x: Tensor, packed: Packed, m: Tensor) -> Tensor:
        """Packed x (N, D), m (R, K, D) -> raw memories (R, K, D) after each row's last event."""
        log_a = nn.functional.logsigmoid(self.decay_logit)  # (K,)
        weight = torch.exp(log_a * packed.lag.unsqueeze(1)) * (1.0 - log_a.exp())  # (N, K)
        carried = torch.exp(log_a * (packed.lag[: m.size(0)].unsqueeze(1) + 1.0)).unsqueeze(2)  # (R, K, 1)
        return (carried * m).index_add(0, packed.row, weight.unsqueeze(2) * x.unsqueeze(1))


class ItemTable(nn.Module):
    """A vector for every item: an embedding of its number, joined with what its content says where there is content."""

    def __init__(self, config: ModelConfig, content: Content | None = None) -> None:
        super().__init__()
        self.ids = nn.Embedding(config.item_count + 1, config.dim, padding_idx=0)
        nn.init.normal_(self.ids.weight, std=config.dim**-0.5)  # begins with length 1, as every kind of content does
        with torch.no_grad():
            self.ids.weight[0].zero_()
        self.content = None if content is None else ContentPart(config.dim, content)

    def forward(self) -> Tensor:
        """(I + 1, D); row 0, the padding, is zero."""
        if self.content is None:
            return self.ids.weight
        table: Tensor = self.ids.weight + self.content()
        return table

    def some(self, rows: Tensor) -> Tensor:
        """(R, D) the vectors of items (R,), none of them twice; the gradient of their embeddings is sparse."""
        table = embedding(rows, self.ids.weight, sparse=True)
        if self.content is None:
            return table
        return table + self.content.some(rows)


class Encoder(nn.Module):
    """Sequences of events to query vectors, and item embeddings to compare them with."""

    __jit_unused_properties__: ClassVar = ["device"]

    def __init__(self, config: ModelConfig, content: Content | None = None) -> None:
        super().__init__()
        dim = config.dim
        self.dim = dim
        self.hidden = config.hidden
        self.memory_count = len(config.half_lives)
        self.state_size = config.state_size
        self.use_types, self.use_gaps, self.use_values = config.use_types, config.use_gaps, config.use_values
        self.value_mean, self.value_std = config.value_mean, config.value_std
        self.temperature = config.temperature
        self.items = ItemTable(config, content)
        self.type_embedding = nn.Embedding(TYPE_COUNT if config.use_types else 1, dim)
        self.gap_embedding = nn.Embedding(GAP_BUCKETS if config.use_gaps else 1, dim)
        self.value_weight = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.blocks)])
        self.memories = Memories(config)
        self.short_term = nn.Linear(dim, dim)
        self.long_term = nn.Linear((self.memory_count - 1) * dim, dim)
        self.gate = nn.Linear(4 * dim, dim)
        self.out_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)
        self.request_time = RequestTime(dim) if config.use_request_time else None
        self._initialise(config)

    def _initialise(self, config: ModelConfig) -> None:
        nn.init.zeros_(self.type_embedding.weight)
        nn.init.zeros_(self.gap_embedding.weight)
        # What is no input is no parameter: it has no gradient to send to others or to bound.
        self.type_embedding.requires_grad_(config.use_types)
        self.gap_embedding.requires_grad_(config.use_gaps)
        self.value_weight.requires_grad_(config.use_values)

    def initial_state(self, rows: int) -> Tensor:
        """The state of a user without events: (B, S) zeros."""
        return torch.zeros(rows, self.state_size, device=self.value_weight.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_weight.device

    def item_embeddings(self) -> Tensor:
        """(I + 1, D), each of length 1; row 0 is padding."""
        return normalize(self.items(), dim=1)

    def folded(self, config: ModelConfig, new: Tensor) -> Encoder:
        """The same encoder as it is hosted: with C new items, no content of its own, and no time of a request yet.

        new (C, D): the new items' vectors, of length 1. They get the length that the items of the log have on average.
        """
        table = self.items()
        length = torch.linalg.vector_norm(table[1:], dim=1).mean()
        served = Encoder(replace(config, item_count=config.item_count + len(new), use_request_time=False))
        apart = ("items.", "request_time.")
        weights = {name: weight for name, weight in self.state_dict().items() if not name.startswith(apart)}
        weights |= {name: weight for name, weight in served.state_dict().items() if name.startswith("items.")}
        weights["items.ids.weight"] = torch.cat([table, length * new.to(table.device)])
        served.load_state_dict(weights)
        return served.eval()

    def forward(
        self, items: Tensor, types: Tensor, gaps: Tensor, values: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode the next T events of B users.

        items, types (B, T) int64; gaps (B, T) seconds since the event before; values (B, T), NaN where absent;
        state (B, S) -> query vectors after every event (B, T, D), of length 1; state (B, S) after the last.
        """
        return self.encode(embedding(items, self.items()), types, gaps, values, state)

    def encode(
        self, items: Tensor, types: Tensor, gaps: Tensor, values: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`forward` for items that were already looked up in the item table: (B, T, D)."""
        x, gap = self._inputs(items, types, gaps, values)  # (B, T, D) each
        states: list[Tensor] = []
        y = self.dropout(x)
        for i, block in enumerate(self.blocks):
            h, c = self._lstm_state(state, i)
            y, h, c = block(y, h, c)
            states += [h, c]
        memories, raw = self.memories(x, self._memory_state(state))  # (B, T, K, D)
        states.append(raw[:, -1].flatten(1))
        return self._query(y, gap, memories), torch.cat(states, dim=1)

    def last(
        self, items: Tensor, types: Tensor, gaps: Tensor, values: Tensor, packed: Packed, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode the next events of R users, for what is known after the last of each.

        items, types, gaps, values (N,), packed; state (R, S) -> query vectors (R, D), of length 1; state (R, S).
        What no later event looks back at is computed of the last events alone.
        """
        x, gap = self._inputs(embedding(items, self.items()), types, gaps, values)  # (N, D) each
        states: list[Tensor] = []
        y = x
        for i, block in enumerate(self.blocks):  # a ModuleList does not say of what
            h, c = self._lstm_state(state, i)
            out, h, c = block.stepped(y, packed.counts, h, c)  # type: ignore[operator]
            if i == len(self.blocks) - 1:
                y, out = y[packed.last], h
            y = block.added(y, out)  # type: ignore[operator]
            states += [h, c]
        raw = self.memories.last(x, packed, self._memory_state(state))  # (R, K, D)
        states.append(raw.flatten(1))
        return self._query(y, gap[packed.last], self.memories.norm(raw)), torch.cat(states, dim=1)

    def _lstm_state(self, state: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """h and c (B, H) of a block."""
        at = block * 2 * self.hidden
        return state[:, at : at + self.hidden], state[:, at + self.hidden : at + 2 * self.hidden]

    def _memory_state(self, state: Tensor) -> Tensor:
        return state[:, len(self.blocks) * 2 * self.hidden :].view(-1, self.memory_count, self.dim)  # (B, K, D)

    def _query(self, y: Tensor, gap: Tensor, memories: Tensor) -> Tensor:
        """y, gap (..., D), memories (..., K, D) -> query vectors (..., D), of length 1."""
        short_term = self.short_term(self.dropout(memories[..., 0, :]))
        long_term = self.long_term(self.dropout(memories[..., 1:, :].flatten(-2)))
        query = y + self.joined(short_term, long_term, torch.cat([y, short_term, long_term, gap], dim=-1))
        return normalize(self.out_norm(query), dim=-1)

    def joined(self, short_term: Tensor, long_term: Tensor, seen: Tensor) -> Tensor:
        """Short- and long-term interest (B, T, D), of each dimension as much as the gate lets through: (B, T, D).

        seen (B, T, 4 D): what the gate looks at.
        """
        gate = torch.sigmoid(self.gate(seen))
        return gate * short_term + (1.0 - gate) * long_term

    def _inputs(self, items: Tensor, types: Tensor, gaps: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        x = items * math.sqrt(self.dim)
        gap = torch.zeros_like(x)
        if self.use_types:
            x = x + self.type_embedding(types)
        if self.use_gaps:
            bucket = torch.log2(gaps.clamp(min=0.0) + 1.0).long().clamp(max=self.gap_embedding.num_embeddings - 1)
            gap = self.gap_embedding(bucket)
            x = x + gap
        if self.use_values:
            scaled = torch.nan_to_num(deviations(values, self.value_mean, self.value_std))
            x = x + scaled.unsqueeze(-1) * self.value_weight
        return x, gap
