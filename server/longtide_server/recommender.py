"""The life of a request, without transport: user state, encoder, sources, fusion, answer.

The server calls it with users from the event log, and `longtide predict` and `evaluate` with users from a file, so
what is measured is what is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.answers import Answer, Behavior, Query, RankedItem, Recommendation, SimilarUser
from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.eligible import Eligible
from longtide_server.errors import DeadlineExceeded, Overloaded, Unavailable
from longtide_server.evidence import Asker, Evidence, Sources, wait_s, wanted_items
from longtide_server.explanations import links, people, voters
from longtide_server.foresight import foreseen, head_of
from longtide_server.interest_profile import InterestProfile, liked_lately, profile_of
from longtide_server.items.item_columns import Word
from longtide_server.items.item_filter import size
from longtide_server.new_items.exploration import explore
from longtide_server.new_items.new_items import NewItems, none_new
from longtide_server.observer import NOBODY, StageObserver
from longtide_server.patience import Patience
from longtide_server.ranking import Ranked, rank, with_repeats
from longtide_server.snapshot import Snapshot
from longtide_server.sources.candidates import Candidates, Source, tabulate
from longtide_server.sources.request_time import wait_class
from longtide_server.sources.trending import Trending
from longtide_server.users.user_state import UserState
from longtide_server.users.user_states import UserStates

SOURCES = tuple(Source)  # by column: to make one of a number takes far longer
STORE_SHARE = 0.5  # of the time there is, at most, is the event log waited for
MAX_MOMENTS_SEARCHED = 20_000
WELL_KNOWN_EVENTS = 50  # people have turned to a new item: no need to find out about it
MAX_KEPT_LIMIT = 100  # items of an answer that is kept, some 27 kB
ITEMS_AT_ONCE = 100  # are looked up before other callers have their turn
MAX_KEPT_SIZE = 32  # conditions and values of a filter whose answers are kept: every one of them holds it

log = structlog.get_logger(__name__)


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
        self._new = none_new(snapshot, self._live, clock) if new is None else new
        self._explore_share = explore_share
        self._stale_catalog = stale_catalog
        self._observer = observer
        self._patience = Patience()
        self._sources = Sources(snapshot, states, self._trending, self._new, self._patience, observer)
        self._eligible = Eligible(snapshot, self._live, self._new, self._sources, clock)

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
        await self.states.encoded(asker.user, (), wanted_items(query, asker.user, 0), left, patient=query.patient)

    def depends_on(self, query: Query, asker: Asker) -> Hashable | None:
        """What an answer depends on beside history and catalogue; none where that is too much to keep."""
        conditions = [one for one in (query.item_filter, query.interests) if one is not None]
        if query.exclude_item_ids or query.include_item_ids is not None or query.session_item_ids:
            return None
        if asker.stale_reason or self._stale_catalog():
            return None
        if sum(map(size, conditions)) > MAX_KEPT_SIZE or query.limit > MAX_KEPT_LIMIT:
            return None
        if self._sources.fusion(query).trending:  # that changes all the time
            return None
        weights, waited_s = self.snapshot.request_time, wait_s(query, asker.user)
        wait = -1 if weights is None or waited_s is None else wait_class(weights, waited_s)
        settings = (query.item_filter, query.source_weights, query.interests, query.include_seen)
        return query.limit, query.min_similarity, wait, settings

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
        """The best items, of what the user has had only where that is asked for, within `timeout_s`."""
        begun = time.monotonic()
        asker = await self.asker(query.owner, timeout_s)
        return await self.recommend_to(asker, query, timeout_s - (time.monotonic() - begun))

    async def recommend_to(self, asker: Asker, query: Query, timeout_s: float) -> Answer:
        """The same for whom is known to ask."""
        session = self._numbers(query.session_item_ids)
        evidence = await self._sources.evidence(asker, query, session, timeout_s)
        allowed = self._eligible.allowed(query)
        await self._eligible.seek(asker, query, session, evidence, allowed)
        begun_s = time.perf_counter()  # nothing is waited for from here on
        repeats = self._eligible.repeats(asker.user, query, session, allowed) if query.include_seen else None
        known = self._eligible.learned(asker, query, session, evidence, allowed)
        candidates = self._eligible.with_new(known, asker.user, query, evidence)
        ranked = self._rank(candidates, evidence, query, query.limit)
        if repeats is not None:
            ranked = with_repeats(ranked, repeats, query.limit)
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
        evidence = await self._sources.evidence(asker, query, session, timeout_s)
        allowed = self._eligible.allowed(query)
        await self._eligible.seek(asker, query, session, evidence, allowed)
        return self._eligible.learned(asker, query, session, evidence, allowed)

    async def rank(self, query: Query, item_ids: Sequence[str], timeout_s: float) -> tuple[tuple[RankedItem, ...], str]:
        """Order the given items, and why the order is degraded, if it is. Unknown items come last, as sent."""
        begun = time.monotonic()
        asker = await self.asker(query.owner, timeout_s)
        session = self._numbers(query.session_item_ids)
        evidence = await self._sources.evidence(asker, query, session, timeout_s - (time.monotonic() - begun))
        numbers = np.unique(self.snapshot.catalog.numbers(item_ids))
        learned = self._sources.complete(tabulate(numbers, evidence.votes, len(self.snapshot.catalog)), evidence)
        candidates = self._eligible.joined(learned, self._new.numbers(item_ids), evidence)
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
        encoded, reason = await self._sources.encoded(asker, (), 1, self._patience.for_encoder_s(left))
        if encoded is None:
            return (), reason
        settings = self.snapshot.manifest.neighbors
        # A user holds many moments, so more moments than users are fetched, until there are enough.
        count = max(settings.count, 4 * limit)
        while True:
            neighbors = await self._sources.search(encoded, user, count, min_similarity)
            users = people(self.snapshot, neighbors, limit)
            if len(users) >= limit or len(neighbors.position) < count or count == MAX_MOMENTS_SEARCHED:
                return users, reason
            count = min(4 * count, MAX_MOMENTS_SEARCHED)

    async def behavior(self, query: Query, item_ids: Sequence[str], timeout_s: float) -> Behavior:
        """What the one who asks does next, and how they would value the items. Conflict where nothing foresees that."""
        head_of(self.snapshot)
        begun = time.monotonic()
        asker = await self.asker(query.owner, timeout_s)
        left = self._patience.for_encoder_s(timeout_s - (time.monotonic() - begun))
        encoded, reason = await self._sources.encoded(asker, self._numbers(query.session_item_ids), 1, left)
        vector = None if encoded is None else encoded.query
        return await self._sources.aside(foreseen, self.snapshot, vector, item_ids, reason)

    async def interests(self, owner: str, limit: int, timeout_s: float) -> InterestProfile:
        """What the owner of a history is interested in, at all times and lately, `limit` interests each."""
        asker = await self.asker(owner, timeout_s)
        reason = asker.stale_reason or self._stale_catalog()
        if reason:
            self._observer.degraded("store" if asker.stale_reason else "catalog")
        liked = liked_lately(asker.user)
        return profile_of(liked, await self._words(liked), limit, reason)

    async def _words(self, numbers: Sequence[int]) -> Mapping[int, Sequence[Word]]:
        """What items are like, by number; some at a time, since there may be thousands."""
        words: dict[int, Sequence[Word]] = {}
        for number in dict.fromkeys(numbers):
            words[number] = self._live.words(number)
            if len(words) % ITEMS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return words

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

    def _numbers(self, item_ids: Iterable[str]) -> list[int]:
        return self.snapshot.catalog.numbers(item_ids).tolist() if item_ids else []

    def _rank(self, candidates: Candidates, evidence: Evidence, query: Query, limit: int) -> Ranked:
        learned, item_count = self.snapshot.manifest.item_count, len(self.snapshot.catalog)
        fusion, asked = self._sources.fusion(query, evidence.cold), evidence.asked
        speaker = None  # who speaks for sources that count events, of items without any
        if fusion.encoder and evidence.profile is not None:
            speaker = Source.CONTENT
        elif fusion.encoder and Source.ENCODER in asked:
            speaker = Source.ENCODER
        return rank(candidates, fusion, asked, item_count, limit, learned, speaker)

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
