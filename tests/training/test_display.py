"""What a person sees of a training."""

import re
from io import StringIO

import pytest
from rich.console import Console

from longtide_server.training.display import TrainingDisplay
from longtide_server.training.learning.loop import Progress
from longtide_server.training.pipeline import Plan, Step

PLAN = Plan({"pre-training": 6, "fine-tuning": 0, "refitting": 2})
HALF = Progress("pre-training", 2, 6, 0.5, 5.25, 30.0)
JUDGED = Progress("pre-training", 2, 6, 1.0, 5.2, 40.0, True, 0.1234, 0.25, 3_000)
REFIT = Progress("refitting", 1, 2, 0.5, 4.5, 3.0, behavior_loss=0.75)


def console(*, terminal: bool, width: int = 200) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, width=width, color_system=None)


def test_one_bar_goes_over_all_phases_with_loss_metric_and_time_left():
    seen = []
    with TrainingDisplay(console(terminal=True)) as display:
        for told in (PLAN, Step("Training", trains=True), HALF, JUDGED, Step("Refitting", trains=True), REFIT):
            display(told)
            if isinstance(told, Progress):
                (bar,) = display._bars.tasks
                seen.append((bar.description, bar.completed))
                display._bars.refresh()
        display(Step("Fitting the fusion"))
        (bar,) = display._bars.tasks
        assert (bar.description, bar.total) == ("", None)
    assert seen == [
        ("pre-training 2/6  loss 5.250", 1.5 / 8),
        ("pre-training 2/6  loss 5.200  NDCG@10 0.1234", 2 / 8),
        ("refitting 1/2  loss 4.500 + 0.750  NDCG@10 0.1234", 6.5 / 8),
    ]
    assert re.search(r"left +(-:--:--|\d:\d\d:\d\d)", display._console.file.getvalue())


@pytest.mark.parametrize(("terminal", "width"), [(False, 80), (True, 200)])
def test_a_finished_epoch_is_a_line(terminal, width):
    shown = console(terminal=terminal, width=width)
    with TrainingDisplay(shown) as display:
        for told in (PLAN, Step("Training", trains=True), HALF, JUDGED):
            display(told)
    assert (
        "  epoch  2: loss 5.200, validation NDCG@10 0.1234, HR@10 0.2500 (3,000 targets), after 40 s"
        in shown.file.getvalue()
    )


def test_without_a_plan_the_bar_is_the_phases():
    with TrainingDisplay(console(terminal=True)) as display:
        display(Step("Training", trains=True))
        display(HALF)
        assert display._bars.tasks[0].completed == 1.5 / 6
