"""The durable event log: the only truth after a restart.

A history belongs to an owner (`events.owner_key`): a user, or a session that nobody has logged in to. Every history has
a version, so that whoever keeps a copy of it can tell what is missing, and a reader of one server sees what another
wrote. An `event_id` is unique among the events of its owner: what can be retried is an event, not a person.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from longtide_server.attribution import Shown
from longtide_server.events import Event


class Version(NamedTuple):
    """How far a history has come; later versions are greater, as long as the store loses nothing."""

    rewrites: int = 0
    """How often events were taken out of the history or brought in from another one."""
    position: int = 0
    """The place in the order of arrival of the history's last event."""
    last: str = ""
    """The id of that event: what lost events, or was put back from a backup, gives their positions to others."""


class Known(NamedTuple):
    """What a copy of a history is of."""

    owner: str
    version: Version


class Place(NamedTuple):
    """Where an event stands in its owner's history."""

    time_s: float
    position: int
    """In the order of arrival, which decides between equal times."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What a write added to one history."""

    before: Version
    after: Version
    events: Sequence[Event]
    """In the order of arrival."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch of events."""

    new: int
    """How many are new and now durable."""
    duplicates: int
    """How many changed nothing: their event_id was known, or they are older than the deletion of their owner's data."""
    appended: Mapping[str, Appended] = field(default_factory=dict)
    """By owner, what is new. An owner that was merged into another appears as that one."""


@dataclass(frozen=True, slots=True)
class History:
    """The events of an owner."""

    owner: str
    """Whose they are: the owner that was asked for, or the one it was merged into."""
    version: Version
    events: Sequence[Event]
    """By time, equal times in the order of arrival; of an increment, in the order of arrival."""
    whole: bool = True
    """False when they are only those that are new since the version that was asked with."""
    names: frozenset[str] = frozenset()
    """Of a whole history, the owners who were merged into this one."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of two histories."""

    events: int
    """How many moved."""
    names: frozenset[str]
    """Every owner whose history is another one now."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of an owner's history."""

    events: int
    """How many were deleted."""
    until_s: float
    """Events that happened until then are not taken any more."""
    names: frozenset[str]
    """Every owner whose history is another one now."""


class Histories(Protocol):
    """What the serving path needs of a log. Everything here may raise Unavailable."""

    @property
    def shared(self) -> bool:
        """Whether others may write to it, so that a copy of a history has to be checked before it is used."""
        ...

    def stamp(self) -> object:
        """Of a shared log, at once: no history has changed, by whomever, between two that are equal.

        None where that cannot be told without asking for a history.
        """
        ...

    async def write(self, events: Sequence[Event]) -> Written:
        """Make valid events durable, all of an owner or none; return only then. Overloaded when too many wait."""
        ...

    async def history(self, owner: str, known: Known | None = None) -> History:
        """All events of an owner, or only those after what is known, where that is the beginning of them."""
        ...

    async def merge(self, source: str, target: str) -> Merged:
        """Move a history into another, once and for ever: the source is another name of the target from now on.

        What the target has already is not doubled. Conflict when the source was merged into somebody else, or is what
        the target was merged into.
        """
        ...

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """Delete the history of an owner, of whom events that happened until now are not taken any more.

        The names that were merged into the owner stand alone again, and for them the same holds.
        """
        ...


class EventStore(Histories, Protocol):
    """Keeps events, each once, and gives back histories. Everything here may raise Unavailable."""

    async def identity(self) -> str:
        """Of this log: another log, or this one once it was emptied from outside, has another one."""
        ...

    async def page(self, owner: str, size: int, before: Place | None = None) -> Sequence[tuple[Place, Event]]:
        """The owner's newest events by time, at most `size` of those before a place."""
        ...

    def expire(self, kept_from_s: Mapping[int, float]) -> AsyncIterator[Mapping[str, int]]:
        """Delete the events of a type (by its number) that happened before a time; yields how many, by owner."""
        ...

    def everything(self) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        """Every event with its owner, in pieces; each history in the order of arrival."""
        ...

    async def add_shown(self, counts: Mapping[Shown, int], flush_id: str) -> None:
        """Add to the counts of recommended items; to do it again under the same id within an hour changes nothing."""
        ...

    async def shown(self) -> Mapping[Shown, int]:
        """How many items were recommended."""
        ...

    async def probe(self) -> None:
        """Write and read a little, and change nothing: Unavailable when events can't be written or read now."""
        ...

    async def close(self) -> None:
        """Finish what was accepted and let go of the storage."""
        ...
