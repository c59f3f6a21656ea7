"""What the stream of a history holds: packed events, by the order of arrival."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec

from longtide_server.event_store.redis_commands import Commands, key
from longtide_server.event_store.rows import Row, from_row, to_row
from longtide_server.events import Event

PIECE_EVENTS = 5_000
NEVER = "-1"
"""A time before all events."""


async def pieces(
    commands: Commands, owner: str, after: int = 0, until: int | None = None
) -> AsyncIterator[list[tuple[int, Event]]]:
    """The events of a history after one position and until another, in the order of arrival."""
    last = "+" if until is None else f"{until}-0"
    while until is None or after < until:
        entries = await commands.run("XRANGE", key(owner, "log"), f"{after + 1}-0", last, "COUNT", PIECE_EVENTS)
        if entries:
            piece = [_event(owner, entry, fields) for entry, fields in entries]
            after = piece[-1][0]
            yield piece
        if len(entries) < PIECE_EVENTS:
            return


def write_arguments(events: Sequence[Event], until: str = NEVER) -> list[object]:
    """What WRITE wants to know; events that happened until a time are not taken."""
    parts = (part for event in events for part in (event.event_id, repr(event.time_s), _pack(to_row(event))))
    return [until, *parts]


def _event(owner: str, entry: bytes, fields: Mapping[bytes, bytes]) -> tuple[int, Event]:
    return int(entry.partition(b"-")[0]), from_row(owner, _unpack(fields[b"e"]))


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Row).decode
