import pytest
from matplotlib.image import imread

from longtide_server.errors import InvalidInput
from longtide_server.training.judging.plot import history_length_figure, save_history_length_plot
from longtide_server.training.judging.slices import Slice

WAYS = ("longtide", "transitions", "popularity")


def a_slice(low: int, high: int, users: int, *scores: float) -> Slice:
    return Slice(str(low), low, high, users, {way: {"ndcg@10": s} for way, s in zip(WAYS, scores, strict=True)})


SLICES = (a_slice(0, 0, 12, 0.1, 0.1, 0.1), a_slice(2, 3, 1_500, 0.3, 0.2, 0.1), a_slice(8, 15, 40, 0.5, 0.4, 0.05))


def test_every_way_is_a_line_over_a_logarithmic_axis_that_has_a_0():
    accuracy, people = history_length_figure(SLICES, "ring.csv").axes
    lines = {line.get_label(): line for line in accuracy.lines}
    assert list(lines) == list(WAYS)
    assert list(lines["longtide"].get_ydata()) == [0.1, 0.3, 0.5]
    assert list(lines["transitions"].get_ydata()) == [0.1, 0.2, 0.4]
    assert list(lines["longtide"].get_xdata()) == [0, 2, 4]  # twice as many events are one place further
    assert [label.get_text() for label in people.get_xticklabels()] == ["0", "2\nto 3", "8\nto 15"]


def test_the_users_of_every_point_are_shown():
    _, people = history_length_figure(SLICES, "ring.csv").axes
    assert [bar.get_height() for bar in people.patches] == [12, 1_500, 40]
    assert [text.get_text() for text in people.texts] == ["12", "1,500", "40"]


def test_a_plot_is_a_png_with_something_on_it(tmp_path):
    save_history_length_plot(SLICES[:1], "ring.csv", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert imread(tmp_path / "plot.png").std() > 0


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"gone/plot\.png cannot be written: No such file"):
        save_history_length_plot(SLICES, "ring.csv", tmp_path / "gone" / "plot.png")
