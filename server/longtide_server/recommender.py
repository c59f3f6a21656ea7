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
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.answers import Answer, Query, RankedItem, Recommendation, SimilarUser
from longtide_server.candidates import (
    NOTHING,
    Candidates,
    Scored,
    Source,
    best_of,
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
from longtide_server.content_source import ContentSource, Profile
from longtide_server.encoder import Encoded
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded, Unavailable
from longtide_server.events import USER_PREFIX
from longtide_server.explanations import links, people, voters
from longtide_server.exploration import explore
from longtide_server.item_filter import ItemFilter, size
from longtide_server.live_catalog import LiveCatalog
from longtide_server.neighbors import NO_NEIGHBORS, Neighbors
from longtide_server.new_items import NewItems, none_new
from longtide_server.observer import NOBODY, StageObserver
from longtide_server.patience import Patience
from longtide_server.ranking import Fusion, Ranked, rank
from longtide_server.request_time import query_after, wait_class
from longtide_server.snapshot import Snapshot
from longtide_server.trending import Trending
from longtide_server.user_state import TOP_N_MARGIN, UserState, UserStates

SEARCHERS = os.cpu_count() or 1
SOURCES = tuple(Source)  # by column: to make one of a number takes far longer
STORE_SHARE = 0.5  # of the time there is, at most, is the event log waited for
MAX_MOMENTS_SEARCHED = 20_000
CONTENT_ITEMS = 10  # of the last items, what they are says what the user is after
CONTENT_DECAY = 0.7
WELL_KNOWN_EVENTS = 50  # people have turned to a new item: no need to find out about it
FEW_ITEMS = 2_000  # to ask the encoder about every one of them costs no more than to join what the sources bring
MAX_KEPT_LIMIT = 100  # items of an answer that is kept, some 15 kB
NO_ITEMS = np.zeros(0, np.int64)
MAX_KEPT_SIZE = 32  # conditions and values of a filter whose answers are kept: every one of them holds it

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the sources say about one user at one moment."""

    votes: dict[Source, Scored]
    neighbors: Neighbors = NO_NEIGHBORS
    encoded: Encoded | None = None
    """The user at the time of the request, where that is known."""
    profile: Profile | None = None
    """The user's last items by content, where that is asked for and known."""
    recent: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The user's last items, in time order."""
    cold: bool = False
    """Whether nothing is known of the user that the encoder could read."""
    trending: Mapping[str, float] = field(default_factory=dict)
    """New items to which many turn at present, where that is asked for."""
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
        new: NewItems | None = None,
        explore_share: float = 0.0,
        stale_catalog: Callable[[], str] = lambda: "",
    ) -> None:
        """`live` is what the items are now, by default what the snapshot says; `clock` gives seconds since 1970.

        explore_share: of the places of an answer, goes to new items; 0 to 1. `stale_catalog` says why `live` may be
        old, and nothing when it is not.
        """
        self.snapshot = snapshot
        self.states = states
        self._live = LiveCatalog(snapshot.catalog) if live is None else live
        self._clock = clock
        self._trending = Trending(snapshot.catalog, clock) if trending is None else trending
        vectors, temperature = snapshot.content_vectors, snapshot.manifest.encoder.temperature
        self._content = None if vectors is None else ContentSource(vectors, temperature)
        self._new = none_new(snapshot, self._live, clock) if new is None else new
        self._explore_share = explore_share
        self._stale_catalog = stale_catalog
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
        await self.states.encoded(asker.user, (), _wanted(query, asker.user, 0), left, patient=query.patient)

    def depends_on(self, query: Query, asker: Asker) -> Hashable | None:
        """What an answer depends on beside history and catalogue; none where that is too much to keep."""
        conditions = [one for one in (query.item_filter, query.interests) if one is not None]
        if query.exclude_item_ids or query.include_item_ids or query.session_item_ids:
            return None
        if asker.stale_reason or self._stale_catalog():
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
        revisions = (self._live.offer_revision(now_s), *self._new.revision(now_s))
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
        candidates = self._with_new_items(known, asker.user, query, evidence)
        ranked = self._rank(candidates, evidence, query, query.limit)
        found = self._explored(asker.user, candidates, ranked, self._recommendations(ranked, evidence))
        self._patience.answered(time.perf_counter() - begun_s)
        self._observer.stage("fusion", begun_s)
        stale = self._stale_catalog()
        if stale:
            self._observer.degraded("catalog")
        return Answer(found, self.snapshot.snapshot_id, evidence.degraded_reason or stale)

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
        learned = self._complete(tabulate(numbers, evidence.votes, len(self.snapshot.catalog)), evidence)
        candidates = self._joined(learned, self._new.numbers(item_ids), evidence)
        ranked = self._rank(candidates, evidence, query, len(candidates.items))
        known = [
            RankedItem(self._name(number)[0], float(score), True)
            for number, score in zip(ranked.items.tolist(), ranked.score.tolist(), strict=True)
        ]
        there = {item.item_id for item in known}
        unknown = [RankedItem(item_id, 0.0, False) for item_id in item_ids if item_id not in there]
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
            users = people(self.snapshot, neighbors, limit)
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
        blocked = np.array([*asker.user.seen, *session, *self._numbers(query.exclude_item_ids)], np.int64)
        allowed = self._allowed(query)
        if query.interests is not None and evidence.cold:
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

    def _with_new_items(self, known: Candidates, user: UserState, query: Query, evidence: Evidence) -> Candidates:
        """The candidates, and after them the new items that may appear and suit best."""
        if not len(self._new):
            return known
        excluded = itertools.chain(user.unknown, query.session_item_ids, query.exclude_item_ids)
        allowed = self._new.that_may_appear(query.item_filter, query.include_item_ids, excluded)
        liked = NO_ITEMS
        if query.interests is not None and evidence.cold:
            liked = np.intersect1d(allowed, self._new.that_may_appear(query.interests, (), ()))
        of_these = liked if len(liked) else allowed
        suitable = self._new.most_suitable(of_these, user, evidence.encoded, evidence.profile, query.limit)
        trending = self._new.numbers(evidence.trending)
        found = self._joined(known, np.union1d(suitable, np.intersect1d(allowed, trending)), evidence)
        if len(liked):  # each as popular as the average item of interest
            share = evidence.votes[Source.INTERESTS].probability
            average = share.mean() if len(share) else 1.0 / len(liked)
            found.probability[np.isin(found.items, liked), Source.INTERESTS - 1] = average
        return found

    def _joined(self, known: Candidates, new_numbers: NDArray[np.int64], evidence: Evidence) -> Candidates:
        """Candidates of the snapshot, and after them new items (C,)."""
        if not len(new_numbers):
            return known
        likeliest = float(known.probability[:, Source.ENCODER - 1].max(initial=0.0)) if len(known.items) else 1.0
        new = self._new.candidates(new_numbers, evidence.encoded, evidence.profile, likeliest, evidence.trending)
        return Candidates(
            np.concatenate([known.items, new.items]), np.concatenate([known.probability, new.probability])
        )

    def _explored(
        self, user: UserState, candidates: Candidates, ranked: Ranked, found: tuple[Recommendation, ...]
    ) -> tuple[Recommendation, ...]:
        """An answer in which some new items have taken the places of others."""
        new = np.flatnonzero(candidates.items > self.snapshot.manifest.item_count)
        if not self._explore_share or not len(new):
            return found
        new = new[self._events(candidates.items[new]) < WELL_KNOWN_EVENTS]
        if not len(new):
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

    def _events(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """(C,) how many have turned to new items (C,); where the snapshot holds them, how many do so at present."""
        arrived = numbers >= self._new.first
        found = np.zeros(len(numbers))
        found[arrived] = self._new.events(numbers[arrived])
        found[~arrived] = self._trending.present(numbers[~arrived])
        return found

    def _name(self, number: int) -> tuple[str, str]:
        """The id and the title of an item."""
        if number >= self._new.first:
            return self._new.name(number)
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
        user, manifest = asker.user, self.snapshot.manifest
        cold = not (user.items or session)
        fusion = self._fusion(query, cold)
        wanted = _wanted(query, user, len(session))
        votes: dict[Source, Scored] = {}
        trending: Mapping[str, float] = {}
        encoded, reason, neighbors = None, asker.stale_reason, NO_NEIGHBORS
        if fusion.encoder or fusion.neighbors:
            left = self._patience.for_encoder_s(timeout_s)
            encoded, reason = await self._encoded(asker, session, wanted, left, query.patient)
        profile, content = self._profile(user, query.session_item_ids, fusion), None
        if profile is not None and fusion.content:  # sought while neighbours are
            content = asyncio.get_running_loop().run_in_executor(self._searchers, profile.nearest, wanted)
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
        if content is not None:
            votes[Source.CONTENT] = await content
        if fusion.trending:
            votes[Source.TRENDING] = self._trending.votes(wanted)
            trending = self._trending.beyond(query.limit + len(user.unknown))
        if self.snapshot.relations is not None:  # also where it has no say: it explains what others bring
            votes[Source.RELATIONS] = self.snapshot.relations.votes(recent, manifest.transitions.decay)
        return Evidence(votes, neighbors, encoded, profile, recent, cold, trending, reason)

    def _profile(self, user: UserState, session: Sequence[str], fusion: Fusion) -> Profile | None:
        """What the user turned to last, by content; none where nobody asks for it, or nothing is known."""
        if self._content is None or not (fusion.content or self.snapshot.manifest.new_item_count or len(self._new)):
            return None
        last = [*zip(user.times[-CONTENT_ITEMS:], user.items[-CONTENT_ITEMS:], strict=True)]
        for item_id, time_s in itertools.islice(reversed(user.unknown.items()), CONTENT_ITEMS):
            last += ((time_s, number) for number in self._new.numbers((item_id,)).tolist())
        numbers = [number for _, number in sorted(last, key=lambda one: one[0])]
        for item_id in session[-CONTENT_ITEMS:]:
            numbers += self._numbers((item_id,)) or self._new.numbers((item_id,)).tolist()
        return self._content.profile(self._contents(np.array(numbers[-CONTENT_ITEMS:], np.int64)), CONTENT_DECAY)

    def _contents(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """(R, D) the content vectors of items (R,), new ones among them; zeros where nothing is known."""
        assert self._content is not None
        new = numbers >= self._new.first
        found = self._content.vectors[np.where(new, 0, numbers)]
        found[new] = self._new.content(numbers[new])
        return found

    async def _encoded(
        self, asker: Asker, session: Sequence[int], top_n: int, timeout_s: float, patient: bool = False
    ) -> tuple[Encoded | None, str]:
        """The user's encoding, or the last known one; and why it may be old."""
        if asker.stale_reason:
            self._observer.degraded("store")
        if not session and asker.user.encoded_count == len(asker.user.items):  # nothing to wait for
            return asker.user.encoded, asker.stale_reason
        begun_s = time.perf_counter()
        try:
            with self._patience.waiting():
                found = await self.states.encoded(asker.user, session, top_n, timeout_s, patient=patient)
                return found, asker.stale_reason
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

    def _fusion(self, query: Query, cold: bool = False) -> Fusion:
        """The weights of a request. Of whom the encoder knows nothing, content has its say, if it knows something."""
        fusion = self.snapshot.manifest.fusion
        if cold:
            fusion = replace(fusion, content=max(fusion.content, fusion.encoder))
        return fusion.weighted(query.source_weights)

    def _rank(self, candidates: Candidates, evidence: Evidence, query: Query, limit: int) -> Ranked:
        learned, item_count = self.snapshot.manifest.item_count, len(self.snapshot.catalog)
        fusion, asked = self._fusion(query, evidence.cold), evidence.asked
        speaker = None  # who speaks for sources that count events, of items without any
        if fusion.encoder and evidence.profile is not None:
            speaker = Source.CONTENT
        elif fusion.encoder and Source.ENCODER in asked:
            speaker = Source.ENCODER
        return rank(candidates, fusion, asked, item_count, limit, learned, speaker)

    def _complete(self, candidates: Candidates, evidence: Evidence) -> Candidates:
        """Fill in what is known of items that others brought: by the encoder, popularity and content."""
        items, probability = candidates.items, candidates.probability.copy()
        probability[:, Source.POPULARITY - 1] = self.snapshot.popularity[items]
        if evidence.encoded is not None:
            unsaid = np.flatnonzero(probability[:, Source.ENCODER - 1] == 0.0)
            probability[unsaid, Source.ENCODER - 1] = self._encoder_probability(items[unsaid], evidence.encoded)
        if evidence.profile is not None:
            of_all = Source.CONTENT in evidence.votes  # else it is asked of items without events alone
            judged = np.flatnonzero(of_all | (items > self.snapshot.manifest.item_count))
            probability[judged, Source.CONTENT - 1] = evidence.profile.of_items(items[judged])
        return Candidates(items, probability)

    def _recommendations(self, ranked: Ranked, evidence: Evidence) -> tuple[Recommendation, ...]:
        numbers, by_strength = ranked.items.tolist(), np.argsort(-ranked.contribution, axis=1, kind="stable").tolist()
        behind = voters(self.snapshot, evidence.neighbors, numbers)
        found = []
        for row, (number, score) in enumerate(zip(numbers, ranked.score.tolist(), strict=True)):
            probability, brought = ranked.probability[row].tolist(), ranked.brought[row].tolist()
            sources = tuple((SOURCES[column], probability[column]) for column in by_strength[row] if brought[column])
            linked = links(self.snapshot, evidence.recent, number) if probability[Source.RELATIONS - 1] > 0 else ()
            found.append(Recommendation(*self._name(number), score, sources, behind[row], linked))
        return tuple(found)


def _wanted(query: Query, user: UserState, session_items: int) -> int:
    """How many items the encoder is asked for, so that enough are left without those that the user has had."""
    return TOP_N_MARGIN + query.limit + len(user.seen) + session_items


def _wait_s(query: Query, user: UserState) -> float | None:
    """How long after their last event the user sees the answer; none where that is not known."""
    if query.request_time_s is None or query.session_item_ids or not user.times:
        return None
    return max(query.request_time_s - user.times[-1], 0.0)
