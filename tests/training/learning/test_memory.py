from dataclasses import replace
from pathlib import Path

import numpy as np

from longtide_server.training.dataset import Sequences, nothing_held_out
from longtide_server.training.learning import loop
from longtide_server.training.learning.memory import give_back
from longtide_server.training.learning.train import train_encoder
from longtide_server.training.settings import settings_for

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


def test_it_goes_back_after_every_epoch(monkeypatch):
    times = []
    monkeypatch.setattr(loop, "give_back", lambda: times.append(1))
    log = uniform_log(users=6, events=4, items=5)
    settings = settings_for(log, times_are_real=False, seed=0)
    small = replace(settings.model, dim=8, hidden=8)
    train_encoder(small, replace(settings.train, epochs=3), nothing_held_out(log), lambda _: None)
    assert len(times) == 3


def uniform_log(users: int, events: int, items: int) -> Sequences:
    count = users * events
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(users)),
        item_ids=tuple(f"i{n}" for n in range(items)),
        offsets=np.arange(0, count + 1, events),
        items=np.random.default_rng(0).integers(1, items + 1, count),
        types=np.ones(count, np.int64),
        times=np.arange(count, dtype=np.float64),
        gaps=np.zeros(count, np.float32),
        values=np.full(count, np.nan, np.float32),
    )
