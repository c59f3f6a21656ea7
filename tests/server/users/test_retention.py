"""How long events are kept."""

import asyncio
import contextlib

import pytest

from longtide_server.errors import FieldViolation, InvalidInput, Unavailable
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import EventType
from longtide_server.users import retention
from longtide_server.users.retention import expire, keep_expiring, read_retention, too_old

DAY_S = 86_400.0
KEPT = {EventType.VIEW: 90 * DAY_S}
NOW_S = 200 * DAY_S


def test_ages_are_hours_days_or_years():
    assert read_retention({"view": "36h", "rate": "1.5d", "purchase": "2y"}) == {
        EventType.VIEW: 36 * 3_600,
        EventType.RATE: 1.5 * DAY_S,
        EventType.PURCHASE: 730.5 * DAY_S,
    }
    assert read_retention({}) == {}


@pytest.mark.parametrize("age", ["90", "d", "-1d", "0d", "1w", "1 d", ""])
def test_what_is_no_age_is_refused(age):
    with pytest.raises(InvalidInput, match=r"is not an age, for example 36h, 90d or 2y"):
        read_retention({"view": age})


def test_what_is_no_type_is_refused():
    with pytest.raises(InvalidInput, match=r"'viewed' is not an event type; use one of view, click"):
        read_retention({"viewed": "1d"})


def test_an_event_is_too_old_by_its_type(event):
    assert too_old(event("e1", time_s=NOW_S - 90 * DAY_S), KEPT, NOW_S) is None
    wrong = FieldViolation("event_time", "is older than the 90 days that view events are kept")
    assert too_old(event("e1", time_s=NOW_S - 90 * DAY_S - 1), KEPT, NOW_S) == wrong
    assert too_old(event("e1", time_s=0.0, type=EventType.PURCHASE), KEPT, NOW_S) is None
    assert too_old(event("e1", time_s=0.0), {}, NOW_S) is None


async def test_what_has_become_too_old_goes_and_its_owner_is_read_anew(tmp_path, event):
    store = SqliteEventStore(tmp_path / "events.db")
    await store.write([event("old", time_s=1.0), event("new", time_s=NOW_S), event("b", time_s=NOW_S, user_id="bob")])
    forgotten = []
    assert await expire(store, KEPT, forgotten.extend, NOW_S) == 1
    assert forgotten == ["user:ann"]
    assert [one.event_id for one in (await store.history("user:ann")).events] == ["new"]
    await store.close()


async def test_expiring_goes_on_after_a_failure(monkeypatch):
    tries = asyncio.Semaphore(0)

    class Failing:
        async def expire(self, kept_from_s):
            tries.release()
            raise Unavailable("the disk is gone")
            yield

    monkeypatch.setattr(retention, "EVERY_S", 0.0)
    task = asyncio.create_task(keep_expiring(Failing(), KEPT, lambda _: None, lambda: NOW_S))
    for _ in range(3):
        await asyncio.wait_for(tries.acquire(), 5.0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
