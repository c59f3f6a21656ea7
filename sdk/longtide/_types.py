"""What a caller writes, what became of it, what the server serves: plain values that know nothing of the transport."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import SupportsFloat


class EventType(enum.StrEnum):
    """What a person did to an item. Each member equals its lower-case name, so `"view"` works as well."""

    VIEW = "view"
    CLICK = "click"
    ADD_TO_CART = "add_to_cart"
    PURCHASE = "purchase"
    WATCH = "watch"
    READ = "read"
    LIKE = "like"
    DISLIKE = "dislike"
    SHARE = "share"
    COMMENT = "comment"
    RATE = "rate"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True, init=False)
class Event:
    """A user, or an anonymous session, acted on an item at a time.

    The event is complete once it is made: an `event_id` and a `time` that were left out are filled in here, once, so
    that writing the same object again, after an error for example, changes nothing.

    Only what cannot be sent is refused here, with TypeError or ValueError; the server judges the rest.
    """

    user_id: str
    """Who acted: at most 512 bytes of UTF-8; empty where only the session is known."""
    item_id: str
    """What was acted on: 1 to 512 bytes of UTF-8."""
    type: EventType
    """How the user acted."""
    time: datetime
    """When, in UTC, to the microsecond: from 1970 to one day ahead of the server's clock."""
    value: float | None
    """The rating of a rate, the share (0 to 1) of a watch or read, the price of a purchase; None when there is none.

    Finite, -3.4e38 to 3.4e38.
    """
    event_id: str
    """Identifies the event among those of its user, or of its session, for ever: 1 to 512 bytes of UTF-8."""
    session_id: str
    """The session in which it happened; empty when unknown. Needed where there is no user."""
    custom_type: str
    """The caller's name for a custom event; empty for every other type."""
    attribution_token: str
    """The `attribution_token` of the recommendations that led here; empty when none did."""

    def __init__(
        self,
        user_id: str | None,
        item_id: str,
        type: EventType | str = EventType.VIEW,
        *,
        time: datetime | SupportsFloat | None = None,
        value: SupportsFloat | None = None,
        event_id: str = "",
        session_id: str = "",
        custom_type: str = "",
        attribution_token: str = "",
    ) -> None:
        """Make an event; `time` is an aware datetime or seconds since 1970-01-01 UTC, by default now.

        `event_id` is by default a new random one. When your source has ids of its own, pass them: a source that is
        read twice is then still written once. Without a `user_id`, None or empty, the event is the session's.
        """
        # A frozen dataclass leaves no other way to set a field.
        put = object.__setattr__
        put(self, "user_id", "" if user_id is None else text("user_id", user_id))
        put(self, "item_id", text("item_id", item_id))
        put(self, "type", _event_type(type))
        put(self, "time", datetime.now(UTC) if time is None else utc("time", time))
        put(self, "value", None if value is None else number("value", value))
        put(self, "event_id", text("event_id", event_id) or uuid.uuid4().hex)
        put(self, "session_id", text("session_id", session_id))
        put(self, "custom_type", text("custom_type", custom_type))
        put(self, "attribution_token", text("attribution_token", attribution_token))


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field of a request."""

    field: str
    """The path of the field, for example `events[3].user_id`."""
    reason: str
    """What is wrong with it and what is allowed."""


@dataclass(frozen=True, slots=True)
class EventError:
    """Why one event was refused. Writing it again unchanged cannot succeed."""

    index: int
    """The position of the event in the caller's iterable, from 0."""
    event_id: str
    """The id of the event."""
    field: str
    """The field that is wrong, for example `user_id`; empty when the server named none."""
    reason: str
    """What is wrong with it and what is allowed."""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of the events of a call: the three counts add up to the number of events."""

    written_count: int = 0
    """How many events are new and now durable."""
    duplicate_count: int = 0
    """How many events changed nothing: their `event_id` was known, or they are older than a deletion of the data."""
    refused_count: int = 0
    """How many events were refused."""
    errors: tuple[EventError, ...] = ()
    """Why, by ascending index; `stream_events` keeps only the first 1,000."""


@dataclass(frozen=True, slots=True)
class DeletedData:
    """What became of the data of a user or a session."""

    deleted_count: int
    """How many events were deleted; 0 when there were none."""
    deleted_time: datetime
    """Events that happened until then, in UTC, are not taken any more."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot that the server can serve."""

    snapshot_id: str
    """Its name."""
    created_time: datetime
    """When it was published, in UTC."""
    active: bool
    """Whether it is served now."""
    user_count: int
    """How many users' moments it knows."""
    item_count: int
    """How many items may be recommended."""
    event_count: int
    """How many events it was trained on."""
    metrics: Mapping[str, Mapping[str, float]] = field(hash=False)
    """What it reached on validation data, by what was measured: for example `fusion`, then `ndcg@10`; 0 to 1."""


def text(name: str, value: str) -> str:
    """The value, if it can be sent as a string; else TypeError or ValueError that names it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {_kind(value)}: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"{name} cannot be encoded as UTF-8: {value!r}") from exc
    return value


def texts(name: str, values: Iterable[str]) -> list[str]:
    """The values, if each can be sent as a string. One bare string is refused: it would be taken letter by letter."""
    if isinstance(values, str):
        raise TypeError(f"{name} must be an iterable of str, not one str: {values!r}")
    return [text(f"{name}[{index}]", value) for index, value in enumerate(values)]


def number(name: str, value: SupportsFloat) -> float:
    """The value as a float, if it is a number; else TypeError that names it."""
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be a number, not {_kind(value)}: {value!r}")
    return float(value)


def utc(name: str, value: datetime | SupportsFloat) -> datetime:
    """An aware datetime, or seconds since 1970, as the moment in UTC; else TypeError or ValueError that names it."""
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError(f"{name} must know its time zone, for example tzinfo=datetime.UTC; {value} does not")
        return value.astimezone(UTC)
    seconds = number(name, value)
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise ValueError(f"{name} {seconds} s is outside the years 1 to 9999") from exc


def _event_type(value: EventType | str) -> EventType:
    if not isinstance(value, str):
        raise TypeError(f"type must be an EventType or its name, not {_kind(value)}: {value!r}")
    try:
        return EventType(value)
    except ValueError as exc:
        raise ValueError(f"{value!r} is not an event type; use one of {', '.join(EventType)}") from exc


def _kind(value: object) -> str:
    return type(value).__name__
