"""Histories out of a random number generator."""

import numpy as np

from longtide_server.encoder import Steps


def random_steps(count: int, item_count: int, state_size: int, top_n: int, rng: np.random.Generator) -> Steps:
    """Events of every type, half of them without a value, that go on from a random state."""
    return Steps(
        items=rng.integers(1, item_count + 1, count).astype(np.int32),
        types=rng.integers(1, 13, count).astype(np.uint8),
        gaps=rng.uniform(0, 1e6, count).astype(np.float32),
        values=np.where(rng.random(count) < 0.5, np.nan, 1.0).astype(np.float32),
        state=rng.normal(size=state_size).astype(np.float32),
        top_n=top_n,
    )
