from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from longtide_server.training.dataset import Holdout, Sequences, hold_out_last, nothing_held_out, select
from longtide_server.training.learning import loop
from longtide_server.training.learning.encoding import last_queries, ranks_of_targets
from longtide_server.training.learning.had import HAD_COUNTS
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.learning.train import TrainConfig, refit, train_encoder
from longtide_server.training.metrics import NOT_RANKED, rank_of_target

pytestmark = pytest.mark.usefixtures("one_thread")


def sequences(*words: str) -> Sequences:
    """A user a word, an item a letter; letters are numbered by the alphabet."""
    letters = sorted(set("".join(words)))
    lengths = [len(word) for word in words]
    count = sum(lengths)
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(words))),
        item_ids=tuple(letters),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([letters.index(letter) + 1 for letter in "".join(words)], np.int64),
        types=np.ones(count, np.int64),
        times=np.arange(count, dtype=np.float64),
        gaps=np.zeros(count, np.float32),
        values=np.full(count, np.nan, np.float32),
    )


def without_targets(history: Sequences) -> Holdout:
    return nothing_held_out(history)


def small(history: Sequences, **changes) -> ModelConfig:
    return replace(ModelConfig(history.item_count, dim=16, hidden=16, blocks=1, dropout=0.0), **changes)


def silent(progress: loop.Progress) -> None:
    pass


def embeddings(model: Encoder) -> np.ndarray:
    return model.item_embeddings().detach().numpy()


RING = "abcdefgh"
WALKS = sequences(*((RING * 2)[start : start + 5] for start in range(8)))
"""Everyone walks the ring from another start: after a comes b, after h comes a."""


# Learning


def test_what_follows_what_is_learnt_perfectly():
    holdout = hold_out_last(WALKS)
    told = []
    model = train_encoder(small(WALKS), TrainConfig(epochs=15, learning_rate=0.02), holdout, told.append)
    assert ranks_of_targets(model, holdout, 100).tolist() == [0] * 8
    assert not model.training
    finished = [progress for progress in told if progress.ndcg is not None]
    assert finished[-1].ndcg == finished[-1].hit_rate == 1.0
    assert finished[-1].loss < finished[0].loss


FAR = sequences(*(["afgx", "bfgy"] * 8))
"""What the last item is, x or y, follows from the first; with chunks of two it is in the chunk before."""


def test_what_the_chunk_before_held_is_learnt():
    told = []
    settings = TrainConfig(epochs=40, learning_rate=0.02, chunk=2)
    model = train_encoder(small(FAR), settings, without_targets(FAR), told.append)

    # Of the three targets only the last is in doubt: without the state it costs ln 2, a third of it on average.
    assert told[-1].loss < 0.1
    after_g = select(FAR, np.tile([True, True, True, False], 16))
    scores = last_queries(model, after_g, np.array([0, 1]), 100) @ embeddings(model).T
    letters = ["", *FAR.item_ids]
    assert [letters[item] for item in scores.argmax(axis=1)] == ["x", "y"]


def test_what_users_have_had_counts_less_than_what_is_new_to_them():
    """Also what they had in the chunk before."""
    told = []
    settings = TrainConfig(epochs=1, learning_rate=1e-6, chunk=2)
    train_encoder(small(FAR, temperature=1e6), settings, without_targets(FAR), told.append)

    # An encoder that knows nothing looks for the next item among 5, 4 and 3 of six, and a little among the others.
    new = np.array([5, 4, 3])
    assert told[-1].loss == pytest.approx(np.log(new + HAD_COUNTS * (6 - new)).mean(), abs=1e-4)


def test_bfloat16_learns_too():
    holdout = hold_out_last(WALKS)
    settings = TrainConfig(epochs=15, learning_rate=0.02, bfloat16=True)
    model = train_encoder(small(WALKS), settings, holdout, silent)
    assert ranks_of_targets(model, holdout, 100).tolist() == [0] * 8
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("asked", "made_in"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_made_in_bfloat16_where_that_is_asked_for(asked, made_in):
    found = set()
    watch = nn.modules.module.register_module_forward_hook(
        lambda part, _, out: found.add(out.dtype) if isinstance(part, nn.Linear) and part.training else None
    )
    with watch:
        train_encoder(small(WALKS), TrainConfig(epochs=1, bfloat16=asked), without_targets(WALKS), silent)
    assert found == {made_in}


def test_how_fast_memories_fade_is_learnt():
    model = train_encoder(small(FAR), TrainConfig(epochs=3, learning_rate=0.02), without_targets(FAR), silent)
    assert (model.memories.decay_logit - Encoder(small(FAR)).memories.decay_logit).abs().min() > 0.001


def test_a_sample_of_the_catalogue_is_enough_to_learn_from():
    holdout = hold_out_last(WALKS)
    settings = TrainConfig(epochs=30, patience=30, learning_rate=0.02, negatives=6)
    model = train_encoder(small(WALKS), settings, holdout, silent)
    assert ranks_of_targets(model, holdout, 100).tolist() == [0] * 8


@pytest.mark.parametrize("negatives", [0, 6])
def test_the_rate_of_the_items_embeddings_is_that_of_the_settings(negatives):
    moved = []
    for rate in (1.0, 3.0):
        settings = TrainConfig(epochs=1, learning_rate=1e-4, negatives=negatives, item_rate=rate)
        torch.manual_seed(settings.seed)
        before = Encoder(small(WALKS)).items.ids.weight.detach()
        model = train_encoder(small(WALKS), settings, nothing_held_out(WALKS), silent)
        moved.append(float((model.items.ids.weight.detach() - before).abs().max()))
    assert moved[1] == pytest.approx(3.0 * moved[0], rel=0.1)


def test_a_refit_learns_what_validation_held_back():
    holdout = hold_out_last(sequences(*["abx", "bax"] * 4))  # x is never in a history
    settings = TrainConfig(epochs=2, learning_rate=0.02, refit_epochs=15, refit_learning_rate=0.02)
    model = train_encoder(small(holdout.history), settings, holdout, silent)
    best = (last_queries(model, holdout.history, np.array([0, 1]), 100) @ embeddings(model).T).argmax(axis=1)
    assert 3 not in best
    refit(model, None, settings, sequences(*["abx", "bax"] * 4), silent)

    best = (last_queries(model, holdout.history, np.array([0, 1]), 100) @ embeddings(model).T).argmax(axis=1)
    assert best.tolist() == [3, 3]
    assert not model.training


# Seeds


def weights_after(seed: int) -> torch.Tensor:
    settings = TrainConfig(epochs=2, batch_events=12, seed=seed)
    model = train_encoder(small(WALKS, dropout=0.3), settings, hold_out_last(WALKS), silent)
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first = weights_after(seed=1)
    assert torch.equal(weights_after(seed=1), first)
    assert not torch.allclose(weights_after(seed=2), first)


# Which epoch is kept


@pytest.fixture
def judged_by(monkeypatch):
    """Let validation say given ranks, one an epoch; returns the weights that each epoch ended with."""

    def judged_by(*ranks: int) -> list[dict[str, torch.Tensor]]:
        seen: list[dict[str, torch.Tensor]] = []

        def judge(model, holdout, batch_events):
            seen.append({f"encoder.{name}": weight.clone() for name, weight in model.state_dict().items()})
            return np.array([ranks[len(seen) - 1]])

        monkeypatch.setattr(loop, "ranks_of_targets", judge)
        return seen

    return judged_by


def test_the_best_epoch_is_kept_and_training_stops_when_it_gets_no_better(judged_by):
    ended_with = judged_by(5, 2, 3, 2, 4, 0)  # the second is the best; three epochs later patience ends
    settings = TrainConfig(epochs=6, patience=3)
    model = train_encoder(small(WALKS), settings, hold_out_last(WALKS), silent)
    assert len(ended_with) == 5
    assert_close({f"encoder.{name}": weight for name, weight in model.state_dict().items()}, ended_with[1])
    assert not torch.equal(ended_with[1]["encoder.items.ids.weight"], ended_with[4]["encoder.items.ids.weight"])


def test_a_better_epoch_renews_the_patience(judged_by):
    ended_with = judged_by(5, 6, 4, 6, 3, 6)
    train_encoder(small(WALKS), TrainConfig(epochs=6, patience=2), hold_out_last(WALKS), silent)
    assert len(ended_with) == 6


def test_epochs_in_which_no_target_is_found_wear_the_patience_out_too(judged_by):
    ended_with = judged_by(*[NOT_RANKED] * 9)
    train_encoder(small(WALKS), TrainConfig(epochs=9, patience=2), hold_out_last(WALKS), silent)
    assert len(ended_with) == 3


def test_without_targets_every_epoch_is_trained_and_the_last_is_kept():
    told = []
    model = train_encoder(small(WALKS), TrainConfig(epochs=4, patience=1), without_targets(WALKS), told.append)
    assert told[-1].epoch == 4
    assert {(progress.ndcg, progress.hit_rate) for progress in told} == {(None, None)}
    untrained = train_encoder(small(WALKS), TrainConfig(epochs=0), without_targets(WALKS), silent)
    assert not np.array_equal(embeddings(model), embeddings(untrained))


def test_at_most_so_many_users_judge(monkeypatch):
    asked = []
    monkeypatch.setattr(
        loop, "ranks_of_targets", lambda model, holdout, _: asked.append(holdout.users.tolist()) or np.array([0])
    )
    train_encoder(small(WALKS), TrainConfig(epochs=1, validation_users=3), hold_out_last(WALKS), silent)
    (users,) = asked
    assert len(set(users)) == 3
    assert users == sorted(users)


# Encoding histories


@torch.inference_mode()
def test_last_queries_are_those_after_each_users_last_event():
    history = select(sequences("abcde", "ab", "c", "dd"), np.array([1] * 7 + [0] + [1] * 2, bool))  # u2 has nothing
    torch.manual_seed(0)
    model = Encoder(small(history)).eval()
    found = last_queries(model, history, np.array([3, 0, 2, 1]), batch_events=4)

    for row, user in enumerate([3, 0, None, 1]):
        if user is None:
            assert found[row].tolist() == [0.0] * 16
            continue
        span = history.of(user)
        parts = (history.items, history.types, history.gaps, history.values)
        whole, _ = model(*(torch.from_numpy(part[span])[None] for part in parts), model.initial_state(1))
        assert_close(torch.from_numpy(found[row]), whole[0, -1])


@torch.inference_mode()
def test_pieces_of_a_long_history_hang_together():
    history = sequences("abcdefgh" * 70)  # 560 events, more than two pieces
    torch.manual_seed(0)
    model = Encoder(small(history)).eval()
    parts = (history.items, history.types, history.gaps, history.values)
    whole, _ = model(*(torch.from_numpy(part)[None] for part in parts), model.initial_state(1))
    assert_close(torch.from_numpy(last_queries(model, history, np.array([0]), 100)), whole[0, -1:], atol=1e-4, rtol=0)


def test_targets_are_ranked_among_the_items_that_are_new_to_the_user():
    torch.manual_seed(0)
    holdout = hold_out_last(WALKS)
    model = Encoder(small(WALKS)).eval()
    scores = last_queries(model, holdout.history, holdout.users, 100) @ embeddings(model).T
    seen = np.zeros(scores.shape, bool)
    seen[:, 0] = True
    for user in range(8):
        seen[user, holdout.history.items[holdout.history.of(user)]] = True
    assert ranks_of_targets(model, holdout, 100).tolist() == rank_of_target(scores, holdout.targets, seen).tolist()
    assert max(ranks_of_targets(model, holdout, 100)) < 4  # of eight items, four are had
