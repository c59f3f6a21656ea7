import numpy as np
import torch

from longtide_server.training.dataset import Sequences
from longtide_server.training.learning.had import had_by_event


def histories(*items: list[int], item_count: int = 5) -> Sequences:
    count = sum(map(len, items))
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(items))),
        item_ids=tuple(f"i{n}" for n in range(item_count)),
        offsets=np.cumsum([0, *map(len, items)]),
        items=np.concatenate([np.array(one, np.int64) for one in items]),
        types=np.ones(count, np.int64),
        times=np.arange(count, dtype=np.float64),
        gaps=np.zeros(count, np.float32),
        values=np.full(count, np.nan, np.float32),
    )


def test_every_item_of_a_history_is_there_once_in_the_order_in_which_they_came():
    had = had_by_event(histories([1, 2, 1], [], [3, 3, 5, 1]))
    assert had.items.tolist() == [1, 2, 3, 5, 1]
    assert had.begin.tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert had.count.tolist() == [1, 2, 2, 1, 1, 2, 3]


def test_an_event_knows_what_its_user_has_had_by_then():
    rng = np.random.default_rng(0)
    sequences = histories(*(rng.integers(1, 9, size).tolist() for size in (7, 0, 5, 9)), item_count=8)
    events = rng.permutation(21)[:12]
    moment, item = had_by_event(sequences).at(torch.from_numpy(events)).pairs()
    assert moment.tolist() == sorted(moment.tolist())
    for number, event in enumerate(events.tolist()):
        begin = max(start for start in (0, 7, 12) if start <= event)
        assert sorted(item[moment == number].tolist()) == sorted(set(sequences.items[begin : event + 1].tolist()))


def test_some_of_the_moments_know_the_same():
    past = had_by_event(histories([1, 2, 1], [4])).at(torch.tensor([3, 2, 1, 0]))
    moment, item = past.of(slice(1, 3)).pairs()
    assert (moment.tolist(), item.tolist()) == ([0, 0, 1, 1], [1, 2, 1, 2])


def test_a_process_without_a_share_of_a_batch_has_no_moments():
    moment, item = had_by_event(histories([], [1])).at(torch.zeros(0, dtype=torch.int64)).pairs()
    assert (len(moment), len(item)) == (0, 0)


def test_in_a_log_without_events_nothing_has_been_had():
    had = had_by_event(histories([], []))
    assert (len(had.items), len(had.begin), len(had.count)) == (0, 0, 0)
