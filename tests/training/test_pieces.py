"""A benchmark that was interrupted goes on, and never takes for a figure what was made otherwise."""

import json

from tests.bench.pieces import Pieces


def test_a_piece_is_made_once(tmp_path):
    made = []

    def do():
        made.append(1)
        return {"figure": len(made)}

    assert Pieces(tmp_path).piece("a", do)["figure"] == 1
    again = Pieces(tmp_path)
    assert again.piece("a", do)["figure"] == again.piece("a", do)["figure"] == 1
    assert again.piece("b", do)["figure"] == 2
    assert ", " in json.loads((tmp_path / "a.json").read_text())["made"]


def test_a_piece_that_was_made_otherwise_is_made_anew(tmp_path):
    pieces, figures = Pieces(tmp_path), iter(range(9))

    def figure(**asked):
        return pieces.piece("a", lambda: {"figure": next(figures)}, **asked)["figure"]

    assert [figure(), figure(given=["--set", "x=1"]), figure(given=["--set", "x=1"]), figure()] == [0, 1, 1, 2]
    assert [figure(fits=lambda kept: kept["figure"] > 2), figure(fits=lambda kept: kept["figure"] > 2)] == [3, 3]
