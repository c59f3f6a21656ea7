"""The real TorchServe: one shared instance for calls, further ones for what ends an instance."""

import asyncio
import itertools
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request

import psutil
import pytest
import pytest_asyncio
import torch

from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, EncoderUnreachable, Overloaded
from longtide_server.torchserve import TorchServe, TorchServeClient

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUEUE = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(settings, tmp_path_factory):
    instance = TorchServe(
        settings(
            tmp_path_factory.mktemp("served"), job_queue_size=QUEUE, max_response_bytes=1 << 20, response_timeout_s=3
        )
    )
    await instance.start()
    yield instance
    await instance.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(served):
    client = TorchServeClient(served.grpc_address)
    yield client
    await client.close()


def descendants():
    return [one for one in psutil.Process().children(recursive=True) if one.name() != "redis-server"]


def alive(tree, within_s=0.0):
    _, left = psutil.wait_procs(tree, timeout=within_s)
    return [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


async def settled(call):
    [answer] = await asyncio.gather(call, return_exceptions=True)
    return answer


async def until_answers(client, within_s):
    """Seconds until a call succeeds."""
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < within_s:
        try:
            assert await client.predict("echo", {"body": b"again"}, 1.0) == b"again"
        except (EncoderUnavailable, DeadlineExceeded, Overloaded):  # the queue is short, and nobody empties it yet
            await asyncio.sleep(0.05)
        else:
            return time.monotonic() - begin_s
    raise AssertionError(f"no answer within {within_s} s")


def register(instance, url):
    request = urllib.request.Request(f"{instance.management_url}/models?url={url}", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    return refused.value.code, refused.value.read().decode()


async def test_a_call_reaches_the_handler_as_named_bytes(client):
    about = json.loads(await client.predict("echo", {"describe": b"1", "body": b"\x00\xff"}, 5.0))
    assert about["types"] == {"describe": "bytearray", "body": "bytearray"}
    assert about["doubled"] == [2.0, 2.0]
    assert about["greeting"] == "hello"
    assert about["batch_size"] == 1
    assert about["threads"] == os.cpu_count()
    assert about["gpu_id"] is None


async def test_bytes_come_back_as_they_were_and_large_ones_fit(client):
    body = os.urandom(900_000)
    assert await client.predict("echo", {"body": body}, 5.0) == body


async def test_one_worker_is_ready(served):
    assert served.is_up
    [worker] = await served.workers()
    assert worker.ready
    assert not worker.on_gpu
    assert psutil.pid_exists(worker.pid)


async def test_a_handlers_failure_is_an_unavailable_encoder(client):
    with pytest.raises(EncoderUnavailable, match="Prediction failed"):
        await client.predict("echo", {"fail": b"1"}, 5.0)


async def test_an_unknown_model_is_an_unavailable_encoder(client):
    with pytest.raises(EncoderUnavailable, match="Model not found: nobody"):
        await client.predict("nobody", {"body": b""}, 5.0)


async def test_the_deadline_is_kept_on_our_side(client):
    begin_s = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        await client.predict("echo", {"sleep_s": b"1"}, 0.2)
    assert time.monotonic() - begin_s < 0.9
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        await client.predict("echo", {"body": b""}, 0.0)
    await asyncio.sleep(1.0)  # TorchServe still computes what nobody waits for


async def test_a_full_queue_is_an_overload(client, tmp_path):
    def call(**rows):
        return asyncio.create_task(client.predict("echo", rows | {"body": b"done"}, 10.0))

    held = call(hold=os.fsencode(tmp_path))
    async with asyncio.timeout(10):
        while not (tmp_path / "begun").exists():  # noqa: ASYNC110  # from here on the one worker takes nothing else
            await asyncio.sleep(0.01)
    others = [call() for _ in range(QUEUE + 4)]
    async with asyncio.timeout(2.5):
        refused = [await done for done in itertools.islice(asyncio.as_completed(map(settled, others)), 4)]
    assert [type(answer) for answer in refused] == [Overloaded] * 4
    (tmp_path / "go on").touch()
    answers = await asyncio.gather(held, *others, return_exceptions=True)
    assert answers.count(b"done") == 1 + QUEUE


async def test_nothing_listens_beyond_loopback(served):
    listening = [
        connection.laddr.ip
        for process in descendants()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == 4
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


async def test_nobody_registers_a_model(served):
    for url in ("http://127.0.0.1:1/evil.mar", "https://example.com/evil.mar", "file:///tmp/evil.mar"):
        code, body = await asyncio.to_thread(register, served, url)
        assert code == 405
        assert "Method Not Allowed" in body or "not allowed" in body.lower()


async def test_a_killed_worker_comes_back(served, client):
    [worker] = await served.workers()
    call = asyncio.create_task(client.predict("echo", {"sleep_s": b"5"}, 10.0))
    await asyncio.sleep(0.2)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(EncoderUnavailable, match="worker died"):
        await call
    print(f"worker back after {await until_answers(client, 20):.1f} s")
    [successor] = await served.workers()
    assert successor.pid != worker.pid


async def test_a_worker_that_runs_over_its_time_is_replaced(client):
    begin_s = time.monotonic()
    with pytest.raises(EncoderUnavailable, match="ran over its time"):
        await client.predict("echo", {"sleep_s": b"60"}, 10.0)
    assert 2.5 < time.monotonic() - begin_s < 5.0
    await until_answers(client, 20)


async def test_an_oversized_answer_costs_the_worker(served, client):
    with pytest.raises(EncoderUnavailable):
        await client.predict("echo", {"size": b"2000000"}, 5.0)
    await until_answers(client, 20)


async def until_up(served, within_s):
    async with asyncio.timeout(within_s):
        while not served.is_up:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_killed_jvm_comes_back_on_the_same_address(served, client):
    await until_up(served, 20)
    before, address = descendants(), served.grpc_address
    next(p for p in before if p.name() == "java").kill()
    with pytest.raises(EncoderUnreachable, match="cannot be reached"):
        for _ in range(50):
            await client.predict("echo", {"body": b""}, 1.0)
    assert alive(before, within_s=3) == []
    print(f"TorchServe back after {await until_answers(client, 30):.1f} s")
    await until_up(served, 5)
    assert served.grpc_address == address


async def test_two_at_once_need_no_java_of_the_systems_and_stop_without_a_trace(
    served, settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", "/nonexistent")
    before = set(descendants())
    deep = tmp_path / ("deep" * 20)  # too long a path for a Unix socket
    second = TorchServe(settings(deep))
    await second.start()
    second_client = TorchServeClient(second.grpc_address)
    assert await second_client.predict("echo", {"body": b"two"}, 5.0) == b"two"
    await second_client.close()
    added = set(descendants()) - before
    assert len(added) == 3  # the guard, the JVM, the worker
    begin_s = time.monotonic()
    await second.stop()
    print(f"stopped after {time.monotonic() - begin_s:.1f} s")
    assert alive(added) == []
    assert not second.is_up
    assert sorted(path.name for path in deep.iterdir()) == ["config.properties", "lock", "logs", "models"]


async def test_a_model_that_cannot_load_is_told_with_its_reason(settings, pack, tmp_path):
    before = set(descendants())
    instance = TorchServe(settings(tmp_path, archive=pack(broken=True)))
    with pytest.raises(EncoderUnavailable) as failed:
        await instance.start()
    first_line, _, log = str(failed.value).partition("\n")
    assert first_line == "TorchServe could not load model 'echo': RuntimeError: broken on purpose"
    assert "longtide_echo_handler.py" in log
    assert set(descendants()) == before


async def test_a_taken_port_is_told(settings, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EncoderUnavailable, match=rf"Failed to bind to address: http://127\.0\.0\.1:{port}"):
            await TorchServe(settings(tmp_path, http_inference_port=port)).start()


async def test_a_start_that_takes_too_long_is_given_up(settings, tmp_path):
    before = set(descendants())
    with pytest.raises(EncoderUnavailable, match=r"was not ready within 0\.5 s"):
        await TorchServe(settings(tmp_path, startup_timeout_s=0.5)).start()
    assert set(descendants()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
async def test_a_gpu_that_is_missing_is_told(settings, tmp_path):
    with pytest.raises(EncoderUnavailable, match="TorchServe sees no GPU"):
        await TorchServe(settings(tmp_path, device="cuda")).start()
