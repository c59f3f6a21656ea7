"""Training that is interrupted, and training by several processes."""

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from longtide_server.errors import InvalidInput, Unavailable
from longtide_server.training.dataset import Sequences, batches, chunks, hold_out_last, nothing_held_out
from longtide_server.training.learning import checkpoint, train
from longtide_server.training.learning.checkpoint import Checkpoints, checkpoints_of
from longtide_server.training.learning.encoding import inputs
from longtide_server.training.learning.had import had_by_event
from longtide_server.training.learning.heads import BehaviorHead
from longtide_server.training.learning.loop import Learner, Outcome, Phase, Progress, Run
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.learning.objective import Batch, Objective
from longtide_server.training.learning.optimizers import Optimizers, Rates
from longtide_server.training.learning.train import TrainConfig, fine_tune, refit, train_encoder
from longtide_server.training.learning.wanted import EVERYTHING, Wanted
from longtide_server.training.learning.workers import Workers

pytestmark = pytest.mark.usefixtures("one_thread")


def walks() -> Sequences:
    """Everyone walks a ring of eight items from another start, alternately viewing and buying, rating as they go."""
    items = np.concatenate([(np.arange(6) + start) % 8 + 1 for start in range(8)])
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(8)),
        item_ids=tuple("abcdefgh"),
        offsets=np.arange(9, dtype=np.int64) * 6,
        items=items,
        types=np.tile([1, 4], 24),
        times=np.arange(48, dtype=np.float64),
        gaps=np.zeros(48, np.float32),
        values=items.astype(np.float32),
    )


WALKS = walks()
PHASES = ("pre-training", "fine-tuning", "refitting")
MODEL = ModelConfig(8, dim=16, hidden=16, blocks=1, dropout=0.3, use_types=True, value_mean=4.5, value_std=2.3)
SETTINGS = TrainConfig(
    epochs=5, patience=5, fine_tune_epochs=3, refit_epochs=3, learning_rate=0.02, batch_events=12, target_type=4
)


class Killed(Exception):
    """Stands for a kill: nothing that the training would do on its way out is done."""


def silent(told: Progress) -> None:
    pass


def killed_in(phase: str, epoch: int, done: float):
    def report(told: Progress) -> None:
        if (told.phase, told.epoch) == (phase, epoch) and told.done >= done and not told.finished:
            raise Killed

    return report


def everything(report, checkpoints: Checkpoints | None = None) -> dict[str, torch.Tensor]:
    """The weights after all three phases."""
    holdout, run = hold_out_last(WALKS), Run(checkpoints=checkpoints)
    model = train_encoder(MODEL, SETTINGS, holdout, report, run)
    tuned = fine_tune(model, MODEL, SETTINGS, holdout, report, run)
    refit(model, tuned, SETTINGS, WALKS, report, run)
    return {**model.state_dict(), **tuned.head.state_dict()}


@pytest.mark.parametrize("done", [0.1, 1.0], ids=["early in the epoch", "before the epoch is kept"])
@pytest.mark.parametrize(
    ("phase", "epoch"), [("pre-training", 1), ("pre-training", 4), ("fine-tuning", 2), ("refitting", 3)]
)
def test_a_killed_training_goes_on_to_the_same_weights(phase, epoch, done, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        everything(killed_in(phase, epoch, done), checkpoints)
    torch.manual_seed(99)  # what chance did in between is of no matter
    told = []
    assert_close(everything(told.append, checkpoints), everything(silent), rtol=0, atol=0)
    assert (told[0].phase, told[0].epoch) == (phase, epoch)  # no finished epoch is trained again


def test_a_training_that_is_over_is_not_trained_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    first = everything(silent, checkpoints)
    told = []
    assert_close(everything(told.append, checkpoints), first, rtol=0, atol=0)
    assert told == []


def cut(whole: bytes) -> bytes:
    return whole[:1000]


def flipped(whole: bytes) -> bytes:
    """A bit of a weight is another one: the file can be read."""
    at = len(whole) // 2
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


def misnamed(whole: bytes) -> bytes:
    return whole.replace(b"objective", b"0bjective")


@pytest.mark.parametrize("damage", [cut, flipped, misnamed, lambda _: b"", lambda _: bytes(500)])
def test_a_damaged_checkpoint_is_reported_and_the_phase_begins_anew(damage, tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    everything(silent, checkpoints)
    path = tmp_path / "pre-training.pt"
    path.write_bytes(damage(path.read_bytes()))
    told = []
    everything(told.append, checkpoints)
    assert (told[0].phase, told[0].epoch) == ("pre-training", 1)
    assert "checkpoint_unreadable" in capsys.readouterr().out


def test_a_full_disk_is_told_and_what_was_reached_before_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("pre-training", {"epoch": 1})
    (tmp_path / f".pre-training-{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(Unavailable, match="cannot be written; is the disk full"):
        checkpoints.save("pre-training", {"epoch": 2, "weights": torch.zeros(100_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["pre-training.pt"]
    assert checkpoints.load("pre-training") == {"epoch": 1}


def test_a_checkpoint_belongs_to_one_log_and_one_way_to_train_it(tmp_path, monkeypatch):
    first = checkpoints_of(tmp_path, SETTINGS, WALKS.items)
    assert checkpoints_of(tmp_path, SETTINGS, WALKS.items.copy()) == first
    assert checkpoints_of(tmp_path, replace(SETTINGS, seed=1), WALKS.items) != first
    assert checkpoints_of(tmp_path, SETTINGS, WALKS.items[::-1]) != first
    monkeypatch.setattr(checkpoint, "WEIGHTS", 99)  # which mean something else
    assert checkpoints_of(tmp_path, SETTINGS, WALKS.items) != first


def test_the_end_of_a_long_history_takes_no_steps_of_its_own(monkeypatch):
    """Sixteen short histories, and one of 400 events: pieces of 10 of it, and steps of 20 events at least."""
    lengths = [4] * 16 + [400]
    log = Sequences(
        owners=tuple(f"user:u{n}" for n in range(17)),
        item_ids=tuple(f"i{n}" for n in range(500)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.arange(sum(lengths)) + 1,
        types=np.ones(sum(lengths), np.int64),
        times=np.zeros(sum(lengths)),
        gaps=np.zeros(sum(lengths), np.float32),
        values=np.full(sum(lengths), np.nan, np.float32),
    )
    counts, step = [], Optimizers.step
    monkeypatch.setattr(Optimizers, "step", lambda self, count: (counts.append(count), step(self, count))[1])
    settings = TrainConfig(epochs=1, batch_events=40, chunk=10)
    train_encoder(ModelConfig(500, dim=8, hidden=8, blocks=1), settings, nothing_held_out(log), silent)
    assert sum(counts) == 16 * 3 + 399  # every event that another one follows, once
    assert len(counts) == 2 + 20  # two batches of the short ones; of the long one, two pieces a step
    assert min(counts) >= 18


def learner_of(head: BehaviorHead | None) -> Learner:
    objective = Objective(Encoder(MODEL), torch.ones(9), 0, bfloat16=False, head=head, head_weight=1.0)
    return Learner(objective, Optimizers(objective, Rates(0.01, 1.0, 1.0, 0.0), 10), {})


def found(first: int, count: int) -> Outcome:
    """Of a hundred users, `count` from the one numbered `first` have their target on top, the others nowhere."""
    ranks = np.full(100, 50)
    ranks[first : first + count] = 0
    return Outcome(ranks)


@pytest.mark.parametrize(
    ("head", "outcomes", "kept", "waited"),
    [
        (None, [(0, 30), (0, 31), (5, 31)], 2, 1),
        (None, [(0, 30), (0, 29), (0, 31)], 3, 0),
        (BehaviorHead(MODEL), [(0, 30), (5, 29), (10, 29)], 3, 0),  # others are found, and the head knows more
        (BehaviorHead(MODEL), [(0, 30), (0, 29), (5, 29)], 3, 0),  # of the same, one is lost: worse
        (BehaviorHead(MODEL), [(0, 30), (0, 31), (0, 28), (0, 20)], 2, 2),
    ],
)
def test_which_epoch_is_kept(head, outcomes, kept, waited):
    learner = learner_of(head)
    bias = learner.objective.encoder.gate.bias
    for number, outcome in enumerate(outcomes, 1):
        torch.nn.init.constant_(bias, number)
        learner.finish_epoch(found(*outcome))
    assert learner.kept["encoder.gate.bias"][0] == kept
    assert learner.waited == waited


def test_what_chance_explains_is_not_worse():
    assert found(0, 29).is_worse_than(found(0, 30))  # everyone as well as before, or less so
    assert not found(5, 29).is_worse_than(found(0, 30))
    assert not found(0, 30).is_worse_than(found(0, 30))
    assert not found(0, 31).is_worse_than(found(0, 30))


@pytest.mark.parametrize("holdout", [hold_out_last(WALKS), nothing_held_out(WALKS)], ids=["judged", "by nothing"])
def test_weights_that_become_infinite_are_told(holdout):
    model = Encoder(MODEL)

    def diverge(told: Progress) -> None:
        with torch.no_grad():
            model.gate.bias.fill_(float("nan") if told.epoch == 2 else 0.0)

    with pytest.raises(InvalidInput, match="in fine-tuning, epoch 2, weights have become infinite: a lower learning"):
        fine_tune(model, MODEL, SETTINGS, holdout, diverge)


def test_processes_that_have_reached_different_epochs_do_not_begin(tmp_path):
    class Another(Workers):
        """The process of rank 0 has found three."""

        def led(self, numbers):
            return torch.full_like(numbers, 3)

    run = Run(Another(), Checkpoints(tmp_path))
    with pytest.raises(Unavailable, match="has found 0 finished epochs, the one of rank 0 3: all have to read"):
        train_encoder(MODEL, SETTINGS, nothing_held_out(WALKS), silent, run)


# The behaviour that is wanted


def test_targets_that_lead_to_what_is_wanted_judge_fine_tuning(monkeypatch):
    monkeypatch.setattr(train, "ENOUGH_TARGETS", 2)
    judged: list[Phase] = []
    monkeypatch.setattr(train, "learn", lambda phase, *_: judged.append(phase))
    holdout = hold_out_last(WALKS)
    outcomes = np.zeros((len(holdout.users), 13), bool)
    outcomes[:, 1] = outcomes[:3, 4] = True  # everyone viewed, and three bought
    for target_type in (4, 5, 0):
        settings = replace(SETTINGS, target_type=target_type)
        fine_tune(Encoder(MODEL), MODEL, settings, replace(holdout, outcomes=outcomes), silent)
    targets = np.where(np.arange(len(holdout.users)) < 2, 0, holdout.targets)  # of what was bought, one is known
    settings = replace(SETTINGS, target_type=4)
    fine_tune(Encoder(MODEL), MODEL, settings, replace(holdout, outcomes=outcomes, targets=targets), silent)
    assert [len(phase.validation.users) for phase in judged] == [3, 8, 8, 8]  # of the others there are too few
    assert {phase.patience for phase in judged} == {SETTINGS.patience}


@pytest.mark.parametrize(("afterwards", "put_back"), [(found(0, 20), True), (found(5, 29), False)])
def test_fine_tuning_that_ranks_the_targets_worse_leaves_the_encoder_as_it_was(afterwards, put_back, monkeypatch):
    judged = iter([found(0, 30), afterwards])
    monkeypatch.setattr(train, "validate", lambda *_: next(judged))
    torch.manual_seed(0)
    model = Encoder(MODEL)
    before, learning = copy.deepcopy(model.state_dict()), [weight.requires_grad for weight in model.parameters()]
    told: list[str] = []
    tuned = fine_tune(model, MODEL, SETTINGS, hold_out_last(WALKS), lambda progress: told.append(progress.phase))
    assert torch.equal(model.state_dict()["gate.bias"], before["gate.bias"]) == put_back
    assert tuned.put_back == put_back
    assert [weight.requires_grad for weight in model.parameters()] == learning
    assert ("reading" in told) == put_back  # a head that is put before another encoder learns to read it
    refitted: list[Phase] = []
    monkeypatch.setattr(train, "learn", lambda phase, *_: refitted.append(phase))
    refit(model, tuned, SETTINGS, WALKS, silent)
    assert refitted[0].wanted == (EVERYTHING if put_back else Wanted(4, SETTINGS.other_weight))


@pytest.mark.parametrize("counted", [0.0, 0.25, 1.0])
def test_the_heads_sum_does_not_depend_on_what_items_count(counted):
    torch.manual_seed(0)
    objective = Objective(
        Encoder(MODEL).eval(), torch.ones(9), 0, bfloat16=False, head=BehaviorHead(MODEL).eval(), head_weight=0.5
    )
    (group,) = batches(WALKS, np.arange(8), 1_000, 64, None)
    (piece,) = chunks(WALKS, group, 64)
    nexts = (piece.targets, piece.next_types, piece.next_gaps, piece.next_values)

    def loss_of(next_counts):
        past = had_by_event(WALKS).at(torch.from_numpy(piece.events[next_counts > 0]))
        told = map(torch.from_numpy, (*nexts, next_counts))
        batch = Batch(past, *inputs(piece, torch.device("cpu")), *told)
        return objective(batch, objective.encoder.initial_state(len(piece.users)))[0]

    there = (piece.targets > 0).astype(np.float32)
    loss, all_count = loss_of(there * np.float32(counted)), loss_of(there)
    assert_close(loss.behavior, all_count.behavior)
    assert_close(loss.items, counted * all_count.items)
    assert (loss.events, loss.counted) == (40, 40 * counted)


def test_the_heads_part_of_a_step_is_a_mean_events_whatever_the_items_count():
    told: dict[float, Progress] = {}
    for other_weight in (1.0, 0.25):
        settings = replace(
            SETTINGS, fine_tune_epochs=1, fine_tune_learning_rate=1e-9, other_weight=other_weight, batch_events=1_000
        )
        torch.manual_seed(0)
        model = Encoder(replace(MODEL, dropout=0.0))
        told_now: list[Progress] = []
        fine_tune(model, replace(MODEL, dropout=0.0), settings, nothing_held_out(WALKS), told_now.append)
        told[other_weight] = told_now[-1]
    assert told[0.25].behavior_loss == pytest.approx(told[1.0].behavior_loss, rel=1e-4)
    assert told[0.25].loss != pytest.approx(told[1.0].loss, rel=1e-4)  # of other events, mostly


def test_the_loss_of_the_items_is_told_apart_from_that_of_the_behaviour():
    told: list[Progress] = []
    everything(told.append)
    by_phase = {phase: [one for one in told if one.phase == phase and one.finished] for phase in PHASES}
    assert all(one.behavior_loss is None for one in by_phase["pre-training"])
    for phase in ("fine-tuning", "refitting"):
        assert all(one.behavior_loss > 0.0 for one in by_phase[phase])
        assert by_phase[phase][0].loss < by_phase["pre-training"][0].loss  # goes on where it was
    assert all(one.ndcg is not None for one in by_phase["fine-tuning"])


def test_the_head_learns_the_next_behaviours_type_and_value():
    settings = replace(
        SETTINGS, epochs=20, patience=20, fine_tune_epochs=40, fine_tune_learning_rate=0.02, target_type=0
    )
    model_config = replace(MODEL, dropout=0.0)
    holdout = hold_out_last(WALKS)
    model = train_encoder(model_config, settings, holdout, silent)
    head = fine_tune(model, model_config, replace(settings, head_weight=1.0), holdout, silent).head.eval()
    (after_a, values_a), (after_b, values_b) = read(head, model, [1]), read(head, model, [1, 2])
    assert (after_a, after_b) == (4, 1)  # everyone views and buys in turn
    assert (values_a[1], values_b[2]) == pytest.approx((2, 3), abs=0.7)  # the value of what comes next is its number


def test_the_head_learns_faster_than_the_encoder_by_its_rate():
    """Adam's first step is the learning rate, whatever the gradient is."""
    settings = replace(SETTINGS, fine_tune_epochs=1, fine_tune_learning_rate=0.001, head_rate=7.0, batch_events=1_000)
    torch.manual_seed(settings.seed)  # as `fine_tune` does
    before = BehaviorHead(MODEL).state_dict()
    torch.manual_seed(0)
    model = Encoder(MODEL)
    encoder_before = copy.deepcopy(model.state_dict())
    after = fine_tune(model, MODEL, settings, nothing_held_out(WALKS), silent).head.state_dict()
    head_moved = (after["types.bias"] - before["types.bias"]).abs().max()
    encoder_moved = (model.state_dict()["gate.bias"] - encoder_before["gate.bias"]).abs().max()
    assert head_moved / encoder_moved == pytest.approx(7.0, rel=1e-3)


@torch.inference_mode()
def read(head: BehaviorHead, model, items: list[int]) -> tuple[int, list[float]]:
    """The most likely next type after viewing and buying the items in turn, and the value of every item then."""
    count = len(items)
    query, _ = model.eval()(
        torch.tensor([items]), torch.tensor([[1, 4][:count]]), torch.zeros(1, count), torch.zeros(1, count),
        model.initial_state(1),
    )  # fmt: skip
    query = query[:, -1]
    values = head.values(query.expand(8, -1), model.item_embeddings()[1:])
    return int(head.type_logits(query).argmax()), values.tolist()


def test_fine_tuning_turns_to_the_type_that_is_wanted():
    """After a, people view b ten times and buy c once: fine-tuned on purchases, c comes before b."""
    items = np.array([1, 2] * 10 + [1, 3])
    log = Sequences(
        owners=tuple(f"user:u{n}" for n in range(11)),
        item_ids=("a", "b", "c"),
        offsets=np.arange(12, dtype=np.int64) * 2,
        items=items,
        types=np.array([1, 1] * 10 + [1, 4]),
        times=np.zeros(22),
        gaps=np.zeros(22, np.float32),
        values=np.full(22, np.nan, np.float32),
    )
    config = replace(MODEL, item_count=3, dropout=0.0)
    settings = replace(SETTINGS, epochs=30, patience=30, fine_tune_epochs=30, fine_tune_learning_rate=0.02)
    holdout = hold_out_last(log)  # too short: nothing is held back
    model = train_encoder(config, settings, holdout, silent)
    before = scores(model)
    fine_tune(model, config, replace(settings, other_weight=0.0, head_weight=0.0), holdout, silent)
    after = scores(model)
    assert before[1] > before[2]
    assert after[2] > after[1]


@torch.inference_mode()
def scores(model) -> list[float]:
    """Of every item, after an `a` that was viewed."""
    query, _ = model.eval()(
        torch.tensor([[1]]), torch.tensor([[1]]), torch.zeros(1, 1), torch.zeros(1, 1), model.initial_state(1)
    )
    return (model.item_embeddings()[1:] @ query[0, 0]).tolist()
