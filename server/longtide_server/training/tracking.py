"""Writes how training goes to TensorBoard or to Weights & Biases, each behind an extra of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from longtide_server.errors import InvalidInput
from longtide_server.training.learning.loop import Progress


class Tracker(Protocol):
    """Keeps the figures of finished epochs."""

    def __call__(self, told: object) -> None:
        """Write down a finished epoch; anything else is passed over."""

    def close(self, *, failed: bool) -> None:
        """Write out what is still held back; `failed` says whether the training did not come to its end."""


class TensorBoardTracker:
    """Event files that `tensorboard --logdir FOLDER` shows."""

    def __init__(self, folder: Path) -> None:
        """InvalidInput when the extra is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise InvalidInput.of("--tensorboard", "needs pip install 'longtide[tensorboard]'") from exc
        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, told: object) -> None:
        """See Tracker."""
        if isinstance(told, Progress) and told.finished:
            for name, value in figures(told).items():
                self._writer.add_scalar(name, value, told.epoch)

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._writer.close()


class WandbTracker:
    """A run of a Weights & Biases project; WANDB_MODE=offline keeps it on this machine.

    A training that goes on after a kill is another run there.
    """

    def __init__(self, project: str, settings: Mapping[str, Any]) -> None:
        """Settings: what the run was started with.

        InvalidInput when the extra is not installed, or the run cannot begin: without a key, say.
        """
        try:
            import wandb
        except ImportError as exc:
            raise InvalidInput.of("--wandb", "needs pip install 'longtide[wandb]'") from exc
        try:
            self._run: Any = wandb.init(project=project, config=dict(settings))
        except wandb.errors.Error as exc:
            raise InvalidInput.of("--wandb", f"cannot begin: {exc}") from exc

    def __call__(self, told: object) -> None:
        """See Tracker."""
        if isinstance(told, Progress) and told.finished:
            self._run.log({f"{told.phase}/epoch": told.epoch, **figures(told)})

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._run.finish(exit_code=int(failed))


def figures(progress: Progress) -> dict[str, float]:
    """The figures of a finished epoch by name, such as `pre-training/loss`; those that were not measured are absent."""
    found = {
        "loss": progress.loss,
        "behavior_loss": progress.behavior_loss,
        "seconds": progress.seconds,
        "ndcg@10": progress.ndcg,
        "hr@10": progress.hit_rate,
    }
    return {f"{progress.phase}/{name}": value for name, value in found.items() if value is not None}
