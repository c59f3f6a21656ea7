"""`longtide serve --workers 2`: two processes are one server, whichever of them is asked, and outlive each other."""

import contextlib
import signal
import threading
import time
import urllib.request

import psutil
import pytest

from longtide import Client, Event, Item, LongtideError

RING = [f"item-{letter}" for letter in "abcdefghijkl"]
TURNS = 500


def ids(answer) -> list[str]:
    return [item.item_id for item in answer]


def workers(server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended a moment ago
            if "worker" in child.cmdline():
                found.append(child)
    return found


def callers_of(worker, address) -> set[int]:
    """The ports of those who are connected to a worker."""
    port = int(address.rpartition(":")[2])
    found = worker.net_connections("tcp")
    return {one.raddr.port for one in found if one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port}


def client_of_each(server, address) -> list[Client]:
    """A client of every worker: the kernel chooses which worker a connection is for, so some are tried."""
    found = {}
    for _ in range(100):
        before = {worker.pid: callers_of(worker, address) for worker in workers(server)}
        client = Client(address, timeout=20.0)
        client.wait_ready(20.0)
        (mine,) = [worker.pid for worker in workers(server) if callers_of(worker, address) - before[worker.pid]]
        if mine in found:
            client.close()
        found.setdefault(mine, client)
        if len(found) == len(before):
            return list(found.values())
    raise AssertionError(f"of {len(before)} workers only {len(found)} were met")


def scraped(address) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as page:
        lines = (line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line[0] != "#")
        return {name: float(value) for name, value in lines}


@pytest.fixture(scope="module")
def server(start, metrics_address):
    server = start(None, "--workers", "2", "--encoder", "local", "--metrics", metrics_address)
    server.wait_serving()
    return server


@pytest.fixture(scope="module")
def address(server) -> str:
    (line,) = server.printed
    return line.split()[2]


@pytest.fixture
def clients(server, address):
    found = client_of_each(server, address)
    yield found
    for client in found:
        client.close()


def test_what_is_written_at_one_worker_is_felt_at_the_other_each_time(clients):
    for turn in range(TURNS):
        writer, reader = clients[turn % 2], clients[1 - turn % 2]
        user, item = f"reader-{turn // 12}", RING[turn % 12]
        assert item in ids(reader.recommend(user, 12))
        assert writer.write_events([Event(user, item, event_id=str(turn))]).written_count == 1
        assert item not in ids(reader.recommend(user, 12))


def test_what_is_merged_or_deleted_at_one_worker_is_so_at_the_other(clients):
    one, other = clients
    one.write_events([Event("merged", "item-a"), Event(None, "item-c", session_id="visit")])
    assert "item-c" not in ids(other.recommend(session_id="visit", limit=12))
    assert "item-c" in ids(other.recommend("merged", 12))
    assert one.merge_users("merged", session_id="visit") == 1
    assert {"item-a", "item-c"}.isdisjoint(ids(other.recommend("merged", 12)))
    assert "item-a" not in ids(other.recommend(session_id="visit", limit=12))
    assert other.delete_user_data("merged").deleted_count == 2
    assert len(one.recommend("merged", 12)) == 12
    assert len(one.recommend(session_id="visit", limit=12)) == 12
    # What was deleted is not taken again, whoever is asked.
    assert one.write_events([Event("merged", "item-a", time=1_700_000_000)]).duplicate_count == 1


def test_an_item_that_one_worker_is_told_of_counts_at_the_next_request_of_the_other(clients):
    for turn in range(40):
        writer, reader = clients[turn % 2], clients[1 - turn % 2]
        writer.upsert_items([Item("item-l", available=False)])
        assert "item-l" not in ids(reader.recommend(f"guest-{turn}", 12))
        assert reader.get_item("item-l").available is False
        writer.upsert_items([Item("item-l")])
        assert "item-l" in ids(reader.recommend(f"guest-{turn}", 12))
    one, other = clients
    assert one.delete_items(["item-l"]) == 1
    assert "item-l" not in ids(other.recommend("guest", 12))
    other.upsert_items([Item("item-l")])
    assert "item-l" in ids(one.recommend("guest", 12))


def test_the_page_of_metrics_adds_up_what_all_workers_count(clients, metrics_address, until):
    asked = 'longtide_requests_total{code="OK",rpc="GetSnapshot"}'
    before = scraped(metrics_address).get(asked, 0)
    for client in clients:
        for _ in range(3):
            client.get_snapshot(client.list_snapshots()[0].snapshot_id)
    page = until(lambda: (page := scraped(metrics_address)).get(asked) == before + 6 and page, 10, "all six calls")
    assert page["longtide_workers"] == page["longtide_workers_wanted"] == 2
    assert page["longtide_store_up"] == 1
    for worker in ("0", "1", "supervisor"):
        assert page[f'process_resident_memory_bytes{{worker="{worker}"}}'] > 1e6


def test_a_worker_that_is_killed_under_load_is_replaced_and_nobody_fails(server, address, until, metrics_address):
    """The SDK tries calls again whose connection is lost."""
    enough = threading.Event()
    failures, degraded, answered = [], [], []

    def ask(caller):
        user, sent = f"caller-{caller}", 0
        with Client(address, timeout=20.0) as client:
            while not enough.is_set():
                try:
                    client.write_events([Event(user, RING[sent % 12], event_id=f"{sent}", time=1_700_000_000 + sent)])
                    sent += 1
                    degraded.append(client.recommend(user, 12).degraded)
                except LongtideError as exc:
                    failures.append(exc)
            kept = [event.event_id for event in client.list_user_events(user)]
            answered.append(kept == [str(n) for n in reversed(range(sent))])

    def restarts():
        return scraped(metrics_address)["longtide_worker_restarts_total"]

    callers = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(8)]
    for caller in callers:
        caller.start()
    counted = scraped(metrics_address)['longtide_events_total{outcome="new"}']
    try:
        time.sleep(0.5)  # under load
        workers(server)[0].kill()
        until(lambda: restarts() == 1 and scraped(metrics_address)["longtide_workers"] == 2, 30, "two that answer")
        time.sleep(0.5)
    finally:
        enough.set()
        for caller in callers:
            caller.join(60)
    assert failures == []
    assert not any(degraded)
    assert answered == [True] * len(callers)
    assert scraped(metrics_address)['longtide_events_total{outcome="new"}'] >= counted  # although they have ended
    for client in client_of_each(server, address):
        client.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_as_one_and_leaves_no_process(start, alive, number):
    server = start(None, "--workers", "2", "--encoder", "local")
    address = server.wait_serving()
    with Client(address, timeout=20.0) as client:
        client.write_events([Event("ann", "item-a")])
        processes = server.tree()
        assert len(processes) == 3
        status = server.stop(number)
    assert status == (0 if number != signal.SIGKILL else -signal.SIGKILL), server.errors
    assert alive(processes) == []
    assert "Traceback" not in "".join(server.errors)
