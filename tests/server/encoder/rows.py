"""Users' next events, in short."""

import numpy as np

from longtide_server.encoder import Steps


def steps(*items, state=(0.0, 0.0), top_n=3):
    """A user's next views, a second apart."""
    return Steps(
        items=np.array(items, np.int32),
        types=np.ones(len(items), np.uint8),
        gaps=np.ones(len(items), np.float32),
        values=np.full(len(items), np.nan, np.float32),
        state=np.array(state, np.float32),
        top_n=top_n,
    )
