"""Tries a snapshot before it is active: are its lists sane, its neighbours the nearest, its answers quick?

The canaries are people of the snapshot itself: what it knows that they did is given as a session of somebody without a
history, so no event log is asked or written to. What they find wanting is the snapshot's fault only where nothing else
can be to blame.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass

import numpy as np

from longtide_server.answers import Answer, Query
from longtide_server.encoder import Encoded
from longtide_server.errors import (
    DeadlineExceeded,
    EncoderUnavailable,
    EncoderUnreachable,
    Overloaded,
    SnapshotError,
    Unavailable,
)
from longtide_server.evidence import Asker
from longtide_server.recommender import Recommender
from longtide_server.users.user_state import UserState

CANARIES = 32
SESSION_ITEMS = 50
LIMIT = 10
RECALL_CANARIES = 4
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Bars:
    """What a snapshot must reach to be activated."""

    recall: float = 0.7
    """Share of the 50 nearest moments that a search finds, 0 to 1; published ones were held to .9 on other moments."""
    latency_s: float = 1.0
    """Median time of an answer whose whole session is encoded, seconds."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What the canaries found."""

    canaries: int
    latency_s: float
    recall: float


async def try_out(recommender: Recommender, bars: Bars) -> Trial:
    """Ask for everybody of the canary set.

    SnapshotError says what is wrong with the snapshot; Unavailable, what may as well be for other reasons, so that
    trying later helps: the catalogue may be old, the encoder away or busy, or answers are slow beside everybody else's.
    """
    times, queries = [], canary_queries(recommender)
    for query in queries:
        begun = time.monotonic()
        answer = await recommender.recommend_to(Asker(UserState(query.owner)), query, TIMEOUT_S)
        times.append(time.monotonic() - begun)
        await _check_whole(answer, query, recommender)
        _check_list(answer, query, recommender.recommendable_count())
    latency_s = statistics.median(times) if times else 0.0
    if latency_s > bars.latency_s:
        raise Unavailable(f"canaries: an answer takes {latency_s:.2f} s; {bars.latency_s:g} s are allowed")
    recalls = [await _recall(recommender, query) for query in queries[:RECALL_CANARIES]]
    recall = statistics.mean(recalls) if recalls else 1.0
    if recall < bars.recall:
        raise SnapshotError(f"canaries: a search finds {recall:.2f} of the nearest; {bars.recall:g} are required")
    return Trial(len(queries), round(latency_s, 4), round(recall, 4))


def canary_queries(recommender: Recommender) -> list[Query]:
    """People spread over the snapshot's users, each with the last items that it knows of them."""
    snapshot = recommender.snapshot
    positions = snapshot.neighbors.positions
    users = np.unique(np.linspace(0, max(len(snapshot.owners) - 1, 0), CANARIES).astype(np.int64))
    queries = []
    for user in users.tolist():
        first, last = snapshot.neighbors.moments(user)
        items = positions.next_item[first:last][-SESSION_ITEMS:].tolist()
        if items:
            ids = tuple(snapshot.catalog.item_id(item) for item in items)
            queries.append(Query(user_id="", limit=LIMIT, session_item_ids=ids, session_id="longtide-canary"))
    return queries


async def _check_whole(answer: Answer, query: Query, recommender: Recommender) -> None:
    """Unavailable when an answer is degraded; SnapshotError when its encoder, asked once more, fails again."""
    if not answer.degraded_reason:
        return
    try:
        await _encoded(recommender, query)
    except EncoderUnavailable as exc:
        raise SnapshotError(f"canaries: the encoder fails: {exc}") from exc
    raise Unavailable(f"canaries: an answer is degraded: {answer.degraded_reason}")


async def _recall(recommender: Recommender, query: Query) -> float:
    """The share of a canary's nearest moments that a search finds, by a search of everything."""
    neighbors, settings = recommender.snapshot.neighbors, recommender.snapshot.manifest.neighbors
    encoded = await _encoded(recommender, query)
    return await asyncio.to_thread(neighbors.recall, encoded.query, settings.count, settings.search_k)


async def _encoded(recommender: Recommender, query: Query) -> Encoded:
    """What the encoder makes of a canary. EncoderUnavailable when it fails, Unavailable when it cannot answer now."""
    session = recommender.snapshot.catalog.numbers(query.session_item_ids).tolist()
    try:
        encoded = await recommender.states.encoded(UserState(query.owner), session, 1, TIMEOUT_S)
    except (DeadlineExceeded, Overloaded, EncoderUnreachable) as exc:
        raise Unavailable(f"canaries: the encoder cannot answer now: {exc}") from exc
    assert encoded is not None  # a canary has a session
    return encoded


def _check_list(answer: Answer, query: Query, item_count: int) -> None:
    """SnapshotError when a list is not one that a healthy snapshot gives."""
    items = [one.item_id for one in answer.recommendations]
    scores = [one.score for one in answer.recommendations]
    session = set(query.session_item_ids)
    if len(items) < min(LIMIT, item_count - len(session)):
        raise SnapshotError(f"canaries: a list has {len(items)} of {LIMIT} items")
    if len(set(items)) < len(items) or session & set(items):
        raise SnapshotError("canaries: a list repeats an item, or shows one that was just seen")
    if not all(0 < score <= 1 for score in scores) or scores != sorted(scores, reverse=True):  # false for NaN
        raise SnapshotError("canaries: the scores of a list are not falling shares")
