"""A benchmark that was interrupted goes on, and never takes for a figure what was made otherwise."""

import json
import shutil

from tests.bench import pieces
from tests.bench.pieces import BEGINS, HANDLERS, ROOT, Pieces, code, fingerprint, meaning, needed


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
    kept, figures = Pieces(tmp_path), iter(range(9))

    def figure(**asked):
        return kept.piece("a", lambda: {"figure": next(figures)}, **asked)["figure"]

    assert [figure(), figure(given=["--set", "x=1"]), figure(given=["--set", "x=1"]), figure()] == [0, 1, 1, 2]
    assert [figure(fits=lambda kept: kept["figure"] > 2), figure(fits=lambda kept: kept["figure"] > 2)] == [3, 3]


def test_a_piece_is_made_anew_of_a_file_that_has_changed(tmp_path):
    kept, figures, log = Pieces(tmp_path), iter(range(9)), tmp_path / "log.csv"

    def figure(text):
        log.write_text(text)
        fingerprint.cache_clear()
        return kept.piece("a", lambda: {"figure": next(figures)}, read=[log])["figure"]

    assert [figure("a"), figure("a"), figure("b"), figure("b")] == [0, 0, 1, 1]


def test_pieces_of_another_state_of_the_product_are_counted(tmp_path):
    earlier = Pieces(tmp_path)
    for name in "abc":
        earlier.piece(name, dict, ours=name != "c")
    assert earlier.of_other_code().holds
    later = Pieces(tmp_path)
    later.code = "another"
    for name in "abcb":
        later.piece(name, dict, ours=name != "c")
    found = later.of_other_code()
    assert (found.value, found.holds, found.note) == (2, False, "a, b")


def test_what_a_program_means_is_what_it_does():
    program = "def f(x):\n    return x + 1\n"
    told = '"""A module."""\ndef f(x):\n    """Adds."""\n    return x + 1  # one\n'
    assert meaning(program) == meaning(told) != meaning(program.replace("1", "2"))


def test_the_code_is_what_decides_which_lists_come_out(monkeypatch, tmp_path):
    found = needed([ROOT / begin for begin in BEGINS])
    assert HANDLERS / "encoder_handler.py" in found
    names = {str(path.relative_to(ROOT)) for path in found if path.is_relative_to(ROOT)}
    assert {"snapshot.py", "recommender.py", "training/pipeline.py", "sources/candidates.py", "events.py"} <= names
    assert not any(name.startswith(("rpc", "app", "cli")) for name in names)
    own = tmp_path / "own.py"
    own.write_text("x = 1")
    first = code([own])
    own.write_text("x = 2")
    assert code([own]) != first != code()
    copied = shutil.copytree(ROOT, tmp_path / ROOT.name)
    monkeypatch.setattr(pieces, "ROOT", copied)
    assert code() == Pieces(tmp_path).code
    snapshot = copied / "snapshot.py"
    before = code()
    snapshot.write_text(snapshot.read_text().replace("min_similarity: float = ", "min_similarity: float = 0.5 + "))
    assert code() != before
