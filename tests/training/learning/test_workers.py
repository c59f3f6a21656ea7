"""Processes that train together, each of them real."""

import os
import socket
import subprocess
import sys
import time
from textwrap import dedent

import pytest

BEGIN = """
    import datetime, os, time
    import torch
    from torch import nn
    from longtide_server.training.learning import workers as module
    torch.set_num_threads(1)
"""


def started(program: str) -> list[subprocess.Popen]:
    """Two processes that run a program together, as `torchrun` would start them, without anybody who watches them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    team = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", dedent(BEGIN) + dedent(program)],
            env={**os.environ, **team, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip


def told(program: str) -> list[str]:
    """What each of two processes prints; both have to end well."""
    processes = started(program)
    printed = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed[0][1] + printed[1][1]
    return [out.strip() for out, _ in printed]


def test_the_leader_may_take_longer_than_processes_wait_for_each_other():
    """To read the texts of a large catalogue takes hours."""
    first, second = told("""
        module.WAIT = datetime.timedelta(seconds=3)
        with module.workers() as team:
            with team.leader_first():
                if team.leads:
                    time.sleep(6)
                print(time.monotonic())
    """)
    assert float(second) > float(first)


@pytest.mark.parametrize("death", ["os._exit(1)", "raise SystemExit(1)"])
def test_a_leader_that_dies_leaves_nobody_waiting(death):
    begun = time.monotonic()
    leader, other = started(f"""
        with module.workers() as team:
            with team.leader_first():
                if team.leads:
                    {death}
    """)
    assert leader.wait(100) == 1
    assert other.wait(100) != 0
    assert time.monotonic() - begun < 60
    leader.communicate(), other.communicate()


def test_what_is_not_trained_is_not_sent_with_every_step():
    """Buffers are what content says, hundreds of megabytes of it, and are alike in every process."""
    assert told("""
        class Part(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2))
                self.register_buffer("content", torch.ones(2))

            def forward(self, given):
                return (self.weight * self.content * given).sum()

        with module.workers() as team:
            part = Part()
            joined = team.join(part)
            part.content[:] = team.rank + 1
            joined(torch.ones(2)).backward()
            print(part.content.tolist(), part.weight.grad.tolist())
    """) == ["[1.0, 1.0] [1.5, 1.5]", "[2.0, 2.0] [1.5, 1.5]"]
