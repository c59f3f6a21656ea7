"""What is known when somebody asks: who they are, and what every source says of them."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar, TypeVarTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.answers import Query
from longtide_server.encoder import Encoded
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded
from longtide_server.new_items.new_items import NewItems
from longtide_server.observer import StageObserver
from longtide_server.patience import Patience
from longtide_server.ranking import Fusion
from longtide_server.snapshot import Snapshot
from longtide_server.sources.candidates import (
    NOTHING,
    Candidates,
    Scored,
    Source,
    best_of,
    encoder_probability,
    neighbor_votes,
    transition_votes,
)
from longtide_server.sources.content_source import ContentSource, Profile
from longtide_server.sources.neighbors import NO_NEIGHBORS, Neighbors
from longtide_server.sources.request_time import query_after
from longtide_server.sources.trending import Trending
from longtide_server.users.unknown_items import KEPT_LAST
from longtide_server.users.user_state import TOP_N_MARGIN, UserState
from longtide_server.users.user_states import UserStates

SEARCHERS = os.cpu_count() or 1
CONTENT_ITEMS = KEPT_LAST  # of the last items, what they are says what the user is after
CONTENT_DECAY = 0.7
COLD_CONTENT = 1.0  # the weight of content, at least, where nothing is known that the encoder could read

log = structlog.get_logger(__name__)
Given = TypeVarTuple("Given")
Found = TypeVar("Found")


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


class Sources:
    """Asks the sources of one snapshot."""

    def __init__(
        self, snapshot: Snapshot, states: UserStates, trending: Trending, new: NewItems, patience: Patience,
        observer: StageObserver,
    ) -> None:  # fmt: skip
        self._snapshot = snapshot
        self._states = states
        self._trending = trending
        self._new = new
        self._patience = patience
        self._observer = observer
        vectors, temperature = snapshot.content_vectors, snapshot.manifest.encoder.temperature
        self._content = None if vectors is None else ContentSource(vectors, temperature)
        self._searchers = ThreadPoolExecutor(SEARCHERS, thread_name_prefix="neighbor-search")

    def fusion(self, query: Query, cold: bool = False) -> Fusion:
        """The weights of a request. Of whom the encoder knows nothing, content has its say, if it knows something."""
        fusion = self._snapshot.manifest.fusion
        if cold:
            fusion = replace(fusion, content=max(fusion.content, COLD_CONTENT))
        return fusion.weighted(query.source_weights)

    async def evidence(self, asker: Asker, query: Query, session: list[int], timeout_s: float) -> Evidence:
        """What every source says that has a say, or explains; without the encoder where that does not answer."""
        user, manifest = asker.user, self._snapshot.manifest
        cold = not (user.items or session)
        fusion = self.fusion(query, cold)
        wanted = wanted_items(query, user, len(session))
        votes: dict[Source, Scored] = {}
        trending: Mapping[str, float] = {}
        encoded, reason, neighbors = None, asker.stale_reason, NO_NEIGHBORS
        if fusion.encoder or fusion.neighbors:
            left = self._patience.for_encoder_s(timeout_s)
            encoded, reason = await self.encoded(asker, session, wanted, left, query.patient)
        profile, content = self._profile(user, query.session_item_ids, fusion), None
        if profile is not None and fusion.content:  # sought while neighbours are
            content = self.aside(profile.nearest, wanted)
        if encoded is not None:
            begun_s = time.perf_counter()
            neighbors = await self.search(encoded, user, manifest.neighbors.count, query.min_similarity)
            self._observer.stage("neighbors", begun_s)
            votes[Source.ENCODER] = await self._encoder_votes(encoded, wanted)
            waited_s = wait_s(query, user)
            if waited_s is not None:
                encoded, votes[Source.ENCODER] = self._after(waited_s, encoded, votes[Source.ENCODER])
            votes[Source.NEIGHBORS] = neighbor_votes(
                neighbors, self._snapshot.neighbors.positions, manifest.neighbors.temperature
            )
        recent = user.recent(manifest.transitions.lags, session)
        votes[Source.TRANSITIONS] = transition_votes(self._snapshot.transitions, recent, manifest.transitions.decay)
        votes[Source.POPULARITY] = NOTHING
        if content is not None:
            votes[Source.CONTENT] = await content
        if fusion.trending:
            votes[Source.TRENDING] = self._trending.votes(wanted)
            trending = self._trending.beyond(query.limit + len(user.unknown))
        if self._snapshot.relations is not None:  # also where it has no say: it explains what others bring
            votes[Source.RELATIONS] = self._snapshot.relations.votes(recent, manifest.transitions.decay)
        return Evidence(votes, neighbors, encoded, profile, recent, cold, trending, reason)

    async def encoded(
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
                found = await self._states.encoded(asker.user, session, top_n, timeout_s, patient=patient)
                return found, asker.stale_reason
        except (EncoderUnavailable, DeadlineExceeded, Overloaded) as exc:
            self._observer.degraded("encoder")
            log.warning("recommend_degraded", reason=str(exc))
            return asker.user.encoded, asker.stale_reason or f"the encoder could not be asked: {exc}"
        finally:
            self._observer.stage("encoder", begun_s)

    async def search(self, encoded: Encoded, user: UserState, count: int, min_similarity: float | None) -> Neighbors:
        """The moments of other users that are like this one."""
        return await self.aside(self._neighbors, encoded, user.numbers, count, min_similarity)

    def aside(self, look: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """What a search through many vectors finds, while other callers have their turn: Annoy and numpy let them."""
        return asyncio.get_running_loop().run_in_executor(self._searchers, look, *given)

    def complete(self, candidates: Candidates, evidence: Evidence) -> Candidates:
        """Fill in what is known of items that others brought: by the encoder, popularity and content."""
        items, probability = candidates.items, candidates.probability.copy()
        probability[:, Source.POPULARITY - 1] = self._snapshot.popularity[items]
        if evidence.encoded is not None:
            unsaid = np.flatnonzero(probability[:, Source.ENCODER - 1] == 0.0)
            probability[unsaid, Source.ENCODER - 1] = self.encoder_probability(items[unsaid], evidence.encoded)
        if evidence.profile is not None:
            of_all = Source.CONTENT in evidence.votes  # else it is asked of items without events alone
            judged = np.flatnonzero(of_all | (items > self._snapshot.manifest.item_count))
            probability[judged, Source.CONTENT - 1] = evidence.profile.of_items(items[judged])
        return Candidates(items, probability)

    def _profile(self, user: UserState, session: Sequence[str], fusion: Fusion) -> Profile | None:
        """What the user turned to last, by content; none where nobody asks for it, or nothing is known."""
        if self._content is None or not (fusion.content or self._snapshot.manifest.new_item_count or len(self._new)):
            return None
        last = [*zip(user.times[-CONTENT_ITEMS:], user.items[-CONTENT_ITEMS:], strict=True)]
        for item_id, time_s in user.unknown.last.items():
            last += ((time_s, number) for number in self._new.numbers((item_id,)).tolist())
        numbers = [number for _, number in sorted(last, key=lambda one: one[0])]
        for item_id in session[-CONTENT_ITEMS:]:
            numbers += self._snapshot.catalog.numbers((item_id,)).tolist() or self._new.numbers((item_id,)).tolist()
        return self._content.profile(self._contents(np.array(numbers[-CONTENT_ITEMS:], np.int64)), CONTENT_DECAY)

    def _contents(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """(R, D) the content vectors of items (R,), new ones among them; zeros where nothing is known."""
        assert self._content is not None
        new = numbers >= self._new.first
        found = self._content.vectors[np.where(new, 0, numbers)]
        found[new] = self._new.content(numbers[new])
        return found

    async def _encoder_votes(self, encoded: Encoded, wanted: int) -> Scored:
        """The encoder's best items: those that came with the encoding, or when they are too few, the best of all."""
        enough = wanted - TOP_N_MARGIN  # without the margin there is still one for every place
        if len(encoded.items) >= min(enough, len(self._snapshot.catalog)):
            return Scored(encoded.items, np.exp(encoded.log_probability.astype(np.float64)))
        return await self.aside(self._best, encoded, wanted)

    def _best(self, encoded: Encoded, wanted: int) -> Scored:
        """The encoder's best items of all."""
        probability = self.encoder_probability(slice(None), encoded)
        probability[0] = 0.0  # padding
        return best_of(probability, wanted)

    def _after(self, wait_s: float, encoded: Encoded, votes: Scored) -> tuple[Encoded, Scored]:
        """The user so long after their last event, and what the encoder says then of the items that it brings.

        They keep their mass together: to rank the whole catalogue again would cost more than the rest of a request.
        """
        weights = self._snapshot.request_time
        if weights is None:
            return encoded, votes
        moved = replace(encoded, query=query_after(weights, encoded.query, wait_s))
        probability = self.encoder_probability(votes.items, moved)
        gain = float(probability.sum() / votes.probability.sum())
        return replace(moved, log_z=moved.log_z + math.log(gain)), Scored(votes.items, probability / gain)

    def encoder_probability(self, items: NDArray[np.int64] | slice, encoded: Encoded) -> NDArray[np.float64]:
        """(C,) the encoder's probability of any items (C,)."""
        temperature = self._snapshot.manifest.encoder.temperature
        return encoder_probability(items, encoded.query, self._snapshot.embeddings, temperature, encoded.log_z)

    def _neighbors(self, encoded: Encoded, own: Sequence[int], count: int, min_similarity: float | None) -> Neighbors:
        settings, index = self._snapshot.manifest.neighbors, self._snapshot.neighbors
        least = settings.min_similarity if min_similarity is None else min_similarity
        # A user's own moments are the most similar ones of all.
        fetched = count + sum(last - first for first, last in map(index.moments, own))
        found = index.search(encoded.query, fetched, max(settings.search_k, fetched), least)
        if not own:
            return found
        others = np.flatnonzero(~np.isin(index.positions.user[found.position], own))[:count]
        return Neighbors(found.position[others], found.similarity[others])


def wanted_items(query: Query, user: UserState, session_items: int) -> int:
    """How many items the encoder is asked for, so that enough are left without those that the user has had."""
    return TOP_N_MARGIN + query.limit + len(user.seen) + session_items


def wait_s(query: Query, user: UserState) -> float | None:
    """How long after their last event the user sees the answer; none where that is not known."""
    if query.request_time_s is None or query.session_item_ids or not user.times:
        return None
    return max(query.request_time_s - user.times[-1], 0.0)
