"""The domain event and the rules that make one valid. Pure: no transport, no storage."""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtide_server.errors import FieldViolation

MAX_ID_BYTES = 512
MAX_AHEAD_S = 86_400.0
MAX_BATCH_EVENTS = 10_000
MAX_VALUE = float(np.finfo(np.float32).max)
"""The encoder reads values in 32 bits."""
NO_VALUE = "is not a finite number (of 32 bits)"
USER_PREFIX = "user:"
SESSION_PREFIX = "session:"


class EventType(enum.IntEnum):
    """What a person did to an item. The numbers are those of the contract and of the store: never reused."""

    VIEW = 1
    CLICK = 2
    ADD_TO_CART = 3
    PURCHASE = 4
    WATCH = 5
    READ = 6
    LIKE = 7
    DISLIKE = 8
    SHARE = 9
    COMMENT = 10
    RATE = 11
    CUSTOM = 12


EVENT_TYPE_NAMES = {event_type.name.lower(): event_type for event_type in EventType}


def owner_key(user_id: str, session_id: str) -> str:
    """Whose history something belongs to: the user's, or, where no user is named, the anonymous session's."""
    return USER_PREFIX + user_id if user_id else SESSION_PREFIX + session_id


def user_of(owner: str) -> str:
    """The user who an owner is; empty for an anonymous session."""
    return owner.removeprefix(USER_PREFIX) if owner.startswith(USER_PREFIX) else ""


def session_of(owner: str) -> str:
    """The anonymous session that an owner is; empty for a user."""
    return owner.removeprefix(SESSION_PREFIX) if owner.startswith(SESSION_PREFIX) else ""


class Event(NamedTuple):
    """A user, or an anonymous session, acted on an item at a time."""

    # A tuple: histories are read by the thousand events, and a frozen dataclass takes three times as long to make.

    event_id: str
    """Identifies the event among those of its owner."""
    user_id: str
    """Who acted; empty where only the session is known."""
    item_id: str
    type: int
    """An EventType; a plain number until `violation` has passed it."""
    time_s: float
    """Seconds since 1970-01-01 UTC."""
    value: float | None = None
    """A number that belongs to the behaviour (rating, watched share, price), MAX_VALUE at most, or none."""
    custom_type: str = ""
    session_id: str = ""
    attribution_token: str = ""

    @property
    def owner(self) -> str:
        """Whose history the event belongs to."""
        return owner_key(self.user_id, self.session_id)


def violation(event: Event, now_s: float) -> FieldViolation | None:
    """The first rule that the event breaks, or none."""
    return (
        id_violation("event_id", event.event_id)
        or owner_violation(event.user_id, event.session_id)
        or id_violation("item_id", event.item_id)
        or _type_violation(event)
        or _time_violation(event.time_s, now_s)
        or _value_violation(event)
        or _length_violation("attribution_token", event.attribution_token)
    )


def owner_violation(user_id: str, session_id: str) -> FieldViolation | None:
    """A user is named, or else a session."""
    if not user_id and not session_id:
        return FieldViolation("user_id", "must not be empty where there is no session_id")
    return _length_violation("user_id", user_id) or _length_violation("session_id", session_id)


def id_violation(field: str, value: str) -> FieldViolation | None:
    """Ids are 1 to 512 bytes of UTF-8."""
    if not value:
        return FieldViolation(field, "must not be empty")
    return _length_violation(field, value)


def _length_violation(field: str, value: str) -> FieldViolation | None:
    # UTF-8 takes at most 4 bytes a character: short strings need no encoding to be known short enough.
    if len(value) * 4 <= MAX_ID_BYTES:
        return None
    size = len(value.encode("utf-8", "surrogatepass"))
    if size <= MAX_ID_BYTES:
        return None
    return FieldViolation(field, f"is {size} bytes long; at most {MAX_ID_BYTES} are allowed")


def _type_violation(event: Event) -> FieldViolation | None:
    if not EventType.VIEW <= event.type <= EventType.CUSTOM:
        return FieldViolation("type", f"{event.type} is not an event type; use 1 (view) to 12 (custom)")
    if event.type == EventType.CUSTOM:
        return id_violation("custom_type", event.custom_type)
    if event.custom_type:
        return FieldViolation("custom_type", "must be empty unless the type is custom")
    return None


def _time_violation(time_s: float, now_s: float) -> FieldViolation | None:
    if not math.isfinite(time_s) or time_s < 0:
        return FieldViolation("event_time", f"{time_s:g} s is not a time since 1970-01-01")
    if time_s > now_s + MAX_AHEAD_S:
        return FieldViolation("event_time", f"is {time_s - now_s:.0f} s ahead of the server's clock; at most 86400 s")
    return None


def _value_violation(event: Event) -> FieldViolation | None:
    if event.value is None:
        if event.type == EventType.RATE:
            return FieldViolation("value", "a rate event needs the rating as its value")
        return None
    if not abs(event.value) <= MAX_VALUE:  # also true for NaN
        return FieldViolation("value", f"{event.value} {NO_VALUE}")
    return None


def values_as_read(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Values (N,) as the encoder reads them: NaN where there is none, or one that could not be written any more."""
    return np.where(np.abs(values) <= MAX_VALUE, values, np.nan).astype(np.float32)
