"""What the recommender answers: plain values, each answer a sequence that also says where it comes from."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

from longtide._errors import LongtideError
from longtide._types import EventType

T = TypeVar("T")


class Source(enum.StrEnum):
    """Where a recommended item came from."""

    ENCODER = "encoder"
    NEIGHBORS = "neighbors"
    TRANSITIONS = "transitions"
    POPULARITY = "popularity"
    RELATIONS = "relations"
    CONTENT = "content"
    TRENDING = "trending"
    INTERESTS = "interests"
    EXPLORATION = "exploration"
    """The item is new and shown to find out whom it pleases; its probability is that with which it was drawn."""
    REPEATS = "repeats"
    """The user has had the item, and may want it once more; only where what was seen is included."""
    UNKNOWN = "unknown"
    """A source that this release of the SDK does not know: the server is newer."""


class Basis(enum.StrEnum):
    """What makes items alike. Each member equals its lower-case name, so `"content"` works as well."""

    BEHAVIOR = "behavior"
    """People turn to them alike."""
    CONTENT = "content"
    """Their text, categories and other content are alike."""
    BOTH = "both"
    """Both, each for a half."""


@dataclass(frozen=True, slots=True)
class SourceShare:
    """How much one source says for an item."""

    source: Source
    """The source."""
    probability: float
    """The probability that this source alone gives the item: 0 to 1."""


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A similar user who went on to a recommended item."""

    user_id: str
    """The similar user."""
    similarity: float
    """Cosine similarity at the moment compared: -1 to 1."""


@dataclass(frozen=True, slots=True)
class RelationLink:
    """Something that a recommended item shares with one that the user had, in the words of the knowledge graph."""

    item_id: str
    """The item that the user had."""
    relation: str
    """What the shared thing is to that item, for example `film.film.director`."""
    entity: str
    """What both items share."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommended item."""

    item_id: str
    """The item."""
    title: str
    """The item's title; empty when the catalogue has none."""
    score: float
    """The item's share of the fused probability: above 0, at most 1. Comparable within an answer."""
    sources: tuple[SourceShare, ...]
    """The sources that alone would have listed the item, the strongest first; where none would, the strongest alone."""
    neighbors: tuple[Neighbor, ...]
    """The most similar users who went on to this item, at most 3; empty when none did."""
    links: tuple[RelationLink, ...] = ()
    """What links this item to the user's last items, the strongest first, at most 3, whichever source brought it."""


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One of the caller's items in its place."""

    item_id: str
    """The item."""
    score: float
    """The item's share of the fused probability over the items asked about; 0 when it is unknown."""
    known: bool
    """False when neither the snapshot knows the item, nor the server as a new one."""


@dataclass(frozen=True, slots=True)
class SimilarItem:
    """An item that is like another."""

    item_id: str
    """The item."""
    title: str
    """The item's title; empty when the catalogue has none."""
    similarity: float
    """Cosine similarity: -1 to 1."""


@dataclass(frozen=True, slots=True)
class SimilarUser:
    """A similar user and what they did from that moment on."""

    user_id: str
    """The similar user."""
    similarity: float
    """Cosine similarity at the user's most similar moment: -1 to 1."""
    next_item_ids: tuple[str, ...]
    """What the similar user went on to, in time order, at most 5 items."""


class _Entries(Sequence[T]):
    """An answer is the sequence of its entries, best first."""

    __slots__ = ()

    entries: tuple[T, ...]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self.entries[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, slots=True)
class _Answer(_Entries[T]):
    """What is answered for somebody, and where it comes from."""

    user_id: str
    """Whom the answer is for."""
    entries: tuple[T, ...] = ()
    """What the sequence holds."""
    snapshot_id: str = ""
    """The snapshot that every part of the answer comes from."""
    degraded: bool = False
    """True when a source could not be asked; the others still answered."""
    degraded_reason: str = ""
    """Why the answer is degraded; empty when it is not."""


@dataclass(frozen=True, slots=True)
class Recommendations(_Answer[Recommendation]):
    """The items recommended to one user, best first: a sequence of Recommendation.

    A row of `recommend_many` that the server refused carries the reason in `error`. Such a row has no items, and to
    use it as a sequence raises that error: a refusal that nobody checks is not taken for an empty answer.
    """

    attribution_token: str = ""
    """Send it back on the events that this answer leads to."""
    error: LongtideError | None = None
    """Why a row of `recommend_many` was refused; always None from `recommend`, which raises instead."""

    @overload
    def __getitem__(self, index: int) -> Recommendation: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Recommendation, ...]: ...
    def __getitem__(self, index: int | slice) -> Recommendation | tuple[Recommendation, ...]:
        return self._checked()[index]

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self._checked())

    def __len__(self) -> int:
        return len(self._checked())

    def _checked(self) -> tuple[Recommendation, ...]:
        if self.error is not None:
            raise self.error
        return self.entries


@dataclass(frozen=True, slots=True)
class Ranking(_Answer[RankedItem]):
    """Every item that was asked about, best first: a sequence of RankedItem."""


@dataclass(frozen=True, slots=True)
class SimilarUsers(_Answer[SimilarUser]):
    """The most similar users, most similar first: a sequence of SimilarUser."""


@dataclass(frozen=True, slots=True)
class SimilarItems(_Entries[SimilarItem]):
    """The items that are most like one, most similar first: a sequence of SimilarItem."""

    item_id: str
    """The item that they are like."""
    entries: tuple[SimilarItem, ...] = ()
    """What the sequence holds."""
    snapshot_id: str = ""
    """The snapshot that the answer comes from."""
    basis: Basis | None = None
    """What was compared. BEHAVIOR, whatever was asked for, where the snapshot has learned from no content; None where
    this release of the SDK does not know it: the server is newer."""
    degraded: bool = False
    """True when what is known of items may be out of date: one that was taken away since may be among them."""
    degraded_reason: str = ""
    """Why the answer is degraded; empty when it is not."""


class InterestKind(enum.StrEnum):
    """What items have in common."""

    CATEGORY = "category"
    TAG = "tag"
    BRAND = "brand"
    DOMAIN = "domain"
    UNKNOWN = "unknown"
    """Something that this release of the SDK does not know: the server is newer."""


@dataclass(frozen=True, slots=True)
class Interest:
    """Something that items have in common, and how much of what a user did was on such items."""

    kind: InterestKind
    """What it is."""
    name: str | tuple[str, ...]
    """Its name; of a category the path to it, from the most general name on."""
    share: float
    """Of the user's events on items of which something is known, recent ones counting more: above 0, at most 1."""


@dataclass(frozen=True, slots=True)
class Interests:
    """What a user is interested in; empty of a user without events, and where nothing is known of their items."""

    user_id: str
    """Whom the answer is about."""
    long_term: tuple[Interest, ...] = ()
    """Over the whole history, the largest share first."""
    short_term: tuple[Interest, ...] = ()
    """Lately: an event counts half as much as one that is 5 events later."""
    snapshot_id: str = ""
    """The snapshot that says which items there are."""
    degraded: bool = False
    """True when the event log or the catalogue could not be asked: the answer is by what was known of them before."""
    degraded_reason: str = ""
    """Why the answer is degraded; empty when it is not."""


@dataclass(frozen=True, slots=True)
class TypeShare:
    """How probable a type of event is."""

    type: EventType
    """The type; one that this release of the SDK does not know counts as CUSTOM."""
    probability: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class Behavior:
    """What a user is foreseen to do next."""

    user_id: str
    """Whom the answer is about."""
    types: tuple[TypeShare, ...] = ()
    """Every type of event with its probability to be the next one's, the most probable first; empty of a user without
    events."""
    values: Mapping[str, float] = field(default_factory=dict)
    """By item, the value that the user would give it, on the scale of the log: of the items asked about those that the
    snapshot knows; none where the log had no values."""
    snapshot_id: str = ""
    """The snapshot that the answer comes from."""
    degraded: bool = False
    """True when the encoder could not be asked: what was known of the user before is said, or nothing."""
    degraded_reason: str = ""
    """Why the answer is degraded; empty when it is not."""
