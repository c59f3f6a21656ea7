"""What people turn to, and where new items were pulled, for a server that starts again."""

import os

import pytest

from longtide_server.new_items.newcomers import Pulled
from longtide_server.serving.signals_file import SUFFIX, Signals, read_signals, save_signals
from longtide_server.sources.trending import Counts

SIGNALS = Signals(Counts(1_000.0, {"a": 2.5, "b": 0.125}, 7.0), {"new": Pulled(3, b"\0\0\x80\x3f")})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "states"


def saved(folder, snapshot_id, signals):
    save_signals(folder, snapshot_id, signals.counts, lambda: signals.pulled)


def test_what_is_saved_is_read(folder):
    saved(folder, "s1", SIGNALS)
    assert read_signals(folder, "s1") == SIGNALS
    later = Signals(Counts(2_000.0, {"c": 1.0}), {})
    saved(folder, "s1", later)
    assert read_signals(folder, "s1") == later


def test_counts_are_those_of_the_latest_and_pulls_those_of_the_snapshot(folder):
    saved(folder, "s1", SIGNALS)
    os.utime(folder / f"s1{SUFFIX}", (0, 0))
    later = Signals(Counts(2_000.0, {"c": 1.0}), {"newer": Pulled(1, b"1234")})
    saved(folder, "s2", later)
    assert read_signals(folder, "s1") == Signals(later.counts, SIGNALS.pulled)
    assert read_signals(folder, "s3") == Signals(later.counts, {})


@pytest.mark.parametrize("damage", [b"", b"no such file", b"\xc0", None])
def test_a_missing_or_damaged_file_is_no_file(folder, damage):
    assert read_signals(folder, "s1") == Signals()
    saved(folder, "s0", SIGNALS)
    os.utime(folder / f"s0{SUFFIX}", (0, 0))
    if damage is not None:
        (folder / f"s1{SUFFIX}").write_bytes(damage)
    assert read_signals(folder, "s1") == Signals(SIGNALS.counts, {})


def test_a_file_that_was_cut_off_is_no_file(folder):
    saved(folder, "s1", SIGNALS)
    path = folder / f"s1{SUFFIX}"
    path.write_bytes(path.read_bytes()[:-3])
    assert read_signals(folder, "s1") == Signals()
