"""Training by the real command: in two processes together, in one that is killed, and what each of them reaches beside
one that is left alone."""

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
from click.testing import CliRunner

from longtide_server.cli import cli
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
pytestmark = pytest.mark.usefixtures("one_thread")

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


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def train(*args: str) -> tuple[list[float], str]:
    """What training tells of its losses and all that it prints, here, without another process."""
    done = CliRunner(env=ENVIRONMENT).invoke(cli, args)
    assert done.exit_code == 0, done.output
    return losses(done.stderr), done.stdout


def train_in_processes(command: tuple[str, ...], *args: str) -> tuple[list[float], str]:
    """The same of a real command."""
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run([*command, *args], capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return losses(done.stderr), done.stdout


def losses(told: str) -> list[float]:
    """The loss of every epoch, and after it that of the behaviour where there is one."""
    parts = re.findall(r"loss (\d+\.\d+)(?: \+ (\d+\.\d+))?", told)
    return [float(loss) for part in parts for loss in part if loss]


SIX = {"epochs": "4", "patience": "4", "refit_epochs": "2"}


@pytest.fixture(scope="module")
def alone(log, one_thread, tmp_path_factory) -> tuple[list[float], Path]:
    """The losses of six epochs in one process, and the snapshot."""
    out = tmp_path_factory.mktemp("alone")
    told, _ = train(*arguments(log, out, **SIX))
    assert len(told) == 6
    return told, out


def test_two_processes_reach_what_one_does(log, alone, tmp_path):
    told, out = alone
    together, printed = train_in_processes(TORCHRUN, *arguments(log, tmp_path, **SIX))

    assert together == pytest.approx(told, abs=2e-3)
    assert printed.count("Snapshot ") == 1  # one of them publishes
    vectors = [np.load(resolve(directory) / EMBEDDINGS) for directory in (out, tmp_path)]
    assert (vectors[0] * vectors[1]).sum(axis=1)[1:].min() > 0.999


def test_two_processes_that_learn_from_a_sample_and_of_behaviour_reach_what_one_does(shop, tmp_path):
    """They draw the same sample, and step on the same rows; one's rows hold more of what is wanted than the other's."""
    args = {
        "epochs": "4", "patience": "4", "fine_tune_epochs": "2", "refit_epochs": "1",
        "negatives": "12", "learning_rate": "0.005", "head_weight": "1",
    }  # fmt: skip
    told, _ = train(*arguments(shop, tmp_path / "alone", **args))
    together, _ = train_in_processes(TORCHRUN, *arguments(shop, tmp_path / "together", **args))
    assert len(told) == 4 + 2 * 3  # the behaviour's loss is told beside the other one
    assert told[3] < 0.8 * told[0]
    assert together == pytest.approx(told, abs=2e-3)


def test_a_kill_loses_no_finished_epoch(log, alone, tmp_path):
    whole, uninterrupted = alone
    args = arguments(log, tmp_path, **SIX)
    told: list[float] = []
    kills = 0
    while len(told) < 2:  # kill it over and over, each time a little after it has finished an epoch or two
        kills += 1
        run = subprocess.Popen([*COMMAND, *args], stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT})
        for line in run.stderr:
            if found := losses(line):
                told += found
                break
        time.sleep(0.05 * kills)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    rest, _ = train(*args, "--json")
    # Epochs that were finished but not told before the kill are in neither; none is in both.
    assert len(told) + len(rest) <= len(whole)
    assert rest == whole[len(whole) - len(rest) :]
    vectors = [np.load(resolve(directory) / EMBEDDINGS) for directory in (uninterrupted, tmp_path)]
    np.testing.assert_array_equal(*vectors)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".training")] == []


def test_the_trackers_that_are_asked_for_are_written(log, tmp_path):
    args = arguments(log, tmp_path / "out", epochs="1", refit_epochs="0")
    _, printed = train(*args, "--tensorboard", str(tmp_path / "board"), "--json")
    assert json.loads(printed)["training"]["epochs"] == 1
    assert [path.name for path in (tmp_path / "board").iterdir()] != []
