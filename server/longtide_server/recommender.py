"""The life of a request, without transport: user state, encoder, sources, fusion, answer.

The server calls it with users from the event log, and `longtide predict` and `evaluate` with users from a file, so
what is measured is what is served.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.candidates import (
    NOTHING,
    Candidates,
    Scored,
    Source,
    best_of,
    content_probability,
    encoder_probability,
    first_allowed,
    gather,
    gather_allowed,
    interest_votes,
    nearest_allowed,
    neighbor_votes,
    tabulate,
    transition_votes,
)
from longtide_server.encoder import Encoded
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded, Unavailable
from longtide_server.events import USER_PREFIX, owner_key
from longtide_server.exploration import draws_of, explore
from longtide_server.item_filter import ItemFilter, size
from longtide_server.live_catalog import LiveCatalog
from longtide_server.neighbors import NO_NEIGHBORS, Neighbors
from longtide_server.newcomers import Newcomers
from longtide_server.observer import NOBODY, StageObserver
from longtide_server.patience import Patience
from longtide_server.ranking import Fusion, Ranked, rank
from longtide_server.request_time import query_after, wait_class
from longtide_server.snapshot import Snapshot
from longtide_server.trending import Trending
from longtide_server.user_state import TOP_N_MARGIN, UserState, UserStates

SEARCHERS = os.cpu_count() or 1
STORE_SHARE = 0.5  # of the time there is, at most, is the event log waited for
NEIGHBORS_SHOWN = 3
NEXT_ITEMS_SHOWN = 5
MAX_MOMENTS_SEARCHED = 20_000
CONTENT_ITEMS = 10  # of the last items, what they are says what the user is after
CONTENT_DECAY = 0.7
WELL_KNOWN_EVENTS = 50  # people have turned to a new item: no need to find out about it
NEWCOMERS_CONSIDERED = 50  # more than are asked for
FEW_ITEMS = 2_000  # to ask the encoder about every one of them costs no more than to join what the sources bring
MAX_KEPT_LIMIT = 100  # items of an answer that is kept, some 15 kB
MAX_KEPT_SIZE = 32  # conditions and values of a filter whose answers are kept: every one of them holds it

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
    item_filter: ItemFilter | None = None
    """What the items must be like."""
    include_item_ids: Sequence[str] = ()
    """Only these items may appear; empty for all."""
    source_weights: tuple[tuple[Source, float], ...] = ()
    """How much sources count, where it is not as the snapshot says."""
    interests: ItemFilter | None = None
    """What the items are like that the one who asks says they like."""

    @property
    def owner(self) -> str:
        """Whose history the answer is for."""
        return owner_key(self.user_id, self.session_id)


@dataclass(frozen=True, slots=True)
class Voter:
    """A user who was like the one who asks, and went on to an item."""

    user_id: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Link:
    """How an item is linked to one that the user had."""

    item_id: str
    """Of the item that the user had."""
    relation: str
    entity: str
    """What both items have in common."""


@dataclass(frozen=True, slots=True)
class SimilarUser:
    """A user who, at some moment, was like the one who asks."""

    user_id: str
    similarity: float
    next_item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item of an answer."""

    item_id: str
    title: str
    score: float
    sources: tuple[tuple[Source, float], ...]
    """Every source that brought it and that source's probability, the strongest contribution first."""
    neighbors: tuple[Voter, ...]
    """The most similar users who went on to it."""
    links: tuple[Link, ...] = ()
    """What links it to the user's last items, the strongest first, whichever source brought it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Recommendations for one user, all from one snapshot."""

    recommendations: tuple[Recommendation, ...]
    snapshot_id: str
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
    content: NDArray[np.float64] | None = None
    """(I + 1,) how like the user's last items every item is, where that is asked and known."""
    recent: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The user's last items, in time order."""
    degraded_reason: str = ""

    @property
    def asked(self) -> list[Source]:
        """The sources that could be asked."""
        return list(self.votes)


@dataclass(frozen=True, slots=True, eq=False)
class Asker:
    """Who asks, and why what is known of them may be old, if it may."""

    user: UserState
    stale_reason: str = ""


class Recommender:
    """Answers requests from one snapshot and the states of its users."""

    def __init__(
        self,
        snapshot: Snapshot,
        states: UserStates,
        observer: StageObserver = NOBODY,
        live: LiveCatalog | None = None,
        clock: Callable[[], float] = time.time,
        trending: Trending | None = None,
        newcomers: Newcomers | None = None,
        explore_share: float = 0.0,
    ) -> None:
        """`live` is what the items are now, by default what the snapshot says; `clock` gives seconds since 1970.

        explore_share: of the places of an answer, goes to new items; 0 to 1.
        """
        self.snapshot = snapshot
        self.states = states
        self._live = LiveCatalog(snapshot.catalog) if live is None else live
        self._clock = clock
        self._trending = Trending(snapshot.catalog, clock) if trending is None else trending
        self._newcomers = Newcomers(len(snapshot.catalog) + 1, 1) if newcomers is None else newcomers
        self._newcomer_rows = (-1, np.zeros(0, np.int64))
        """The revision of the newcomers, and by place their rows in the live catalogue."""
        self._explore_share = explore_share
        self._observer = observer
        self._patience = Patience()
        self._searchers = ThreadPoolExecutor(SEARCHERS, thread_name_prefix="neighbor-search")
        self._popular = np.argsort(-snapshot.popularity[1:], kind="stable") + 1

    async def asker(self, owner: str, timeout_s: float) -> Asker:
        """The owner of a history; from memory, and said to be, when the event log does not answer in time."""
        user = self.states.at_hand(owner)
        if user is not None:
            return Asker(user)
        begun_s = time.perf_counter()
        try:
            async with asyncio.timeout(STORE_SHARE * timeout_s):
                return Asker(await self.states.get(owner))
        except (Unavailable, Overloaded, DeadlineExceeded) as exc:
            reason = str(exc)
        except TimeoutError:
            reason = "it did not answer in time"
        finally:
            self._observer.stage("state", begun_s)
        log.warning("recommend_from_memory", reason=reason)
        return Asker(self.states.remembered(owner), f"the event log could not be asked: {reason}")

    async def prepare(self, query: Query, timeout_s: float) -> None:
        """Have a user's state encoded, so that `recommend` has no encoder to wait for, as far as that is possible."""
        begun = time.monotonic()
        asker = await self.asker(query.owner, timeout_s)
        left = self._patience.for_encoder_s(timeout_s - (time.monotonic() - begun))
        await self.states.encoded(asker.user, (), _wanted(query, asker.user, 0), left)

    def depends_on(self, query: Query, asker: Asker) -> Hashable | None:
        """What an answer depends on beside history and catalogue; none where that is too much to keep."""
        conditions = [one for one in (query.item_filter, query.interests) if one is not None]
        if query.exclude_item_ids or query.include_item_ids or query.session_item_ids or asker.stale_reason:
            return None
        if sum(map(size, conditions)) > MAX_KEPT_SIZE or query.limit > MAX_KEPT_LIMIT:
            return None
        if self._fusion(query).trending:  # that changes all the time
            return None
        weights, wait_s = self.snapshot.request_time, _wait_s(query, asker.user)
        wait = -1 if weights is None or wait_s is None else wait_class(weights, wait_s)
        return query.limit, query.min_similarity, wait, query.item_filter, query.source_weights, query.interests

    def catalog_version(self, query: Query) -> tuple[int, int, int, int]:
        """Changes whenever the catalogue may give the query another answer, as time goes by included."""
        now_s = self._clock()
        read = query.item_filter is not None or query.interests is not None
        beyond = self._live.beyond_revision(now_s) if len(self._newcomers) else 0
        revisions = (self._live.offer_revision(now_s), beyond, self._newcomers.revision)
        return (*revisions, self._live.revision if read else 0)

    def recommendable_count(self) -> int:
        """How many items may be recommended now."""
        return self._live.recommendable_count(self._clock())

    async def recommend(self, query: Query, timeout_s: float) -> Answer:
        """The best items that the user has not had, within `timeout_s`."""
        begun = time.monotonic()
        asker = await self.asker(query.owner, timeout_s)
        return await self.recommend_to(asker, query, timeout_s - (time.monotonic() - begun))

    async def recommend_to(self, asker: Asker, query: Query, timeout_s: float) -> Answer:
        """The best items that this user has not had, within `timeout_s`."""
        session = self._numbers(query.session_item_ids)
        evidence = await self._evidence(asker, query, session, timeout_s)
        begun_s = time.perf_counter()
        known = self._considered(asker, query, session, evidence)
        candidates = self._with_newcomers(known, asker.user, query, evidence)
        ranked = self._rank(candidates, evidence, query, query.limit)
        found = self._explored(asker.user, candidates, ranked, self._recommendations(ranked, evidence))
        self._patience.answered(time.perf_counter() - begun_s)
        self._observer.stage("fusion", begun_s)
        return Answer(found, self.snapshot.snapshot_id, evidence.degraded_reason)

    async def candidates(self, query: Query, timeout_s: float) -> Candidates:
        """What every source says of the items that `recommend` would order."""
        asker = await self.asker(query.owner, timeout_s)
        session = self._numbers(query.session_item_ids)
        evidence = await self._evidence(asker, query, session, timeout_s)
        return self._considered(asker, query, session, evidence)

    async def rank(self, query: Query, item_ids: Sequence[str], timeout_s: float) -> tuple[tuple[RankedItem, ...], str]:
        """Order the given items, and why the order is degraded, if it is. Unknown items come last, as sent."""
        begun = time.monotonic()
        asker = await self.asker(query.owner, timeout_s)
        session = self._numbers(query.session_item_ids)
        evidence = await self._evidence(asker, query, session, timeout_s - (time.monotonic() - begun))
        numbers = np.unique(self.snapshot.catalog.numbers(item_ids))
        candidates = self._complete(tabulate(numbers, evidence.votes, len(self.snapshot.catalog)), evidence)
        ranked = self._rank(candidates, evidence, query, len(numbers))
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
        asker = await self.asker(owner, timeout_s)
        user, left = asker.user, timeout_s - (time.monotonic() - begun)
        encoded, reason = await self._encoded(asker, (), 1, self._patience.for_encoder_s(left))
        if encoded is None:
            return (), reason
        settings = self.snapshot.manifest.neighbors
        # A user holds many moments, so more moments than users are fetched, until there are enough.
        count = max(settings.count, 4 * limit)
        while True:
            neighbors = await self._search(encoded, user.owner, count, min_similarity)
            users = self._people(neighbors, limit)
            if len(users) >= limit or len(neighbors.position) < count or count == MAX_MOMENTS_SEARCHED:
                return users, reason
            count = min(4 * count, MAX_MOMENTS_SEARCHED)

    async def recall(self, query: Query, timeout_s: float) -> float:
        """The share of the nearest moments of the one who asks that a search finds, by a search of everything."""
        asker = await self.asker(query.owner, timeout_s)
        encoded, _ = await self._encoded(asker, self._numbers(query.session_item_ids), 1, timeout_s)
        if encoded is None:
            return 1.0
        settings = self.snapshot.manifest.neighbors
        return await asyncio.to_thread(self.snapshot.neighbors.recall, encoded.query, settings.count, settings.search_k)

    def _considered(self, asker: Asker, query: Query, session: list[int], evidence: Evidence) -> Candidates:
        """What the sources say, of the items that may be recommended."""
        seen = asker.user.seen
        excluded = self._numbers(query.exclude_item_ids)
        blocked = np.fromiter(itertools.chain(seen, session, excluded), np.int64)
        allowed = self._allowed(query)
        if query.interests is not None and not (asker.user.items or asker.user.unknown or session):
            evidence.votes[Source.INTERESTS] = self._interests(query.interests, allowed, blocked, query.limit)
        if allowed is not None:
            allowed[blocked] = False
            return self._complete(self._among(allowed, query.limit, evidence), evidence)
        popular = self._popular[: query.limit + len(blocked)]
        votes = evidence.votes | {Source.POPULARITY: Scored(popular, self.snapshot.popularity[popular])}
        return self._complete(gather(votes, blocked, len(self.snapshot.catalog)), evidence)

    def _allowed(self, query: Query) -> NDArray[np.bool_] | None:
        """(I + 1,) the items that may appear, whoever asks: a mask of the caller's own; none where every item may."""
        masks = [self._live.recommendable(self._clock())]
        if query.item_filter is not None:
            masks.append(self._live.mask(query.item_filter))
        if query.include_item_ids:
            included = np.zeros(len(self.snapshot.catalog) + 1, np.bool_)
            included[self.snapshot.catalog.numbers(query.include_item_ids)] = True
            masks.append(included)
        restricting = [mask for mask in masks if mask is not None]
        return np.logical_and.reduce(restricting) if restricting else None

    def _with_newcomers(self, candidates: Candidates, user: UserState, query: Query, evidence: Evidence) -> Candidates:
        """The candidates, and after them the new items that may appear and suit best, as the encoder says."""
        if not len(self._newcomers):
            return candidates
        places = self._newcomer_places(user, query)
        encoded, most = evidence.encoded, query.limit + NEWCOMERS_CONSIDERED
        if encoded is None:  # whom they suit is not known: any of them
            places = np.sort(draws_of(user.owner, user.version.position).permutation(places)[:most])
            said = np.zeros(len(places))
        else:
            cosine = (self._newcomers.vectors @ encoded.query)[places].astype(np.float64)
            if len(places) > most:
                best = np.sort(np.argpartition(-cosine, most)[:most])
                places, cosine = places[best], cosine[best]
            said = np.exp(cosine / self.snapshot.manifest.encoder.temperature - encoded.log_z)
            # They are where people are, and not, as learned items, away from all whom they do not suit: the best of
            # them is as likely as the best of the others.
            said = np.minimum(said, candidates.probability[:, Source.ENCODER - 1].max(initial=0.0))
        probability = np.zeros((len(places), len(Source)))
        probability[:, Source.ENCODER - 1] = said
        return Candidates(
            np.concatenate([candidates.items, places + self._newcomers.first]),
            np.concatenate([candidates.probability, probability]),
        )

    def _newcomer_places(self, user: UserState, query: Query) -> NDArray[np.int64]:
        """(K,) the places of the new items that may appear, ascending."""
        new = self._newcomers
        revision, rows = self._newcomer_rows
        if revision != new.revision:
            ids = [new.item_id(place + new.first) for place in range(len(new.vectors))]
            rows = np.array([self._live.row(item_id) for item_id in ids], np.int64)
            self._newcomer_rows = new.revision, rows
        places = new.places()
        allowed = np.zeros(len(new.vectors), np.bool_)
        allowed[places] = self._live.beyond(rows[places], self._clock(), query.item_filter)
        if query.include_item_ids:
            included = np.zeros(len(new.vectors), np.bool_)
            included[new.placed(query.include_item_ids)] = True
            allowed &= included
        allowed[new.placed(itertools.chain(user.unknown, query.session_item_ids, query.exclude_item_ids))] = False
        return np.flatnonzero(allowed)

    def _explored(
        self, user: UserState, candidates: Candidates, ranked: Ranked, found: tuple[Recommendation, ...]
    ) -> tuple[Recommendation, ...]:
        """An answer in which some new items have taken the places of others."""
        new = candidates.items > self.snapshot.manifest.item_count
        there = np.flatnonzero(candidates.items >= self._newcomers.first)
        known_well = self._newcomers.events[candidates.items[there] - self._newcomers.first] >= WELL_KNOWN_EVENTS
        new[there[known_well]] = False
        if not self._explore_share or not new.any():
            return found
        suits = candidates.probability[new, Source.ENCODER - 1] + 1e-12
        moment = user.version.position
        taken = explore(user.owner, moment, self._explore_share, ranked.items, candidates.items[new], suits)
        shown = list(found)
        for one in taken:
            item_id, title = self._name(one.number)
            score, sources = found[one.place].score, ((Source.EXPLORATION, one.propensity),)
            shown[one.place] = Recommendation(item_id, title, score, sources, ())
        return tuple(shown)

    def _name(self, number: int) -> tuple[str, str]:
        """The id and the title of an item."""
        if number >= self._newcomers.first:
            item_id = self._newcomers.item_id(number)
            return item_id, self._live.title_of(self._live.row(item_id))
        return self.snapshot.catalog.item_id(number), self._live.title(number)

    def _interests(
        self, interests: ItemFilter, allowed: NDArray[np.bool_] | None, blocked: NDArray[np.int64], limit: int
    ) -> Scored:
        """The most popular items of those that may appear and are of interest."""
        wanted = self._live.mask(interests).copy()
        wanted[blocked] = False
        if allowed is not None:
            wanted &= allowed
        return interest_votes(self.snapshot.popularity, first_allowed(self._popular, wanted, limit))

    def _among(self, allowed: NDArray[np.bool_], limit: int, evidence: Evidence) -> Candidates:
        """What the sources say of the allowed items (I + 1,): of all where they are few, else of those they bring."""
        if np.count_nonzero(allowed) <= FEW_ITEMS:
            return tabulate(np.flatnonzero(allowed), evidence.votes, len(self.snapshot.catalog))
        popular = first_allowed(self._popular, allowed, limit)
        votes = evidence.votes | {Source.POPULARITY: Scored(popular, self.snapshot.popularity[popular])}
        encoded = evidence.encoded
        if encoded is not None and np.count_nonzero(allowed[votes[Source.ENCODER].items]) < limit:
            # The best of all that came with the encoding are of another kind.
            best = nearest_allowed(allowed, encoded.query, self.snapshot.embeddings, limit + TOP_N_MARGIN)
            votes[Source.ENCODER] = Scored(best, self._encoder_probability(best, encoded))
        return gather_allowed(votes, allowed)

    async def _evidence(self, asker: Asker, query: Query, session: list[int], timeout_s: float) -> Evidence:
        user, manifest, fusion = asker.user, self.snapshot.manifest, self._fusion(query)
        wanted = _wanted(query, user, len(session))
        votes: dict[Source, Scored] = {}
        encoded, reason, neighbors = None, asker.stale_reason, NO_NEIGHBORS
        if fusion.encoder or fusion.neighbors:
            encoded, reason = await self._encoded(asker, session, wanted, self._patience.for_encoder_s(timeout_s))
        if encoded is not None:
            begun_s = time.perf_counter()
            neighbors = await self._search(encoded, user.owner, manifest.neighbors.count, query.min_similarity)
            self._observer.stage("neighbors", begun_s)
            votes[Source.ENCODER] = self._encoder_votes(encoded, wanted)
            wait_s = _wait_s(query, user)
            if wait_s is not None:
                encoded, votes[Source.ENCODER] = self._after(wait_s, encoded, votes[Source.ENCODER])
            votes[Source.NEIGHBORS] = neighbor_votes(
                neighbors, self.snapshot.neighbors.positions, manifest.neighbors.temperature
            )
        recent = user.recent(manifest.transitions.lags, session)
        votes[Source.TRANSITIONS] = transition_votes(self.snapshot.transitions, recent, manifest.transitions.decay)
        votes[Source.POPULARITY] = NOTHING
        content = self._content(user, session) if fusion.content else None
        if content is not None:
            votes[Source.CONTENT] = best_of(content, wanted)
        if fusion.trending:
            votes[Source.TRENDING] = self._trending.votes(wanted)
        if self.snapshot.relations is not None:  # also where it has no say: it explains what others bring
            votes[Source.RELATIONS] = self.snapshot.relations.votes(recent, manifest.transitions.decay)
        return Evidence(votes, neighbors, encoded, content, recent, reason)

    def _content(self, user: UserState, session: list[int]) -> NDArray[np.float64] | None:
        """(I + 1,) how like the user's last items every item is; none where that is not known."""
        recent = user.recent(CONTENT_ITEMS, session)
        if self.snapshot.content_vectors is None or not len(recent):
            return None
        temperature = self.snapshot.manifest.encoder.temperature
        return content_probability(self.snapshot.content_vectors, recent, CONTENT_DECAY, temperature)

    async def _encoded(
        self, asker: Asker, session: Sequence[int], top_n: int, timeout_s: float
    ) -> tuple[Encoded | None, str]:
        """The user's encoding, or the last known one; and why it may be old."""
        if asker.stale_reason:
            self._observer.degraded("store")
        if not session and asker.user.encoded_count == len(asker.user.items):  # nothing to wait for
            return asker.user.encoded, asker.stale_reason
        begun_s = time.perf_counter()
        try:
            with self._patience.waiting():
                return await self.states.encoded(asker.user, session, top_n, timeout_s), asker.stale_reason
        except (EncoderUnavailable, DeadlineExceeded, Overloaded) as exc:
            self._observer.degraded("encoder")
            log.warning("recommend_degraded", reason=str(exc))
            return asker.user.encoded, asker.stale_reason or f"the encoder could not be asked: {exc}"
        finally:
            self._observer.stage("encoder", begun_s)

    def _encoder_votes(self, encoded: Encoded, wanted: int) -> Scored:
        """The encoder's best items: those that came with the encoding, or when they are too few, the best of all."""
        enough = wanted - TOP_N_MARGIN  # without the margin there is still one for every place
        if len(encoded.items) >= min(enough, len(self.snapshot.catalog)):
            return Scored(encoded.items, np.exp(encoded.log_probability.astype(np.float64)))
        everything = np.arange(len(self.snapshot.catalog) + 1)
        probability = self._encoder_probability(everything, encoded)
        probability[0] = 0.0  # padding
        return best_of(probability, wanted)

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

    async def _search(self, encoded: Encoded, owner: str, count: int, min_similarity: float | None) -> Neighbors:
        """The moments of other users that are like this one; sought aside, since Annoy lets other threads go on."""
        search = asyncio.get_running_loop().run_in_executor
        return await search(self._searchers, self._neighbors, encoded, owner, count, min_similarity)

    def _neighbors(self, encoded: Encoded, owner: str, count: int, min_similarity: float | None) -> Neighbors:
        settings = self.snapshot.manifest.neighbors
        least = settings.min_similarity if min_similarity is None else min_similarity
        own = self.snapshot.user_numbers.get(owner.removeprefix(USER_PREFIX))
        if own is None:
            return self.snapshot.neighbors.search(encoded.query, count, max(settings.search_k, count), least)
        # A user's own moments are the most similar ones of all.
        first, last = self.snapshot.neighbors.moments(own)
        fetched = count + last - first
        found = self.snapshot.neighbors.search(encoded.query, fetched, max(settings.search_k, fetched), least)
        others = np.flatnonzero(self.snapshot.neighbors.positions.user[found.position] != own)[:count]
        return Neighbors(found.position[others], found.similarity[others])

    def _numbers(self, item_ids: Iterable[str]) -> list[int]:
        return self.snapshot.catalog.numbers(item_ids).tolist() if item_ids else []

    def _fusion(self, query: Query) -> Fusion:
        return self.snapshot.manifest.fusion.weighted(query.source_weights)

    def _rank(self, candidates: Candidates, evidence: Evidence, query: Query, limit: int) -> Ranked:
        learned, item_count = self.snapshot.manifest.item_count, len(self.snapshot.catalog)
        return rank(candidates, self._fusion(query), evidence.asked, item_count, limit, learned)

    def _complete(self, candidates: Candidates, evidence: Evidence) -> Candidates:
        """Fill in what dense sources say of items that others brought: the encoder, popularity and content."""
        probability = candidates.probability.copy()
        probability[:, Source.POPULARITY - 1] = self.snapshot.popularity[candidates.items]
        if evidence.encoded is not None:
            unsaid = np.flatnonzero(probability[:, Source.ENCODER - 1] == 0.0)
            said = self._encoder_probability(candidates.items[unsaid], evidence.encoded)
            probability[unsaid, Source.ENCODER - 1] = said
        if evidence.content is not None:
            probability[:, Source.CONTENT - 1] = evidence.content[candidates.items]
        return Candidates(candidates.items, probability)

    def _recommendations(self, ranked: Ranked, evidence: Evidence) -> tuple[Recommendation, ...]:
        by_strength = np.argsort(-ranked.contribution, axis=1, kind="stable").tolist()
        next_items = self.snapshot.neighbors.positions.next_item[evidence.neighbors.position]
        found = []
        for row, (number, score) in enumerate(zip(ranked.items.tolist(), ranked.score.tolist(), strict=True)):
            probability, brought = ranked.probability[row].tolist(), ranked.brought[row].tolist()
            sources = tuple((Source(column + 1), probability[column]) for column in by_strength[row] if brought[column])
            voters = self._voters(evidence.neighbors, np.flatnonzero(next_items == number))
            item_id, title = self._name(number)
            links = self._links(evidence.recent, number) if probability[Source.RELATIONS - 1] > 0 else ()
            found.append(Recommendation(item_id, title, score, sources, voters, links))
        return tuple(found)

    def _links(self, recent: NDArray[np.int64], number: int) -> tuple[Link, ...]:
        if self.snapshot.relations is None:
            return ()
        paths = self.snapshot.relations.paths(recent, number, self.snapshot.manifest.transitions.decay)
        return tuple(Link(self.snapshot.catalog.item_id(path.item), path.relation, path.entity) for path in paths)

    def _voters(self, neighbors: Neighbors, voting: NDArray[np.int64]) -> tuple[Voter, ...]:
        """The people behind some of the moments, each once, at their most similar moment."""
        users = self.snapshot.neighbors.positions.user[neighbors.position[voting]].tolist()
        voters: dict[int, Voter] = {}
        for user, similarity in zip(users, neighbors.similarity[voting].tolist(), strict=True):
            if user not in voters:
                voters[user] = Voter(self.snapshot.user_ids[user], similarity)
                if len(voters) == NEIGHBORS_SHOWN:
                    break
        return tuple(voters.values())

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


def _wanted(query: Query, user: UserState, session_items: int) -> int:
    """How many items the encoder is asked for, so that enough are left without those that the user has had."""
    return TOP_N_MARGIN + query.limit + len(user.seen) + session_items


def _wait_s(query: Query, user: UserState) -> float | None:
    """How long after their last event the user sees the answer; none where that is not known."""
    if query.request_time_s is None or query.session_item_ids or not user.times:
        return None
    return max(query.request_time_s - user.times[-1], 0.0)

