"""Measures a log: hold targets back, train on the rest, and compare with popularity and item transitions.

Every item of the history's catalogue is ranked, less those that the user had, unless what was seen is included. The tie
rule is one for every way to recommend: of equal scores the smaller item number is first, and numbers go by events in
the history, then by id, so the item with more events in the history is first, and of equally many the smaller id. A
target that the history does not hold cannot be recommended and is a miss.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.errors import InvalidInput
from longtide_server.events import EVENT_TYPE_NAMES
from longtide_server.snapshot import Snapshot, load_snapshot
from longtide_server.sources.behavior import BehaviorWeights, predicted_value, type_probability
from longtide_server.training.dataset import Holdout, Sequences, hold_out_after, hold_out_last, without_hindsight
from longtide_server.training.items.known_items import KnownItems
from longtide_server.training.judging.baselines import had_lists, popularity_lists, transition_lists
from longtide_server.training.judging.bias import PopularityBias, popularity_bias
from longtide_server.training.judging.slices import (
    HISTORY_LENGTHS,
    Range,
    Slice,
    doubling_lengths,
    members,
    target_popularities,
)
from longtide_server.training.learning.content import Content
from longtide_server.training.metrics import NOT_RANKED, coverage_at_k, hr_at_k, mrr_at_k, ndcg_at_k
from longtide_server.training.offline import OfflineRecommender, query_of
from longtide_server.training.pipeline import MIN_EVENTS, Report, train_and_publish
from longtide_server.training.settings import Settings

Split = Literal["leave-one-out", "temporal"]
CUTS = (5, 10, 20)
SHOWN = 10
"""How many items of a list count as shown, for coverage and for popularity bias."""
TEMPORAL_SHARE = 0.9
ITEM_SHRINKAGE, USER_SHRINKAGE = 25.0, 10.0


@dataclass(frozen=True, slots=True)
class Slices:
    """The same users, in four ways. A slice that nobody is in is left out."""

    history_length: tuple[Slice, ...]
    """cold, short, medium, long; `low` and `high` are events in the history."""
    target_popularity: tuple[Slice, ...]
    """head, mid, tail, new; `low` and `high` are ranks by popularity in the history, 0 for new items."""
    outcome: tuple[Slice, ...]
    """By what they did with the target, then or later: who viewed and bought it is in both. `low` and `high` are the
    type's number."""
    history_length_doubling: tuple[Slice, ...]
    """Finer, for a curve; `low` and `high` are events in the history."""


@dataclass(frozen=True, slots=True)
class BehaviorMetrics:
    """How well type and value of the event right after the history are foreseen, of the users who have a target and
    whose next item the history's catalogue holds."""

    type_accuracy: float
    """Share of the events whose type is the most probable one."""
    type_accuracy_most_frequent: float
    """What naming the history's most frequent type reaches."""
    valued_events: int
    """How many of them have a value."""
    value_mae: float | None
    """Mean absolute error of the predicted value; None where none has a value."""
    value_mae_user_median: float | None
    """What the median of the user's earlier values reaches, or of all values where the user has none; None where
    nobody had a value before."""
    value_mae_biases: float | None
    """What the mean with the user's and the item's bias reaches (`_biases`); None where nobody had a value before."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `longtide evaluate --json` prints.

    Ways to recommend are `longtide`, `longtide_timed` (the same, told when the target happened; where the log has real
    times), `transitions` and `popularity`; where what was seen is included, `unseen` (without it) and `had` (what the
    user had most often) take the place of `longtide_timed`.
    """

    users: int
    """How many have a target."""
    overall: dict[str, dict[str, float]]
    """Metrics of all users, by way, then by name, for example `ndcg@10`."""
    popularity_bias: dict[str, PopularityBias | None]
    """By way; None where no user has a history."""
    slices: Slices
    behavior: BehaviorMetrics | None = None
    """Of Longtide; None where the log has neither types nor values to learn."""


def hold_out(sequences: Sequences, split: Split, *, times_are_real: bool = True, include_seen: bool = False) -> Holdout:
    """Targets of a split: what was new to everyone last, or first after the time at which 90 % had happened; with
    `include_seen`, what they chose then, new or not.

    The history knows nothing of what was held back, not even that an item will exist. InvalidInput where nobody has a
    target or two events of history, and where times are to divide a log that has none, or that begins with most of it.
    """
    if split == "leave-one-out":
        holdout = hold_out_last(sequences, MIN_EVENTS, include_seen=include_seen)
    elif not times_are_real:
        raise InvalidInput(
            "the times of this log are all equal, or count events: no moment divides it; leave-one-out does"
        )
    else:
        holdout = hold_out_after(sequences, _moment(sequences.times), include_seen=include_seen)
    if not len(holdout.users):
        raise InvalidInput(f"the {split} split of this log leaves no user with a target to be measured by")
    if not (holdout.history.lengths >= 2).any():
        raise InvalidInput(f"the {split} split of this log leaves nobody with two events to learn from")
    return without_hindsight(holdout)


def _moment(times: NDArray[np.float64]) -> float:
    """The time, in seconds, at which 90 % of the events (N,) had happened. InvalidInput where none is before it."""
    moment_s = float(np.quantile(times, TEMPORAL_SHARE))
    if not (times < moment_s).any():
        shared = float((times <= moment_s).mean())
        raise InvalidInput(
            f"{shared:.0%} of the events of this log share its first moment, which is where the temporal split would "
            "cut: nothing is before it to learn from; leave-one-out needs no moment"
        )
    return moment_s


def evaluate(
    holdout: Holdout,
    infos: Mapping[str, ItemInfo],
    settings: Settings,
    report: Report,
    content: Content | None = None,
    *,
    include_seen: bool = False,
) -> Evaluation:
    """Longtide, transitions and popularity on the same targets, full ranking; items of the history removed, unless
    `include_seen`.

    settings: for the history, which may hold less items than the log; content: of the history's items.
    """
    with tempfile.TemporaryDirectory(prefix="longtide-evaluate-") as scratch:
        train_and_publish(holdout.history, infos, settings, Path(scratch), report, KnownItems(content))
        snapshot = load_snapshot(Path(scratch))
        longtide, behavior = asyncio.run(_recommend(snapshot, holdout, include_seen))
    ways = snapshot.manifest.transitions  # whichever way to count them was better on validation data
    lists = {
        **longtide,
        "transitions": transition_lists(holdout.history, holdout.users, ways, max(CUTS), include_seen=include_seen),
        "popularity": popularity_lists(holdout.history, holdout.users, max(CUTS), include_seen=include_seen),
    }
    if include_seen:
        lists["had"] = had_lists(holdout.history, holdout.users, max(CUTS))
    return replace(compare(lists, holdout), behavior=behavior)


def compare(lists: Mapping[str, NDArray[np.int64]], holdout: Holdout) -> Evaluation:
    """Measure the lists (V, 20) of every way, over all users and by slice."""
    history, users = holdout.history, holdout.users
    lengths = history.lengths[users]  # (V,)

    def metrics(rows: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
        return {way: measure(items[rows], holdout.targets[rows], history.item_count) for way, items in lists.items()}

    def slices(numbers: NDArray[np.int64], ranges: tuple[Range, ...]) -> tuple[Slice, ...]:
        return tuple(
            Slice(part.name, part.low, part.high, int(rows.sum()), metrics(rows))
            for part, rows in members(numbers, ranges)
        )

    of_outcomes = tuple(
        Slice(name, number, number, int(rows.sum()), metrics(rows))
        for name, number in EVENT_TYPE_NAMES.items()
        if (rows := holdout.outcomes[:, number]).any()
    )
    return Evaluation(
        users=len(users),
        overall=metrics(np.ones(len(users), bool)),
        popularity_bias={way: popularity_bias(items, users, history, SHOWN) for way, items in lists.items()},
        slices=Slices(
            history_length=slices(lengths, HISTORY_LENGTHS),
            target_popularity=slices(holdout.targets, target_popularities(history.item_count)),
            outcome=of_outcomes,
            history_length_doubling=slices(lengths, doubling_lengths(int(lengths.max()))),
        ),
    )


def measure(items: NDArray[np.int64], targets: NDArray[np.int64], item_count: int) -> dict[str, float]:
    """HR, NDCG and MRR at 5, 10 and 20 of lists (V, 20), and the share of the catalogue that their first 10 show.

    In a list, 0 is an empty place; as a target (V,), 0 is an item that the catalogue does not hold.
    """
    hit = (items == targets[:, None]) & (items > 0)
    ranks = np.where(hit.any(axis=1), hit.argmax(axis=1), NOT_RANKED)
    metrics: dict[str, float] = {}
    for k in CUTS:
        metrics |= {f"hr@{k}": hr_at_k(ranks, k), f"ndcg@{k}": ndcg_at_k(ranks, k), f"mrr@{k}": mrr_at_k(ranks, k)}
    metrics[f"coverage@{SHOWN}"] = coverage_at_k(np.where(items > 0, items, -1), SHOWN, item_count)
    return {name: round(value, 4) for name, value in metrics.items()}


async def _recommend(
    snapshot: Snapshot, holdout: Holdout, include_seen: bool
) -> tuple[dict[str, NDArray[np.int64]], BehaviorMetrics | None]:
    """The lists (V, 20) by way, and how well the behaviour was foreseen."""
    offline = OfflineRecommender(snapshot, holdout.history)
    try:
        owners = [holdout.history.owners[user] for user in holdout.users]
        asked = {"longtide": [query_of(owner, max(CUTS), include_seen=include_seen) for owner in owners]}
        if snapshot.request_time is not None and not include_seen:
            times = zip(asked["longtide"], holdout.times.tolist(), strict=True)
            asked["longtide_timed"] = [replace(query, request_time_s=time_s) for query, time_s in times]
        if include_seen:
            asked["unseen"] = [replace(query, include_seen=False) for query in asked["longtide"]]
        lists = {way: await offline.lists(queries, max(CUTS)) for way, queries in asked.items()}
        queries = await offline.queries(owners) if snapshot.behavior else None
    finally:
        await offline.close()
    behavior = None
    if snapshot.behavior is not None and queries is not None:
        behavior = behavior_metrics(snapshot.behavior, queries, snapshot.embeddings, holdout)
    return lists, behavior


def behavior_metrics(
    weights: BehaviorWeights, queries: NDArray[np.float32], embeddings: NDArray[np.float32], holdout: Holdout
) -> BehaviorMetrics | None:
    """What the head says of users with query vectors (V, D), next to what they did; embeddings (I + 1, D)."""
    known = np.flatnonzero(holdout.next_items > 0)
    if not len(known):
        return None
    types = type_probability(weights, queries[known]).argmax(axis=1)
    frequent = np.bincount(holdout.history.types).argmax()
    valued = known[~np.isnan(holdout.next_values[known])]
    error = median = biases = None
    if len(valued):
        predicted = predicted_value(weights, queries[valued], embeddings[holdout.next_items[valued]])
        error = round(float(np.abs(predicted - holdout.next_values[valued]).mean()), 4)
    if len(valued) and not np.isnan(holdout.history.values).all():
        median, biases = (
            round(float(np.abs(known_before(holdout, valued) - holdout.next_values[valued]).mean()), 4)
            for known_before in (_user_medians, _biases)
        )
    return BehaviorMetrics(
        type_accuracy=round(float((types == holdout.next_types[known]).mean()), 4),
        type_accuracy_most_frequent=round(float((frequent == holdout.next_types[known]).mean()), 4),
        valued_events=len(valued),
        value_mae=error,
        value_mae_user_median=median,
        value_mae_biases=biases,
    )


def _user_medians(holdout: Holdout, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) the median of the earlier values of the users of these rows, or of all where one has none."""
    history = holdout.history
    every = history.values.astype(np.float64)  # between two large ones, 32 bits have no mean
    everyone = np.nanmedian(every)
    medians = []
    for user in holdout.users[rows]:
        values = every[history.of(user)]
        medians.append(everyone if np.isnan(values).all() else np.nanmedian(values))
    return np.array(medians, np.float64)


def _biases(holdout: Holdout, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) the mean of all values, with how far the next item's and then the user's are from it, shrunken towards
    none: the baseline of Koren, "Factor in the Neighbors" (TKDD 2010), with its constants."""
    history = holdout.history
    there = ~np.isnan(history.values)
    values, items = history.values[there].astype(np.float64), history.items[there]
    users = np.repeat(np.arange(history.user_count), history.lengths)[there]
    mean = float(values.mean())
    of_item = _shrunken(values - mean, items, history.item_count + 1, ITEM_SHRINKAGE)
    of_user = _shrunken(values - mean - of_item[items], users, history.user_count, USER_SHRINKAGE)
    return mean + of_item[holdout.next_items[rows]] + of_user[holdout.users[rows]]


def _shrunken(
    values: NDArray[np.float64], groups: NDArray[np.int64], count: int, shrinkage: float
) -> NDArray[np.float64]:
    """(G,) the mean of each group's values (N,), as if it had `shrinkage` more of them that are 0."""
    sums = np.bincount(groups, values, count).astype(np.float64)  # which they are, but numpy's types do not know
    return sums / (shrinkage + np.bincount(groups, minlength=count))
