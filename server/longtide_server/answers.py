"""What is asked of a recommender and what it answers, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtide_server.events import EventType, owner_key
from longtide_server.items.item_filter import ItemFilter
from longtide_server.sources.candidates import Source


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
    include_item_ids: Sequence[str] | None = None
    """Only these items may appear; None for all."""
    source_weights: tuple[tuple[Source, float], ...] = ()
    """How much sources count, where it is not as the snapshot says."""
    interests: ItemFilter | None = None
    """What the items are like that the one who asks says they like."""
    include_seen: bool = False
    """Whether what the user has had may be recommended once more."""
    patient: bool = False
    """Whether nobody looks at a screen and waits, so that all others go first."""

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


@dataclass(frozen=True, slots=True)
class Behavior:
    """What somebody is foreseen to do next."""

    types: tuple[tuple[EventType, float], ...]
    """Every type with its probability to be that of the next event, the most probable first; empty when not known."""
    values: tuple[tuple[str, float], ...]
    """Items, and the values that they would be given, on the scale of the log."""
    degraded_reason: str = ""
