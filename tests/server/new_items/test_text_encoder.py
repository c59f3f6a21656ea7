"""New items' texts become vectors in another process: each read once, in time or not at all, whatever happens to it.

The worker here counts the a, b and c of a text. What it shall do wrong, a text tells it.
"""

import asyncio
import os
import signal
import sys

import numpy as np
import pytest

from longtide_server.errors import DeadlineExceeded, Overloaded, Unavailable
from longtide_server.items.text_cache import TextCache
from longtide_server.new_items.text_encoder import BATCH_TEXTS, TextEncoder
from longtide_server.training.items.text_model import default_model

WORKER = """
import os, struct, sys, time
import msgspec, numpy as np
identity, diary = sys.argv[1:3]

def write(content):
    sys.stdout.buffer.write(struct.pack(">I", len(content)) + content)
    sys.stdout.buffer.flush()

if identity == "none":
    write(msgspec.msgpack.encode({"error": "there is no model"}))
    sys.exit()
write(msgspec.msgpack.encode({"identity": identity}))
while header := sys.stdin.buffer.read(4):
    texts = msgspec.msgpack.decode(sys.stdin.buffer.read(*struct.unpack(">I", header)))
    with open(diary, "a") as file:
        file.write(f"{os.getpid()} {' '.join(texts)}\\n")
    if "die" in texts:
        sys.exit(1)
    if "sleep" in texts:
        time.sleep(0.5)
    vectors = np.array([[text.count(letter) for letter in "abc"] for text in texts], "<f4")
    write((vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)).astype("<f4").tobytes())
"""


@pytest.fixture
def diary(tmp_path):
    """What the worker was asked: lines of its process id and the texts."""
    path = tmp_path / "diary"

    def read() -> list[str]:
        return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []

    read.path = path
    return read


@pytest.fixture
async def make(tmp_path, diary):
    made = []

    def encoder(identity: str = "letters", wanted: str = "letters") -> TextEncoder:
        cache = TextCache(tmp_path / "cache", pytest.fail)
        command = (sys.executable, "-c", WORKER, identity, str(diary.path))
        made.append(TextEncoder(wanted, cache, command=command))
        return made[-1]

    yield encoder
    for one in made:
        await one.close()


async def read(encoder: TextEncoder, *texts: str, timeout_s: float = 20.0) -> list[list[float]]:
    return (await encoder.encode(texts, timeout_s)).tolist()


async def test_texts_get_vectors_in_their_order(make, diary):
    encoder = make()
    assert await read(encoder, "b", "aa", "b") == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert diary() == ["b aa"]


async def test_a_text_is_read_once_also_when_many_ask_at_once(make, diary):
    encoder = make()
    found = await asyncio.gather(*(read(encoder, "a") for _ in range(5)))
    assert found == [[[1, 0, 0]]] * 5
    await read(encoder, "a")
    assert diary() == ["a"]


async def test_many_callers_texts_share_a_batch(make, diary):
    encoder = make()
    texts = [f"a{number}" for number in range(BATCH_TEXTS + 1)]
    await asyncio.gather(*(read(encoder, text) for text in texts))
    assert [len(line.split()) for line in diary()] == [BATCH_TEXTS, 1]


async def test_what_was_read_outlives_the_server(make, diary):
    first = make()
    await read(first, "a", "b")
    await first.close()
    second = make()
    assert await read(second, "b") == [[0, 1, 0]]
    assert diary() == ["a b"]  # no process was started for it


async def test_the_worker_is_there_before_the_first_text_even_where_the_cache_knows_all(make, diary):
    first = make()
    await first.encode(["abc"], 10)
    await first.close()
    encoder = make()
    await encoder.start()
    assert encoder.running
    await encoder.encode(["abc"], 10)
    assert diary() == ["abc"]  # the second encoder asked nothing
    await encoder.start()
    await encoder.encode(["ab"], 10)
    assert len({line.partition(" ")[0] for line in diary.path.read_text().splitlines()}) == 2


async def test_a_start_that_fails_leaves_later_texts_their_own_error(make):
    encoder = make("none")
    await encoder.start()
    assert not encoder.running
    with pytest.raises(Unavailable, match="there is no model"):
        await encoder.encode(["ab"], 10)


async def test_what_says_nothing_is_zeros_and_is_not_kept_on_disk(make, diary, tmp_path):
    encoder = make()
    assert await read(encoder, "xyz") == [[0, 0, 0]]
    await encoder.close()
    assert TextCache(tmp_path / "cache", pytest.fail).read("letters", ["xyz"]) == {}


async def test_a_deadline_is_kept_and_a_later_call_finds_what_was_begun(make, diary):
    encoder = make()
    await read(encoder, "a")  # the worker runs
    with pytest.raises(DeadlineExceeded, match="1 texts were not read within"):
        await read(encoder, "sleep", timeout_s=0.05)
    assert await read(encoder, "sleep") == [[0, 0, 0]]
    assert diary() == ["a", "sleep"]


async def test_too_many_waiting_texts_are_refused_at_once(make, monkeypatch):
    monkeypatch.setattr("longtide_server.new_items.text_encoder.MOST_WAITING", 2)
    encoder = make()
    waiting = asyncio.create_task(read(encoder, "a", "b"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 texts wait"):
        await read(encoder, "c")
    assert await waiting == [[1, 0, 0], [0, 1, 0]]


async def test_a_worker_that_dies_fails_those_who_wait_and_another_one_starts(make, diary):
    encoder = make()
    with pytest.raises(Unavailable, match="the process that reads texts failed"):
        await read(encoder, "die")
    assert await read(encoder, "c") == [[0, 0, 1]]


async def test_a_worker_that_was_killed_while_idle_costs_nobody_an_answer(make, diary):
    encoder = make()
    await read(encoder, "a")
    os.kill(int(diary.path.read_text().split()[0]), signal.SIGKILL)
    await asyncio.sleep(0.2)
    assert await read(encoder, "b") == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("identity", "why"), [("none", "there is no model"), ("others", "not the one that the snapshot was trained with")]
)
async def test_without_the_right_model_nothing_is_read(make, identity, why):
    with pytest.raises(Unavailable, match=why):
        await read(make(identity), "a")


async def test_what_nobody_thought_of_fails_those_who_wait_and_not_those_who_come_later(make, monkeypatch):
    encoder = make()
    with monkeypatch.context() as broken:
        broken.setattr(TextCache, "read", lambda *_: 1 / 0)
        with pytest.raises(Unavailable, match="the server's log says why"):
            await read(encoder, "a")
    assert await read(encoder, "a") == [[1, 0, 0]]


async def test_closing_fails_whoever_waits_and_ends_the_worker(make, diary):
    encoder = make()
    await read(encoder, "a")
    waiting = asyncio.create_task(read(encoder, "sleep"))
    await asyncio.sleep(0.1)
    await encoder.close()
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    with pytest.raises(ProcessLookupError):
        os.kill(int(diary.path.read_text().split()[0]), 0)


@pytest.mark.skipif(default_model() is None, reason="the extra `text` is not installed")
async def test_the_real_worker_says_what_training_reads(tmp_path):
    model = default_model()
    encoder = TextEncoder(model.identity, TextCache(tmp_path, pytest.fail))
    try:
        found = await encoder.encode(["red nail lacquer", "nail polish in crimson", "Toy Story (1995)"], 100.0)
    finally:
        await encoder.close()
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]
