from dataclasses import replace

import numpy as np
import pytest
import torch

from longtide_server.errors import InvalidInput
from longtide_server.events import EventType
from longtide_server.training import settings as settings_module
from longtide_server.training.dataset import Sequences
from longtide_server.training.settings import Settings, setting_names, settings_for, with_overrides

NAN = float("nan")


def log(users: int, events_each: int, items: int = 50) -> Sequences:
    count = users * events_each
    return Sequences(
        owners=tuple(f"user:{n}" for n in range(users)),
        item_ids=tuple(str(n) for n in range(items)),
        offsets=np.arange(users + 1) * events_each,
        items=np.arange(count) % items + 1,
        types=np.full(count, EventType.VIEW, np.int64),
        times=np.arange(count, dtype=np.float64),
        gaps=np.zeros(count, np.float32),
        values=np.full(count, NAN, np.float32),
    )


def chosen(sequences: Sequences, times_are_real: bool = True, seed: int = 0) -> Settings:
    return settings_for(sequences, times_are_real=times_are_real, seed=seed)


SETTINGS = chosen(log(users=10, events_each=5))


# What the log decides


def test_a_dense_log_gets_a_deep_encoder_and_little_dropout():
    model = chosen(log(users=10_000, events_each=20)).model
    assert (model.blocks, model.dropout) == (2, 0.2)


def test_a_sparse_log_gets_a_shallow_encoder_and_much_dropout():
    model = chosen(log(users=10_000, events_each=19)).model
    assert (model.blocks, model.dropout) == (1, 0.5)


def crawled(events: int) -> Sequences:
    """A thousand users with three events each, but for one who has so many."""
    lengths = np.where(np.arange(1_000) == 7, events, 3)
    return replace(
        log(users=1, events_each=int(lengths.sum())),
        owners=tuple(f"user:{n}" for n in range(1_000)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )


def test_a_crawler_does_not_make_a_log_dense():
    assert len(crawled(40_000).items) / 1_000 > 40
    assert chosen(crawled(40_000)).model == chosen(log(users=10_000, events_each=3)).model


def test_embeddings_of_items_that_are_seldom_met_learn_faster():
    assert chosen(log(users=1_000, events_each=5, items=50)).train.item_rate == 1.0
    assert chosen(log(users=1_000, events_each=5, items=51)).train.item_rate > 1.0


def test_a_crawler_does_not_make_items_often_met():
    assert len(crawled(40_000).items) / 50 > 100
    assert chosen(crawled(40_000)).train.item_rate == chosen(crawled(3)).train.item_rate > 1.0


def test_a_small_dense_log_gets_narrow_vectors():
    narrow, wide = (chosen(log(users=1_000, events_each=each)).model for each in (199, 200))
    assert narrow.dim < wide.dim


def test_a_sparse_log_is_refitted_longer_and_faster():
    """What validation holds back is a large part of it."""
    dense, sparse = (chosen(log(users=10_000, events_each=each)).train for each in (20, 5))
    assert sparse.refit_epochs > dense.refit_epochs
    assert sparse.refit_learning_rate == sparse.learning_rate > dense.refit_learning_rate


def test_a_large_catalogue_is_learnt_from_a_sample():
    assert chosen(log(users=10, events_each=5, items=30_000)).train.negatives == 0
    assert chosen(log(users=10, events_each=5, items=30_001)).train.negatives == 4_096


def test_fine_tuning_needs_types_or_values():
    views = log(users=2, events_each=50)
    assert chosen(views).train.fine_tune_epochs == 0
    rated = replace(views, values=np.arange(100, dtype=np.float32) % 5)
    assert chosen(rated).train.fine_tune_epochs > 0
    bought = replace(views, types=np.array([EventType.VIEW] * 99 + [EventType.PURCHASE]))
    assert chosen(bought).train.fine_tune_epochs > 0


def test_a_dense_log_with_values_learns_them_with_the_items_at_full_speed():
    def rated(log):
        return replace(log, values=np.arange(len(log.items), dtype=np.float32) % 5)

    plain, dense, sparse = log(100, 20), rated(log(100, 20)), rated(log(100, 19))
    assert chosen(dense).train.fine_tune_learning_rate == chosen(dense).train.learning_rate
    assert chosen(dense).train.fine_tune_epochs > chosen(dense).train.epochs
    assert chosen(dense).train.epochs < chosen(plain).train.epochs
    assert chosen(sparse).train.fine_tune_learning_rate < chosen(sparse).train.learning_rate
    assert chosen(sparse).train.head_weight < chosen(dense).train.head_weight


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        ([EventType.VIEW] * 100, 0),
        ([EventType.PURCHASE] * 100, 0),
        ([EventType.VIEW] * 90 + [EventType.ADD_TO_CART] * 9 + [EventType.PURCHASE], EventType.PURCHASE),
        ([EventType.VIEW] * 99 + [EventType.ADD_TO_CART], EventType.ADD_TO_CART),
        ([EventType.VIEW] * 50 + [EventType.CLICK] * 50, 0),
    ],
    ids=["one type", "one type, the most wanted", "purchases", "no purchases", "none that is wanted more"],
)
def test_the_wanted_type_is_the_strongest_that_is_common_enough(types, wanted):
    views = log(users=2, events_each=50)
    assert chosen(replace(views, types=np.array(types))).train.target_type == wanted


def test_a_type_that_is_too_rare_is_not_the_wanted_one():
    views = log(users=2, events_each=100)
    rare = np.array([EventType.VIEW] * 199 + [EventType.PURCHASE])
    assert chosen(replace(views, types=rare)).train.target_type == 0


def test_the_catalogue_is_the_logs_and_the_seed_the_callers():
    settings = chosen(log(users=3, events_each=3, items=77), seed=5)
    assert settings.model.item_count == 77
    assert settings.train.seed == 5


def test_a_long_log_gets_large_batches():
    assert chosen(log(users=10, events_each=10)).train.batch_events == 896
    assert chosen(log(users=1_000, events_each=220)).train.batch_events == 1_000  # 220 steps an epoch
    assert chosen(log(users=1_000, events_each=2_000)).train.batch_events == 2_048


@pytest.mark.parametrize(
    ("facts", "faster"),
    [("flags : fpu amx_bf16 amx_int8", True), ("flags : avx512f avx512_bf16", True), ("flags : fpu avx2", False),
     (None, False)],
)  # fmt: skip
def test_bfloat16_is_chosen_where_the_processor_multiplies_in_it(facts, faster, tmp_path, monkeypatch):
    if facts is not None:
        (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr(settings_module, "CPU_FACTS", tmp_path / "cpuinfo")
    monkeypatch.setattr(settings_module, "best_device", lambda: torch.device("cpu"))
    assert settings_for(log(5, 5), times_are_real=True, seed=0).train.bfloat16 is faster


def test_types_are_an_input_where_there_is_more_than_one():
    views = log(users=2, events_each=3)
    assert not chosen(views).model.use_types
    mixed = replace(views, types=np.array([EventType.VIEW] * 5 + [EventType.PURCHASE]))
    assert chosen(mixed).model.use_types


@pytest.mark.parametrize("real", [True, False])
def test_gaps_are_an_input_where_times_are_times(real):
    assert chosen(log(users=2, events_each=3), times_are_real=real).model.use_gaps is real


def test_values_are_an_input_where_they_differ():
    views = log(users=2, events_each=3)
    assert not chosen(views).model.use_values
    assert not chosen(replace(views, values=np.array([4, NAN, 4, NAN, 4, 4], np.float32))).model.use_values
    model = chosen(replace(views, values=np.array([1, NAN, 5, NAN, NAN, NAN], np.float32))).model
    assert (model.use_values, model.value_mean, model.value_std) == (True, 3.0, 2.0)


def test_values_however_large_have_a_mean_and_a_deviation():
    huge = replace(log(users=1, events_each=4), values=np.array([1e38, 3e38, 3e38, 1e38], np.float32))
    model = chosen(huge).model
    assert (model.value_mean, model.value_std) == (pytest.approx(2e38), pytest.approx(1e38))


def test_one_slip_among_thousands_of_values_changes_nothing():
    views = log(users=2, events_each=1_000)
    values = np.tile(np.array([1, 5], np.float32), 1_000)
    values[7] = 3e38
    model = chosen(replace(views, values=values)).model
    assert (model.value_mean, model.value_std) == (pytest.approx(3.0, abs=0.01), pytest.approx(2.0, abs=0.01))


# Overrides


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.dim", "32", 32),
        ("model.dropout", "0.25", 0.25),
        ("model.use_gaps", "FALSE", False),
        ("model.half_lives", "1,8.5", (1.0, 8.5)),
        ("train.epochs", "3", 3),
        ("train.learning_rate", "1e-4", 1e-4),
        ("train.bfloat16", "true", True),
        ("neighbors.trees", "50", 50),
        ("neighbors.min_similarity", "-0.5", -0.5),
        ("transitions.lags", "2", 2),
        ("transitions.decay", "0.9", 0.9),
    ],
)
def test_every_group_can_be_overridden(name, text, value):
    group, _, key = name.partition(".")
    changed = with_overrides(SETTINGS, {name: text})
    assert getattr(getattr(changed, group), key) == value
    assert changed == replace(SETTINGS, **{group: replace(getattr(SETTINGS, group), **{key: value})})


def test_a_setting_without_a_group_can_be_overridden():
    assert with_overrides(SETTINGS, {"max_moments": "123"}) == replace(SETTINGS, max_moments=123)


def test_overrides_add_up():
    changed = with_overrides(SETTINGS, {"train.epochs": "3", "train.patience": "1", "model.dim": "8"})
    assert (changed.train.epochs, changed.train.patience, changed.model.dim) == (3, 1, 8)


@pytest.mark.parametrize("name", ["epochs", "train.epoch", "trains.epochs", "train.", ".epochs", "", "max_moments.x"])
def test_an_unknown_setting_is_named(name):
    with pytest.raises(InvalidInput, match="there is no such setting") as caught:
        with_overrides(SETTINGS, {name: "1"})
    assert caught.value.violations[0].field == name


@pytest.mark.parametrize("name", ["model", "train", "neighbors", "transitions"])
def test_a_whole_group_is_no_setting(name):
    with pytest.raises(InvalidInput, match=name):
        with_overrides(SETTINGS, {name: "5"})


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("train.epochs", "many", "'many' is not a int"),
        ("train.epochs", "2.5", "'2.5' is not a int"),
        ("train.epochs", "", "'' is not a int"),
        ("model.dropout", "half", "'half' is not a float"),
        ("train.bfloat16", "yes", "'yes' is not a bool"),
        ("model.half_lives", "1,x", "'1,x' is not a"),
        ("model.half_lives", "2", "'2' is not 2 numbers or more, the smallest first"),
        ("model.half_lives", "128,2", "'128,2' is not 2 numbers or more, the smallest first"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(name, text, complaint):
    with pytest.raises(InvalidInput, match=f"^{name}: {complaint}"):
        with_overrides(SETTINGS, {name: text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.epochs", "-1"),
        ("train.chunk", "0"),  # would never end
        ("train.learning_rate", "nan"),
        ("train.learning_rate", "-1"),
        ("model.dim", "0"),
        ("model.blocks", "0"),
        ("model.dropout", "1.0"),
        ("model.temperature", "0"),
        ("model.half_lives", "0"),
        ("model.value_std", "0"),
        ("model.item_count", "3"),  # the log says how many there are
        ("neighbors.trees", "0"),
        ("neighbors.count", "0"),
        ("neighbors.temperature", "0"),
        ("transitions.lags", "-1"),
        ("transitions.decay", "-1"),
    ],
)
def test_a_value_out_of_its_range_is_named(name, text):
    """The fields' own docstrings say the ranges; what is outside them fails late, never, or trains nonsense."""
    with pytest.raises(InvalidInput, match=name):
        with_overrides(SETTINGS, {name: text})


# The list that --show-settings prints


def test_every_setting_is_listed_with_its_value():
    names = setting_names(SETTINGS)
    assert "max_moments=1000000" in names
    assert f"train.epochs={SETTINGS.train.epochs}" in names
    assert {name.partition(".")[0] for name in names[1:]} == {"model", "train", "neighbors", "transitions"}


@pytest.mark.parametrize("line", setting_names(SETTINGS))
def test_a_listed_line_can_be_given_back(line):
    name, _, text = line.partition("=")
    if name == "model.item_count":
        return  # listed, but the log's
    assert with_overrides(SETTINGS, {name: text}) == SETTINGS
