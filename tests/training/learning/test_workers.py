"""Processes that train together, each of them real."""

import os
import socket
import subprocess
import sys
import time
from textwrap import dedent

import pytest
import torch
from torch import nn

from longtide_server.errors import InvalidInput
from longtide_server.training.dataset import nothing_held_out, to_sequences
from longtide_server.training.files.log import read_log
from longtide_server.training.learning.loop import Run
from longtide_server.training.learning.model import ModelConfig
from longtide_server.training.learning.train import TrainConfig, train_encoder
from longtide_server.training.learning.workers import ALONE, Workers, best_device

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


def test_gradients_are_added_up_those_that_a_process_lacks_too():
    """Each looks up two rows, of which they share one; the second has no gradient of `bias` at all. Then only the first
    looks one up."""
    printed = told("""
        def table():
            return nn.Embedding(6, 2, sparse=True, _weight=torch.zeros(6, 2))

        with module.workers() as team:
            items, bias, unused = table(), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
            rows = torch.tensor([1, 1, 4] if team.leads else [4, 5])
            loss = (items(rows) * (team.rank + 1)).sum() + (bias * 3.0).sum() * team.leads
            loss.backward()
            bias.grad = bias.grad if team.leads else None
            team.add_gradients([bias, unused], [items.weight])
            added = items.weight.grad
            print(added.is_coalesced(), added.indices().tolist(), added.values().tolist())
            print(bias.grad.tolist(), unused.grad.tolist())

            items = table()
            if team.leads:
                items(torch.tensor([3])).sum().backward()
            team.add_gradients([], [items.weight])
            print(items.weight.grad.to_dense().sum(dim=1).tolist(), team.total(torch.tensor([1.0, team.rank])))
    """)
    added = [
        "True [[1, 4, 5]] [[2.0, 2.0], [3.0, 3.0], [2.0, 2.0]]",
        "[3.0, 3.0] [0.0, 0.0, 0.0]",
        "[0.0, 0.0, 0.0, 2.0, 0.0, 0.0] [2.0, 1.0]",
    ]
    assert [out.splitlines() for out in printed] == [added, added]


def test_processes_that_train_together_have_shares_of_the_events(tmp_path):
    """Which are all of them, each once."""
    learnt = []

    class OneOf(Workers):
        """One of several; the others are not there."""

        def add_gradients(self, dense, sparse):
            pass

        def total(self, numbers):
            sums = numbers.tolist()
            learnt[-1] += sums[-1]  # how many events have a successor
            return sums

        def led(self, numbers):
            return numbers

    rows = [f"u{user},{n % 7},{n}" for user in range(40) for n in range(2 + user % 11)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    log = to_sequences(read_log(tmp_path / "log.csv")[0])
    config = ModelConfig(log.item_count, dim=8, hidden=8, blocks=1)
    settings = TrainConfig(epochs=1, batch_events=32, chunk=4, bfloat16=False)
    for rank, count in ((0, 1), (0, 3), (1, 3), (2, 3)):
        learnt.append(0.0)
        train_encoder(config, settings, nothing_held_out(log), lambda _: None, Run(OneOf(rank, count)))
    whole, *shares = learnt
    assert whole == len(log.items) - log.user_count
    assert sum(shares) == whole
    assert min(shares) > 0.2 * whole


def test_one_by_itself_adds_nothing_up():
    weight = nn.Parameter(torch.zeros(2))
    ALONE.add_gradients([weight], [])
    assert weight.grad is None
    assert ALONE.total(torch.tensor([1.5, 2.0])) == [1.5, 2.0]


def test_more_processes_than_gpus_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InvalidInput, match="this machine has 2 GPUs, and none is left for process 2, counted from 0"):
        best_device()
