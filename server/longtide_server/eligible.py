"""Which items may be in an answer: what the sources bring of them, the new ones among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from longtide_server.answers import Query
from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.events import EventType
from longtide_server.evidence import Asker, Evidence, Sources
from longtide_server.items.item_filter import ItemFilter
from longtide_server.new_items.new_items import NewItems
from longtide_server.ranking import Repeats
from longtide_server.snapshot import Snapshot
from longtide_server.sources.candidates import (
    NOTHING,
    Candidates,
    Scored,
    Source,
    first_allowed,
    gather,
    gather_allowed,
    interest_votes,
    nearest_allowed,
    tabulate,
)
from longtide_server.sources.repeats import LOOKED_BACK, repeat_votes
from longtide_server.users.user_state import TOP_N_MARGIN, UserState

FEW_ITEMS = 2_000  # to ask the encoder about every one of them costs no more than to join what the sources bring
NO_ITEMS = np.zeros(0, np.int64)


class Eligible:
    """Chooses among the items of one snapshot, as they are now, and the new ones."""

    def __init__(
        self, snapshot: Snapshot, live: LiveCatalog, new: NewItems, sources: Sources, clock: Callable[[], float]
    ) -> None:
        self._snapshot = snapshot
        self._live = live
        self._new = new
        self._sources = sources
        self._clock = clock
        self._popular = np.argsort(-snapshot.popularity[1:], kind="stable") + 1

    async def seek(
        self, asker: Asker, query: Query, session: list[int], evidence: Evidence, allowed: NDArray[np.bool_] | None
    ) -> None:
        """Have the encoder bring allowed items (I + 1,), where the best of all are of another kind."""
        encoded = evidence.encoded
        if allowed is None or encoded is None:
            return
        new = self._new_to(asker.user, query, session, allowed)
        brought = evidence.votes[Source.ENCODER].items
        if np.count_nonzero(new) <= FEW_ITEMS or np.count_nonzero(new[brought]) >= query.limit:
            return
        best = await self._sources.aside(
            nearest_allowed, new, encoded.query, self._snapshot.embeddings, query.limit + TOP_N_MARGIN
        )
        evidence.votes[Source.ENCODER] = Scored(best, self._sources.encoder_probability(best, encoded))

    def learned(
        self, asker: Asker, query: Query, session: list[int], evidence: Evidence, allowed: NDArray[np.bool_] | None
    ) -> Candidates:
        """What the sources say, of the allowed items (I + 1,) that are new to the user."""
        blocked = self._blocked(asker.user, query, session)
        if query.interests is not None and evidence.cold:
            evidence.votes[Source.INTERESTS] = self._interests(query.interests, allowed, blocked, query.limit)
        if allowed is not None:
            among = self._among(self._new_to(asker.user, query, session, allowed), query.limit, evidence)
            return self._sources.complete(among, evidence)
        popular = self._popular[: query.limit + len(blocked)]
        votes = evidence.votes | {Source.POPULARITY: Scored(popular, self._snapshot.popularity[popular])}
        return self._sources.complete(gather(votes, blocked, len(self._snapshot.catalog)), evidence)

    def with_new(self, known: Candidates, user: UserState, query: Query, evidence: Evidence) -> Candidates:
        """The candidates, and after them the new items that may appear and suit best."""
        if not len(self._new):
            return known
        excluded = itertools.chain(query.session_item_ids, query.exclude_item_ids)
        allowed = self._new.that_may_appear(query.item_filter, query.include_item_ids, excluded, user.unknown)
        liked = NO_ITEMS
        if query.interests is not None and evidence.cold:
            liked = np.intersect1d(allowed, self._new.that_may_appear(query.interests, None, ()))
        of_these = liked if len(liked) else allowed
        suitable = self._new.most_suitable(of_these, user, evidence.encoded, evidence.profile, query.limit)
        trending = self._new.numbers(evidence.trending)
        found = self.joined(known, np.union1d(suitable, np.intersect1d(allowed, trending)), evidence)
        if len(liked):  # each as popular as the average item of interest
            share = evidence.votes[Source.INTERESTS].probability
            average = share.mean() if len(share) else 1.0 / len(liked)
            found.probability[np.isin(found.items, liked), Source.INTERESTS - 1] = average
        return found

    def repeats(self, user: UserState, query: Query, session: list[int], allowed: NDArray[np.bool_] | None) -> Repeats:
        """What the user has had and may appear, with how likely each is next; and how likely is something new.

        What may not appear leaves the odds of everything else as they are: of what is new, as much is left as the
        allowed items (I + 1,) hold of its popularity, and at least an item's share, for items without events.
        """
        weights, popularity = self._snapshot.repeats, self._snapshot.popularity
        if weights is None:
            return Repeats(NOTHING, 1.0)
        types = np.array([*user.types[-LOOKED_BACK:], *[EventType.VIEW] * len(session)], np.int64)
        history = np.array([*user.items[-LOOKED_BACK:], *session], np.int64)
        had = repeat_votes(weights, history, types != EventType.DISLIKE)
        news = 1.0 - float(had.probability.sum())
        may = ~np.isin(had.items, self._snapshot.catalog.numbers(query.exclude_item_ids))
        if allowed is not None:
            seen = np.unique(np.array([*user.seen, *session], np.int64))
            unseen = 1.0 - float(popularity[seen].sum())
            left = float(popularity[allowed].sum() - popularity[seen[allowed[seen]]].sum())
            least = 1.0 / len(popularity)
            news *= max(left / max(unseen, least), least)
            may &= allowed[had.items]
        return Repeats(Scored(had.items[may], had.probability[may]), news)

    def joined(self, known: Candidates, new_numbers: NDArray[np.int64], evidence: Evidence) -> Candidates:
        """Candidates of the snapshot, and after them new items (C,)."""
        if not len(new_numbers):
            return known
        likeliest = float(known.probability[:, Source.ENCODER - 1].max(initial=0.0)) if len(known.items) else 1.0
        new = self._new.candidates(new_numbers, evidence.encoded, evidence.profile, likeliest, evidence.trending)
        return Candidates(
            np.concatenate([known.items, new.items]), np.concatenate([known.probability, new.probability])
        )

    def allowed(self, query: Query) -> NDArray[np.bool_] | None:
        """(I + 1,) the items that may appear, whoever asks: a mask of the caller's own; none where every item may."""
        masks = [self._live.recommendable(self._clock())]
        if query.item_filter is not None:
            masks.append(self._live.mask(query.item_filter))
        if query.include_item_ids is not None:
            included = np.zeros(len(self._snapshot.catalog) + 1, np.bool_)
            included[self._snapshot.catalog.numbers(query.include_item_ids)] = True
            masks.append(included)
        restricting = [mask for mask in masks if mask is not None]
        return np.logical_and.reduce(restricting) if restricting else None

    def _blocked(self, user: UserState, query: Query, session: list[int]) -> NDArray[np.int64]:
        """The items that are not new to the user, and those that are not wanted."""
        excluded = self._snapshot.catalog.numbers(query.exclude_item_ids).tolist()
        return np.array([*user.seen, *session, *excluded], np.int64)

    def _new_to(
        self, user: UserState, query: Query, session: list[int], allowed: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """(I + 1,) of the allowed items (I + 1,), those that are not blocked."""
        new = allowed.copy()
        new[self._blocked(user, query, session)] = False
        return new

    def _interests(
        self, interests: ItemFilter, allowed: NDArray[np.bool_] | None, blocked: NDArray[np.int64], limit: int
    ) -> Scored:
        """The most popular items of those that may appear and are of interest."""
        wanted = self._live.mask(interests).copy()
        wanted[blocked] = False
        if allowed is not None:
            wanted &= allowed
        return interest_votes(self._snapshot.popularity, first_allowed(self._popular, wanted, limit))

    def _among(self, allowed: NDArray[np.bool_], limit: int, evidence: Evidence) -> Candidates:
        """What the sources say of the allowed items (I + 1,): of all where they are few, else of those they bring."""
        if np.count_nonzero(allowed) <= FEW_ITEMS:
            return tabulate(np.flatnonzero(allowed), evidence.votes, len(self._snapshot.catalog))
        popular = first_allowed(self._popular, allowed, limit)
        votes = evidence.votes | {Source.POPULARITY: Scored(popular, self._snapshot.popularity[popular])}
        return gather_allowed(votes, allowed)
