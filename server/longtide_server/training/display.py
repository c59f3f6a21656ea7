"""Shows a person how training goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longtide_server.training.items.texts import TextNotice, TextProgress
from longtide_server.training.learning.loop import Progress as TrainProgress
from longtide_server.training.pipeline import Step


class TrainingDisplay:
    """A bar over all epochs with loss, metric and time left, one over the item texts, a line for every other step."""

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
        )
        self._bar: TaskID | None = None
        self._reading = False

    def __enter__(self) -> TrainingDisplay:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, progress: TrainProgress | Step | TextProgress | TextNotice) -> None:
        """Show where the work stands."""
        match progress:
            case Step():
                self._begin(progress.text)
            case TextProgress():
                self._read_texts(progress)
            case TextNotice():
                self._console.print(progress.text, markup=False)
            case TrainProgress():
                self._train(progress)

    def _begin(self, text: str) -> None:
        self._end_bar()
        self._console.print(f"[bold]{text}[/bold]")
        if self._console.is_terminal:
            self._bar = self._bars.add_task("", total=None)

    def _read_texts(self, progress: TextProgress) -> None:
        if not self._reading:
            self._begin(f"Reading {progress.texts:,} item texts")
        self._reading = progress.done < 1.0
        if self._bar is not None:
            self._bars.update(self._bar, total=1.0, completed=progress.done, description="texts")

    def _train(self, progress: TrainProgress) -> None:
        if progress.finished:
            judged = ""
            if progress.ndcg is not None and progress.hit_rate is not None:
                judged = f"validation NDCG@10 {progress.ndcg:.4f}, HR@10 {progress.hit_rate:.4f}, "
            self._console.print(
                f"  epoch {progress.epoch:>2}: loss {progress.loss:.3f}, {judged}{progress.seconds:.0f} s"
            )
        if self._bar is not None:
            done = (progress.epoch - 1 + progress.done) / progress.epochs
            text = f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}"
            self._bars.update(self._bar, total=1.0, completed=done, description=text)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
