"""The encoder's TorchScript module alone in a process: users a second, whole histories and the best hundred items.

python -m tests.bench.module_alone SNAPSHOT LOG BATCH THREADS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tests.bench.serving import World, whole_histories

from longtide_handlers.encoder_handler import LongtideEncoderHandler
from longtide_server.encoder.arrays import pack
from longtide_server.snapshot import ENCODER, load_snapshot

WARM_BATCHES = 3


def main(folder: Path, log: Path, batch: int, threads: int) -> None:
    """Print the users a second. Users of similar lengths share a batch: nothing is computed for padding."""
    torch.set_num_threads(threads)
    snapshot = load_snapshot(folder)
    handler = LongtideEncoderHandler()
    handler.load(folder / ENCODER, None)
    steps = sorted(whole_histories(World(folder, snapshot, log, (), folder)), key=lambda one: len(one.items))
    batches = [pack(steps[at : at + batch]) for at in range(0, len(steps), batch)]
    for one in batches[:WARM_BATCHES]:
        handler.answer(one)
    begun = time.perf_counter()
    for one in batches:
        handler.answer(one)
    print(len(steps) / (time.perf_counter() - begun))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
