"""`longtide quickstart` on a log of one's own: the whole path in one command."""

import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest


@dataclass(frozen=True)
class Run:
    """A quickstart that was shown, and then stopped."""

    address: str
    printed: str
    errors: str
    status: int
    left: list[psutil.Process]


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "work"


@pytest.fixture(scope="module")
def shown(quickstart, alive, work_dir):
    """Runs the quickstart until it serves, and stops it with Ctrl-C."""

    def shown(*args: object) -> Run:
        running = quickstart(*args, "--work-dir", work_dir)
        address = running.wait_serving()
        processes = running.tree()
        status = running.stop(signal.SIGINT)
        return Run(address, "".join(running.printed), "".join(running.errors), status, alive(processes))

    return shown


@pytest.fixture(scope="module")
def first(world, shown) -> Run:
    return shown(world.log, "--items", world.items)


def test_it_serves_and_ends_with_ctrl_c(first):
    assert first.address.startswith("127.0.0.1:")
    assert (first.status, first.left) == (0, [])
    assert "Traceback" not in first.errors


def test_it_trains_and_replays_the_log(first):
    assert "Training the encoder" in first.errors
    assert "Replayed 120 events" in first.printed
    assert "120 new, 0 already known" in first.printed


def test_it_shows_people_like_the_user_with_their_similarity(first):
    user = shown_user(first)
    assert f"Users most like {user} is now" in first.printed
    for column in ("user", "went on to", "similarity", "title", "Title of item-a"):
        assert column in first.printed, column


def test_it_shows_what_three_events_change(first):
    user = shown_user(first)
    (line,) = (line for line in first.printed.splitlines() if line.startswith(f"User {user} now watches "))
    watched = line.partition(" now watches ")[2].split(", ")
    before, after = first.printed.partition(f"Before, for {user}")[2].split(f"After, for {user}")
    assert len(watched) == 3
    for title in watched:
        assert title in before
        assert title not in after


def test_another_log_in_the_same_work_directory_does_not_meet_the_first(first, world, shown, tmp_path):
    """The same users did other things: none of it may pass for known, and nothing of the first may be left."""
    head, *rows = world.log.read_text().splitlines()
    (tmp_path / "second.csv").write_text("\n".join([head, *(row.replace(",item-", ",thing-") for row in rows)]) + "\n")
    second = shown(tmp_path / "second.csv")
    assert "120 new, 0 already known" in second.printed
    assert "item-" not in second.printed


def shown_user(run: Run) -> str:
    return run.printed.partition("\nUser ")[2].partition(":")[0]
