"""Runs the server's own recommender over the histories of a log, so that what is measured is what is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray

from longtide_server.answers import Answer, Query, RankedItem
from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.encoder import AnswerSizes
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.errors import Unavailable
from longtide_server.event_store import Deleted, History, Known, Merged, Version, Written
from longtide_server.events import Event, session_of, user_of
from longtide_server.recommender import Recommender
from longtide_server.snapshot import ENCODER, Snapshot
from longtide_server.sources.candidates import Candidates
from longtide_server.training.dataset import Sequences
from longtide_server.users.user_states import UserStates

CALL_TIMEOUT_S = 600.0
AT_ONCE = 256


def query_of(owner: str, limit: int, request_time_s: float | None = None, *, include_seen: bool = False) -> Query:
    """What a user, or an anonymous session, asks."""
    user_id, session_id = user_of(owner), session_of(owner)
    return Query(user_id, limit, session_id=session_id, request_time_s=request_time_s, include_seen=include_seen)


class LogHistories:
    """The histories of a log, which only reads."""

    shared = False

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._user = {owner: user for user, owner in enumerate(sequences.owners)}

    def stamp(self) -> None:
        """See Histories: nobody shares a log that only reads."""

    async def history(self, owner: str, known: Known | None = None) -> History:
        """See Histories."""
        return History(owner, Version(1), self._events(owner))

    def _events(self, owner: str) -> list[Event]:
        user = self._user.get(owner)
        if user is None:
            return []
        span = self._sequences.of(user)
        columns = (self._sequences.items, self._sequences.types, self._sequences.times, self._sequences.values)
        rows = zip(*(column[span].tolist() for column in columns), strict=True)
        return [
            Event(
                event_id=str(place),
                user_id=user_of(owner),
                item_id=self._sequences.item_ids[item - 1],
                type=kind,
                time_s=time_s,
                value=None if np.isnan(value) else value,
                session_id=session_of(owner),
            )
            for place, (item, kind, time_s, value) in enumerate(rows)
        ]

    async def write(self, events: Sequence[Event]) -> Written:
        """A log cannot be written to."""
        raise Unavailable("a log is read only")

    async def merge(self, source: str, target: str) -> Merged:
        """A log cannot be written to."""
        raise Unavailable("a log is read only")

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """A log cannot be written to."""
        raise Unavailable("a log is read only")


class OfflineRecommender:
    """A recommender over a snapshot and a log; use it inside one event loop."""

    def __init__(self, snapshot: Snapshot, sequences: Sequences, kept_users: int = 2 * AT_ONCE) -> None:
        """kept_users: whose states stay in memory, for callers that ask for the same users again."""
        local = LocalEncoder(snapshot.path / ENCODER, AnswerSizes.of(snapshot.embeddings))
        self._encoder = CoalescingEncoder(local, CALL_TIMEOUT_S, local.batches)
        self._states = UserStates(snapshot, LogHistories(sequences), self._encoder, kept_users, CALL_TIMEOUT_S)
        self._catalog, self._live = snapshot.catalog, LiveCatalog(snapshot.catalog)
        self._recommender = Recommender(snapshot, self._states, live=self._live)

    def reads(self, snapshot: Snapshot) -> None:
        """Go on with another snapshot of the same encoder and catalogue; what was encoded stays."""
        self._recommender = Recommender(snapshot, self._states, live=self._live)

    async def answers(self, queries: Sequence[Query]) -> AsyncIterator[Answer]:
        """Recommendations for every query, in their order."""
        for at in range(0, len(queries), AT_ONCE):
            asked = queries[at : at + AT_ONCE]
            for answer in await asyncio.gather(*(self._recommender.recommend(q, CALL_TIMEOUT_S) for q in asked)):
                if answer.degraded_reason:
                    raise Unavailable(answer.degraded_reason)
                yield answer

    async def lists(self, queries: Sequence[Query], k: int) -> NDArray[np.int64]:
        """(Q, k) the items recommended for every query as catalogue numbers, 0 where a list is shorter."""
        table = np.zeros((len(queries), k), np.int64)
        row = 0
        async for answer in self.answers(queries):
            numbers = self._catalog.numbers(item.item_id for item in answer.recommendations[:k])
            table[row, : len(numbers)] = numbers
            row += 1
        return table

    async def ranked(self, queries: Sequence[Query], item_ids: Sequence[str]) -> AsyncIterator[tuple[RankedItem, ...]]:
        """The given items in every query's order, in the order of the queries."""
        for at in range(0, len(queries), AT_ONCE):
            asked = queries[at : at + AT_ONCE]
            calls = (self._recommender.rank(query, item_ids, CALL_TIMEOUT_S) for query in asked)
            for ranked, degraded_reason in await asyncio.gather(*calls):
                if degraded_reason:
                    raise Unavailable(degraded_reason)
                yield ranked

    async def candidates(self, owners: Sequence[str], limit: int) -> AsyncIterator[Candidates]:
        """What every source says of the candidates of users, in their order."""
        for at in range(0, len(owners), AT_ONCE):
            queries = [query_of(owner, limit) for owner in owners[at : at + AT_ONCE]]
            for found in await asyncio.gather(*(self._recommender.candidates(q, CALL_TIMEOUT_S) for q in queries)):
                yield found

    async def queries(self, owners: Sequence[str]) -> NDArray[np.float32]:
        """The query vector (V, D) of users now, in their order; zeros for a user without events."""
        found = np.zeros((len(owners), self._recommender.snapshot.manifest.encoder.dim), np.float32)
        for at in range(0, len(owners), AT_ONCE):
            states = [await self._states.get(owner) for owner in owners[at : at + AT_ONCE]]
            calls = (self._states.encoded(state, (), 1, CALL_TIMEOUT_S) for state in states)
            for row, encoded in enumerate(await asyncio.gather(*calls), at):
                if encoded is not None:
                    found[row] = encoded.query
        return found

    async def close(self) -> None:
        """Let go of the encoder."""
        await self._encoder.close()
