"""Trains the tower that gives items without events their vectors, when the encoder has learned all it will.

The part that content has in the vectors of known items is half a vector without the rest, so the tower has weights of
its own. Query vectors and item embeddings stay as they are. First the tower is fitted to the embeddings of known items
(ridge regression; it has few items to learn from and many weights). Then it learns what it is for: in every step a
random share of the items is represented by it, and the next item is to be found among all of them. That is DropoutNet
(Volkovs et al. 2017), which does it to the whole model; here this cost a tenth of the accuracy on known items. As the
softmax mixes both kinds of vectors, the score of a new item is as high as that of a known one that as many want.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from longtide_server.catalog.content import ContentWeights
from longtide_server.training.dataset import Sequences
from longtide_server.training.learning.content import ContentPart
from longtide_server.training.learning.had import had_by_event
from longtide_server.training.learning.model import Encoder
from longtide_server.training.learning.train import TrainConfig, objective_of
from longtide_server.training.sources.moments import encode_moments, newest_moments

SHARE = 0.1
"""Of the items, represented by the tower in a step: few, so that the others are nearly those that it will meet."""
MOMENTS = 200_000
"""Of the log, at most, the newest of each user; once."""
BATCH_MOMENTS = 1024
RIDGE = 1.0
"""Of the squares of the weights, the squared errors of the items counting 1 on average."""
RIDGE_STEPS = 60
MOST_COUNTED = 50
"""Events of an item, as its embedding's weight in the regression: the more there are, the better it is known."""
LEARNING_RATE = 1e-3


def fit_tower(
    model: Encoder, sequences: Sequences, settings: TrainConfig
) -> tuple[ContentWeights, NDArray[np.float32]]:
    """The tower of an encoder that was trained on the sequences, with content; and what it makes of known items.

    That is (I + 1, D) vectors of length 1, zeros where nothing is known of an item.
    """
    _, vectors = encode_moments(model, sequences, MOMENTS, settings.batch_events)
    tower = _fitted(model, vectors, newest_moments(sequences, MOMENTS), sequences, settings)
    with torch.no_grad():
        known = normalize(tower(), dim=1)
    return tower.weights(), known.cpu().numpy()


def _fitted(
    model: Encoder,
    queries: NDArray[np.float32],
    events: NDArray[np.int64],
    sequences: Sequences,
    settings: TrainConfig,
) -> ContentPart:
    """From the query vectors (P, D) after events (P,) of the log, each of which has a successor."""
    if model.items.content is None:
        raise ValueError("an encoder without content has no tower")
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    objective = objective_of(model, sequences, settings)
    had = had_by_event(sequences, model.device)
    embeddings = model.item_embeddings().detach()  # (I + 1, D)
    known = model.items.content().detach().any(dim=1)  # (I + 1,)
    counts = torch.from_numpy(np.bincount(sequences.items, minlength=len(embeddings))).to(model.device)
    tower = _regressed(model.items.content, embeddings, counts.clamp(max=MOST_COUNTED) * known)
    optimizer = torch.optim.Adam([weight for weight in tower.parameters() if weight.requires_grad], LEARNING_RATE)
    batches = np.array_split(rng.permutation(len(queries)), max(1, len(queries) // BATCH_MOMENTS))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        parts = queries[batch], sequences.items[events[batch] + 1]
        query, item = (torch.from_numpy(part).to(model.device) for part in parts)
        alone = known & (torch.rand(len(known), device=model.device) < SHARE)
        past = had.at(torch.from_numpy(events[batch]).to(model.device))
        table = torch.where(alone.unsqueeze(1), normalize(tower(), dim=1), embeddings)
        loss = objective.item_loss(query, item, torch.ones(len(item), device=model.device), table, past)
        if loss.requires_grad:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss / len(item))
            optimizer.step()
        schedule.step()
    return tower.eval()


def _regressed(part: ContentPart, embeddings: Tensor, counts: Tensor) -> ContentPart:
    """A part fitted to the embeddings (I + 1, D) by ridge regression; counts (I + 1,) how much each item counts."""
    tower = copy.deepcopy(part).train()
    weights = [weight for weight in tower.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
    share = counts / counts.sum().clamp(min=1) * torch.count_nonzero(counts)  # (I + 1,) 1 on average
    optimizer = torch.optim.LBFGS(weights, max_iter=RIDGE_STEPS, history_size=5, line_search_fn="strong_wolfe")

    def error() -> float:
        optimizer.zero_grad()
        errors = ((tower() - embeddings).square().sum(dim=1) * share).sum()
        loss = errors + RIDGE * torch.stack([weight.square().sum() for weight in weights]).sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimizer.step(error)  # type: ignore[no-untyped-call]
    return tower
