"""Runs one command and lets nothing of it outlive its owner: a stand-alone, stdlib-only program.

    python -I guard.py LOCK SCRATCH COMMAND...

The owner holds the other end of our standard input. When that closes (it asked us to stop, or it was killed, even
with kill -9), when we get SIGTERM, or when the command ends, the whole tree goes: SIGTERM first, SIGKILL after
GRACE_S. The command has a session of its own, so that Ctrl-C in a terminal does not reach it. SCRATCH is a fresh
folder for the time of the command. The lock makes a new guard wait until the old one, whose owner was killed a moment
ago, has cleared away.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

GRACE_S = 5.0
_REAP_S = 3.0
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(lock: str, scratch: str, *command: str) -> int:
    """Run the command to its end, or to its owner's end; returns its exit status as a shell would."""
    signal.signal(signal.SIGTERM, _stop)
    with Path(lock).open("wb") as held:
        if not _take(held.fileno(), lock):
            return 0
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            Path(scratch).mkdir(mode=0o700)
            return _run(command)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _take(lock_fd: int, name: str) -> bool:
    """Whether we got the lock; false when the owner left while we waited."""
    told = False
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if not told:
            print(f"waiting for another instance to release {name}", file=sys.stderr, flush=True)
            told = True
        if _owner_left(_POLL_S):
            return False


def _run(command: tuple[str, ...]) -> int:
    # Orphaned grandchildren come to us, not to an init that may not reap: we see the tree empty, and leave no zombies.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(_die_with, os.getpid()),  # noqa: PLW1509 - this process has one thread
    )
    try:
        ended = os.pidfd_open(child.pid)
        while not _owner_left(None, ended) and child.poll() is None:
            pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _stop(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _owner_left(timeout_s: float | None, *wake: int) -> bool:
    """Wait for the owner's end, the timeout or one of `wake`."""
    owner = sys.stdin.fileno()
    ready, _, _ = select.select([owner, *wake], [], [], timeout_s)
    return owner in ready and not os.read(owner, 1024)


def _end(child: subprocess.Popen[bytes]) -> None:
    """TERM to the command alone (its own shutdown ends its workers in order), then KILL to whatever is left."""
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    _reap_orphans(time.monotonic() + _REAP_S)


def _reap_orphans(deadline_s: float) -> None:
    with contextlib.suppress(ChildProcessError):  # no child is left
        while time.monotonic() < deadline_s:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                time.sleep(_POLL_S)


def _die_with(guard: int) -> None:
    # The last net: if this guard itself is killed with kill -9, the kernel kills the command. Workers then see their
    # connection close and leave.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:  # it was killed before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
