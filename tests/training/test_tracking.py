import os
import subprocess
import sys

import pytest

from longtide_server.errors import InvalidInput
from longtide_server.training.learning.loop import Progress
from longtide_server.training.pipeline import Step
from longtide_server.training.tracking import TensorBoardTracker, WandbTracker

TOLD = (
    Step("Training the encoder"),
    Progress("pre-training", 1, 2, 0.5, 6.0, 5.0),
    Progress("pre-training", 1, 2, 1.0, 5.5, 10.0, True, 0.1, 0.2),
    Progress("refitting", 1, 1, 1.0, 4.5, 3.0, True, behavior_loss=0.5),
)


def test_tensorboard_reads_the_finished_epochs(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="the extra")
    tracker = TensorBoardTracker(tmp_path)
    for told in TOLD:
        tracker(told)
    tracker.close(failed=False)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "pre-training/loss": [(1, 5.5)],
        "pre-training/seconds": [(1, 10.0)],
        "pre-training/ndcg@10": [(1, pytest.approx(0.1))],
        "pre-training/hr@10": [(1, pytest.approx(0.2))],
        "refitting/loss": [(1, 4.5)],
        "refitting/behavior_loss": [(1, 0.5)],
        "refitting/seconds": [(1, 3.0)],
    }


def test_weights_and_biases_keeps_the_finished_epochs(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    tracker = WandbTracker("longtide", {"seed": 7})
    for told in TOLD:
        tracker(told)
    summary = dict(tracker._run.summary)
    tracker.close(failed=False)
    assert summary["pre-training/loss"] == 5.5
    assert summary["refitting/loss"] == 4.5
    (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert run.stat().st_size > 0


def test_weights_and_biases_without_a_key_is_a_sentence(tmp_path):
    """In a process of its own: the library remembers the runs before."""
    pytest.importorskip("wandb", reason="the extra")
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp\na,x,1\na,y,2\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-m", "longtide_server", "train", log, "--out", tmp_path / "out", "--wandb", "longtide"],
        env={**kept, "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path), "COLUMNS": "300"},
        capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "--wandb: cannot begin: " in done.stderr
    assert "API key" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "track", "extra"),
    [
        ("torch.utils.tensorboard", TensorBoardTracker, "longtide[tensorboard]"),
        ("wandb", lambda folder: WandbTracker("longtide", {}), "longtide[wandb]"),
    ],
    ids=["tensorboard", "wandb"],
)
def test_without_the_extra_it_says_what_to_install(module, track, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidInput) as refused:
        track(tmp_path)
    assert extra in str(refused.value)
