"""Draws accuracy against length of history, with how many users stand behind every point. Alone in needing matplotlib.

Figures are built without pyplot, which keeps state for the whole process and looks for a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longtide_server.errors import InvalidInput
from longtide_server.training.judging.slices import Slice

METRIC = "ndcg@10"
STYLES: dict[str, dict[str, Any]] = {  # distinct also in grey and to the colour-blind (the colours of Okabe and Ito)
    "longtide": {"color": "#0072B2", "marker": "o", "linewidth": 2.5, "zorder": 3},
    "longtide_timed": {"color": "#0072B2", "marker": "o", "linewidth": 1.5, "linestyle": "--", "fillstyle": "none"},
    "unseen": {"color": "#0072B2", "marker": "o", "linewidth": 1.5, "linestyle": ":", "fillstyle": "none"},
    "had": {"color": "#009E73", "marker": "D", "linewidth": 1.5},
    "transitions": {"color": "#D55E00", "marker": "s", "linewidth": 1.5},
    "popularity": {"color": "#666666", "marker": "^", "linewidth": 1.5},
}
GREY = "#BBBBBB"


def save_history_length_plot(slices: Sequence[Slice], title: str, path: Path) -> None:
    """Write `history_length_figure` as a PNG. InvalidInput when the file cannot be written."""
    try:
        history_length_figure(slices, title).savefig(path, format="png", dpi=150)
    except OSError as exc:
        raise InvalidInput.of("--plot", f"{path} cannot be written: {exc.strerror}") from exc


def history_length_figure(slices: Sequence[Slice], title: str) -> Figure:
    """NDCG@10 against slices of doubling history length, a line for each way to recommend, users below."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    accuracy, people = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    places = [one.low.bit_length() for one in slices]  # 0, 1, 2 to 3, 4 to 7: a logarithmic axis that has a 0
    _draw_accuracy(accuracy, places, slices)
    _draw_users(people, places, slices)
    figure.suptitle(title)
    return figure


def _draw_accuracy(axes: Axes, places: list[int], slices: Sequence[Slice]) -> None:
    for way, style in STYLES.items():
        if all(way in one.metrics for one in slices):
            axes.plot(places, [one.metrics[way][METRIC] for one in slices], label=way, **style)
    axes.set_ylabel(METRIC.upper())
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GREY, alpha=0.5)
    axes.legend(frameon=False)


def _draw_users(axes: Axes, places: list[int], slices: Sequence[Slice]) -> None:
    bars = axes.bar(places, [one.users for one in slices], color=GREY)
    axes.bar_label(bars, [f"{one.users:,}" for one in slices], fontsize="small")
    axes.margins(y=0.35)  # room for the numbers
    axes.set_yticks([])
    axes.set_ylabel("users")
    axes.set_xticks(places, [one.span.replace(" to ", "\nto ") for one in slices], fontsize="small")
    axes.set_xlabel("events in the user's history")
