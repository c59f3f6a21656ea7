"""The command line: what it prints, and that wrong input ends in one sentence and exit status 2."""

import asyncio
import errno
import gc
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
import structlog
from click.testing import CliRunner
from rich.console import Console

from longtide import (
    AsyncClient,
    Neighbor,
    Recommendation,
    Recommendations,
    SimilarUser,
    SnapshotInfo,
    Source,
    SourceShare,
    __version__,
)
from longtide_server.attribution import make_token
from longtide_server.cli import cli
from longtide_server.cli import events as event_commands
from longtide_server.cli import serving as serving_commands
from longtide_server.cli import snapshots as snapshot_commands
from longtide_server.cli.base import Commands, until_stopped
from longtide_server.events import EventType
from longtide_server.quickstart.run import _events
from longtide_server.quickstart.show import items_table, recommendations_table, similar_users_table
from longtide_server.snapshot import CATALOG, CURRENT, EMBEDDINGS, ENCODER, MANIFEST, resolve
from longtide_server.training import pipeline, scoring
from longtide_server.training.dataset import to_sequences
from longtide_server.training.files.log import read_log
from longtide_server.training.scoring import Scored

HEAD = "user_id,item_id,timestamp\n"
COMMAND = Path(sys.executable).with_name("longtide")
QUICK = [
    part
    for setting in ("model.dim=8", "model.hidden=8", "train.epochs=2", "train.bfloat16=false")
    for part in ("--set", setting)
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_logging():
    """`serve` and `quickstart` set up logging for their process; the runner's process goes on."""
    yield
    structlog.reset_defaults()


def ring(users: int = 8, start_s: int = 1_700_000_000) -> str:
    """Everyone walks the ring a to h from another start, five steps, an hour apart."""
    letters = "abcdefgh" * 2
    rows = [f"u{n},{letters[n % 8 + k]},{start_s + 86_400 * n + 3_600 * k}" for n in range(users) for k in range(5)]
    return HEAD + "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "ring.csv"
    path.write_text(ring())
    return path


@pytest.fixture(scope="module")
def trained(log, one_thread):
    """A directory with a snapshot of the log; tests must not change it."""
    directory = log.parent / "snapshot"
    done = run("train", log, "--out", directory, *QUICK)
    assert done.exit_code == 0, done.output
    return directory


@pytest.fixture
def judged(monkeypatch):
    """Snapshots that are trained here are judged, small as their logs are."""
    monkeypatch.setattr(pipeline, "MIN_TARGETS", 1)


@pytest.fixture
def snapshot(trained, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(trained, tmp_path / "snapshot"))


def run(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def refusal(done, status: int = 2) -> str:
    """The one sentence that a failed command says."""
    assert done.exit_code == status, (done.output, done.exception)
    (line,) = done.stderr.splitlines()
    assert line.startswith("longtide: ")
    assert done.stdout == ""
    return line.removeprefix("longtide: ")


def process(*args: object, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess[str]:
    """A real process."""
    command = [str(arg) for arg in args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)


# The whole path


def test_train_says_what_it_published_and_info_says_it_again(log, trained):
    manifest = json.loads(run("info", trained, "--json").stdout)
    assert (manifest["user_count"], manifest["item_count"], manifest["event_count"]) == (8, 8, 40)
    assert manifest["training"]["epochs"] == 2
    assert set(manifest["files"]) == {entry.name for entry in resolve(trained).iterdir()} - {MANIFEST}

    shown = run("info", trained)
    assert shown.exit_code == 0
    assert manifest["snapshot_id"] in shown.stdout
    assert "8 users, 8 items, 40 events" in shown.stdout


def test_train_prints_the_manifest_as_json_and_progress_elsewhere(log, tmp_path):
    done = run("train", log, "--out", tmp_path / "out", "--json", "--seed", 3, *QUICK)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["training"]["seed"] == 3
    assert "Training the encoder" in done.stderr
    assert "epoch  1: loss" in done.stderr
    assert "" not in done.stderr.splitlines()  # which the end of a bar would leave


def test_predict_writes_a_line_for_every_user_in_the_order_of_the_log(log, trained, tmp_path):
    done = run("predict", trained, log, "--out", tmp_path / "lists.jsonl", "--k", 2)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    lines = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    assert [line["user_id"] for line in lines] == [f"u{n}" for n in range(8)]
    for n, line in enumerate(lines):
        had = set(("abcdefgh" * 2)[n : n + 5])
        assert len(line["items"]) == 2
        assert not had & set(line["items"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["lists.jsonl"]


def test_predict_tells_sessions_from_users(trained, tmp_path):
    (tmp_path / "log.csv").write_text("user_id,session_id,item_id,timestamp\nu0,,a,1\n,u0,b,2\n")
    done = run("predict", trained, tmp_path / "log.csv", "--out", tmp_path / "lists.jsonl", "--k", 8)
    assert done.exit_code == 0, done.output
    user, session = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    assert (user["user_id"], set(user["items"])) == ("u0", set("bcdefgh"))
    assert (session["session_id"], set(session["items"])) == ("u0", set("acdefgh"))
    assert "session_id" not in user
    assert "user_id" not in session


@pytest.fixture
def repeating(tmp_path):
    """People who come back to what they had, and d, which only one of them knows."""
    rows = [f"u{n},{item},{1_700_000_000 + n * 86_400 + k}" for n in range(8) for k, item in enumerate("abcab")]
    (tmp_path / "repeats.csv").write_text(HEAD + "\n".join([*rows, "v,d,1700000000", "v,a,1700000001"]) + "\n")
    return tmp_path / "repeats.csv"


def test_what_was_had_is_in_lists_where_that_is_asked_for(repeating, tmp_path):
    assert run("train", repeating, "--out", tmp_path / "snapshot", *QUICK).exit_code == 0
    for options, listed in ((), {"d"}), (("--include-seen",), set("abcd")):
        out = tmp_path / "lists.jsonl"
        done = run("predict", tmp_path / "snapshot", repeating, "--out", out, *options)
        assert done.exit_code == 0, done.output
        assert set(json.loads(out.read_text().splitlines()[0])["items"]) == listed


def test_predict_takes_users_and_items_that_the_snapshot_does_not_know(trained, tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + "u0,a,1700000000\nnew,a,1700000000\nnew,unheard-of,1700000001\nold,zz,1\n")
    done = run("predict", trained, tmp_path / "log.csv", "--out", tmp_path / "lists.jsonl", "--k", 8)
    assert done.exit_code == 0, done.output
    lists = {line["user_id"]: line["items"] for line in map(json.loads, (tmp_path / "lists.jsonl").open())}
    assert set(lists["new"]) == set("bcdefgh")
    assert set(lists["old"]) == set("abcdefgh")  # all that they did is unknown: they get what is popular


def test_predict_takes_the_times_at_which_users_will_see_their_lists(tmp_path):
    """In this log some users come back within a minute, some a day later; what they take then differs."""
    rows, told = [], ["user_id,timestamp"]
    for user in range(40):
        at = 1_600_000_000 + user
        for step in range(8):
            late = (user >> (step % 5)) % 2
            at += 86_400 if late else 60
            rows.append(f"u{user},{'late' if late else 'soon'}-{step},{at}")
        if user % 2 == 0:
            told.append(f"u{user},{at + 86_400}")
    (tmp_path / "log.csv").write_text(HEAD + "\n".join(rows) + "\n")
    (tmp_path / "times.csv").write_text("\n".join(told) + "\n")
    directory, out = tmp_path / "snapshot", tmp_path / "lists.jsonl"
    quick = (
        "--set",
        "model.dim=16",
        "--set",
        "train.epochs=20",
        "--set",
        "train.patience=20",
        "--set",
        "train.learning_rate=0.01",
    )
    assert run("train", tmp_path / "log.csv", "--out", directory, *quick).exit_code == 0

    def lists(*options):
        done = run("predict", directory, tmp_path / "log.csv", "--out", out, "--k", 8, *options)
        assert done.exit_code == 0, done.output
        return [json.loads(line)["items"] for line in out.open()]

    before, after = lists(), lists("--request-times", tmp_path / "times.csv")
    assert after[1::2] == before[1::2]  # these have no time
    assert after[::2] != before[::2]
    assert [set(items) for items in after] == [set(items) for items in before]
    assert "request_time.npz" in json.loads(run("info", directory, "--json").stdout)["files"]


@pytest.mark.parametrize("option", ["--items", "--kg", "--item-columns"])
def test_predict_takes_no_option_that_it_does_not_use(log, trained, tmp_path, option):
    done = run("predict", trained, log, "--out", tmp_path / "out", option, "item_id=x")
    assert done.exit_code == 2
    assert "No such option" in done.stderr


def test_predict_reads_a_log_as_train_does(trained, tmp_path):
    (tmp_path / "log.csv").write_text("who,item_id,timestamp\nann,a,1700000000\nann,b,soon\n")
    named = ("--columns", "user_id=who", "--skip-bad-rows")
    done = run("predict", trained, tmp_path / "log.csv", "--out", tmp_path / "out.jsonl", "--k", 2, *named)
    assert done.exit_code == 0, done.output
    assert "1 bad rows skipped" in " ".join(done.stderr.split())
    assert json.loads((tmp_path / "out.jsonl").read_text())["user_id"] == "ann"


def test_predict_names_a_time_that_is_none(log, trained, tmp_path):
    (tmp_path / "times.csv").write_text("user_id,timestamp\nu0,tomorrow\n")
    done = run("predict", trained, log, "--out", tmp_path / "out", "--request-times", tmp_path / "times.csv")
    assert "times.csv: row 2, column timestamp: 'tomorrow' is not" in refusal(done)


def test_predict_says_in_a_sentence_what_it_cannot_write(log, trained, tmp_path):
    (tmp_path / "lists.jsonl.partial").mkdir()
    done = run("predict", trained, log, "--out", tmp_path / "lists.jsonl")
    assert (done.exit_code, done.stderr.strip()) == (1, f"longtide: {tmp_path}/lists.jsonl.partial: Is a directory")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "longtide: No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "lost.csv"), "longtide: lost.csv: No such file"),
        (TimeoutError("a slip of ours"), None),
    ],
    ids=["disk", "file", "neither"],
)
def test_only_what_is_of_files_and_disks_is_a_sentence(error, said):
    @click.group(cls=Commands)
    def group():
        pass

    @group.command()
    def fail():
        raise error

    done = CliRunner().invoke(group, ["fail"])
    if said is None:
        assert done.exception is error
    else:
        assert done.exit_code == 1
        assert done.stderr.startswith(said)


def test_predict_again_replaces_what_was_there(log, trained, tmp_path):
    (tmp_path / "lists.jsonl").write_text("old\n")
    run("predict", trained, log, "--out", tmp_path / "lists.jsonl")
    assert "old" not in (tmp_path / "lists.jsonl").read_text()


@pytest.mark.parametrize("split", ["leave-one-out", "temporal"])
def test_evaluate_compares_with_the_baselines(log, split):
    done = run("evaluate", log, "--split", split, "--json", *QUICK)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout, parse_constant=pytest.fail)  # NaN is no JSON
    assert list(found) == ["split", "include_seen", "users", "overall", "popularity_bias", "slices", "behavior"]
    assert (found["split"], found["users"]) == (split, 8 if split == "leave-one-out" else 1)
    ways = ["longtide", "longtide_timed", "transitions", "popularity"]
    assert list(found["overall"]) == list(found["popularity_bias"]) == ways
    assert found["overall"]["transitions"]["hr@5"] == 1.0
    assert list(found["overall"]["longtide"]) == list(found["overall"]["popularity"])
    assert set(found["popularity_bias"]["longtide"]) == {"users", "recommended", "consumed", "ratio"}


def test_evaluate_includes_what_was_seen_where_that_is_asked_for(repeating, monkeypatch):
    done = run("evaluate", repeating, "--include-seen", "--json", *QUICK)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["include_seen"]
    assert list(found["overall"]) == ["longtide", "unseen", "transitions", "popularity", "had"]
    assert (found["overall"]["longtide"]["hr@5"], found["overall"]["unseen"]["hr@5"]) == (1.0, 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("evaluate", repeating, "--include-seen", *QUICK)
    assert "repeats.csv, leave-one-out, what was seen included, 8 users" in shown.stdout
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80
    assert "…" not in shown.stdout


def test_evaluate_measures_slices(log):
    slices = json.loads(run("evaluate", log, "--json", *QUICK).stdout)["slices"]
    assert set(slices) == {"history_length", "target_popularity", "outcome", "history_length_doubling"}
    (short,) = slices["history_length"]  # everyone has four events left
    assert {name: short[name] for name in ("name", "low", "high", "users")} == {
        "name": "short", "low": 1, "high": 9, "users": 8,
    }  # fmt: skip
    assert short["metrics"]["transitions"]["hr@5"] == 1.0
    assert [one["name"] for one in slices["target_popularity"]] == ["head", "mid", "tail"]
    assert [(one["low"], one["high"]) for one in slices["history_length_doubling"]] == [(4, 7)]


def test_evaluate_prints_tables(log, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("evaluate", log, *QUICK)
    assert shown.exit_code == 0, shown.output
    assert "ring.csv, leave-one-out, 8 users" in shown.stdout
    for name in ("longtide", "transitions", "popularity", "ndcg@10", "ratio", "short", "1 to 9", "tail"):
        assert name in shown.stdout
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80


def test_evaluate_draws_a_plot_beside_what_it_prints(log, tmp_path):
    done = run("evaluate", log, "--json", "--plot", tmp_path / "plot.png", *QUICK)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["users"] == 8
    content = (tmp_path / "plot.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 5_000


def test_a_plot_without_matplotlib_says_what_to_install_before_it_trains(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refusal(run("evaluate", log, "--plot", tmp_path / "plot.png")) == (
        "--plot: matplotlib is not installed; a plot needs: pip install 'longtide[plot]'"
    )


@pytest.mark.parametrize("plot", ["missing/plot.png", "plot.svg", ""], ids=["missing folder", "no PNG", "a directory"])
def test_evaluate_says_so_when_it_cannot_write_the_plot(log, tmp_path, plot):
    said = refusal(run("evaluate", log, "--plot", tmp_path / plot))
    assert said == f"--plot: {tmp_path / plot} is not a .png file in a folder that exists"


def test_evaluate_states_its_tie_rule():
    said = " ".join(run("evaluate", "--help").stdout.split())
    assert "Of equal scores, the item with more events in the history comes first, and of equally many, the" in said


def test_show_settings_lists_what_set_takes_and_trains_nothing(log, tmp_path):
    done = run("train", log, "--out", tmp_path / "out", "--show-settings", "--set", "train.epochs=7")
    assert done.exit_code == 0
    assert "train.epochs=7" in done.stdout.splitlines()
    assert "model.half_lives=2,16,128" in done.stdout.splitlines()
    assert not (tmp_path / "out").exists()


def test_settings_are_shown_without_a_directory_and_nothing_is_trained_without_one(log):
    done = run("train", log, "--show-settings", "--set", "train.epochs=7")
    assert done.exit_code == 0, done.output
    assert "train.epochs=7" in done.stdout.splitlines()
    done = run("train", "gone.csv")
    assert done.exit_code == 2
    assert "Missing option '--out'" in done.stderr


def test_the_help_says_which_settings_are_passes_over_the_log(tmp_path):
    """Where events have values, most of a training is the second phase: train.epochs does not shorten it."""
    rows = [f"u{user},{item},{n},{n}" for user in range(8) for n, item in enumerate("abcd")]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,value\n" + "\n".join(rows) + "\n")
    shown = run("train", tmp_path / "log.csv", "--show-settings", "--set", "train.epochs=1").stdout.splitlines()
    assert "train.fine_tune_epochs=2" in shown
    passes = [line.partition("=")[0] for line in shown if "epochs=" in line]
    said = run("train", "--help").stdout
    assert passes == ["train.epochs", "train.fine_tune_epochs", "train.refit_epochs"]
    assert all(name in said for name in passes)


def test_items_bring_titles_and_columns_their_own_names(tmp_path):
    (tmp_path / "log.csv").write_text(ring().replace(HEAD, "who,what,when\n"))
    (tmp_path / "items.csv").write_text("sku,title\na,Alien\n")
    done = run(
        *("train", tmp_path / "log.csv", "--out", tmp_path / "out", "--items", tmp_path / "items.csv"),
        *("--columns", "user_id=who,item_id=what,timestamp=when", "--item-columns", "item_id=sku", *QUICK),
        *("--text-model", "none"),
    )
    assert done.exit_code == 0, done.output
    assert sorted(pq.read_table(resolve(tmp_path / "out") / CATALOG)["title"].to_pylist())[-1] == "Alien"


def test_content_of_every_kind_places_items_without_events(log, tmp_path):
    rows = "\n".join(
        f"{letter},early > {letter},round|blue,Lumo,{place},shop" for place, letter in enumerate("abcdefgh")
    )
    (tmp_path / "items.csv").write_text(
        f"item_id,categories,tags,brand,price,domain\n{rows}\nnew,early > a,round,Lumo,3,shop\nbare,,,,,\n"
    )
    triples = "".join(f"item:{letter},maker,entity:{'x' if letter < 'e' else 'y'}\n" for letter in "abcdefgh")
    (tmp_path / "kg.csv").write_text(
        f"head,relation,tail\n{triples}item:new,maker,entity:x\nitem:never,maker,entity:x\n"
    )
    np.savez(tmp_path / "vectors.npz", item_id=[*"abcdefgh", "new"], image=np.eye(9), text=np.eye(9)[::-1])
    content = ("--items", tmp_path / "items.csv", "--kg", tmp_path / "kg.csv", "--vectors", tmp_path / "vectors.npz")
    done = run("train", log, "--out", tmp_path / "out", *content, *QUICK)
    assert done.exit_code == 0, done.output
    assert {"content.npz", "relations.npz"} <= {path.name for path in resolve(tmp_path / "out").iterdir()}
    assert "1 items more" in run("info", tmp_path / "out").stdout
    done = run("predict", tmp_path / "out", log, "--out", tmp_path / "lists.jsonl", "--k", 8)
    assert done.exit_code == 0, done.output
    lists = [json.loads(line)["items"] for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    assert all(set(items) <= {*"abcdefgh", "new"} and "new" in items for items in lists)
    done = run("evaluate", log, *content, "--json", *QUICK)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("option", "what"),
    [("--kg", "holds no rows of data"), ("--vectors", "is not an .npz file of arrays")],
)
def test_a_wrong_file_of_content_is_said_before_the_training(log, tmp_path, option, what):
    (tmp_path / "file.csv").write_text("head,relation,tail\n")
    done = run("train", log, "--out", tmp_path / "out", option, tmp_path / "file.csv", *QUICK)
    assert refusal(done).startswith(f"{tmp_path / 'file.csv'}: {what}")
    assert not (tmp_path / "out").exists()


def test_the_items_texts_are_read_by_a_language_model(log, tmp_path):
    pytest.importorskip("sentence_transformers", reason="the extra `text` is not installed")
    titles = "\n".join(f"{letter},The {letter} of the ring" for letter in "abcdefgh")
    (tmp_path / "items.csv").write_text(f"item_id,title\n{titles}\n")
    without, read = (
        run(
            *("train", log, "--out", tmp_path / name, "--items", tmp_path / "items.csv", *QUICK),
            *(["--text-model", "none"] if name == "without" else []),
        )
        for name in ("without", "read")
    )
    assert without.exit_code == read.exit_code == 0, read.output
    assert "Reading 8 item texts" in read.stderr
    assert "item texts" not in without.stderr
    vectors = [np.load(resolve(tmp_path / name) / EMBEDDINGS) for name in ("without", "read")]
    assert not np.allclose(*vectors)


def test_a_language_model_that_is_not_there_is_named(log, tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\na,Alien\n")
    done = run(
        "train", log, "--out", tmp_path / "out", "--items", tmp_path / "items.csv", "--text-model", "./nowhere", *QUICK
    )
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "longtide: --text-model: ./nowhere is not a folder"
    assert not (tmp_path / "out").exists()


# Wrong logs


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        (HEAD, "holds no rows of data"),
        ("user_id,item_id\nu,i\n", "has no column timestamp; it has user_id, item_id"),
        (HEAD + "u,a,1\nu,b,soon\n", "row 3, column timestamp: 'soon' is not a number"),
        (HEAD + "u,a,1\nu,b\n", "row 3: the header has 3 fields, this row 2"),
        (HEAD + "u,a,1\nu,b,2,3\n", "row 3: the header has 3 fields, this row 4"),
        (HEAD + ",a,1\n", "row 2, column user_id: must not be empty"),
        (HEAD + "u,a,1\nu,b,2026-01-31T12:00:00Z\n", "row 3, column timestamp: "),
        ("user_id,item_id,timestamp,event_type\nu,a,1,view\nu,b,2,stare\n", "row 3, column event_type: 'stare' is not"),
        ((HEAD + "u,caf\xe9,1\n").encode("latin-1"), "row 2, column item_id: 'caf\\udce9' is not UTF-8 text"),
        (b"\xff\xfe" + HEAD.encode("utf-16-le"), "row 1: the column names are not UTF-8 text"),
        ((HEAD + "u,a,1\n").encode("utf-16"), "row 1: the column names are not UTF-8 text"),
    ],
    ids=[
        "empty", "header only", "missing column", "bad time", "too few fields", "too many fields", "no user",
        "mixed times", "unknown type", "latin-1", "UTF-16 header", "UTF-16",
    ],
)  # fmt: skip
def test_a_wrong_log_is_refused_in_a_sentence_that_says_where(tmp_path, content, complaint):
    path = tmp_path / "log.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    said = refusal(run("train", path, "--out", tmp_path / "out"))
    assert said.startswith(f"{path}: {complaint}"), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "predict", "evaluate", "quickstart"])
@pytest.mark.parametrize(("name", "complaint"), [("gone.csv", "no such file"), ("", "is a directory")])
def test_every_command_says_so_when_the_log_is_not_there(trained, tmp_path, command, name, complaint):
    options = {
        "train": ["--out", tmp_path / "out"],
        "predict": ["--out", tmp_path / "out"],
        "evaluate": [],
        "quickstart": ["--work-dir", tmp_path / "work"],
    }
    before = [trained] if command == "predict" else []
    assert complaint in refusal(run(command, *before, tmp_path / name, *options[command]))


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + ring(),
        ring().replace("\n", "\r\n"),
        ring() + ring().removeprefix(HEAD),
        HEAD + "u,a,1\nu,b,2\nu,c,3\n",
        HEAD + "u,a,1\nu,a,2\nv,a,3\n",
        "user_id,item_id,timestamp,event_type\n1,a,1,view\nu,2,2,Purchase\n01,x y,3,add-to-cart\n1,2,9,cart\n",
    ],
    ids=["BOM", "CRLF", "duplicate rows", "one user", "one item", "mixed types"],
)
def test_a_log_that_is_only_unusual_is_read(tmp_path, content):
    (tmp_path / "log.csv").write_bytes(content.encode())
    done = run("train", tmp_path / "log.csv", "--out", tmp_path / "out", "--show-settings")
    assert done.exit_code == 0, done.output


def test_an_evaluation_is_set_up_by_the_history_alone(tmp_path):
    """Only what is held back has values."""
    rows = [f"u{user},{item},{n},{5 - user if n == 3 else ''}" for user in range(3) for n, item in enumerate("abcd")]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,value\n" + "\n".join(rows) + "\n")
    whole = run("train", tmp_path / "log.csv", "--out", tmp_path / "out", "--show-settings").stdout
    history = run("evaluate", tmp_path / "log.csv", "--show-settings").stdout
    assert "model.use_values=true" in whole.splitlines()
    assert "model.use_values=false" in history.splitlines()


def test_no_moment_divides_a_log_whose_times_count_events(tmp_path):
    (tmp_path / "log.csv").write_text(
        HEAD + "".join(f"u{user},{item},{n}\n" for user in range(3) for n, item in enumerate("abcd"))
    )
    assert "no moment divides it" in refusal(run("evaluate", tmp_path / "log.csv", "--split", "temporal"))


def test_duplicate_rows_are_one_event(tmp_path):
    (tmp_path / "log.csv").write_text(ring() + ring().removeprefix(HEAD))
    done = run("train", tmp_path / "log.csv", "--out", tmp_path / "out", "--json", *QUICK)
    assert json.loads(done.stdout)["event_count"] == 40


def test_a_user_of_one_event_each_is_nothing_to_learn_from(tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + "u,a,1\nv,a,2\n")
    said = run("train", tmp_path / "log.csv", "--out", tmp_path / "out")
    assert said.exit_code == 2
    assert "log.csv: no user has two events" in said.stderr.splitlines()[-1]


def test_evaluate_without_targets_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + "u,a,1\nu,b,2\n")
    done = run("evaluate", tmp_path / "log.csv")
    assert done.exit_code == 2
    assert "leaves no user with a target" in done.stderr


def test_bad_rows_are_skipped_when_asked_counted_and_listed(tmp_path):
    (tmp_path / "log.csv").write_text(ring() + "u1,x,soon\nu1,x\n,x,1700000000\n")
    done = run("train", tmp_path / "log.csv", "--out", tmp_path / "out", "--skip-bad-rows", "--json", *QUICK)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["event_count"] == 40
    said = " ".join(done.stderr.split())  # a terminal may be narrower than a path
    assert "3 bad rows skipped" in said
    assert "row 42, column timestamp: 'soon' is not a number" in said
    assert "row 43: the header has 3 fields, this row 2" in said
    assert "row 44, column user_id: must not be empty" in said


def test_twenty_bad_rows_are_listed_at_most(tmp_path):
    (tmp_path / "log.csv").write_text(ring() + "u1,x,soon\n" * 30)
    done = run("evaluate", tmp_path / "log.csv", "--skip-bad-rows", "--show-settings")
    assert "30 bad rows skipped" in " ".join(done.stderr.split())
    assert done.stderr.count("'soon'") == 20


def test_a_log_of_bad_rows_alone_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + "u,a,soon\n")
    assert "every row is bad" in refusal(
        run("train", tmp_path / "log.csv", "--out", tmp_path / "out", "--skip-bad-rows")
    )


def test_a_damaged_gzip_is_refused(tmp_path):
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(ring().encode())[:-30])
    assert "cut short or damaged" in refusal(run("evaluate", tmp_path / "log.csv.gz"))


# Wrong options


def test_set_names_a_setting_that_does_not_exist(log, tmp_path):
    said = refusal(run("train", log, "--out", tmp_path / "out", "--set", "train.epoch=5"))
    assert said == "train.epoch: there is no such setting; --show-settings lists them"


def test_set_needs_a_value(log, tmp_path):
    said = refusal(run("train", log, "--out", tmp_path / "out", "--set", "train.epochs"))
    assert said == "train.epochs: --set takes KEY=VALUE, for example --set train.epochs=5"


@pytest.mark.parametrize("setting", ["train.epochs=many", "train=5", "model=5"])
def test_set_refuses_a_value_of_the_wrong_type(log, tmp_path, setting):
    assert refusal(run("train", log, "--out", tmp_path / "out", "--set", setting)).startswith(setting.partition("=")[0])


@pytest.mark.parametrize("pairs", ["user_id", "user_id=", "=userId", "user_id=userId,item_id"])
def test_columns_must_be_pairs(log, tmp_path, pairs):
    done = run("train", log, "--out", tmp_path / "out", "--columns", pairs)
    assert done.exit_code == 2
    assert f"'{pairs}' is not of the form user_id=userId,item_id=movieId" in " ".join(done.stderr.split())


def test_pairs_that_are_none_are_told_by_the_example_of_their_option(log, tmp_path):
    for command, example in (
        (("serve", "--snapshot", tmp_path, "--data-dir", tmp_path, "--retain", "view"), "view=90d,purchase=3y"),
        (("train", log, "--out", tmp_path, "--item-columns", "sku"), "item_id=sku,title=name"),
        (("items", "import", log, "--columns", "sku"), "item_id=sku,title=name"),
    ):
        done = run(*command)
        assert done.exit_code == 2
        assert f"is not of the form {example}" in " ".join(done.stderr.split())


def test_columns_must_exist(log, tmp_path):
    said = refusal(run("train", log, "--out", tmp_path / "out", "--columns", "user_id=userId"))
    assert "has no column userId, which --columns names as user_id" in said
    said = refusal(run("train", log, "--out", tmp_path / "out", "--columns", "person=user_id"))
    assert "there is no column person to map" in said


def test_the_items_file_must_be_there(log, tmp_path):
    said = refusal(run("train", log, "--out", tmp_path / "out", "--items", tmp_path / "items.csv"))
    assert said == f"{tmp_path / 'items.csv'}: no such file"


@pytest.mark.parametrize("out", ["missing/lists.jsonl", ""], ids=["missing folder", "a directory"])
def test_predict_says_so_when_it_cannot_write(log, trained, tmp_path, out):
    assert str(tmp_path) in refusal(run("predict", trained, log, "--out", tmp_path / out))
    assert list(tmp_path.iterdir()) == []


def test_train_says_so_when_it_cannot_write(log, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run("train", log, "--out", tmp_path / "file", *QUICK)
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.splitlines()[-1].startswith(f"longtide: {tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("option", ["--columns", "--items", "--item-columns"])
def test_the_bundled_log_is_read_in_one_way(tmp_path, option):
    said = refusal(run("quickstart", option, "item_id=sku", "--work-dir", tmp_path))
    assert said == f"{option}: says how a LOG is read; name one, since without it the bundled log is"


# Wrong snapshots


def missing(directory: Path) -> None:
    shutil.rmtree(directory)


def empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def pointing_nowhere(directory: Path) -> None:
    (directory / CURRENT).write_text("20200101T000000-gone\n")


def without_a_file(directory: Path) -> None:
    (resolve(directory) / ENCODER).unlink()


def truncated(directory: Path) -> None:
    path = resolve(directory) / ENCODER
    path.write_bytes(path.read_bytes()[:-100])


def corrupted(directory: Path) -> None:
    path = resolve(directory) / ENCODER
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def of_another_version(directory: Path) -> None:
    path = resolve(directory) / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))


def with_half_a_manifest(directory: Path) -> None:
    path = resolve(directory) / MANIFEST
    path.write_text(path.read_text()[:100])


def with_an_empty_pointer(directory: Path) -> None:
    (directory / CURRENT).write_text("")


def with_a_pointer_of_junk(directory: Path) -> None:
    (directory / CURRENT).write_bytes(b"\xff\x00\xfe")


DAMAGES = [
    (missing, "no snapshot here"),
    (empty, "no snapshot here"),
    (pointing_nowhere, "names '20200101T000000-gone', which is not there"),
    (with_an_empty_pointer, "CURRENT"),
    (with_a_pointer_of_junk, "CURRENT"),
    (without_a_file, f"{ENCODER}: is missing"),
    (truncated, "bytes long"),
    (corrupted, f"{ENCODER}: its checksum differs"),
    (of_another_version, "format version 99; this Longtide reads version 3"),
    (with_half_a_manifest, f"{MANIFEST}: cannot be read"),
]


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_snapshot_that_is_not_whole_is_refused_by_everything_that_reads_it(log, snapshot, damage, complaint):
    damage(snapshot)
    out, data = snapshot.parent / "lists.jsonl", snapshot.parent / "data"
    for command in (
        ("info", snapshot),
        ("predict", snapshot, log, "--out", out),
        ("publish", snapshot, "--to", snapshot.parent / "served"),
        ("publish", snapshot, "--activate", "--target", "127.0.0.1:1"),
        ("serve", "--snapshot", snapshot, "--data-dir", data, "--encoder", "local", "--listen", "127.0.0.1:0"),
    ):
        said = refusal(run(*command))
        assert complaint in said, command
        assert str(snapshot) in said, command
    assert not out.exists()
    assert not data.exists()
    assert not (snapshot.parent / "served").exists()


def test_a_file_is_no_snapshot_directory(log):
    said = refusal(run("info", log))
    assert said == f"{log}: is a file; name the directory that a snapshot was published into"


# Publishing


def test_a_published_snapshot_is_copied_whole_and_current_for_whoever_starts_next(trained, tmp_path):
    folder, served = resolve(trained), tmp_path / "new" / "served"
    for source in (trained, folder):
        done = run("publish", source, "--to", served)
        assert (done.exit_code, done.stderr) == (0, ""), done.output
        assert done.stdout == f"{served / folder.name} is what a server that starts in {served} serves\n"
        assert sorted(entry.name for entry in served.iterdir()) == sorted([folder.name, CURRENT])
        assert (served / CURRENT).read_text().strip() == folder.name
    assert json.loads(run("info", served, "--json").stdout) == json.loads(run("info", trained, "--json").stdout)
    assert json.loads(run("publish", trained, "--to", served, "--json").stdout) == {
        "snapshot_id": folder.name, "folder": str(served / folder.name), "served": None,
    }  # fmt: skip


def test_publish_needs_to_know_where_to(trained):
    assert refusal(run("publish", trained)) == (
        "say where the snapshot goes (--to), or that the running server is to serve it (--activate), or both"
    )


def test_publish_says_so_when_it_cannot_copy(trained, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert refusal(run("publish", trained, "--to", tmp_path / "file")).startswith(f"{tmp_path / 'file'}: cannot be")
    assert refusal(run("publish", trained, "--to", "/proc")).startswith("/proc: cannot be a snapshot directory: ")


def test_a_snapshot_is_not_published_into_another(trained, snapshot):
    folder = resolve(snapshot)
    before = sorted(folder.iterdir())
    said = refusal(run("publish", trained, "--to", folder))
    assert said == f"--to: {folder} is a snapshot; name the directory that it lies in"
    assert sorted(folder.iterdir()) == before


def test_what_was_not_activated_is_not_current(trained, tmp_path):
    done = run("publish", trained, "--to", tmp_path / "served", "--activate", "--target", "127.0.0.1:1")
    assert "refused" in refusal(done, status=1)
    assert [entry.name for entry in (tmp_path / "served").iterdir()] == [resolve(trained).name]


@contextmanager
def served(snapshot, folder):
    """Runs a server of a snapshot; gives where."""
    command = [COMMAND, "serve", "--snapshot", snapshot, "--data-dir", folder / "data", "--encoder", "local"]
    with (folder / "server.log").open("w") as errors:
        server = subprocess.Popen(
            [str(part) for part in (*command, "--listen", "127.0.0.1:0")], stdout=subprocess.PIPE, stderr=errors,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        line = server.stdout.readline()
        assert line.startswith("Serving on "), (folder / "server.log").read_text()
        yield line.split()[2]
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture
def serving(snapshot, tmp_path):
    """Where a running server serves a copy of the snapshot."""
    with served(snapshot, tmp_path) as address:
        yield address


def test_a_server_is_asked_for_what_was_had_too(repeating, tmp_path):
    assert run("train", repeating, "--out", tmp_path / "snapshot", *QUICK).exit_code == 0
    (tmp_path / "users.txt").write_text("u0\n")
    with served(tmp_path / "snapshot", tmp_path) as address:
        at = ("--target", address)
        assert run("import", repeating, *at, "--bad-rows", tmp_path / "bad.csv").exit_code == 0
        for options, listed in ((), {"d"}), (("--include-seen",), set("abcd")):
            answer = json.loads(run("recommend", "u0", *at, "--json", *options).stdout)
            assert {item["item_id"] for item in answer["entries"]} == listed
            out = tmp_path / f"{len(options)}.parquet"
            assert run("score", tmp_path / "users.txt", "--out", out, *at, *options).exit_code == 0
            assert set(pq.read_table(out)["item_ids"].to_pylist()[0]) == listed


@pytest.mark.usefixtures("judged")
def test_a_snapshot_is_published_to_a_running_server_and_rolled_back(log, snapshot, serving, tmp_path):
    at = ("--target", serving)
    old = resolve(snapshot).name
    done = run("train", log, "--out", tmp_path / "trained", "--seed", 1, *QUICK)
    assert done.exit_code == 0, done.output
    new = resolve(tmp_path / "trained").name

    said = refusal(run("publish", tmp_path / "trained", "--activate", *at), status=1)
    assert said == f"there is no snapshot {new!r} in the snapshot directory"

    done = run("publish", tmp_path / "trained", "--to", snapshot, "--activate", *at)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{serving} serves {new}: 8 users, 8 items, 40 events\n"
    assert (snapshot / CURRENT).read_text().strip() == new
    assert json.loads(run("recommend", "u1", *at, "--json").stdout)["snapshot_id"] == new

    listed = json.loads(run("snapshots", *at, "--json").stdout)
    assert [(one["snapshot_id"], one["active"]) for one in listed] == [(new, True), (old, False)]
    manifest = json.loads(run("info", snapshot, "--json").stdout)
    assert {name: listed[0][name] for name in ("created_time", "metrics")} == {
        name: manifest[name] for name in ("created_time", "metrics")
    }
    rows = [line for line in process(COMMAND, "snapshots", *at).stdout.splitlines() if old in line or new in line]
    assert ["active" in row for row in rows] == [True, False]
    assert f"{manifest['metrics']['fusion']['ndcg@10']:.4f}" in rows[0]

    assert run("activate", old, *at).stdout == f"{serving} serves {old}: 8 users, 8 items, 40 events\n"
    assert json.loads(run("recommend", "u1", *at, "--json").stdout)["snapshot_id"] == old
    found = json.loads(run("publish", snapshot / new, "--activate", *at, "--json").stdout)
    assert (found["snapshot_id"], found["folder"], found["served"]["active"]) == (new, str(snapshot / new), True)
    assert json.loads(run("activate", new, *at, "--json").stdout) == found["served"]
    assert refusal(run("activate", "older", *at), status=1).startswith("there is no snapshot 'older'")


def test_items_are_imported_exported_and_trained_with(log, serving, tmp_path):
    at, bad = ("--server", serving), ("--bad-rows", tmp_path / "bad.csv")
    rows = "\n".join(f"{letter},The {letter},Letters > Latin|Small,{n}" for n, letter in enumerate("abcdefgh"))
    (tmp_path / "items.csv").write_text(
        f"item_id,title,categories,price\n{rows}\na,The first,Letters > Latin,1\nx,X,,-1\n"
    )
    done = run("items", "import", tmp_path / "items.csv", *at, *bad)
    assert done.exit_code == 0, done.output
    assert done.stdout == "8 items written\n"
    assert "1 rows were replaced by later rows of the same items" in done.stderr
    assert "1 rows could not be taken" in done.stderr
    assert (tmp_path / "bad.csv").read_text().splitlines()[1].startswith('11,price,"is -1.0')
    (tmp_path / "prices.jsonl").write_text('{"item_id": "b", "price": 9.5}\n')
    done = run("items", "import", tmp_path / "prices.jsonl", *at, *bad, "--json")
    assert json.loads(done.stdout) == {"written": 1, "repeated": 0, "bad": 0}

    done = run("items", "export", tmp_path / "out.jsonl", *at)
    assert done.stdout == f"8 items in {tmp_path / 'out.jsonl'}\n"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0] | {"update_time": ""} == {
        "item_id": "a", "title": "The first", "categories": [["Letters", "Latin"]], "price": 1.0, "available": True,
        "update_time": "",
    }  # fmt: skip
    assert (lines[1]["title"], lines[1]["price"]) == ("The b", 9.5)
    assert run("items", "export", tmp_path / "out.parquet", *at).exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 8

    assert run("import", log, "--target", serving, *bad).exit_code == 0
    store = f"sqlite:///{tmp_path / 'data' / 'events.db'}"
    for name, options in (("stored", ()), ("file", ("--items", tmp_path / "titles.csv"))):
        (tmp_path / "titles.csv").write_text("item_id,title\na,From a file\n")
        done = run("train", "--store", store, "--out", tmp_path / name, "--text-model", "none", *options, *QUICK)
        assert done.exit_code == 0, done.output
    titles = {
        name: {row["item_id"]: (row["title"], row["categories"]) for row in rows}
        for name in ("stored", "file")
        for rows in [pq.read_table(resolve(tmp_path / name) / CATALOG).to_pylist()]
    }
    assert titles["stored"]["b"] == ("The b", ["Letters > Latin", "Small"])
    assert (titles["file"]["a"][0], titles["file"]["b"][0]) == ("From a file", "")


def test_items_without_a_server_fail_in_a_sentence(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
    for command in (
        ("import", tmp_path / "items.csv", "--bad-rows", tmp_path / "bad.csv"),
        ("export", tmp_path / "out.jsonl"),
    ):
        done = run("items", *command, "--target", "127.0.0.1:1")
        assert done.exit_code == 1
        assert done.stderr.splitlines()[-1].startswith("longtide: failed to connect")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("out", ["out.csv", "no/out.parquet"])
def test_an_export_of_items_says_so_when_it_cannot_write(tmp_path, out):
    complaint = f"FILE: {tmp_path / out} is not a .jsonl or .parquet file in a folder that exists"
    assert refusal(run("items", "export", tmp_path / out)) == complaint


def test_a_file_of_items_that_says_nothing_is_named(tmp_path):
    (tmp_path / "items.csv").write_text("item_id\na\n")
    done = run("items", "import", tmp_path / "items.csv", "--bad-rows", tmp_path / "bad.csv")
    assert done.exit_code == 2
    assert done.stderr.endswith("has no column but item_id; it says nothing of its items\n")
    done = run("items", "import", tmp_path / "items.csv", "--bad-rows", tmp_path / "items.csv")
    assert refusal(done).endswith("items.csv is the file itself")


# Real processes


def test_the_command_and_the_module_are_the_same():
    for command in ([COMMAND], [sys.executable, "-m", "longtide_server"]):
        done = process(*command, "--version")
        assert (done.returncode, done.stdout) == (0, f"longtide, version {__version__}\n"), done.stderr


def test_a_real_process_says_no_more_than_a_sentence():
    done = process(COMMAND, "report", "--store", "sqlite:////no/gone.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "longtide: store: there is no event store /no/gone.db\n"


def test_without_a_server_recommend_fails_within_its_deadline():
    begun = time.monotonic()
    done = process(COMMAND, "recommend", "ada", "--target", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("longtide: ")
    assert "Traceback" not in done.stderr
    assert "refused" in done.stderr
    assert time.monotonic() - begun < 15


def test_a_target_that_cannot_be_found_is_named():
    done = process(COMMAND, "recommend", "ada", "--target", "no-such-host.invalid:50051")
    assert done.returncode == 1
    assert "no-such-host.invalid" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_on_a_taken_port_is_refused(trained, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = process(
            *(COMMAND, "serve", "--snapshot", trained, "--data-dir", tmp_path, "--encoder", "local"),
            *("--listen", address),
        )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"longtide: listen: {address} cannot be listened on; is something else there?"
    )
    assert "Traceback" not in done.stderr


def test_serve_on_a_taken_metrics_port_is_refused(trained, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = process(
            *(COMMAND, "serve", "--snapshot", trained, "--data-dir", tmp_path, "--encoder", "local"),
            *("--listen", "127.0.0.1:0", "--metrics", address),
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"longtide: metrics: {address} cannot be listened on: Address already in use\n"


def test_traces_without_opentelemetry_say_what_to_install(trained, tmp_path):
    options = ["serve", "--snapshot", str(trained), "--data-dir", str(tmp_path), "--encoder", "local"]
    options += ["--listen", "127.0.0.1:0", "--otlp-endpoint", "http://127.0.0.1:4318"]
    script = f"import sys; sys.modules['opentelemetry'] = None; from longtide_server.cli import cli; cli({options!r})"
    done = process(sys.executable, "-c", script)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "longtide: otlp_endpoint: needs pip install 'longtide[otel]'\n"


@pytest.mark.parametrize("listen", ["50051", "127.0.0.1", "127.0.0.1:", ":50051", "127.0.0.1:http"])
def test_serve_on_what_is_no_address_is_refused(trained, tmp_path, listen):
    done = run("serve", "--snapshot", trained, "--data-dir", tmp_path, "--encoder", "local", "--listen", listen)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("longtide: listen: ")


def test_serve_on_a_port_that_cannot_be_is_refused(trained, tmp_path):
    options = ("--snapshot", trained, "--data-dir", tmp_path, "--encoder", "local", "--listen", "127.0.0.1:99999")
    done = process(COMMAND, "serve", *options, timeout=15)  # gRPC would take it for port 34463
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("longtide: listen: ")


def test_serve_says_so_when_its_data_directory_is_a_file(trained, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(
        *("serve", "--snapshot", trained, "--data-dir", tmp_path / "file", "--encoder", "local"),
        *("--listen", "127.0.0.1:0"),
    )
    assert done.exit_code in (1, 2), (done.output, done.exception)
    assert done.stderr.splitlines()[-1].startswith("longtide: ")
    assert str(tmp_path / "file") in done.stderr


@pytest.mark.parametrize("module", ["click", "numpy", "annoy", "torch"])
def test_where_only_the_sdk_is_installed_the_command_says_what_to_install(log, tmp_path, module):
    script = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['longtide', 'train', {str(log)!r}, "
        f"'--out', {str(tmp_path / 'out')!r}]; from longtide_server.__main__ import main; main()"
    )
    done = process(sys.executable, "-c", script)
    assert done.returncode == 1
    assert done.stderr == (
        f"longtide: {module} is not installed; the command line needs: pip install 'longtide[server]'\n"
    )


def test_logs_that_go_to_a_file_have_no_colours():
    script = "from longtide_server.cli.base import configure_logging; import structlog; configure_logging('console'); "
    done = process(sys.executable, "-c", script + "structlog.get_logger().info('serving', address='here')")
    assert "serving" in done.stderr
    assert "\x1b" not in done.stderr


# Tables


def rendered(table, width: int = 160) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def answer(title: str) -> Recommendations:
    share = SourceShare(Source.NEIGHBORS, 0.5)
    item = Recommendation("item-1", title, 0.25, (share,), (Neighbor("bob", 0.875),))
    return Recommendations("ada", (item,))


def test_recommendations_show_score_similar_users_and_sources():
    shown = rendered(recommendations_table("For ada", answer("Alien")))
    for text in ("For ada", "item-1", "Alien", "0.2500", "bob (0.88)", "neighbors"):
        assert text in shown, text


def digits(shown: str) -> str:
    """The digits of each column of a table, from the top down, one column after the other."""
    rows = [re.split("[│┃]", line) for line in shown.splitlines() if line.startswith(("│", "┃"))]
    return "".join("".join(cells) for cells in zip(*rows, strict=True)).replace(" ", "")


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_cuts_no_id(width):
    """It folds them over lines."""
    long = "".join(f"{n:03}" for n in range(1_000, 1_030))
    share = SourceShare(Source.NEIGHBORS, 0.5)
    item = Recommendation(long, "Alien", 0.25, (share,), (Neighbor(long[::-1], 0.875),))
    moment = datetime(2026, 11, 27, 12, tzinfo=UTC)
    info = SnapshotInfo(long, moment, True, 1_000_000, 1_000_000, 100_000_000, {"fusion": {"ndcg@10": 0.5}})
    line = {
        "surface": long,
        "shown": 1_000_000,
        "clicked": 1,
        "converted": 1,
        "click_rate": 0.5,
        "conversion_rate": 0.5,
    }
    for table in (
        recommendations_table("For ada", Recommendations("ada", (item,))),
        similar_users_table("Like ada", [SimilarUser(long, 0.875, ("a", "b"))], {"a": "Alien"}),
        items_table("Last", [long], {}),
        snapshot_commands._snapshots_table("here", [info]),
        event_commands._report_table(["surface"], [line]),
    ):
        shown = rendered(table, width)
        assert "…" not in shown
        assert long in digits(shown), shown


def test_what_is_piped_is_cut_nowhere(trained, tmp_path):
    folder = tmp_path / "a-folder-with-a-long-name" / "and-another-one-in-it" / "which-holds-the-snapshot"
    shutil.copytree(trained, folder)
    shown = process(COMMAND, "info", folder, COLUMNS="40").stdout
    assert str(resolve(folder)) in shown
    token = make_token(1_767_268_800, "20261127T120000-0123abcd", "a-surface-with-a-long-name", [("a", 1)])
    head = "user_id,item_id,timestamp,event_type,attribution_token\n"
    (tmp_path / "log.csv").write_text(f"{head}ann,a,1767268801,click,{token}\n")
    run("import", tmp_path / "log.csv", "--store", store_url(tmp_path))
    shown = process(COMMAND, "report", "--store", store_url(tmp_path), COLUMNS="40").stdout
    assert "20261127T120000-0123abcd" in shown
    assert "a-surface-with-a-long-name" in shown
    out = folder / "out.parquet"
    shown = process(COMMAND, "export", "--store", store_url(tmp_path), "--out", out, COLUMNS="40").stdout
    assert shown == f"1 events in {out}\n"


def test_similar_users_show_what_they_went_on_to():
    shown = rendered(similar_users_table("Like ada", [SimilarUser("bob", 0.875, ("a", "b"))], {"a": "Alien"}))
    for text in ("bob", "Alien; b", "0.875"):
        assert text in shown, text


def test_scoring_says_how_many_lists_are_missing_or_degraded(tmp_path, monkeypatch):
    async def ready(client):
        pass

    async def score(*args):
        return Scored(users=1_203, refused=1, degraded=1_200)

    monkeypatch.setattr(AsyncClient, "wait_ready", ready)
    monkeypatch.setattr(scoring, "score", score)
    (tmp_path / "users.txt").write_text("ann\n")
    done = run("score", tmp_path / "users.txt", "--out", tmp_path / "recs.parquet")
    said = " ".join(done.output.split())
    assert "1,203 users in" in said
    assert "1 users have no list; the column error says why" in said
    assert "1,200 lists are degraded, as the column degraded says" in said


@pytest.mark.parametrize("title", ["[REC]", "So What [live]", "What [/b] now", "[bold]Bold", "10\\[2]"])
def test_a_title_is_shown_as_it_is_brackets_and_all(title):
    assert title in rendered(recommendations_table("For ada", answer(title)))
    assert title in rendered(items_table("Last", ["item-1"], {"item-1": title}))
    users = [SimilarUser("bob", 0.875, ("item-1",))]
    assert title in rendered(similar_users_table("Like ada", users, {"item-1": title}))


@pytest.mark.parametrize("user", ["user[1]", "[/x]", "[red]eva"])
def test_an_id_is_shown_as_it_is(user):
    assert user in rendered(recommendations_table(f"For {user}", answer("Alien")))
    assert user in rendered(similar_users_table("Like ada", [SimilarUser(user, 0.5, ())], {}))


# Into a store, out of it, and training from it


def store_url(tmp_path):
    return f"sqlite:///{tmp_path / 'events.db'}"


def test_a_log_is_imported_once_exported_and_trained_from(log, trained, tmp_path):
    store = store_url(tmp_path)
    imported = run("import", log, "--store", store)
    assert "40 events written, 0 known already or deleted" in imported.stdout
    assert imported.stderr == ""
    assert json.loads(run("import", log, "--store", store, "--json").stdout) == {
        "written": 0,
        "duplicates": 40,
        "bad": 0,
    }
    assert "40 events in" in run("export", "--store", store, "--out", tmp_path / "out.parquet").stdout
    settings = [
        run("train", *source, "--out", tmp_path / "out", "--show-settings").stdout
        for source in ([log], [tmp_path / "out.parquet"], ["--store", store])
    ]
    assert settings[0] == settings[1] == settings[2] != ""
    done = run("train", "--store", store, "--out", tmp_path / "snapshot", "--json", *QUICK)
    assert done.exit_code == 0, done.output
    manifest, expected = (json.loads(run("info", one, "--json").stdout) for one in (tmp_path / "snapshot", trained))
    assert manifest["metrics"] == expected["metrics"]
    assert run("evaluate", "--store", store, "--json", *QUICK).exit_code == 0


def test_an_import_lists_what_it_could_not_take(tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + "ann,a,1\nann,,2\n")
    done = run("import", tmp_path / "log.csv", "--store", store_url(tmp_path), "--bad-rows", tmp_path / "bad.csv")
    assert done.exit_code == 0
    assert "1 events written" in done.stdout
    assert "1 rows could not be taken" in done.stderr
    assert (tmp_path / "bad.csv").read_text().splitlines()[1] == "3,item_id,must not be empty"


def test_a_report_says_what_came_of_what_was_recommended(tmp_path):
    token = make_token(1_767_268_800, "s1", "home", [("a", 1), ("b", 2)])
    rows = f"ann,a,1767268801,click,{token}\nann,b,1767268802,purchase,{token}\nbob,c,1767268803,click,else\n"
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,event_type,attribution_token\n" + rows)
    run("import", tmp_path / "log.csv", "--store", store_url(tmp_path))
    found = json.loads(run("report", "--store", store_url(tmp_path), "--json").stdout)
    assert found["unknown_tokens"] == 1
    assert [(line["day"], line["surface"], line["source"], line["clicked"]) for line in found["lines"]] == [
        ("2026-01-01", "home", "encoder", 1),
        ("2026-01-01", "home", "neighbors", 1),
    ]
    shown = run("report", "--store", store_url(tmp_path), "--by", "surface").stdout
    assert "home" in shown
    assert "encoder" not in shown
    for option, value in (("--by", "weekday"), ("--conversions", "sold")):
        complaint = refusal(run("report", "--store", store_url(tmp_path), option, value))
        assert complaint.startswith(f"{option}: {value!r} is none of ")


@pytest.mark.parametrize("where", [[], ["--target", "127.0.0.1:1", "--store", "sqlite:///x.db"]])
def test_an_import_goes_to_one_place(log, where):
    assert refusal(run("import", log, *where)) == (
        "name a running server (--target) or an event store (--store), and not both"
    )


def test_the_reports_of_both_imports_stand_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad-items.csv").write_text("row,column,reason\n9,price,is too low\n")
    (tmp_path / "log.csv").write_text(HEAD + "ann,a,1\nann,,2\n")
    assert "bad-events.csv says why" in run("import", "log.csv", "--store", store_url(tmp_path)).stderr
    assert (tmp_path / "bad-events.csv").read_text().splitlines()[1:] == ["3,item_id,must not be empty"]
    assert "9,price" in (tmp_path / "bad-items.csv").read_text()
    assert run("import", "gone.csv", "--store", store_url(tmp_path)).exit_code == 2
    assert run("items", "import", "gone.csv").exit_code == 2
    assert {path.name for path in tmp_path.glob("bad-*")} == {"bad-events.csv", "bad-items.csv"}


def test_a_file_of_ones_own_is_not_taken_for_a_report(tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + "ann,a,1\n")
    (tmp_path / "mine.csv").write_text("my,notes\n")
    mine = ("--bad-rows", tmp_path / "mine.csv")
    for done in (
        run("import", tmp_path / "log.csv", "--store", store_url(tmp_path), *mine),
        run("items", "import", tmp_path / "log.csv", *mine),
    ):
        assert "mine.csv is there, and is no report of an import; name another file" in refusal(done)
    assert (tmp_path / "mine.csv").read_text() == "my,notes\n"


def test_the_bad_rows_do_not_replace_the_log(tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + "ann,a,1\n")
    done = run("import", tmp_path / "log.csv", "--store", store_url(tmp_path), "--bad-rows", tmp_path / "log.csv")
    assert refusal(done).endswith("log.csv is the log itself")
    assert (tmp_path / "log.csv").exists()


def test_training_reads_one_log(log, tmp_path):
    for source in ([], [log, "--store", "sqlite:///x.db"]):
        assert refusal(run("train", *source, "--out", tmp_path)) == (
            "name a LOG or an event store (--store), and not both"
        )


@pytest.mark.parametrize("command", [["train", "--out", "out"], ["export", "--out", "out.parquet"]])
def test_a_store_that_is_not_there_is_named(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(run(*command, "--store", "sqlite:///no.db")) == "store: there is no event store no.db"
    assert refusal(run(*command, "--store", "mysql://h")).startswith("store: mysql://h is not sqlite:///PATH")


@pytest.mark.parametrize("out", ["out.csv", "no/out.parquet"])
def test_export_says_so_when_it_cannot_write(tmp_path, out):
    done = run("export", "--store", store_url(tmp_path), "--out", tmp_path / out)
    assert refusal(done) == f"--out: {tmp_path / out} is not a .parquet file in a folder that exists"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--retain", "view=90"), "retain: '90' is not an age, for example 36h, 90d or 2y"),
        (("--retain", "seen=90d"), "retain: 'seen' is not an event type; use one of view, click"),
        (("--store", "postgres://h/db"), "store: postgres://h/db is not sqlite:///PATH, redis://HOST:PORT"),
    ],
)
def test_serve_names_an_option_that_is_wrong(trained, tmp_path, options, complaint):
    done = run("serve", "--snapshot", trained, "--data-dir", tmp_path / "data", *options)
    assert refusal(done).startswith(complaint)


# Replaying a log in the quickstart


def replayed(tmp_path, text: str):
    (tmp_path / "log.csv").write_text(text)
    found, _ = read_log(tmp_path / "log.csv")
    return list(_events(to_sequences(found)))


def test_a_replay_is_the_log_with_ids_that_stay_the_same(tmp_path):
    text = "user_id,item_id,timestamp,event_type,value\nu,a,1,view,\nu,b,2,rate,4.5\n"
    first, second = replayed(tmp_path, text)
    assert (first.user_id, first.item_id, first.type, first.value) == ("u", "a", "view", None)
    assert (second.item_id, second.type, second.value, second.time.timestamp()) == ("b", "rate", 4.5, 2.0)
    assert [event.event_id for event in replayed(tmp_path, text)] == [first.event_id, second.event_id]


def test_every_event_of_a_log_can_be_replayed(tmp_path):
    """What the log's reader takes, the server takes too: ids of every length, custom types."""
    rows = [f"{'u' * 512},{'i' * 512},1,{kind.name.lower()},1.0" for kind in EventType]
    for event in replayed(tmp_path, "user_id,item_id,timestamp,event_type,value\n" + "\n".join(rows) + "\n"):
        assert 1 <= len(event.event_id.encode()) <= 512
        assert bool(event.custom_type) == (event.type == "custom")


# Ctrl-C


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_work_and_lets_go_of_what_it_holds(number):
    let_go = []

    async def work():
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), number)  # an impatient second one
            await asyncio.sleep(0.01)
            let_go.append(True)

    asyncio.run(until_stopped(work()))
    assert let_go == [True]


def test_a_cancellation_that_is_no_signal_is_not_hidden():
    async def work():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(until_stopped(work()))


# The garbage collector


def test_what_a_server_has_loaded_is_not_looked_through_again(snapshot, tmp_path, monkeypatch):
    """Serve as the command does, up to the moment at which it is ready."""

    @asynccontextmanager
    async def running(config):
        yield "127.0.0.1:1"

    class Ready(Exception):
        pass

    def settled():
        settle()
        raise Ready

    settle, before = serving_commands._settle, gc.get_threshold()
    monkeypatch.setattr("longtide_server.app.running", running)
    monkeypatch.setattr(serving_commands, "_settle", settled)
    try:
        done = CliRunner().invoke(cli, ["serve", "--snapshot", str(snapshot), "--data-dir", str(tmp_path)])
        assert isinstance(done.exception, Ready)
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] > before[0]
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
