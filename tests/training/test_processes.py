"""The real command in real processes: two that train together, and one that is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from longtide_server.snapshot import EMBEDDINGS, resolve

COMMAND = (sys.executable, "-m", "longtide_server")
TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "-m",
    "longtide_server",
)
QUICK = {"model.dim": "16", "model.hidden": "16", "train.bfloat16": "false", "train.batch_events": "64"}


def walk(draw: np.random.Generator, longest_step: int) -> np.ndarray:
    """Four to eleven steps on a ring of twenty items."""
    return (draw.integers(20) + np.cumsum(draw.integers(1, longest_step + 1, size=draw.integers(4, 12)))) % 20


def written(rows: list[str], folder: Path) -> Path:
    path = folder / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """Sixty people walk a ring of twenty items from another start each, with steps of one to three."""
    draw = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp"]
    for user in range(60):
        rows += [f"u{user},i{item},{1_700_000_000 + step}" for step, item in enumerate(walk(draw, longest_step=3))]
    return written(rows, tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """The same with steps of one or two, of which a third are bought at a price, and a price is seldom told."""
    draw = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp,event_type,value"]
    for user in range(60):
        for step, item in enumerate(walk(draw, longest_step=2)):
            kind = "purchase" if draw.random() < 1 / 3 else "view"
            price = 1.0 + item % 5 if kind == "purchase" and draw.random() < 0.7 else ""
            rows.append(f"u{user},i{item},{1_700_000_000 + step},{kind},{price}")
    return written(rows, tmp_path_factory.mktemp("log"))


def arguments(log: Path, out: Path, **settings: str) -> list[str]:
    sets = {**QUICK, **{f"train.{name}": value for name, value in settings.items()}, "model.dropout": "0"}
    return [
        "train",
        str(log),
        "--out",
        str(out),
        *(part for pair in sets.items() for part in ("--set", "=".join(pair))),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def train(command: tuple[str, ...], *args: str) -> tuple[list[float], str]:
    """The loss of every epoch, as the command told it, and after it that of the behaviour where there is one; and all
    that it printed."""
    done = subprocess.run(
        [*command, *args], capture_output=True, text=True, timeout=200, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    parts = re.findall(r"loss (\d+\.\d+)(?: \+ (\d+\.\d+))?", done.stderr)
    return [float(loss) for part in parts for loss in part if loss], done.stdout


def test_two_processes_reach_what_one_does(log, tmp_path):
    alone, _ = train(COMMAND, *arguments(log, tmp_path / "alone", epochs="4", refit_epochs="2"))
    together, printed = train(TORCHRUN, *arguments(log, tmp_path / "together", epochs="4", refit_epochs="2"))

    assert len(alone) == 6
    assert together == pytest.approx(alone, abs=2e-3)
    assert printed.count("Snapshot ") == 1  # one of them publishes
    vectors = [np.load(resolve(tmp_path / name) / EMBEDDINGS) for name in ("alone", "together")]
    assert (vectors[0] * vectors[1]).sum(axis=1)[1:].min() > 0.999


def test_two_processes_that_learn_from_a_sample_reach_what_one_does(log, tmp_path):
    """They draw the same sample, and step on the same rows."""
    args = {"epochs": "5", "patience": "5", "refit_epochs": "0", "negatives": "12", "learning_rate": "0.005"}
    alone, _ = train(COMMAND, *arguments(log, tmp_path / "alone", **args))
    together, _ = train(TORCHRUN, *arguments(log, tmp_path / "together", **args))
    assert alone[-1] < 0.8 * alone[0]
    assert together == pytest.approx(alone, abs=2e-3)


def test_two_processes_learn_of_behaviour_what_one_does(shop, tmp_path):
    """Rows of one of them hold more of what is wanted than the other's."""
    args = {"epochs": "1", "fine_tune_epochs": "3", "refit_epochs": "1", "head_weight": "1"}
    alone, _ = train(COMMAND, *arguments(shop, tmp_path / "alone", **args))
    together, _ = train(TORCHRUN, *arguments(shop, tmp_path / "together", **args))
    assert len(alone) == 1 + 2 * 4
    assert together == pytest.approx(alone, abs=2e-3)


def test_a_kill_loses_no_finished_epoch(log, tmp_path):
    whole, _ = train(COMMAND, *arguments(log, tmp_path / "whole", epochs="4", patience="4"))
    out = tmp_path / "killed"
    args = arguments(log, out, epochs="4", patience="4")
    told: list[float] = []
    kills = 0
    while len(told) < 2:  # kill it over and over, each time a little after it has finished an epoch or two
        kills += 1
        run = subprocess.Popen([*COMMAND, *args], stderr=subprocess.PIPE, text=True, env=environment())
        for line in run.stderr:
            if found := re.search(r"loss (\d+\.\d+)", line):
                told.append(float(found[1]))
                break
        time.sleep(0.05 * kills)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    rest, _ = train(COMMAND, *args, "--json")
    # Epochs that were finished but not told before the kill are in neither; none is in both.
    assert len(told) + len(rest) <= len(whole)
    assert rest == whole[len(whole) - len(rest) :]
    vectors = [np.load(resolve(directory) / EMBEDDINGS) for directory in (tmp_path / "whole", out)]
    np.testing.assert_array_equal(*vectors)
    assert [entry.name for entry in out.iterdir() if entry.name.startswith(".training")] == []


def test_the_trackers_that_are_asked_for_are_written(log, tmp_path):
    args = arguments(log, tmp_path / "out", epochs="1", refit_epochs="0")
    _, printed = train(COMMAND, *args, "--tensorboard", str(tmp_path / "board"), "--json")
    assert json.loads(printed)["training"]["epochs"] == 1
    assert [path.name for path in (tmp_path / "board").iterdir()] != []
