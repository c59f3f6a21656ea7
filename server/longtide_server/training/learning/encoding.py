"""Runs an encoder over histories: the query vectors along them and at their ends, and how high targets rank by them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtide_server.training.dataset import Chunk, Holdout, Sequences, batches, chunks
from longtide_server.training.learning.model import Encoder
from longtide_server.training.metrics import rank_of_target

CHUNK = 256
USERS_AT_ONCE = 256


@torch.inference_mode()
def encode_histories(
    model: Encoder, sequences: Sequences, users: NDArray[np.int64], batch_events: int
) -> Iterator[tuple[Chunk, NDArray[np.float32]]]:
    """Every piece of the users' sequences with its query vectors (B, T, D), the state carried along."""
    model.eval()
    device = model.device
    for group in batches(sequences, users, batch_events, CHUNK, None):
        state = torch.empty(0)
        for piece in chunks(sequences, group, CHUNK):
            state = model.initial_state(len(piece.users)) if piece.first == 0 else state[torch.from_numpy(piece.keep)]
            query, state = model(*inputs(piece, device), state)
            yield piece, query.cpu().numpy()


def inputs(piece: Chunk, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Items, types, gaps and values, (B, T) each, as the encoder takes them."""
    items, types, gaps, values = (
        torch.from_numpy(column).to(device) for column in (piece.items, piece.types, piece.gaps, piece.values)
    )
    return items, types, gaps, values


def last_queries(
    model: Encoder, sequences: Sequences, users: NDArray[np.int64], batch_events: int
) -> NDArray[np.float32]:
    """The query vector (V, D) after each user's last event; zeros for a user without events."""
    row = np.full(sequences.user_count, -1, np.int64)
    row[users] = np.arange(len(users))
    result = np.zeros((len(users), model.dim), np.float32)
    for piece, query in encode_histories(model, sequences, users, batch_events):
        ends = piece.first + piece.lengths == sequences.lengths[piece.users]
        last = query[np.arange(len(piece.users)), piece.lengths - 1]  # (B, D)
        result[row[piece.users[ends]]] = last[ends]
    return result


def ranks_of_targets(model: Encoder, holdout: Holdout, batch_events: int) -> NDArray[np.int64]:
    """The rank of every target in the whole catalogue by the encoder alone, items of the history removed."""
    return ranks_by(last_queries(model, holdout.history, holdout.users, batch_events), model, holdout)


def ranks_by(queries: NDArray[np.float32], model: Encoder, holdout: Holdout) -> NDArray[np.int64]:
    """As `ranks_of_targets`, by query vectors (V, D) of the users."""
    embeddings = model.item_embeddings().detach().cpu().numpy()
    ranks = []
    for at in range(0, len(holdout.users), USERS_AT_ONCE):
        scores = queries[at : at + USERS_AT_ONCE] @ embeddings.T  # (B, I + 1)
        seen = np.zeros(scores.shape, bool)
        seen[:, 0] = True
        for row, user in enumerate(holdout.users[at : at + USERS_AT_ONCE]):
            seen[row, holdout.history.items[holdout.history.of(user)]] = True
        ranks.append(rank_of_target(scores, holdout.targets[at : at + USERS_AT_ONCE], seen))
    return np.concatenate(ranks) if ranks else np.zeros(0, np.int64)
