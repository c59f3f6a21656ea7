"""Shows a person how training goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longtide_server.training.items.texts import TextNotice, TextProgress
from longtide_server.training.learning.loop import Progress as TrainProgress
from longtide_server.training.pipeline import Plan, Step


class TrainingDisplay:
    """A bar over all epochs of all phases with loss, metric and time left, one over the item texts, and a line for
    every step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,  # or its end would be an empty line
        )
        self._bar: TaskID | None = None
        self._reading = False
        self._plan: Mapping[str, int] = {}
        self._judged = ""

    def __enter__(self) -> TrainingDisplay:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, progress: TrainProgress | Step | Plan | TextProgress | TextNotice) -> None:
        """Show where the work stands."""
        match progress:
            case Plan():
                self._plan, self._judged = progress.epochs, ""
                self._end_bar()
            case Step():
                self._begin(progress.text, goes_on=progress.trains and self._bar is not None)
            case TextProgress():
                self._read_texts(progress)
            case TextNotice():
                self._console.print(progress.text, markup=False)
            case TrainProgress():
                self._train(progress)

    def _begin(self, text: str, *, goes_on: bool = False) -> None:
        if not goes_on:
            self._end_bar()
        self._console.print(f"[bold]{text}[/bold]")
        if self._console.is_terminal and not goes_on:
            self._bar = self._bars.add_task("", total=None)

    def _read_texts(self, progress: TextProgress) -> None:
        if not self._reading:
            self._begin(f"Reading {progress.texts:,} item texts")
        self._reading = progress.done < 1.0
        if self._bar is not None:
            self._bars.update(self._bar, total=1.0, completed=progress.done, description="texts")

    def _train(self, progress: TrainProgress) -> None:
        loss = f"loss {progress.loss:.3f}"
        if progress.behavior_loss is not None:
            loss += f" + {progress.behavior_loss:.3f}"  # the items', and the behaviour's
        if progress.finished:
            judged = ""
            if progress.ndcg is not None and progress.hit_rate is not None:
                judged = f"validation NDCG@10 {progress.ndcg:.4f}, HR@10 {progress.hit_rate:.4f}"
                judged += f" ({progress.targets:,} targets), "
                self._judged = f"  NDCG@10 {progress.ndcg:.4f}"
            line = f"  epoch {progress.epoch:>2}: {loss}, {judged}after {progress.seconds:.0f} s"
            self._console.print(line, soft_wrap=True)  # in a file, a line is a line
        if self._bar is not None:
            text = f"{progress.phase} {progress.epoch}/{progress.epochs}  {loss}{self._judged}"
            self._bars.update(self._bar, total=1.0, completed=self._done(progress), description=text)

    def _done(self, progress: TrainProgress) -> float:
        """The share of all phases' epochs that is done; those that a phase did not need count as done."""
        phases = list(self._plan)
        before = phases[: phases.index(progress.phase)] if progress.phase in phases else []
        epochs = sum(self._plan[phase] for phase in before) + progress.epoch - 1 + progress.done
        return epochs / max(sum(self._plan.values()), progress.epochs)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
