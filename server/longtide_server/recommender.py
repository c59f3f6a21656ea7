"""The life of a request, without transport: user state, encoder, sources, fusion, answer.

The server calls it with users from the event log, and `longtide predict` and `evaluate` with users from a file, so
what is measured is what is served.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.candidates import (
    NOTHING,
    Candidates,
    Scored,
    Source,
    encoder_probability,
    gather,
    neighbor_votes,
    tabulate,
    transition_votes,
)
from longtide_server.encoder import Encoded
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded
from longtide_server.events import USER_PREFIX, owner_key
from longtide_server.neighbors import NO_NEIGHBORS, Neighbors
from longtide_server.ranking import Ranked, rank
from longtide_server.request_time import query_after
from longtide_server.snapshot import Snapshot
from longtide_server.user_state import TOP_N_MARGIN, UserState, UserStates

ANSWER_MARGIN_S = 0.01
ANSWER_SHARE = 0.2
NEIGHBORS_SHOWN = 3
NEXT_ITEMS_SHOWN = 5
MAX_MOMENTS_SEARCHED = 20_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Query:
    """A valid request for recommendations."""

    user_id: str
    """Who asks; empty for an anonymous session."""
    limit: int = 10
    exclude_item_ids: Sequence[str] = ()
    session_item_ids: Sequence[str] = ()
    min_similarity: float | None = None
    request_time_s: float | None = None
    """When the user sees the answer, seconds since 1970; None when that is not known."""
    session_id: str = ""
    """Who asks where there is no user."""
    surface: str = ""
    """Where the answer is shown, in the caller's words."""

    @property
    def owner(self) -> str:
        """Whose history the answer is for."""
        return owner_key(self.user_id, self.session_id)


@dataclass(frozen=True, slots=True)
class SimilarUser:
    """A user who, at some moment, was like the one who asks."""

    user_id: str
    similarity: float
    next_item_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item of an answer."""

    item_id: str
    title: str
    score: float
    sources: tuple[tuple[Source, float], ...]
    """Every source that brought it and that source's probability, the strongest contribution first."""
    neighbors: tuple[SimilarUser, ...]
    """The most similar users who went on to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Recommendations for one user, all from one snapshot."""

    recommendations: tuple[Recommendation, ...]
    snapshot_id: str
    attribution_token: str
    degraded_reason: str = ""


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One item of a given list, in its place."""

    item_id: str
    score: float
    known: bool


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the sources say about one user at one moment."""

    votes: dict[Source, Scored]
    neighbors: Neighbors = NO_NEIGHBORS
    encoded: Encoded | None = None
    """The user at the time of the request, where that is known."""
    degraded_reason: str = ""

    @property
    def asked(self) -> list[Source]:
        """The sources that could be asked."""
        return list(self.votes)


class Recommender:
    """Answers requests from one snapshot and the states of its users."""

    def __init__(
        self,
        snapshot: Snapshot,
        states: UserStates,
        shown: Callable[[str, Sequence[Recommendation]], str] = lambda surface, recommendations: "",
    ) -> None:
        """`shown` is told of every answer, where it is shown and what it holds, and gives its attribution token."""
        self.snapshot = snapshot
        self.states = states
        self._shown = shown
        self._popular = np.argsort(-snapshot.popularity[1:], kind="stable") + 1

    async def recommend(self, query: Query, timeout_s: float) -> Answer:
        """The best items that the user has not had, within `timeout_s`."""
        evidence, user, session = await self._evidence(query, timeout_s)
        candidates = self._candidates(evidence, self._blocked(user, session, query.exclude_item_ids), query.limit)
        ranked = self._rank(candidates, evidence, query.limit)
        found = tuple(self._recommendation(ranked, row, evidence) for row in range(len(ranked.items)))
        token = self._shown(query.surface, found)
        return Answer(found, self.snapshot.snapshot_id, token, evidence.degraded_reason)

    async def candidates(self, query: Query, timeout_s: float) -> Candidates:
        """What every source says of the items that `recommend` would order."""
        evidence, user, session = await self._evidence(query, timeout_s)
        return self._candidates(evidence, self._blocked(user, session, query.exclude_item_ids), query.limit)

    async def rank(self, query: Query, item_ids: Sequence[str], timeout_s: float) -> tuple[tuple[RankedItem, ...], str]:
        """Order the given items, and why the order is degraded, if it is. Unknown items come last, as sent."""
        evidence, _, _ = await self._evidence(query, timeout_s)
        numbers = np.unique(self.snapshot.catalog.numbers(item_ids))
        candidates = self._complete(tabulate(numbers, evidence.votes), evidence)
        ranked = self._rank(candidates, evidence, len(numbers))
        known = [
            RankedItem(self.snapshot.catalog.item_id(number), float(score), True)
            for number, score in zip(ranked.items.tolist(), ranked.score.tolist(), strict=True)
        ]
        unknown = [RankedItem(item, 0.0, False) for item in item_ids if not self.snapshot.catalog.number(item)]
        return (*known, *unknown), evidence.degraded_reason

    async def similar_users(
        self, owner: str, limit: int, min_similarity: float | None, timeout_s: float
    ) -> tuple[tuple[SimilarUser, ...], str]:
        """The users who were most like this one is now, none twice, and why the answer is degraded, if it is."""
        begun = time.monotonic()
        user = await self.states.get(owner)
        encoded, reason = await self._encoded(user, (), 1, _for_encoder_s(timeout_s) - (time.monotonic() - begun))
        if encoded is None:
            return (), reason
        settings = self.snapshot.manifest.neighbors
        # A user holds many moments, so more moments than users are fetched, until there are enough.
        count = max(settings.count, 4 * limit)
        while True:
            neighbors = self._search(encoded, user.owner, count, min_similarity)
            users = self._people(neighbors, limit)
            if len(users) >= limit or len(neighbors.position) < count or count == MAX_MOMENTS_SEARCHED:
                return users, reason
            count = min(4 * count, MAX_MOMENTS_SEARCHED)

    async def _evidence(self, query: Query, timeout_s: float) -> tuple[Evidence, UserState, list[int]]:
        begun = time.monotonic()
        user = await self.states.get(query.owner)
        session = self.snapshot.catalog.numbers(query.session_item_ids).tolist()
        left = _for_encoder_s(timeout_s) - (time.monotonic() - begun)
        wanted = TOP_N_MARGIN + query.limit + len(user.seen) + len(session)
        encoded, reason = await self._encoded(user, session, wanted, left)
        votes: dict[Source, Scored] = {}
        neighbors = NO_NEIGHBORS
        manifest = self.snapshot.manifest
        if encoded is not None:
            neighbors = self._search(encoded, user.owner, manifest.neighbors.count, query.min_similarity)
            votes[Source.ENCODER] = self._encoder_votes(encoded, wanted)
            if query.request_time_s is not None and user.times and not session:
                wait_s = max(query.request_time_s - user.times[-1], 0.0)
                encoded, votes[Source.ENCODER] = self._after(wait_s, encoded, votes[Source.ENCODER])
            votes[Source.NEIGHBORS] = neighbor_votes(
                neighbors, self.snapshot.neighbors.positions, manifest.neighbors.temperature
            )
        recent = user.recent(manifest.transitions.lags, session)
        votes[Source.TRANSITIONS] = transition_votes(self.snapshot.transitions, recent, manifest.transitions.decay)
        votes[Source.POPULARITY] = NOTHING
        return Evidence(votes, neighbors, encoded, reason), user, session

    async def _encoded(
        self, user: UserState, session: Sequence[int], top_n: int, timeout_s: float
    ) -> tuple[Encoded | None, str]:
        """The user's encoding, or the last known one and why it is old."""
        try:
            return await self.states.encoded(user, session, top_n, timeout_s), ""
        except (EncoderUnavailable, DeadlineExceeded, Overloaded) as exc:
            log.warning("recommend_degraded", reason=str(exc))
            return user.encoded, f"the encoder could not be asked: {exc}"

    def _encoder_votes(self, encoded: Encoded, wanted: int) -> Scored:
        """The encoder's best items: those that came with the encoding, or when they are too few, the best of all."""
        if len(encoded.items) >= min(wanted, len(self.snapshot.catalog)):
            return Scored(encoded.items, np.exp(encoded.log_probability.astype(np.float64)))
        everything = np.arange(1, len(self.snapshot.catalog) + 1)
        return Scored(everything, self._encoder_probability(everything, encoded))

    def _after(self, wait_s: float, encoded: Encoded, votes: Scored) -> tuple[Encoded, Scored]:
        """The user so long after their last event, and what the encoder says then of the items that it brings.

        They keep their mass together: to rank the whole catalogue again would cost more than the rest of a request.
        """
        weights = self.snapshot.request_time
        if weights is None:
            return encoded, votes
        moved = replace(encoded, query=query_after(weights, encoded.query, wait_s))
        probability = self._encoder_probability(votes.items, moved)
        gain = float(probability.sum() / votes.probability.sum())
        return replace(moved, log_z=moved.log_z + math.log(gain)), Scored(votes.items, probability / gain)

    def _encoder_probability(self, items: NDArray[np.int64], encoded: Encoded) -> NDArray[np.float64]:
        temperature = self.snapshot.manifest.encoder.temperature
        return encoder_probability(items, encoded.query, self.snapshot.embeddings, temperature, encoded.log_z)

    def _search(self, encoded: Encoded, owner: str, count: int, min_similarity: float | None) -> Neighbors:
        """The moments of other users that are like this one."""
        settings = self.snapshot.manifest.neighbors
        least = settings.min_similarity if min_similarity is None else min_similarity
        own = self.snapshot.user_numbers.get(owner.removeprefix(USER_PREFIX))
        if own is None:
            return self.snapshot.neighbors.search(encoded.query, count, max(settings.search_k, count), least)
        first, last = np.searchsorted(self.snapshot.neighbors.positions.user, [own, own + 1])
        fetched = count + int(last - first)  # a user's own moments are the most similar ones of all
        found = self.snapshot.neighbors.search(encoded.query, fetched, max(settings.search_k, fetched), least)
        others = np.flatnonzero(self.snapshot.neighbors.positions.user[found.position] != own)[:count]
        return Neighbors(found.position[others], found.similarity[others])

    def _blocked(self, user: UserState, session: Sequence[int], exclude: Iterable[str]) -> NDArray[np.int64]:
        excluded = self.snapshot.catalog.numbers(exclude)
        return np.concatenate([np.fromiter(user.seen, np.int64, len(user.seen)), np.array(session, np.int64), excluded])

    def _candidates(self, evidence: Evidence, blocked: NDArray[np.int64], limit: int) -> Candidates:
        popular = self._popular[: limit + len(blocked)]
        votes = evidence.votes | {Source.POPULARITY: Scored(popular, self.snapshot.popularity[popular])}
        return self._complete(gather(votes, blocked), evidence)

    def _rank(self, candidates: Candidates, evidence: Evidence, limit: int) -> Ranked:
        return rank(candidates, self.snapshot.manifest.fusion, evidence.asked, len(self.snapshot.catalog), limit)

    def _complete(self, candidates: Candidates, evidence: Evidence) -> Candidates:
        """Fill in what dense sources say of items that others brought: the encoder's and popularity's probability."""
        probability = candidates.probability.copy()
        probability[:, Source.POPULARITY - 1] = self.snapshot.popularity[candidates.items]
        if evidence.encoded is not None:
            probability[:, Source.ENCODER - 1] = self._encoder_probability(candidates.items, evidence.encoded)
        return Candidates(candidates.items, probability)

    def _recommendation(self, ranked: Ranked, row: int, evidence: Evidence) -> Recommendation:
        number = int(ranked.items[row])
        by_strength = np.argsort(-ranked.contribution[row], kind="stable")
        sources = tuple(
            (Source(column + 1), float(ranked.probability[row, column]))
            for column in by_strength.tolist()
            if ranked.brought[row, column]
        )
        positions = self.snapshot.neighbors.positions
        voters = np.flatnonzero(positions.next_item[evidence.neighbors.position] == number)
        voting = Neighbors(evidence.neighbors.position[voters], evidence.neighbors.similarity[voters])
        return Recommendation(
            self.snapshot.catalog.item_id(number),
            self.snapshot.catalog.info(number).title,
            float(ranked.score[row]),
            sources,
            self._people(voting, NEIGHBORS_SHOWN),
        )

    def _people(self, neighbors: Neighbors, limit: int) -> tuple[SimilarUser, ...]:
        """The people behind moments, each once, at their most similar moment."""
        positions = self.snapshot.neighbors.positions
        people: dict[str, SimilarUser] = {}
        for position, similarity in zip(neighbors.position.tolist(), neighbors.similarity.tolist(), strict=True):
            if len(people) == limit:
                break
            user = int(positions.user[position])
            user_id = self.snapshot.user_ids[user]
            if user_id not in people:
                people[user_id] = SimilarUser(user_id, similarity, self._next_items(position, user))
        return tuple(people.values())

    def _next_items(self, position: int, user: int) -> tuple[str, ...]:
        positions = self.snapshot.neighbors.positions
        end = position + NEXT_ITEMS_SHOWN
        items = positions.next_item[position:end][positions.user[position:end] == user]
        return tuple(self.snapshot.catalog.item_id(int(item)) for item in items)


def _for_encoder_s(timeout_s: float) -> float:
    """How long the encoder may be waited for, so that the rest of the answer is in time, many callers' included."""
    return timeout_s - max(ANSWER_MARGIN_S, ANSWER_SHARE * timeout_s)
