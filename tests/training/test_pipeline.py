import asyncio
import shutil
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from longtide_server.answers import Query
from longtide_server.catalog.catalog import ItemInfo
from longtide_server.errors import InvalidInput, Unavailable
from longtide_server.events import EventType
from longtide_server.foresight import foreseen
from longtide_server.items.item import Item
from longtide_server.ranking import Fusion
from longtide_server.snapshot import CURRENT, TRAINING, Snapshot, check_files, load_snapshot
from longtide_server.sources.candidates import Source, Transitions, TransitionSettings
from longtide_server.training import pipeline
from longtide_server.training.dataset import Sequences
from longtide_server.training.items.known_items import NOTHING_GIVEN, known_items
from longtide_server.training.learning.loop import Progress, Run
from longtide_server.training.offline import OfflineRecommender
from longtide_server.training.pipeline import Step, train_and_publish
from longtide_server.training.settings import Settings, settings_for, with_overrides
from longtide_server.training.sources import indexing
from longtide_server.training.sources.counts import count_popularity, count_transitions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, scope="module")
def anyone_judges():
    """The logs of these tests are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "MIN_TARGETS", 1)
        yield


def sequences(*words: str) -> Sequences:
    """A user a word, an item a letter; letters are numbered by falling frequency, then by the alphabet."""
    text = "".join(words)
    letters = sorted(set(text), key=lambda letter: (-text.count(letter), letter))
    lengths = [len(word) for word in words]
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(words))),
        item_ids=tuple(letters),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([letters.index(letter) + 1 for letter in text], np.int64),
        types=np.ones(len(text), np.int64),
        times=np.arange(len(text), dtype=np.float64),
        gaps=np.zeros(len(text), np.float32),
        values=np.full(len(text), np.nan, np.float32),
    )


def quick(log: Sequences) -> Settings:
    settings = settings_for(log, times_are_real=False, seed=0)
    return with_overrides(
        settings, {"model.dim": "8", "model.hidden": "8", "train.epochs": "2", "train.bfloat16": "false"}
    )


def silent(told: Progress | Step) -> None:
    pass


def published(log: Sequences, directory, infos=None, settings=None):
    train_and_publish(log, infos or {}, settings or quick(log), directory, silent)
    return load_snapshot(directory)


WALKS = sequences("abcde", "bcdef", "cdefa", "defab", "efabc", "fabcd")


def test_what_is_published_can_be_loaded_and_is_the_whole_logs(tmp_path):
    told = []
    infos = {"a": ItemInfo("Alien", ("horror",)), "z": ItemInfo("Not in the log")}
    folder = train_and_publish(WALKS, infos, quick(WALKS), tmp_path, told.append)

    assert (tmp_path / CURRENT).read_text().strip() == folder.name
    snapshot = load_snapshot(tmp_path)
    check_files(folder, snapshot.manifest)
    assert snapshot.path == folder
    assert (snapshot.manifest.user_count, snapshot.manifest.item_count, snapshot.manifest.event_count) == (6, 6, 30)
    assert snapshot.owners == WALKS.owners
    assert snapshot.catalog.item_ids == WALKS.item_ids
    assert [info.title for info in snapshot.catalog.infos] == ["Alien", "", "", "", "", ""]
    assert len(snapshot.neighbors) == 6 * 4  # of the whole log: the validation targets are learnt in the end
    assert snapshot.popularity.tolist() == count_popularity(WALKS).tolist()
    np.testing.assert_allclose(np.linalg.norm(snapshot.embeddings[1:], axis=1), 1.0, rtol=1e-5)
    assert snapshot.manifest.neighbors.recall >= indexing.REQUIRED_RECALL
    steps = [step.text for step in told if isinstance(step, Step)]
    assert (steps[0], steps[-1]) == ("Training the encoder", "Building and publishing the snapshot")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_fine_tuning_that_is_undone_is_told_and_the_refit_turns_to_everything(tmp_path, monkeypatch):
    told, tuned, refitted = [], pipeline.fine_tune, []
    monkeypatch.setattr(pipeline, "fine_tune", lambda *args: replace(tuned(*args), put_back=True))
    monkeypatch.setattr(pipeline, "refit", lambda _, tuned, *rest: refitted.append(tuned.put_back))
    settings = with_overrides(quick(WALKS), {"train.fine_tune_epochs": "1"})
    train_and_publish(WALKS, {}, settings, tmp_path, told.append)
    assert refitted == [True]
    (undone,) = (step for step in told if isinstance(step, Step) and "put back" in step.text)
    assert undone.trains  # the bar goes on


def test_only_those_who_judge_are_held_back(monkeypatch):
    monkeypatch.setattr(pipeline, "FUSION_USERS", 2)
    settings = with_overrides(quick(WALKS), {"train.validation_users": "2", "train.epochs": "1"})
    holdout = pipeline.train(WALKS, settings, silent, Run()).holdout
    assert len(holdout.users) == 2
    assert sorted(holdout.history.lengths.tolist()) == [4, 4, 5, 5, 5, 5]


def test_nothing_large_goes_where_temporary_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert published(WALKS, tmp_path).manifest.metrics


def test_the_manifest_measures_every_source_on_the_validation_targets(tmp_path):
    metrics = published(WALKS, tmp_path).manifest.metrics
    assert set(metrics) == {"fusion", "encoder", "neighbors", "transitions", "popularity"}
    assert metrics["fusion"]["ndcg@10"] >= metrics["encoder"]["ndcg@10"]
    assert metrics["transitions"] == {"hr@10": 1.0, "ndcg@10": 1.0}  # what follows is the next letter


def test_the_fusion_is_fitted_by_sources_that_know_no_target(tmp_path, monkeypatch):
    """On a ring, everyone takes three steps forward and in the end, which is held back, half a ring."""
    asked = []

    class Watched(OfflineRecommender):
        def reads(self, snapshot):
            asked.append(snapshot)
            super().reads(snapshot)

    monkeypatch.setattr(pipeline, "OfflineRecommender", Watched)
    ring = "abcdefghij" * 2
    log = sequences(*(ring[at : at + 4] + ring[at + 8] for at in range(10)))
    served = published(log, tmp_path)

    def steps(snapshot):
        """How far along the ring transitions lead."""
        places = np.array(["abcdefghij".index(name) for name in snapshot.catalog.item_ids])
        found, ends = snapshot.transitions, np.diff(snapshot.transitions.offsets)
        begins = np.repeat(np.arange(len(ends)), ends)
        return set(((places[found.items - 1] - places[begins - 1]) % 10).tolist())

    for snapshot in asked:
        assert steps(snapshot) == {1, 2, 3}
        assert len(snapshot.neighbors) == 10 * 3
    assert steps(served) == {1, 2, 3, 5, 6, 7, 8}
    assert len(served.neighbors) == 10 * 4
    assert asked


def test_how_transitions_are_counted_is_chosen_on_the_validation_targets(tmp_path, monkeypatch):
    """What follows is always the next letter; one of the two ways to count sees nothing of it."""
    ring = "abcdefghijklmnopqrst" * 2
    log = sequences(*(ring[start : start + 9] for start in range(20)))
    near, blind = TransitionSettings(3, 0.5), TransitionSettings(1, 0.0)
    monkeypatch.setattr(pipeline, "TRANSITIONS_TRIED", (blind, near))
    monkeypatch.setattr(pipeline, "count_transitions", counted_only_by(near))
    # Neither the encoder nor the neighbours are of any help.
    settings = with_overrides(quick(log), {"train.epochs": "1", "train.learning_rate": "1e-6", "max_moments": "1"})
    assert published(log, tmp_path / "chosen", settings=settings).manifest.transitions == near
    told = with_overrides(settings, {"transitions.lags": "2"})
    assert published(log, tmp_path / "told", settings=told).manifest.transitions.lags == 2


@pytest.mark.parametrize(
    ("told", "tried"),
    [
        ({}, [(5, 0.7), (20, 0.9)]),
        ({"transitions.lags": "3"}, [(3, 0.7), (3, 0.9)]),
        ({"transitions.decay": "0.3"}, [(5, 0.3), (20, 0.3)]),
        ({"transitions.decay": "0.7"}, [(5, 0.7), (20, 0.7)]),
        ({"transitions.lags": "3", "transitions.decay": "0.3"}, [(3, 0.3)]),
    ],
)
def test_how_transitions_are_counted_may_be_told_in_part(told, tried):
    ways = pipeline._tried(with_overrides(quick(WALKS), told).transitions)
    assert [(way.lags, way.decay) for way in ways] == tried


def test_a_decay_that_is_told_is_the_one_that_is_served(tmp_path):
    settings = with_overrides(quick(WALKS), {"transitions.decay": "0.3"})
    assert published(WALKS, tmp_path, settings=settings).manifest.transitions.decay == 0.3


def test_where_memory_has_no_room_for_all_candidates_some_users_judge_every_way(tmp_path, monkeypatch):
    ring = "abcdefghijklmnopqrst" * 2
    log = sequences(*(ring[start : start + 9] for start in range(20)))
    judging = []

    def line_up(told, targets, places):
        judging.append(targets.tolist())
        return line_up_all(told, targets, places)

    line_up_all = pipeline.line_up
    monkeypatch.setattr(pipeline, "line_up", line_up)
    published(log, tmp_path / "all")
    monkeypatch.setattr(pipeline, "FUSION_CANDIDATES", 60)
    assert published(log, tmp_path / "some").manifest.metrics["fusion"]
    everybody, again, some, the_same = judging
    assert everybody == again
    assert some == the_same
    assert 0 < len(some) < len(everybody)


def counted_only_by(way: TransitionSettings):
    """Counts transitions; in any other way than this one, there are none."""

    def count(log: Sequences, settings: TransitionSettings) -> Transitions:
        if settings == way:
            return count_transitions(log, settings)
        return Transitions(np.zeros(log.item_count + 2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))

    return count


def test_the_manifest_says_how_it_was_trained(tmp_path):
    settings = with_overrides(quick(WALKS), {"train.seed": "7", "neighbors.trees": "3", "transitions.lags": "2"})
    manifest = published(WALKS, tmp_path, settings=settings).manifest
    assert manifest.training["seed"] == 7
    assert manifest.model["dim"] == manifest.encoder.dim == 8
    assert manifest.model["half_lives"] == [2.0, 16.0, 128.0]
    assert manifest.encoder.state_size == settings.model.state_size
    assert (manifest.neighbors.trees, manifest.transitions.lags) == (3, 2)


def test_before_it_serves_the_encoder_learns_from_what_it_was_judged_by(tmp_path):
    judged_only, refitted = (
        published(WALKS, tmp_path / epochs, settings=with_overrides(quick(WALKS), {"train.refit_epochs": epochs}))
        for epochs in ("0", "1")
    )
    assert judged_only.manifest.metrics == refitted.manifest.metrics  # measured before
    assert not np.array_equal(judged_only.embeddings, refitted.embeddings)


def test_what_a_kill_while_weights_are_sought_leaves_goes_with_the_checkpoints(tmp_path, monkeypatch):
    """It holds an index of all moments: nobody must find a dozen of them after a dozen kills."""
    found, fits = [], pipeline._fits

    async def seen(directory, *rest):
        found.append(directory.parent.name)
        return await fits(directory, *rest)

    monkeypatch.setattr(pipeline, "_fits", seen)
    published(WALKS, tmp_path)
    assert [name[: len(TRAINING)] for name in found] == [TRAINING]
    assert not list(tmp_path.glob(f"{TRAINING}*"))


def test_publishing_again_puts_the_new_snapshot_beside_the_old(tmp_path):
    first = train_and_publish(WALKS, {}, quick(WALKS), tmp_path, silent)
    second = train_and_publish(WALKS, {}, quick(WALKS), tmp_path, silent)
    assert first != second
    assert load_snapshot(tmp_path).path == second
    assert load_snapshot(first).path == first


def test_one_seed_gives_one_snapshot(tmp_path):
    first, second = (published(WALKS, tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert first.manifest.files["positions.ann"] == second.manifest.files["positions.ann"]
    assert first.manifest.fusion == second.manifest.fusion


@pytest.mark.parametrize(
    "log",
    [
        sequences("abcd"),
        sequences("aaaa"),
        sequences("aaa", "aaaa"),
        sequences("abc", "xyz"),
        sequences("ab", "ba"),
        sequences("ab", "c", "d"),
    ],
    ids=["one user", "one user and one item", "one item", "nothing in common", "too short to hold back", "few of many"],
)
def test_the_smallest_logs_are_published(log, tmp_path):
    snapshot = published(log, tmp_path)
    assert snapshot.catalog.item_ids == log.item_ids
    assert len(snapshot.neighbors) == int(np.maximum(log.lengths - 1, 0).sum())


def test_where_nothing_can_be_held_back_the_manifest_measures_nothing(tmp_path):
    assert published(sequences("ab", "ba"), tmp_path).manifest.metrics == {}


def test_too_few_targets_choose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "MIN_TARGETS", len(WALKS.owners) + 1)
    told = []
    train_and_publish(WALKS, {}, quick(WALKS), tmp_path, told.append)
    manifest = load_snapshot(tmp_path).manifest
    assert (manifest.fusion, manifest.metrics) == (Fusion(), {})
    epochs = [progress for progress in told if isinstance(progress, Progress) and progress.finished]
    assert {progress.ndcg for progress in epochs} == {None}


def test_targets_that_no_history_holds_choose_nothing(tmp_path):
    """Everybody's last item is theirs alone."""
    log = sequences("abcx", "bcay", "cabz")
    assert published(log, tmp_path).manifest.metrics == {}


def test_a_log_of_repeats_is_judged_by_what_was_new(tmp_path):
    doubled = sequences(*("".join(letter * 2 for letter in word) for word in ("abcde", "bcdef", "cdefa", "defab")))
    assert published(doubled, tmp_path).manifest.metrics["transitions"]["hr@10"] == 1.0


def test_dislikes_alone_say_nothing_of_what_people_want(tmp_path):
    disliked = replace(WALKS, types=np.full(len(WALKS.items), EventType.DISLIKE))
    with pytest.raises(InvalidInput, match="dislikes only"):
        published(disliked, tmp_path)


def test_what_is_disliked_is_recommended_to_nobody_who_has_not_met_it(tmp_path):
    """Everyone on the way from a to e dislikes d, which comes after c."""
    log = sequences(*["abcde"] * 6, *["abc"] * 2)
    log = replace(log, types=np.where(log.items == log.item_ids.index("d") + 1, EventType.DISLIKE, EventType.VIEW))
    snapshot = published(log, tmp_path, settings=with_overrides(quick(log), {"train.epochs": "20"}))
    assert asyncio.run(lists(snapshot, log, ["u6", "u7"])) == [["e", "d"]] * 2


async def lists(snapshot: Snapshot, log: Sequences, user_ids: list[str]) -> list[list[str]]:
    """Two items for each user."""
    offline = OfflineRecommender(snapshot, log)
    try:
        answers = [answer async for answer in offline.answers([Query(user_id, 2) for user_id in user_ids])]
    finally:
        await offline.close()
    return [[item.item_id for item in answer.recommendations] for answer in answers]


def test_what_is_published_foresees_the_next_behaviour(tmp_path):
    """Everyone views and buys in turn; what they buy is worth its letter's place in the alphabet."""
    log = sequences("abcd", "abcde", *["abcdefghij"] * 8)
    types = np.array([EventType.VIEW, EventType.PURCHASE])[np.concatenate([np.arange(n) % 2 for n in log.lengths])]
    log = replace(log, types=types, values=np.where(types == EventType.PURCHASE, log.items, np.nan).astype(np.float32))
    more = {"train.fine_tune_epochs": "15", "train.fine_tune_learning_rate": "0.02", "train.batch_events": "12"}
    more |= {"train.head_weight": "1", "model.dropout": "0"}
    snapshot = published(log, tmp_path, settings=with_overrides(quick(log), more))
    bought, viewed = (foreseen(snapshot, query, ["b", "f"], "") for query in asyncio.run(queries(snapshot, log)))
    assert (bought.types[0][0], viewed.types[0][0]) == (EventType.VIEW, EventType.PURCHASE)
    places = {item: snapshot.catalog.number(item) for item in "bf"}
    assert dict(viewed.values)["f"] == pytest.approx(places["f"], abs=0.7)
    assert set(dict(bought.values)) == set(places)


async def queries(snapshot: Snapshot, log: Sequences):
    """Of somebody who has just bought, and of somebody who has just viewed."""
    offline = OfflineRecommender(snapshot, log)
    try:
        return await offline.queries(["user:u0", "user:u1"])
    finally:
        await offline.close()


def test_without_a_user_with_two_events_there_is_nothing_to_learn(tmp_path):
    log = sequences("a", "b", "c")
    with pytest.raises(InvalidInput, match="no user of the log has two events"):
        train_and_publish(log, {}, quick(log), tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_an_index_that_misses_too_much_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "REQUIRED_RECALL", 1.1)
    with pytest.raises(InvalidInput, match=r"finds 1\.000 of the true neighbours, .* 1\.1 is required.*trees=40"):
        train_and_publish(WALKS, {}, quick(WALKS), tmp_path, silent)
    (kept,) = tmp_path.iterdir()  # the training is not lost: the next one, with more trees, takes it up
    assert kept.name.startswith(".training-")


def test_a_search_looks_ever_further_up_to_everything():
    assert [*indexing._search_ks(0)] == [*indexing._search_ks(500)] == [500]
    assert [*indexing._search_ks(3_000)] == [500, 1_000, 2_000, 4_000]


def test_an_index_that_the_disk_has_no_room_for_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    with pytest.raises(Unavailable, match="the neighbour index needs"):
        train_and_publish(WALKS, {}, quick(WALKS), tmp_path, silent)


def test_what_items_share_is_published_and_measured_as_a_source(tmp_path):
    infos = {letter: ItemInfo(facts=(("half", "first" if letter < "d" else "last"),)) for letter in "abcdef"}
    snapshot = published(WALKS, tmp_path, infos=infos)
    assert snapshot.relations.votes(np.array([snapshot.catalog.number("a")]), 1.0).items.tolist() == [2, 3]  # b and c
    assert 0 < snapshot.manifest.metrics["relations"]["hr@10"] <= 1


# Items without events


KINDS = sequences(*("abcdefgh"[start:] + "abcdefgh"[:start] for start in range(8)),
                  *("stuvwxyz"[start:] + "stuvwxyz"[:start] for start in range(8)))  # fmt: skip
TAGS = {letter: ItemInfo(tags=("early" if letter < "m" else "late",)) for letter in "abcdefghstuvwxyz"}
NEW = {"EARLY": ItemInfo("Early", tags=("early",)), "LATE": ItemInfo("Late", tags=("late",)), "NONE": ItemInfo("None")}


@pytest.fixture(scope="module")
def with_new_items(tmp_path_factory):
    """Two kinds of letters, each liked by people of its own, and new items of which tags say the kind."""
    directory = tmp_path_factory.mktemp("new")
    settings = with_overrides(quick(KINDS), {"train.epochs": "12", "train.learning_rate": "0.02"})
    known = known_items(KINDS.item_ids, TAGS | NEW, NOTHING_GIVEN, "none", pytest.fail)
    train_and_publish(KINDS, TAGS | NEW, settings, directory, silent, known)
    return load_snapshot(directory)


def test_items_without_events_are_published_behind_the_others_with_vectors_from_their_content(with_new_items):
    snapshot = with_new_items
    assert snapshot.catalog.item_ids == (*KINDS.item_ids, "EARLY", "LATE")  # of NONE nothing is known that was learned
    assert (snapshot.manifest.item_count, snapshot.manifest.new_item_count) == (16, 2)
    assert snapshot.catalog.info(17).title == "Early"
    assert snapshot.embeddings.shape == (19, 8)
    assert snapshot.popularity[17:].tolist() == [0.0, 0.0]
    assert len(snapshot.transitions.offsets) == 20
    assert snapshot.transitions.offsets[17:].tolist() == [len(snapshot.transitions.items)] * 3
    for number, name in ((17, "EARLY"), (18, "LATE")):
        vector = snapshot.content.item_vector(Item("another", tags=NEW[name].tags), None)
        np.testing.assert_allclose(snapshot.embeddings[number], vector, atol=1e-6)
        np.testing.assert_array_equal(snapshot.content_vectors[number], snapshot.embeddings[number])


def test_what_content_makes_of_known_items_is_published_too(with_new_items):
    snapshot = with_new_items
    assert snapshot.content_vectors.shape == snapshot.embeddings.shape
    for number, letter in enumerate(KINDS.item_ids, 1):
        vector = snapshot.content.item_vector(Item("another", tags=TAGS[letter].tags), None)
        np.testing.assert_allclose(snapshot.content_vectors[number], vector, atol=1e-5)


async def test_items_without_events_are_recommended_to_those_whom_they_suit(with_new_items):
    offline = OfflineRecommender(with_new_items, KINDS)
    try:
        early, late = [answer async for answer in offline.answers([Query("u0"), Query("u15")])]
        ranked = [order async for order in offline.ranked([Query("u0"), Query("u15")], ["LATE", "EARLY"])]
    finally:
        await offline.close()
    # Everybody has had all the letters of their kind.
    assert early.recommendations[0].item_id == "EARLY"
    assert late.recommendations[0].item_id == "LATE"
    assert early.recommendations[0].sources[0][0] in {Source.ENCODER, Source.CONTENT}
    assert [[item.item_id for item in order] for order in ranked] == [["EARLY", "LATE"], ["LATE", "EARLY"]]


async def test_who_touches_an_item_without_events_is_understood(with_new_items):
    log = replace(sequences("L"), owners=("user:new",), item_ids=("LATE",))
    offline = OfflineRecommender(with_new_items, log)
    try:
        (answer,) = [answer async for answer in offline.answers([Query("new", 8)])]
    finally:
        await offline.close()
    assert {item.item_id for item in answer.recommendations} == set("stuvwxyz")


def test_where_every_known_item_has_events_nothing_is_new(tmp_path):
    known = known_items(KINDS.item_ids, TAGS, NOTHING_GIVEN, "none", pytest.fail)
    train_and_publish(KINDS, TAGS, quick(KINDS), tmp_path, silent, known)
    snapshot = load_snapshot(tmp_path)
    assert snapshot.catalog.item_ids == KINDS.item_ids
    assert snapshot.content.item_vector(Item("another", tags=("early",)), None).shape == (8,)


def test_what_content_is_worth_as_a_source_is_measured_on_the_validation_targets(with_new_items):
    manifest = with_new_items.manifest
    assert 0 < manifest.metrics["content"]["hr@10"] <= 1
    assert manifest.fusion.content >= 0
    assert manifest.metrics["fusion"]["ndcg@10"] >= manifest.metrics["encoder"]["ndcg@10"]


def test_without_content_a_snapshot_has_no_tower(tmp_path):
    snapshot = published(WALKS, tmp_path, infos=TAGS)
    assert snapshot.content is None
    assert snapshot.manifest.new_item_count == 0


def test_a_log_with_every_input_is_published(tmp_path):
    count = len(WALKS.items)
    log = replace(
        WALKS,
        types=np.arange(count) % 3 + 1,
        gaps=np.linspace(0, 1e6, count, dtype=np.float32),
        values=np.arange(count, dtype=np.float32) % 5,
    )
    settings = settings_for(log, times_are_real=True, seed=0)
    settings = with_overrides(
        settings, {"model.dim": "8", "model.hidden": "8", "train.epochs": "1", "train.bfloat16": "false"}
    )
    model = published(log, tmp_path, settings=settings).manifest.model
    assert (model["use_types"], model["use_gaps"], model["use_values"]) == (True, True, True)
