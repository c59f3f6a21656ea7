"""An evaluation as a person sees it."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from longtide_server.training.dataset import Holdout, Sequences
from longtide_server.training.judging.evaluate import BehaviorMetrics, Evaluation, compare
from longtide_server.training.judging.show import behavior_table, slices_table

BEHAVIOR = BehaviorMetrics(1.0, 0.75, 940, 0.7837, 0.9064, 0.8181)


def shown(table) -> str:
    console = Console(file=StringIO(), width=80, color_system=None)
    console.print(table)
    return console.file.getvalue()


def evaluation(*types: int) -> Evaluation:
    """Two people who had the first of three items, and then took the second."""
    history = Sequences(
        owners=("user:a", "user:b"),
        item_ids=("x", "y", "z"),
        offsets=np.array([0, 1, 2]),
        items=np.array([1, 1]),
        types=np.ones(2, np.int64),
        times=np.zeros(2),
        gaps=np.zeros(2, np.float32),
        values=np.full(2, np.nan, np.float32),
    )
    outcomes = np.zeros((2, 13), bool)
    outcomes[[0, 1], types] = True
    targets = np.array([2, 2])
    nothing = np.full(2, np.nan, np.float32)
    holdout = Holdout(history, np.array([0, 1]), targets, outcomes, np.zeros(2), targets, np.array(types), nothing)
    lists = np.zeros((2, 20), np.int64)
    lists[0, 0] = 2
    return compare({"longtide": lists}, holdout)


def test_slices_by_what_was_done_are_shown_where_there_are_several():
    lines = shown(slices_table(evaluation(1, 4))).splitlines()
    at = next(number for number, line in enumerate(lines) if "what they did with it" in line)
    rows = [line.strip("│").split("│") for line in lines[at + 1 : at + 3]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["view", "", "1", "1.0000"],
        ["purchase", "", "1", "0.0000"],
    ]
    assert "what they did with it" not in shown(slices_table(evaluation(1, 1)))


@pytest.mark.parametrize(
    ("behavior", "told"),
    [
        (BEHAVIOR, ["0.7500", "user's median", "0.9064", "biases", "0.8181"]),
        (replace(BEHAVIOR, value_mae_user_median=None, value_mae_biases=None), ["0.7500"]),
        (replace(BEHAVIOR, value_mae=None, value_mae_user_median=None, value_mae_biases=None), ["0.7500"]),
    ],
)
def test_the_behaviour_is_shown_beside_every_baseline_that_there_is(behavior, told):
    text = shown(behavior_table(behavior))
    assert all(one in text for one in told)
    assert ("median" in text, "biases" in text) == (len(told) > 1, len(told) > 1)
    assert "…" not in text
