"""The guard: a command's whole tree ends with its owner, however the owner ends."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from longtide_server.torchserve import guard

# A shell with a child of its own; the child would survive a plain kill of the shell.
TREE = ["sh", "-c", "echo $$ > pid; sleep 300 & sleep 300"]


def start(folder, command=TREE):
    argv = [sys.executable, "-I", guard.__file__, str(folder / "lock"), str(folder / "scratch"), *command]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, cwd=folder)


def tree_of(process, size):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        tree = psutil.Process(process.pid).children(recursive=True)
        if len(tree) >= size:
            return tree
        time.sleep(0.02)
    raise AssertionError("the tree did not grow")


def assert_gone(tree, within_s):
    _, alive = psutil.wait_procs(tree, timeout=within_s)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_the_tree_ends_when_the_owner_closes_the_pipe(tmp_path):
    process = start(tmp_path)
    tree = tree_of(process, 3)
    process.stdin.close()
    assert_gone(tree, 3)
    process.wait(3)
    assert not (tmp_path / "scratch").exists()


def test_the_tree_ends_on_sigterm(tmp_path):
    process = start(tmp_path)
    tree = tree_of(process, 3)
    process.terminate()
    assert_gone(tree, 3)
    assert process.wait(3) == 128 + signal.SIGTERM


def test_a_command_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    process = start(tmp_path, ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"])
    tree = tree_of(process, 2)
    process.stdin.close()
    assert_gone(tree, guard.GRACE_S + 3)
    process.wait(3)


def test_what_the_command_leaves_behind_ends_with_it(tmp_path):
    process = start(tmp_path, ["sh", "-c", "sleep 300 & sleep 0.3; exit 7"])
    tree = tree_of(process, 2)
    assert process.wait(3) == 7
    assert_gone(tree, 1)


def test_the_command_dies_with_a_killed_guard(tmp_path):
    process = start(tmp_path, ["sleep", "300"])
    tree = tree_of(process, 1)
    process.kill()
    assert_gone(tree, 3)


def test_a_command_whose_guard_was_killed_before_the_kernel_knew_of_it_does_not_begin():
    program = "import sys; from longtide_server.torchserve import guard; guard._die_with(int(sys.argv[1])); print(1)"
    for parent, expected in ((os.getpid(), (0, b"1\n")), (0, (-signal.SIGKILL, b""))):
        ended = subprocess.run([sys.executable, "-c", program, str(parent)], check=False, capture_output=True)
        assert (ended.returncode, ended.stdout) == expected


def test_the_command_has_its_own_session_and_scratch(tmp_path):
    process = start(tmp_path)
    [shell, *_] = tree_of(process, 3)
    assert os.getsid(shell.pid) == shell.pid
    assert (tmp_path / "scratch").is_dir()
    process.stdin.close()
    process.wait(3)


@pytest.mark.parametrize("owner_stays", [True, False])
def test_a_second_guard_waits_for_the_first(tmp_path, owner_stays):
    first = start(tmp_path)
    tree_of(first, 3)
    second = start(tmp_path, ["true"])
    time.sleep(0.5)
    assert second.poll() is None
    (first if owner_stays else second).stdin.close()
    assert second.wait(5) == 0
    if not owner_stays:
        assert (tmp_path / "scratch").exists()  # it left the first one's alone
        first.stdin.close()
    first.wait(5)
