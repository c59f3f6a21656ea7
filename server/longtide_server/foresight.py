"""What somebody does next, and how they would value items, as the head of a snapshot reads it from a query vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longtide_server.answers import Behavior
from longtide_server.errors import Conflict
from longtide_server.events import EventType
from longtide_server.snapshot import Snapshot
from longtide_server.sources.behavior import BehaviorWeights, predicted_value, type_probability


def head_of(snapshot: Snapshot) -> BehaviorWeights:
    """What foresees. Conflict where the snapshot's log had nothing to learn it from."""
    if snapshot.behavior is None:
        raise Conflict("the snapshot was trained on events of one type and without values: it foresees no behaviour")
    return snapshot.behavior


def foreseen(
    snapshot: Snapshot, query: NDArray[np.float32] | None, item_ids: Sequence[str], degraded_reason: str
) -> Behavior:
    """What somebody with a query vector (D,) does next; nothing without one."""
    head = head_of(snapshot)
    if query is None:
        return Behavior((), (), degraded_reason)
    return Behavior(_types(head, query), _values(snapshot, head, query, item_ids), degraded_reason)


def _types(head: BehaviorWeights, query: NDArray[np.float32]) -> tuple[tuple[EventType, float], ...]:
    of_types = type_probability(head, query[None])[0, list(EventType)]  # without what stands for no type
    shares = zip(EventType, (of_types / of_types.sum()).tolist(), strict=True)
    return tuple(sorted(shares, key=lambda one: -one[1]))


def _values(
    snapshot: Snapshot, head: BehaviorWeights, query: NDArray[np.float32], item_ids: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    known = [item_id for item_id in item_ids if snapshot.catalog.number(item_id)]
    if not known or not snapshot.manifest.model.get("use_values"):
        return ()
    items = snapshot.embeddings[snapshot.catalog.numbers(known)]  # (N, D)
    values = predicted_value(head, np.broadcast_to(query, items.shape), items)
    return tuple(zip(known, values.tolist(), strict=True))
