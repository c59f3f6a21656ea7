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
    table = _table("The next behaviour", "", "longtide", "without it")
    accuracies = (behavior.type_accuracy, behavior.type_accuracy_most_frequent)
    table.add_row("type: accuracy; the most frequent", *(f"{one:.4f}" for one in accuracies))
    if behavior.value_mae is None:
        return table
    name = f"value: mean error of {behavior.valued_events:,}"
    for told, baseline in (
        (f"{name}; the user's median", behavior.value_mae_user_median),
        (f"{name}; biases", behavior.value_mae_biases),
    ):
        if baseline is not None:
            table.add_row(told, f"{behavior.value_mae:.4f}", f"{baseline:.4f}")
    return table


def slices_table(evaluation: Evaluation) -> Table:
    """NDCG@10 by length of history, and by popularity of the target, and by what was done with it."""
    left_out = {"longtide_timed", "unseen"} | ({"popularity"} if "had" in evaluation.overall else set())
    ways = [way for way in evaluation.overall if way not in left_out]  # any terminal has room for the others
    table = _table("NDCG@10 by slice", "", "from", "users", *ways)
    kinds = [
        ("events in history", [(one, one.span) for one in evaluation.slices.history_length]),
        ("rank of the target", [(one, one.span) for one in evaluation.slices.target_popularity]),
    ]
    if len(evaluation.slices.outcome) > 1:
        kinds.append(("what they did with it", [(one, "") for one in evaluation.slices.outcome]))
    for unit, slices in kinds:
        table.add_section()
        table.add_row("", Text(unit, style="italic"))
        for one, span in slices:
            scores = (f"{one.metrics[way]['ndcg@10']:.4f}" for way in ways)
            table.add_row(one.name, span, f"{one.users:,}", *scores)
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
