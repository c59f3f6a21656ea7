"""An event as the plain row that every store keeps beside its owner."""

from __future__ import annotations

from collections.abc import Iterable

from longtide_server.events import Event, user_of

Row = tuple[str, str, int, str, float, float | None, str, str]
COLUMNS = ("event_id", "item_id", "type", "custom_type", "time_s", "value", "session_id", "attribution_token")


def to_row(event: Event) -> Row:
    """What of an event does not follow from its owner, in the order of COLUMNS."""
    return (
        event.event_id,
        event.item_id,
        int(event.type),
        event.custom_type,
        event.time_s,
        event.value,
        event.session_id,
        event.attribution_token,
    )


def from_row(owner: str, row: Row) -> Event:
    """The event of an owner."""
    [event] = from_rows(owner, (row,))
    return event


def from_rows(owner: str, rows: Iterable[Row]) -> list[Event]:
    """The events of an owner, in the order of the rows."""
    user_id = user_of(owner)
    return [
        Event(event_id, user_id, item_id, kind, time_s, value, custom_type, session_id, token)
        for event_id, item_id, kind, custom_type, time_s, value, session_id, token in rows
    ]
