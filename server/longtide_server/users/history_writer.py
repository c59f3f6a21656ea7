"""Changes the event log, and has every copy that is kept of a history feel it before the change is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from longtide_server.event_store import Appended, Deleted, Histories, Merged, Written
from longtide_server.events import Event
from longtide_server.turns import Turns
from longtide_server.under_way import UnderWay

PIECE_EVENTS = 200
"""Of a batch, are felt at once."""

R = TypeVar("R", bound=Merged | Deleted)


class Copies(Protocol):
    """Copies of histories, such as `user_states.UserStates`."""

    def apply(self, written: Written) -> None:
        """Let written events be felt: a batch, or some of its histories."""
        ...

    def forget(self, names: Iterable[str]) -> None:
        """Read the histories of owners anew when they are asked for."""
        ...


class Foresight(Protocol):
    """Who makes use of the time that writing takes."""

    def expect(self, events: Sequence[Event]) -> None:
        """These events are about to be written; they may turn out not to be."""
        ...

    def settle(self, events: Sequence[Event]) -> None:
        """It is over, and what was written has been felt."""
        ...


class HistoryWriter:
    """The one way to a log's histories for whoever changes them. A change goes on when its caller gives up."""

    def __init__(self, store: Histories) -> None:
        self._store = store
        self._copies: list[Copies] = []
        self._told: list[Foresight] = []
        self._under_way = UnderWay()

    def add(self, copies: Copies) -> None:
        """From now on these copies feel changes, those included that are under way."""
        self._copies.append(copies)

    def remove(self, copies: Copies) -> None:
        """These copies are no longer used."""
        self._copies.remove(copies)

    def tell(self, foresight: Foresight) -> None:
        """From now on, say which events are about to be written."""
        self._told.append(foresight)

    def tell_no_more(self, foresight: Foresight) -> None:
        """Say it no longer."""
        self._told.remove(foresight)

    async def write(self, events: Sequence[Event]) -> Written:
        """Make events durable, then let them be felt. See Histories."""
        return await self._under_way.done(self._write(events))

    async def merge(self, source: str, target: str) -> Merged:
        """Merge two histories and let it be felt. See Histories."""
        return await self._under_way.done(self._rewritten(self._store.merge(source, target), source, target))

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """Delete a history and let it be felt. See Histories."""
        return await self._under_way.done(self._rewritten(self._store.delete(owner, now_s), owner))

    def forget(self, names: Iterable[str]) -> None:
        """Have histories read anew: the log has changed otherwise than by being written."""
        named = tuple(names)
        for copies in self._copies:
            copies.forget(named)

    async def close(self) -> None:
        """Finish what callers have given up on."""
        await self._under_way.close()

    async def _write(self, events: Sequence[Event]) -> Written:
        told = list(self._told)
        for one in told:
            one.expect(events)
        try:
            written, turns = await self._store.write(events), Turns()
            for piece in in_pieces(written):
                for copies in tuple(self._copies):
                    copies.apply(piece)
                await turns.pause()
            return written
        finally:
            for one in told:
                one.settle(events)

    async def _rewritten(self, change: Awaitable[R], *names: str) -> R:
        try:
            found = await change
        except BaseException:
            self.forget(names)  # how far it has come is not known
            raise
        self.forget({*names, *found.names})
        return found


def in_pieces(written: Written) -> Iterator[Written]:
    """What was written of some histories at a time: some hundred events, unless it is one history that has more."""
    piece: dict[str, Appended] = {}
    count = 0
    for owner, appended in written.appended.items():
        piece[owner] = appended
        count += len(appended.events)
        if count >= PIECE_EVENTS:
            yield Written(count, 0, piece)
            piece, count = {}, 0
    if piece:
        yield Written(count, 0, piece)
