from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from longtide_server.events import EventType
from longtide_server.training.dataset import Sequences
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.sources.moments import encode_moments, newest_moments

pytestmark = pytest.mark.usefixtures("one_thread")


def sequences(*users: list[int]) -> Sequences:
    """The users' items, in time order."""
    items = np.array([item for user in users for item in user], np.int64)
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(users))),
        item_ids=tuple(str(n) for n in range(1, int(items.max()) + 1)),
        offsets=np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64),
        items=items,
        types=np.ones(len(items), np.int64),
        times=np.arange(len(items), dtype=np.float64),
        gaps=np.zeros(len(items), np.float32),
        values=np.full(len(items), np.nan, np.float32),
    )


LOG = sequences([1, 2, 3, 4], [5], [6, 7])  # events 0 to 3, 4, and 5 to 6


def test_every_event_that_something_followed_is_a_moment():
    assert newest_moments(LOG, most=100).tolist() == [0, 1, 2, 5]
    assert newest_moments(LOG, most=4).tolist() == [0, 1, 2, 5]


def test_before_a_dislike_there_is_no_moment():
    log = replace(LOG, types=np.where(LOG.items == 3, EventType.DISLIKE, EventType.VIEW))
    assert newest_moments(log, most=100).tolist() == [0, 2, 5]
    assert newest_moments(log, most=2).tolist() == [2, 5]


def test_where_not_all_fit_everyone_keeps_as_many_of_their_newest():
    assert newest_moments(LOG, most=3).tolist() == [1, 2, 5]
    assert newest_moments(LOG, most=2).tolist() == [2, 5]


def test_there_are_never_more_than_asked_for():
    rng = np.random.default_rng(0)
    log = sequences(*(rng.integers(1, 9, length).tolist() for length in rng.integers(1, 12, 30)))
    for most in range(30, 200, 7):
        assert len(newest_moments(log, most)) <= most


def test_more_users_than_fit_still_leaves_moments_to_find_neighbours_among():
    assert len(newest_moments(LOG, most=1)) == 1


@torch.inference_mode()
def test_a_moment_is_the_users_vector_then_and_what_came_next():
    log = sequences([3, 1, 2, 3], [1], [2, 1])
    torch.manual_seed(0)
    model = Encoder(ModelConfig(3, dim=8, hidden=8, blocks=1)).eval()
    positions, vectors = encode_moments(model, log, most=100, batch_events=3)

    assert positions.user.tolist() == [0, 0, 0, 2]  # a user's moments side by side, in time order
    assert positions.next_item.tolist() == [1, 2, 3, 1]
    for user, rows in ((0, slice(0, 3)), (2, slice(3, 4))):
        span = log.of(user)
        parts = (log.items, log.types, log.gaps, log.values)
        whole, _ = model(*(torch.from_numpy(part[span])[None] for part in parts), model.initial_state(1))
        assert_close(torch.from_numpy(vectors[rows]), whole[0, :-1])


@torch.inference_mode()
def test_a_bound_on_the_moments_leaves_the_others_as_they_are():
    model = Encoder(ModelConfig(7, dim=8, hidden=8, blocks=1)).eval()
    everything, vectors = encode_moments(model, LOG, most=100, batch_events=100)
    newest, newest_vectors = encode_moments(model, LOG, most=2, batch_events=100)
    assert newest.next_item.tolist() == [4, 7]
    assert newest.weight.tolist() == everything.weight[[2, 3]].tolist()
    np.testing.assert_array_equal(newest_vectors, vectors[[2, 3]])


@torch.inference_mode()
def test_long_histories_are_encoded_piece_by_piece():
    log = sequences([1 + n % 5 for n in range(600)])
    torch.manual_seed(0)
    model = Encoder(ModelConfig(5, dim=8, hidden=8, blocks=1)).eval()
    positions, vectors = encode_moments(model, log, most=1_000, batch_events=100)
    parts = (log.items, log.types, log.gaps, log.values)
    whole, _ = model(*(torch.from_numpy(part)[None] for part in parts), model.initial_state(1))
    assert_close(torch.from_numpy(vectors), whole[0, :-1], atol=1e-4, rtol=0)
    assert positions.next_item.tolist() == log.items[1:].tolist()


def test_a_moment_counts_half_after_a_hundred_more_events():
    model = Encoder(ModelConfig(1, dim=8, hidden=8, blocks=1)).eval()
    positions, _ = encode_moments(model, sequences([1] * 102), most=1_000, batch_events=1_000)
    assert positions.weight[-1] == 1.0
    assert positions.weight[0] == pytest.approx(0.5)
    assert (np.diff(positions.weight) > 0).all()
