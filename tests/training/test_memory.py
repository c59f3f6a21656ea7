from pathlib import Path

import numpy as np

from longtide_server.training.memory import give_back

PIECE = 64 * 1024


def resident() -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def test_what_lies_free_between_what_is_held_goes_back():
    pieces = [np.ones(PIECE, np.uint8) for _ in range(2000)]
    held = pieces[::50]
    del pieces
    before = resident()
    give_back()
    assert before - resident() > 1000 * PIECE
    assert all(piece.all() for piece in held)
