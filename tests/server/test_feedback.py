"""What was shown is counted, and joined with what people did then."""

import asyncio

import pytest

from longtide_server import feedback as feedback_module
from longtide_server.attribution import Shown
from longtide_server.errors import Unavailable
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import EventType
from longtide_server.feedback import OTHER_SURFACE, Feedback, Line, report, summed
from longtide_server.sources.candidates import Source

DAY_S = 86_400.0
NOON_S = 1_767_268_800.0  # 2026-01-01 12:00 UTC


@pytest.fixture
async def store(tmp_path):
    store = SqliteEventStore(tmp_path / "events.db")
    yield store
    await store.close()


def shown_items(**sources):
    return [(item, int(source)) for item, source in sources.items()]


class Clock:
    now_s = NOON_S

    def __call__(self):
        return self.now_s


ANSWER = shown_items(book=Source.ENCODER, song=Source.ENCODER, film=Source.NEIGHBORS)


async def test_clicks_and_conversions_are_joined_with_what_was_shown(store, event):
    clock = Clock()
    feedback = Feedback(store, clock)
    first = feedback.shown("s1", "home", ANSWER)
    clock.now_s += DAY_S
    second = feedback.shown("s1", "cart", ANSWER)
    await feedback.flush()
    await store.write(
        [
            event("e1", "book", type=EventType.CLICK, attribution_token=first),
            event("e2", "book", type=EventType.PURCHASE, attribution_token=first),
            event("e3", "film", type=EventType.VIEW, attribution_token=first),
            event("e4", "book", type=EventType.PURCHASE, attribution_token=second),
            event("e5", "book", type=EventType.PURCHASE),
            event("e6", "song", attribution_token="not ours"),
        ]
    )
    found = await report(store, {EventType.PURCHASE})
    assert found.lines == {
        Shown("2026-01-01", "s1", "home", 1): Line(2, 1, 1),
        Shown("2026-01-01", "s1", "home", 2): Line(1, 1, 0),
        Shown("2026-01-02", "s1", "cart", 1): Line(2, 1, 1),
        Shown("2026-01-02", "s1", "cart", 2): Line(1, 0, 0),
    }
    assert found.unknown_tokens == 1
    assert summed(found.lines, ["surface"]) == {("home",): Line(3, 2, 1), ("cart",): Line(3, 1, 1)}
    assert summed(found.lines, ["source", "day"])[("1", "2026-01-02")] == Line(2, 1, 1)
    assert (Line(4, 2, 1).click_rate, Line(4, 2, 1).conversion_rate, Line().click_rate) == (0.5, 0.25, None)


async def test_two_answers_of_the_same_items_are_two_answers(store, event):
    feedback = Feedback(store, Clock())
    tokens = [feedback.shown("s1", "home", ANSWER) for _ in range(2)]
    assert tokens[0] != tokens[1]
    sent = [event(f"e{n}", "book", type=EventType.CLICK, attribution_token=token) for n, token in enumerate(tokens)]
    await store.write(sent)
    [line] = (await report(store, {EventType.PURCHASE})).lines.values()
    assert line.clicked == 2


async def test_an_item_is_clicked_once_for_an_answer_and_a_user(store, event):
    token = Feedback(store, Clock()).shown("s1", "home", ANSWER)
    await store.write([event(f"e{n}", "book", type=EventType.CLICK, attribution_token=token) for n in range(3)])
    await store.write([event("e0", "book", user_id="bob", type=EventType.CLICK, attribution_token=token)])
    [line] = (await report(store, {EventType.CLICK})).lines.values()
    assert (line.clicked, line.converted) == (2, 2)


async def test_counts_of_several_servers_and_flushes_add_up(store):
    for _ in range(2):
        feedback = Feedback(store, Clock())
        for _ in range(3):
            feedback.shown("s1", "home", ANSWER)
            await feedback.flush()
    assert await store.shown() == {
        Shown("2026-01-01", "s1", "home", 1): 12,
        Shown("2026-01-01", "s1", "home", 2): 6,
    }


async def test_what_a_store_could_not_take_goes_before_what_came_after_it(store, monkeypatch):
    """Else the counts that wait would be forgotten for those that come."""
    feedback = Feedback(store, Clock())

    async def fails(counts, flush_id):
        raise Unavailable("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(store, "add_shown", fails)
        for _ in range(3):
            feedback.shown("s1", "home", ANSWER)
            await feedback.flush()
    for _ in range(2):
        await feedback.flush()
    assert sum((await store.shown()).values()) == 3 * len(ANSWER)


async def test_counts_wait_for_a_store_that_fails(store, monkeypatch):
    feedback = Feedback(store, Clock())
    feedback.shown("s1", "home", ANSWER)

    async def fails(counts, flush_id):
        raise Unavailable("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(store, "add_shown", fails)
        await feedback.flush()
    feedback.shown("s1", "home", ANSWER)
    await feedback.flush()
    assert sum((await store.shown()).values()) == 6


async def test_counts_that_were_added_though_that_could_not_be_answered_are_not_added_again(store, monkeypatch):
    feedback, add_shown = Feedback(store, Clock()), store.add_shown
    feedback.shown("s1", "home", ANSWER)

    async def loses_the_answer(counts, flush_id):
        await add_shown(counts, flush_id)
        raise Unavailable("it did not answer in time")

    with monkeypatch.context() as patched:
        patched.setattr(store, "add_shown", loses_the_answer)
        for _ in range(3):
            await feedback.flush()
            feedback.shown("s1", "home", ANSWER)
    await feedback.flush()
    assert sum((await store.shown()).values()) == 4 * 3


async def test_counts_go_into_the_store_by_themselves(store, monkeypatch):
    monkeypatch.setattr(feedback_module, "FLUSH_EVERY_S", 0.01)
    feedback = Feedback(store, Clock())
    task = asyncio.create_task(feedback.keep_flushing())
    feedback.shown("s1", "home", ANSWER)
    for _ in range(500):
        await asyncio.sleep(0.01)
        if found := await store.shown():
            break
    task.cancel()
    assert sum(found.values()) == 3


async def test_surfaces_without_end_are_counted_together(store, monkeypatch):
    monkeypatch.setattr(feedback_module, "MAX_KEYS", 2)
    feedback = Feedback(store, Clock())
    for n in range(50):
        feedback.shown("s1", f"surface-{n}", shown_items(book=Source.ENCODER))
    await feedback.flush()
    counts = {key.surface: count for key, count in (await store.shown()).items()}
    assert counts == {"surface-0": 1, "surface-1": 1, OTHER_SURFACE: 48}
