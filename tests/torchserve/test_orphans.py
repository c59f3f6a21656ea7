"""Kill -9 of the server must not leave TorchServe behind."""

import subprocess
import sys
from pathlib import Path

import psutil

OWNER = Path(__file__).with_name("owner.py")


def test_a_killed_owner_leaves_no_orphan(archive, tmp_path):
    with subprocess.Popen([sys.executable, str(OWNER), str(archive), str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert b"up\n" in owner.stdout
        tree = psutil.Process(owner.pid).children(recursive=True)
        assert len(tree) == 3  # the guard, the JVM, the worker
        owner.kill()
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
