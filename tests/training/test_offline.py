from dataclasses import replace

import numpy as np
import pytest

from longtide_server.answers import Query
from longtide_server.errors import EncoderUnavailable, Unavailable
from longtide_server.events import user_of
from longtide_server.snapshot import load_snapshot
from longtide_server.sources.candidates import Source
from longtide_server.training import offline
from longtide_server.training.dataset import Sequences
from longtide_server.training.offline import LogHistories, OfflineRecommender
from longtide_server.training.pipeline import train_and_publish
from longtide_server.training.settings import settings_for, with_overrides

NAN = float("nan")


pytestmark = pytest.mark.usefixtures("one_thread")


RING = "abcdefgh"
WORDS = [(RING * 2)[start : start + 5] for start in range(8)]


def sequences(*words: str) -> Sequences:
    """A user a word, an item a letter of the ring, numbered by the alphabet."""
    text = "".join(words)
    lengths = [len(word) for word in words]
    return Sequences(
        owners=tuple(f"user:from-{word[:1]}" for word in words),
        item_ids=tuple(RING),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([RING.index(letter) + 1 for letter in text], np.int64),
        types=np.ones(len(text), np.int64),
        times=np.arange(len(text), dtype=np.float64),
        gaps=np.zeros(len(text), np.float32),
        values=np.full(len(text), np.nan, np.float32),
    )


LOG = sequences(*WORDS)
USERS = [user_of(owner) for owner in LOG.owners]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory, one_thread):
    directory = tmp_path_factory.mktemp("snapshot")
    settings = with_overrides(
        settings_for(LOG, times_are_real=False, seed=0),
        {
            "model.dim": "16",
            "model.hidden": "16",
            "model.dropout": "0",
            "train.epochs": "10",
            "train.learning_rate": "0.01",
            "train.refit_epochs": "20",
            "train.refit_learning_rate": "0.01",
            "train.bfloat16": "false",
        },
    )
    train_and_publish(LOG, {}, settings, directory, lambda _: None)
    return load_snapshot(directory)


@pytest.fixture
async def recommender(snapshot):
    made = OfflineRecommender(snapshot, LOG)
    yield made
    await made.close()


async def answers(recommender, users, limit=3):
    return [answer async for answer in recommender.answers([Query(user_id, limit) for user_id in users])]


def ids(answer) -> list[str]:
    return [item.item_id for item in answer.recommendations]


# A log as an event store


async def test_a_history_is_the_users_events_in_time_order():
    log = replace(sequences("ab", "c"), types=np.array([2, 4, 1]), values=np.array([NAN, 9.5, NAN], np.float32))
    history = await LogHistories(log).history("user:from-a")
    assert [(event.user_id, event.item_id, event.type, event.time_s, event.value) for event in history.events] == [
        ("from-a", "a", 2, 0.0, None),
        ("from-a", "b", 4, 1.0, 9.5),
    ]
    assert len({event.event_id for event in history.events}) == 2


async def test_a_session_and_a_user_of_the_same_id_have_histories_of_their_own():
    log = replace(sequences("ab", "c"), owners=("session:s", "user:s"))
    histories = {owner: (await LogHistories(log).history(owner)).events for owner in log.owners}
    assert {owner: [event.item_id for event in events] for owner, events in histories.items()} == {
        "session:s": ["a", "b"],
        "user:s": ["c"],
    }
    assert all(event.owner == owner for owner, events in histories.items() for event in events)


async def test_someone_unknown_has_no_history():
    assert (await LogHistories(LOG).history("user:nobody")).events == []


async def test_a_log_is_not_written_to():
    with pytest.raises(Unavailable, match="read only"):
        await LogHistories(LOG).write([])


# Recommending from it


async def test_the_next_item_of_the_ring_is_first_and_nothing_had_comes_back(recommender):
    found = await answers(recommender, USERS)
    for word, answer in zip(WORDS, found, strict=True):
        assert ids(answer)[0] == (RING * 3)[RING.index(word[-1]) + 1]
        assert set(ids(answer)) == set(RING) - set(word)
        assert not answer.degraded_reason


async def test_answers_come_in_the_order_of_the_users_also_over_many_batches(recommender, monkeypatch):
    monkeypatch.setattr(offline, "AT_ONCE", 3)
    together = await answers(recommender, USERS)
    backwards = await answers(recommender, USERS[::-1])
    assert [ids(answer) for answer in backwards] == [ids(answer) for answer in together][::-1]
    assert ids(together[0]) != ids(together[1])


async def test_someone_unknown_gets_what_is_popular(recommender, snapshot):
    (answer,) = await answers(recommender, ["nobody"])
    popular = np.argsort(-snapshot.popularity[1:], kind="stable")[:3]
    assert ids(answer) == [RING[item] for item in popular]


async def test_candidates_are_what_the_answer_is_made_of(recommender):
    (found,) = [c async for c in recommender.candidates(["user:from-a"], 3)]
    assert [RING[item - 1] for item in found.items] == ["f", "g", "h"]  # all that from-a has not had
    assert (found.probability[:, Source.ENCODER - 1] > 0).all()
    assert found.probability[:, Source.TRANSITIONS - 1].argmax() == 0  # after e comes f


async def test_an_answer_without_the_encoder_is_an_error_and_no_worse_number(recommender, monkeypatch):
    async def fail(*_):
        raise EncoderUnavailable("the encoder is gone")

    monkeypatch.setattr(recommender._encoder, "encode", fail)
    with pytest.raises(Unavailable, match="the encoder is gone"):
        await answers(recommender, USERS[:1])


async def test_lists_are_catalogue_numbers_with_zeros_behind(recommender):
    table = await recommender.lists([Query("from-a", 4), Query("nobody", 4)], 5)
    assert table.shape == (2, 5)
    assert sorted(table[0].tolist()) == [0, 0, 6, 7, 8]  # f, g and h are left for from-a
    assert table[0, 3:].tolist() == [0, 0]
    assert (table[1, :4] > 0).all()
    assert table[1, 4] == 0
