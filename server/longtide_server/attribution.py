"""The attribution token: an answer's own record of when, where and from which source each of its items was shown.

Events that an answer leads to bring its token back, so what was shown need not be stored for every answer: how much was
shown is counted, and what came of it is read from the events. A token holds hashes of item ids and no user.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

MAX_SURFACE_BYTES = 64
MAX_SNAPSHOT_BYTES = 64
MAX_ITEMS = 75
"""Of a longer answer, the items after these have no source in its token: it must be at most 512 characters long."""

_VERSION = 1
_HEAD = struct.Struct(">BIIBB")
_ITEM = struct.Struct(">HB")
_CHECK = struct.Struct(">I")


class Shown(NamedTuple):
    """What is counted together."""

    day: str
    """Of the answer, as 2026-01-31, UTC."""
    snapshot_id: str
    surface: str
    """Where the answer was shown, in the caller's words; empty when they did not say."""
    source: int
    """The Source that said most for the item; 0 when the token does not say."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a token says."""

    time_s: int
    snapshot_id: str
    surface: str
    items: Sequence[tuple[int, int]]
    """A hash of the item's id and the number of its source, from the first item on."""

    def shown(self, item_id: str) -> Shown:
        """What an item of the answer is counted as."""
        wanted = _hash(item_id)
        source = next((source for found, source in self.items if found == wanted), 0)
        return Shown(day_of(self.time_s), self.snapshot_id, self.surface, source)


def day_of(time_s: float) -> str:
    """The day of a time, UTC."""
    return datetime.fromtimestamp(time_s, UTC).date().isoformat()


def make_token(time_s: float, snapshot_id: str, surface: str, items: Sequence[tuple[str, int]], nonce: int = 0) -> str:
    """The token of an answer with these items, each with the number of its source: at most 512 characters.

    The nonce, 32 bits, tells answers of the same second and of the same items apart.
    """
    snapshot, place = snapshot_id.encode()[:MAX_SNAPSHOT_BYTES], surface.encode()[:MAX_SURFACE_BYTES]
    parts = [_HEAD.pack(_VERSION, int(time_s), nonce, len(snapshot), len(place)), snapshot, place]
    parts += [_ITEM.pack(_hash(item_id), source) for item_id, source in items[:MAX_ITEMS]]
    said = b"".join(parts)
    return base64.urlsafe_b64encode(said + _CHECK.pack(zlib.crc32(said))).decode().rstrip("=")


def read_token(token: str) -> Attribution | None:
    """What a token says; none when it is not one of ours."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        said, check = raw[: -_CHECK.size], raw[-_CHECK.size :]
        if _CHECK.unpack(check)[0] != zlib.crc32(said):
            return None
        version, time_s, _, snapshot_bytes, surface_bytes = _HEAD.unpack_from(said)
        at = _HEAD.size + snapshot_bytes
        snapshot, surface = said[_HEAD.size : at], said[at : at + surface_bytes]
        items = tuple(_ITEM.iter_unpack(said[at + surface_bytes :]))
    except (ValueError, struct.error, binascii.Error):
        return None
    if version != _VERSION:
        return None
    return Attribution(time_s, snapshot.decode(errors="replace"), surface.decode(errors="replace"), items)


def _hash(item_id: str) -> int:
    return zlib.crc32(item_id.encode()) & 0xFFFF
