"""The server's life: it remembers, it ends when told and whole, and it outlives its TorchServe."""

import signal
import sqlite3

import psutil
from tests.killing import killed_again_and_again

from longtide import Client, Event, EventType


def ids(answer) -> list[str]:
    return [item.item_id for item in answer]


def is_java(process: psutil.Process) -> bool:
    return process.name() == "java"


def test_a_restarted_server_knows_what_was_written_and_leaves_nothing_running(start, alive, tmp_path):
    first = start(tmp_path)
    with Client(first.wait_serving(), timeout=20.0) as client:
        client.write_events([Event("ada", "item-a"), Event("ada", "item-b", EventType.PURCHASE)])
        before = ids(client.recommend("ada", 12))
        assert before[0] == "item-c"
    processes = first.tree()
    assert sum(map(is_java, processes)) == 1
    assert first.stop(signal.SIGINT) == 0, first.errors
    assert alive(processes) == []

    second = start(tmp_path)
    with Client(second.wait_serving(), timeout=20.0) as client:
        assert ids(client.recommend("ada", 12)) == before
    processes = second.tree()
    assert second.stop(signal.SIGTERM) == 0, second.errors
    assert alive(processes) == []
    assert "Traceback" not in "".join(first.errors + second.errors)


def test_without_torchserve_answers_are_degraded_and_recover_and_a_kill_leaves_no_process(start, until, alive):
    server = start()
    with Client(server.wait_serving(), timeout=20.0) as client:
        client.write_events([Event("ada", "item-a"), Event("ada", "item-b")])

        def answer():
            """A session makes every request ask the encoder: nothing kept can stand in for it."""
            return client.recommend("ada", 12, session_items=["item-c"])

        assert not answer().degraded
        (java,) = filter(is_java, server.tree())
        java.kill()

        degraded = until(lambda: (found := answer()).degraded and found, 15, "a degraded answer")
        assert "encoder" in degraded.degraded_reason
        assert degraded[0].item_id == "item-d"  # transitions still know
        assert not {"item-a", "item-b", "item-c"} & set(ids(degraded))

        whole = until(lambda: not (found := answer()).degraded and found, 60, "a whole answer again")
        assert whole[0].item_id == "item-d"
        assert client.write_events([Event("ada", "item-d")]).written_count == 1

    processes = server.tree()
    server.process.kill()
    assert alive(processes) == []  # the TorchServe that was started anew neither


def test_a_server_that_is_killed_while_it_starts_leaves_no_process(start, until, alive):
    server = start()
    until(lambda: any(map(is_java, server.tree())), 60, "TorchServe's start")
    processes = server.tree()
    server.process.kill()
    assert alive(processes) == []


def test_a_signal_during_the_start_ends_it_too(start, until, alive):
    server = start()
    until(lambda: any(map(is_java, server.tree())), 60, "TorchServe's start")
    processes = server.tree()
    assert server.stop(signal.SIGTERM) == 0, server.errors
    assert alive(processes) == []


def test_a_stream_outlives_the_death_of_its_server_and_nothing_is_lost_or_doubled(world, tmp_path):
    """`make bench-events` does it a hundred times."""
    survived = killed_again_and_again(world.snapshot, tmp_path / "data", kills=4, seed=1)
    with sqlite3.connect(tmp_path / "data" / "events.db") as connection:
        kept = [name for (name,) in connection.execute("SELECT event_id FROM events ORDER BY position")]
    assert len(survived.sent) > 400
    assert kept == survived.sent
    assert survived.result.written_count + survived.result.duplicate_count == len(survived.sent)
