"""Packs many users' next events into one call of the handler, and reads the packed answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtide_server.encoder import AnswerSizes, Encoded, Steps
from longtide_server.errors import EncoderUnavailable

ANSWER_TYPES = (np.float32, np.float32, np.int32, np.float32, np.float32)
MAX_LOG_PROBABILITY = 0.1  # what rounding may make of 0, in half precision too


def pack(batch: Sequence[Steps]) -> Mapping[str, bytes]:
    """The handler's inputs for a batch; see `longtide_handlers.encoder_handler`."""
    return {
        "lengths": np.array([len(steps.items) for steps in batch], np.int32).tobytes(),
        "items": b"".join(steps.items.tobytes() for steps in batch),
        "types": b"".join(steps.types.tobytes() for steps in batch),
        "gaps": b"".join(steps.gaps.tobytes() for steps in batch),
        "values": b"".join(steps.values.tobytes() for steps in batch),
        "states": b"".join(steps.state.tobytes() for steps in batch),
        "top_n": np.array([max(steps.top_n for steps in batch)], np.int32).tobytes(),
    }


def unpack(answer: bytes, batch: Sequence[Steps], expected: AnswerSizes) -> list[Encoded | None]:
    """The handler's answer, checked: none for a row that is not finite.

    EncoderUnavailable when it is not what a healthy handler sends, or no row is finite.
    """
    query, state, items, log_probability, log_z = _parts(answer, (len(batch), expected.dim, len(batch[0].state)))
    finite = np.all([np.isfinite(part).all(1) for part in (query, state, log_probability, log_z)], axis=0)  # (B,)
    if not finite.any():
        raise EncoderUnavailable("the encoder answered nothing that is finite")
    first, last = int(items.min()), int(items.max())
    if not 1 <= first <= last <= expected.item_count:
        raise EncoderUnavailable(f"the encoder answered items {first} to {last}; there are 1 to {expected.item_count}")
    likeliest = float(log_probability[finite].max())
    if likeliest > MAX_LOG_PROBABILITY:
        raise EncoderUnavailable(f"the encoder answered a log-probability of {likeliest:g}")
    # Copies, row by row, of what the row asked for: a kept state must not hold the whole batch's answer in memory.
    return [
        Encoded(
            query[row].copy(),
            state[row].copy(),
            items[row, : steps.top_n].astype(np.int64),
            log_probability[row, : steps.top_n].astype(np.float32),
            float(log_z[row, 0]),
        )
        if finite[row]
        else None
        for row, steps in enumerate(batch)
    ]


def _parts(answer: bytes, wanted: tuple[int, int, int]) -> list[NDArray[Any]]:
    """The arrays of an answer, each with a row for a user; `wanted`: users B, width D and state size S."""
    if len(answer) < 16:
        raise EncoderUnavailable(f"the encoder answered {len(answer)} bytes, too few for a header")
    b, d, s, n = np.frombuffer(answer, np.int32, 4).tolist()
    sizes = [b * d, b * s, b * n, b * n, b]
    if (b, d, s) != wanted or n < 1 or len(answer) != 16 + 4 * sum(sizes):
        raise EncoderUnavailable(
            f"the encoder answered {len(answer)} bytes of shape {(b, d, s, n)}, not {(*wanted, n)}"
        )
    bounds = [16 + 4 * sum(sizes[:i]) for i in range(len(sizes))]
    return [
        np.frombuffer(answer, dtype, size, at).reshape(b, -1)
        for dtype, size, at in zip(ANSWER_TYPES, sizes, bounds, strict=True)
    ]
