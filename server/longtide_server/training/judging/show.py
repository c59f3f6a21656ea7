"""An evaluation as tables for people."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from longtide_server.training.judging.bias import PopularityBias
from longtide_server.training.judging.evaluate import BehaviorMetrics, Evaluation


def overall_table(title: str, evaluation: Evaluation) -> Table:
    """Every metric of every way to recommend, and its popularity bias; narrow enough for any terminal."""
    ways = list(evaluation.overall)
    table = _table(title, "", *(way.replace("longtide_", "") for way in ways))
    for name in evaluation.overall[ways[0]]:
        table.add_row(name, *(f"{evaluation.overall[way][name]:.4f}" for way in ways))
    table.add_section()
    names = ("events an item shown", "an item consumed", "popularity ratio")
    for row in zip(names, *(_cells(evaluation.popularity_bias[way]) for way in ways), strict=True):
        table.add_row(*row)
    return table


def behavior_table(behavior: BehaviorMetrics) -> Table:
    """How well the next event's type and value are foreseen."""
    table = _table("The next behaviour", "", "longtide", "knowing nothing")
    table.add_row("type: accuracy", f"{behavior.type_accuracy:.4f}", f"{behavior.type_accuracy_most_frequent:.4f}")
    if behavior.value_mae is not None and behavior.value_mae_user_median is not None:
        name = f"value: mean absolute error of {behavior.valued_targets:,}"
        table.add_row(name, f"{behavior.value_mae:.4f}", f"{behavior.value_mae_user_median:.4f}")
    return table


def slices_table(evaluation: Evaluation) -> Table:
    """NDCG@10 by length of history and by popularity of the target."""
    left_out = {"longtide_timed", "unseen"} | ({"popularity"} if "had" in evaluation.overall else set())
    ways = [way for way in evaluation.overall if way not in left_out]  # any terminal has room for the others
    table = _table("NDCG@10 by slice", "", "from", "users", *ways)
    for unit, slices in (
        ("events in history", evaluation.slices.history_length),
        ("rank of the target", evaluation.slices.target_popularity),
    ):
        table.add_section()
        table.add_row("", Text(unit, style="italic"))
        for one in slices:
            scores = (f"{one.metrics[way]['ndcg@10']:.4f}" for way in ways)
            table.add_row(one.name, one.span, f"{one.users:,}", *scores)
    return table


def _cells(bias: PopularityBias | None) -> tuple[str, str, str]:
    if bias is None:
        return "-", "-", "-"
    return f"{bias.recommended:,.1f}", f"{bias.consumed:,.1f}", f"{bias.ratio:.4f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right")
    return table
