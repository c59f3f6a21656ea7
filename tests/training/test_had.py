import numpy as np
import pytest
import torch

from longtide_server.training.dataset import Sequences
from longtide_server.training.had import Past, had_by, past_of


def histories(*items: list[int], item_count: int = 5) -> Sequences:
    count = sum(map(len, items))
    return Sequences(
        user_ids=tuple(f"u{n}" for n in range(len(items))),
        item_ids=tuple(f"i{n}" for n in range(item_count)),
        offsets=np.cumsum([0, *map(len, items)]),
        items=np.concatenate([np.array(one, np.int64) for one in items]),
        types=np.ones(count, np.int64),
        times=np.arange(count, dtype=np.float64),
        gaps=np.zeros(count, np.float32),
        values=np.full(count, np.nan, np.float32),
    )


def by_row(had):
    return [
        list(zip(had.items[had.row == row].tolist(), had.since[had.row == row].tolist(), strict=True)) for row in (0, 1)
    ]


def test_it_knows_since_when_each_user_has_had_each_item():
    had = had_by(histories([1, 2, 1], [], [3, 3, 5, 1]), np.array([2, 0]), 10)
    assert by_row(had) == [[(3, 0), (5, 2), (1, 3)], [(1, 0), (2, 1)]]


def test_events_of_later_do_not_count():
    assert by_row(had_by(histories([1, 2, 3], [4]), np.array([0, 1]), 2)) == [[(1, 0), (2, 1)], [(4, 0)]]


@pytest.mark.parametrize("seed", range(5))
def test_a_moment_has_had_what_came_by_then(seed):
    rng = np.random.default_rng(seed)
    sequences = histories(*(rng.integers(1, 9, rng.integers(1, 20)).tolist() for _ in range(9)), item_count=8)
    users = rng.permutation(9)[:6]
    row = rng.integers(0, 6, 30)
    place = rng.integers(0, sequences.lengths[users[row]])
    moment, item = Past(had_by(sequences, users, 20), torch.from_numpy(row), torch.from_numpy(place)).pairs()
    assert moment.tolist() == sorted(moment.tolist())
    for number, (user, last) in enumerate(zip(users[row].tolist(), place.tolist(), strict=True)):
        begin = sequences.offsets[user]
        assert sorted(item[moment == number].tolist()) == sorted(
            set(sequences.items[begin : begin + last + 1].tolist())
        )


def test_who_has_no_events_has_had_nothing():
    had = had_by(histories([], [1]), np.array([0]), 3)
    moment, item = Past(had, torch.tensor([0]), torch.tensor([2])).pairs()
    assert (len(had.items), len(moment), len(item)) == (0, 0, 0)


def test_a_process_without_a_share_of_a_batch_has_no_moments():
    none = torch.zeros(0, dtype=torch.int64)
    moment, item = Past(had_by(histories([], [1]), np.array([0]), 1), none, none).pairs()
    assert (len(moment), len(item)) == (0, 0)


def test_events_from_anywhere_in_a_log_know_what_their_users_have_had():
    rng = np.random.default_rng(0)
    sequences = histories(*(rng.integers(1, 9, size).tolist() for size in (7, 0, 5, 9)), item_count=8)
    events = rng.permutation(21)[:12]
    moment, item = past_of(sequences, events, torch.device("cpu")).pairs()
    for number, event in enumerate(events.tolist()):
        begin = max(start for start in (0, 7, 12) if start <= event)
        assert sorted(item[moment == number].tolist()) == sorted(set(sequences.items[begin : event + 1].tolist()))
