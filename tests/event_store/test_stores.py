"""What every event store promises, whatever it keeps its events in."""

import asyncio

import pytest

from longtide_server.attribution import Shown
from longtide_server.errors import Conflict
from longtide_server.event_store import Known, Version
from longtide_server.events import Event, EventType

VIEW, PURCHASE = int(EventType.VIEW), int(EventType.PURCHASE)


async def ids(store, owner="user:ann"):
    return [event.event_id for event in (await store.history(owner)).events]


async def known_now(store, owner="user:ann"):
    """What a copy of a history is of, that is taken now."""
    history = await store.history(owner)
    return Known(history.owner, history.version)


async def counts(store, *events):
    written = await store.write(list(events))
    return written.new, written.duplicates


async def expired(store, written):
    """Write an event and have it expire."""
    await store.write([written])
    return [piece async for piece in store.expire({VIEW: written.time_s + 0.1})]


async def deleted(store, owner, now_s):
    found = await store.delete(owner, now_s)
    return found.events, found.until_s


# Once, and in order


async def test_new_events_and_duplicates_are_counted(store, event):
    assert await counts(store, event("e1"), event("e2")) == (2, 0)
    assert await counts(store, event("e2"), event("e3"), event("e1")) == (1, 2)
    assert await ids(store) == ["e1", "e2", "e3"]


async def test_a_duplicate_may_be_in_the_same_batch(store, event):
    assert await counts(store, event("e1"), event("e1"), event("e2"), event("e1")) == (2, 2)
    assert await ids(store) == ["e1", "e2"]


async def test_of_several_with_one_id_the_first_counts(store, event):
    await store.write([event("e1", "a", 1.0)])
    assert await counts(store, event("e1", "b", 2.0), event("e2", "c"), event("e2", "d")) == (1, 2)
    assert [(one.event_id, one.item_id) for one in (await store.history("user:ann")).events] == [
        ("e2", "c"),
        ("e1", "a"),
    ]


async def test_an_id_is_of_its_owner(store, event):
    await store.write([event("e1", "a", 1.0, "ann")])
    assert await counts(store, event("e1", "b", 2.0, "bob")) == (1, 0)
    assert await ids(store, "user:bob") == ["e1"]


async def test_every_field_comes_back(store):
    full = Event("e1", "ann\0🌊{}%", "a", EventType.CUSTOM, 1.25, -0.5, "bookmarked", "s1", "t1")
    plain = Event("e2", full.user_id, "a", EventType.VIEW, 1_700_000_000.123456)
    zero = plain._replace(event_id="e3", value=0.0)
    await store.write([full, plain, zero])
    assert list((await store.history(full.owner)).events) == [full, plain, zero]
    assert await ids(store) == []


async def test_a_history_is_by_time_and_then_by_arrival(store, event):
    await store.write([event("late", time_s=3.0), event("one of two", time_s=2.0)])
    await store.write([event("another of two", time_s=2.0), event("early", time_s=1.0)])
    assert await ids(store) == ["early", "one of two", "another of two", "late"]


async def test_nobody_sees_the_history_of_another(store, event):
    await store.write([event("e1", user_id="ann"), event("e2", user_id="bob"), event("e3", user_id="}")])
    assert await ids(store, "user:ann") == ["e1"]
    assert await ids(store, "user:bob") == ["e2"]
    assert await ids(store, "user:}") == ["e3"]
    assert await ids(store, "user:cara") == []


async def test_a_history_survives_a_restart(store, opened, event):
    await store.write([event("e1")])
    await store.close()
    again = await opened()
    assert await ids(again) == ["e1"]
    assert await counts(again, event("e1"), event("e2")) == (1, 1)


async def test_retries_at_the_same_time_and_through_another_server_change_nothing(store, opened, event):
    other = await opened() if store.shared else store
    sent = [event(f"e{n}", time_s=float(n)) for n in range(100)]
    tries = await asyncio.gather(*(one.write(sent) for one in (store, other) * 5))
    assert sum(written.new for written in tries) == 100
    assert sum(written.duplicates for written in tries) == 900
    assert await ids(store) == await ids(other) == [one.event_id for one in sent]


async def test_what_was_written_through_another_server_is_there_at_once(store, opened, event):
    other = await opened() if store.shared else store
    for n in range(20):
        writer, reader = (store, other) if n % 2 else (other, store)
        known = await known_now(reader)
        await writer.write([event(f"e{n}", time_s=float(n))])
        news = await reader.history("user:ann", known)
        assert [one.event_id for one in news.events] == [f"e{n}"]


async def test_a_stamp_stays_only_as_long_as_no_history_changes(store, opened, event):
    """By whomever; what else is written is no news of a history."""
    other = await opened() if store.shared else store
    await store.write([event("e1"), event("e2", time_s=1.0)])
    before = store.stamp()
    if before is None:
        return  # whoever wants to know asks for the history
    for unchanging in (store.probe(), other.probe(), other.add_shown({Shown("2026-01-01", "s1", "home", 1): 3}, "f1")):
        await unchanging
    assert (await other.write([event("e1")])).new == 0
    assert store.stamp() == before
    changes = (
        lambda one: one.write([event(f"by-{len(seen)}", time_s=5.0)]),
        lambda one: one.merge(f"user:g{len(seen)}", "user:ann"),
        lambda one: one.delete(f"user:x{len(seen)}", 9.0),
        lambda one: one.delete("user:ann", 9.0),
        lambda one: one.write([event(f"by-{len(seen)}", time_s=10.0)]),
        lambda one: expired(one, event(f"old-{len(seen)}", time_s=10.5)),
    )
    seen = [before]
    for change in changes:
        for one in (other, store):
            await change(one)
            assert store.stamp() not in seen
            seen.append(store.stamp())


async def test_a_batch_of_thousands_for_one_owner_and_for_as_many(store, event):
    assert await counts(store, *(event(f"e{n}", time_s=float(n)) for n in range(10_000))) == (10_000, 0)
    assert await ids(store) == [f"e{n}" for n in range(10_000)]
    assert await counts(store, *(event("e0", user_id=f"u{n}") for n in range(3_000))) == (3_000, 0)
    assert await ids(store, "user:u2999") == ["e0"]


# Versions


async def test_what_a_write_added_is_what_lies_between_two_versions(store, event):
    first = (await store.write([event("e1"), event("b1", user_id="bob")])).appended["user:ann"]
    assert first.before == (await store.history("user:cara")).version == Version()
    assert first.after == (await store.history("user:ann")).version
    written = await store.write([event("e1"), event("b2", user_id="bob"), event("e2", time_s=0.0)])
    second = written.appended["user:ann"]
    assert second.before == first.after < second.after == (await store.history("user:ann")).version
    assert [one.event_id for one in second.events] == ["e2"]
    assert [one.event_id for one in written.appended["user:bob"].events] == ["b2"]


async def test_a_batch_of_duplicates_adds_nothing(store, event):
    await store.write([event("e1")])
    version = (await store.history("user:ann")).version
    assert (await store.write([event("e1")])).appended == {}
    assert (await store.history("user:ann")).version == version


async def test_whoever_knows_a_version_is_told_what_is_new(store, event):
    await store.write([event("e1", time_s=2.0)])
    known = await known_now(store)
    nothing = await store.history("user:ann", known)
    assert (list(nothing.events), nothing.version, nothing.whole) == ([], known.version, False)
    await store.write([event("e2", time_s=1.0), event("b1", user_id="bob"), event("e3", time_s=0.5)])
    news = await store.history("user:ann", known)
    assert [one.event_id for one in news.events] == ["e2", "e3"]
    assert not news.whole
    assert news.version == (await store.history("user:ann")).version > known.version


# Pages


async def test_pages_go_from_the_newest_to_the_oldest(store, event):
    times = {"e0": 5.0, "e1": 9.0, "e2": 5.0, "e3": 1.0, "e4": 7.0}
    await store.write([event(name, time_s=time_s) for name, time_s in times.items()])
    pages, before = [], None
    while page := await store.page("user:ann", 2, before):
        pages.append([one.event_id for _, one in page])
        before = page[-1][0]
    assert pages == [["e1", "e4"], ["e2", "e0"], ["e3"]]
    assert await store.page("user:bob", 2) == []


async def test_an_event_that_arrives_between_two_pages_moves_nothing(store, event):
    await store.write([event(f"e{n}", time_s=float(n)) for n in range(4)])
    first = await store.page("user:ann", 2)
    await store.write([event("newest", time_s=9.0)])
    assert [one.event_id for _, one in await store.page("user:ann", 2, first[-1][0])] == ["e1", "e0"]


# Anonymous and known


async def test_a_session_without_a_user_has_a_history_of_its_own(store, event):
    anonymous = event("e1", user_id="", session_id="s1")
    await store.write([anonymous, event("e1", user_id="s1"), event("e2", user_id="ann", session_id="s1")])
    assert list((await store.history("session:s1")).events) == [anonymous]
    assert await ids(store, "user:s1") == ["e1"]


async def test_a_merge_makes_one_history_of_two(store, event):
    await store.write([event("s1", time_s=1.0, user_id="", session_id="s"), event("a2", time_s=2.0)])
    await store.write([event("s3", time_s=3.0, user_id="", session_id="s")])
    assert (await store.merge("session:s", "user:ann")).events == 2
    history = await store.history("user:ann")
    assert [(one.event_id, one.user_id, one.session_id) for one in history.events] == [
        ("s1", "ann", "s"),
        ("a2", "ann", ""),
        ("s3", "ann", "s"),
    ]
    again = await store.history("session:s")
    assert (again.owner, list(again.events)) == ("user:ann", list(history.events))


async def test_a_whole_history_says_who_was_merged_into_it(store, event):
    await store.write([event("a1")])
    before = await store.history("user:ann")
    assert before.names == frozenset()
    await store.merge("session:s", "user:guest")
    await store.merge("user:guest", "user:ann")
    after = await store.history("user:guest", Known("user:ann", before.version))
    assert (after.owner, after.whole, after.names) == ("user:ann", True, {"session:s", "user:guest"})
    await store.delete("user:ann", 10.0)
    assert (await store.history("user:ann")).names == frozenset()


async def test_a_log_is_told_from_others_by_its_identity(opened):
    store = await opened()
    before = await store.identity()
    await store.close()
    assert await (await opened()).identity() == before
    assert len(before) == 32


async def test_merging_again_changes_nothing(store, event):
    await store.write([event("s1", user_id="", session_id="s"), event("a1")])
    assert [(await store.merge("session:s", "user:ann")).events for _ in range(3)] == [1, 0, 0]
    assert await ids(store) == ["s1", "a1"] or await ids(store) == ["a1", "s1"]


async def test_what_the_target_has_is_not_doubled_by_a_merge(store, event):
    await store.write([event("e1", "a"), event("e1", "b", user_id="", session_id="s"), event("e2", user_id="guest")])
    assert (await store.merge("session:s", "user:ann")).events == 0
    assert (await store.merge("user:guest", "user:ann")).events == 1
    assert [(one.event_id, one.item_id) for one in (await store.history("user:ann")).events] == [
        ("e1", "a"),
        ("e2", "a"),
    ]


async def test_what_comes_after_a_merge_belongs_to_the_target(store, event):
    await store.write([event("s1", user_id="", session_id="s")])
    await store.merge("session:s", "user:ann")
    known = (await store.history("user:ann")).version
    late = [event("s1", user_id="", session_id="s"), event("s2", time_s=1.0, user_id="", session_id="s")]
    written = await store.write([*late, event("a1", time_s=2.0)])
    assert (written.new, written.duplicates, list(written.appended)) == (2, 1, ["user:ann"])
    appended = written.appended["user:ann"]
    assert (appended.before, appended.after) == (known, (await store.history("user:ann")).version)
    assert sorted(one.event_id for one in appended.events) == ["a1", "s2"]
    assert await ids(store) == ["s1", "s2", "a1"]
    assert [one.event_id for _, one in await store.page("session:s", 9)] == ["a1", "s2", "s1"]


async def test_a_session_nobody_has_seen_can_be_merged_before_its_events_come(store, event):
    assert (await store.merge("session:s", "user:ann")).events == 0
    assert await counts(store, event("s1", user_id="", session_id="s")) == (1, 0)
    assert await ids(store) == ["s1"]


async def test_what_was_merged_into_a_guest_follows_the_guest(store, event):
    await store.write([event("s1", user_id="", session_id="s"), event("g1", user_id="guest")])
    await store.merge("session:s", "user:guest")
    assert (await store.merge("user:guest", "user:ann")).events == 2
    assert (await store.merge("session:s", "user:ann")).events == 0
    assert (await store.merge("session:s", "user:guest")).events == 0
    await store.write([event("s2", time_s=1.0, user_id="", session_id="s")])
    assert sorted(await ids(store)) == ["g1", "s1", "s2"]


async def test_a_history_has_one_owner(store, event):
    await store.write([event("s1", user_id="", session_id="s")])
    await store.merge("session:s", "user:ann")
    with pytest.raises(Conflict, match="into another user"):
        await store.merge("session:s", "user:bob")
    assert await ids(store, "user:bob") == []
    assert await ids(store) == ["s1"]


async def test_a_long_chain_of_merges_is_one_history(store, event):
    for n in range(14):
        await store.write([event(f"e{n}", time_s=float(n), user_id=f"c{n}")])
        if n:
            await store.merge(f"user:c{n - 1}", f"user:c{n}")
    assert await counts(store, event("new", time_s=99.0, user_id="c0"), event("other", user_id="bob")) == (2, 0)
    assert await ids(store, "user:c3") == [*(f"e{n}" for n in range(14)), "new"]


async def test_of_two_merges_against_each_other_one_happens(store, event):
    await store.write([event("e1", user_id="a"), event("e2", user_id="b")])
    both = (store.merge("user:a", "user:b"), store.merge("user:b", "user:a"))
    found = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(one).__name__ for one in found) == ["Conflict", "Merged"]
    assert sorted(await ids(store, "user:a")) == sorted(await ids(store, "user:b")) == ["e1", "e2"]
    assert await deleted(store, "user:a", 9.0) == (2, 9.0)


async def test_merges_at_the_same_time_lose_nothing(store, event):
    names = [f"s{n}" for n in range(12)]
    await store.write([event(name, user_id="", session_id=name) for name in names])
    await asyncio.gather(*(store.merge(f"session:{name}", "user:ann") for name in names * 2))
    assert sorted(await ids(store)) == sorted(names)


async def test_a_merge_and_a_deletion_name_everybody_whom_they_change(store, event):
    await store.write([event("s1", user_id="", session_id="s"), event("g1", user_id="guest")])
    await store.merge("session:s", "user:guest")
    merged = await store.merge("user:guest", "user:ann")
    assert merged.names == {"session:s", "user:guest", "user:ann"}
    gone = await store.delete("session:s", 100.0)
    assert gone.names == {"session:s", "user:guest", "user:ann"}


async def test_what_was_deleted_before_a_merge_stays_out_after_it(store, event):
    old = event("s1", time_s=50.0, user_id="", session_id="s")
    await store.write([old])
    await store.delete("session:s", 100.0)
    await store.merge("session:s", "user:ann")
    assert await counts(store, old, event("s2", time_s=101.0, user_id="", session_id="s")) == (1, 1)
    assert await ids(store) == ["s2"]


async def test_what_happened_before_a_deletion_does_not_come_back_with_a_merge(store, event):
    """A person had their data deleted: a session from before that is theirs, and stays out as if it had been."""
    await store.write([event(f"s{n}", time_s=at, user_id="", session_id="s") for n, at in enumerate((2.0, 99.0))])
    await store.write([event("a1", time_s=5.0)])
    await store.delete("user:ann", 10.0)
    await store.merge("session:s", "user:ann")
    assert await ids(store) == ["s1"]


async def test_two_cannot_be_merged_into_each_other(store, event):
    await store.write([event("e1"), event("e2", user_id="guest")])
    await store.merge("user:guest", "user:ann")
    with pytest.raises(Conflict, match="into them"):
        await store.merge("user:ann", "user:guest")
    assert sorted(await ids(store)) == ["e1", "e2"]


async def test_after_a_merge_a_known_version_is_outdated(store, event):
    await store.write([event("s1", user_id="", session_id="s"), event("a1")])
    known = {owner: await known_now(store, owner) for owner in ("user:ann", "session:s")}
    await store.merge("session:s", "user:ann")
    for owner, before in known.items():
        found = await store.history(owner, before)
        assert sorted(one.event_id for one in found.events)[-1:] == ["s1"]
        assert (found.owner, found.version) != before


# Deletion and retention


async def test_deleted_is_gone_and_late_duplicates_stay_out(store, event):
    sent = [event("e1", time_s=10.0), event("e2", time_s=20.0), event("b1", user_id="bob")]
    await store.write(sent)
    assert await deleted(store, "user:ann", 100.0) == (2, 100.0)
    assert await ids(store) == []
    assert await store.page("user:ann", 9) == []
    assert await ids(store, "user:bob") == ["b1"]
    assert await counts(store, *sent) == (0, 3)
    assert await counts(store, event("never seen", time_s=100.0)) == (0, 1)
    assert await ids(store) == []
    assert [piece async for piece in store.everything()] == [[("user:bob", sent[2])]]


async def test_who_comes_back_after_a_deletion_begins_anew(store, event):
    await store.write([event("e1", time_s=10.0)])
    known = await known_now(store)
    await store.delete("user:ann", 100.0)
    assert await counts(store, event("e1", time_s=101.0)) == (1, 0)
    found = await store.history("user:ann", known)
    assert ([one.time_s for one in found.events], found.whole) == ([101.0], True)


async def test_deleting_again_deletes_nothing_more(store, event):
    await store.write([event("e1", time_s=10.0)])
    assert await deleted(store, "user:ann", 100.0) == (1, 100.0)
    assert await deleted(store, "user:ann", 50.0) == (0, 100.0)
    assert await deleted(store, "user:nobody", 50.0) == (0, 50.0)
    assert await counts(store, event("e1", user_id="nobody", time_s=50.0)) == (0, 1)


async def test_an_event_ahead_of_the_clock_is_deleted_for_good_too(store, event):
    ahead = event("e1", time_s=150.0)
    await store.write([ahead])
    assert await deleted(store, "user:ann", 100.0) == (1, 150.0)
    assert await counts(store, ahead) == (0, 1)


async def test_a_deletion_reaches_every_name(store, event):
    sent = [event("s1", time_s=1.0, user_id="", session_id="s"), event("g1", time_s=2.0, user_id="guest")]
    await store.write([*sent, event("a1", time_s=3.0)])
    await store.merge("session:s", "user:guest")
    await store.merge("user:guest", "user:ann")
    assert await deleted(store, "user:guest", 100.0) == (3, 100.0)
    assert await counts(store, *sent) == (0, 2)
    assert [await ids(store, owner) for owner in ("user:ann", "user:guest", "session:s")] == [[], [], []]
    # The names are nobody's any more: what they do now is their own.
    await store.write([event("s2", time_s=101.0, user_id="", session_id="s")])
    assert await ids(store, "session:s") == ["s2"]
    assert await ids(store) == []


async def test_events_expire_by_type_and_time(store, event):
    await store.write([event(f"v{n}", time_s=float(n)) for n in range(6)])
    await store.write([event(f"p{n}", time_s=float(n), type=PURCHASE) for n in range(6)])
    await store.write([event("b0", user_id="bob")])
    known = await known_now(store)
    gone = {}
    async for piece in store.expire({VIEW: 4.0, PURCHASE: 1.0}):
        for owner, count in piece.items():
            gone[owner] = gone.get(owner, 0) + count
    assert gone == {"user:ann": 5, "user:bob": 1}
    assert await ids(store) == ["p1", "p2", "p3", "v4", "p4", "v5", "p5"]
    assert (await store.history("user:ann", known)).whole
    assert await ids(store, "user:bob") == []


# Everything


async def test_everything_comes_once_with_its_owner(store, event):
    sent = [event(f"e{n}", user_id=f"u{n % 7}", time_s=float(n)) for n in range(50)]
    sent.append(event("s1", user_id="", session_id="s"))
    await store.write(sent)
    found = [pair async for piece in store.everything() for pair in piece]
    assert sorted(found, key=lambda pair: sent.index(pair[1])) == [(one.owner, one) for one in sent]
    assert [one.event_id for owner, one in found if owner == "user:u3"] == [f"e{n}" for n in range(3, 50, 7)]


async def test_what_was_shown_adds_up(store):
    home, cart = Shown("2026-01-01", "s1", "home", 1), Shown("2026-01-01", "s1", '🛒|"', 2)
    assert await store.shown() == {}
    await store.add_shown({home: 3, cart: 1}, "f1")
    await store.add_shown({home: 4}, "f2")
    await store.add_shown({home: 3, cart: 1}, "f1")  # whose answer was lost
    assert await store.shown() == {home: 7, cart: 1}
    assert [piece async for piece in store.everything()] == []


# Whether it works


async def test_a_probe_succeeds_and_changes_nothing(store, event):
    await store.write([event("e1")])
    before = await known_now(store)
    for _ in range(3):
        await store.probe()
    assert await known_now(store) == before
    assert [owner async for piece in store.everything() for owner, _ in piece] == ["user:ann"]
    assert await store.shown() == {}
