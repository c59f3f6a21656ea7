"""New items on their way into answers, and whom they are shown to."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from longtide_server.answers import Query
from longtide_server.catalog.content import ContentTower, ContentWeights
from longtide_server.catalog.live_catalogs import Together
from longtide_server.errors import EncoderUnavailable, NotFound, Unavailable
from longtide_server.events import EventType
from longtide_server.items.item import Item
from longtide_server.items.item_filter import HasTag
from longtide_server.items.text_arrays import bytes_of
from longtide_server.new_items import arrivals, newcomers, pulls, waiting_line
from longtide_server.new_items.arrivals import Arrivals
from longtide_server.new_items.new_items import NewItems
from longtide_server.new_items.newcomers import PRIOR_EVENTS, Newcomers
from longtide_server.new_items.pulls import Pulls
from longtide_server.ranking import Fusion
from longtide_server.recommender import WELL_KNOWN_EVENTS, Recommender
from longtide_server.serving.item_finder import ItemFinder, ItemQuery
from longtide_server.sources.candidates import Source
from longtide_server.sources.similar_items import Basis, SimilarItems, spaces_of
from longtide_server.sources.trending import Trending
from longtide_server.training.sources.fusion import FAINT

SOON_S = 5.0


async def until(holds):
    """Wait until something is so."""
    async with asyncio.timeout(SOON_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.001)


class Texts:
    """Reads "east" and "north" as directions; may be down, or take its time, and fails at a text that is poison."""

    def __init__(self):
        self.failure = None
        self.poison = "poison"
        self.calls = []
        self.answering_allowed = asyncio.Event()
        self.answering_allowed.set()

    async def encode(self, texts, timeout_s):
        self.calls.append(list(texts))
        await self.answering_allowed.wait()
        if self.failure:
            raise self.failure
        if self.poison in texts:
            raise Unavailable("the process that reads texts failed")
        return np.array([[1, 0] if "east" in text else [0, 1] for text in texts], np.float32)


def tower():
    """Text vectors are places on the circle as they are; the tag "west" is one too."""
    nothing = np.zeros((0, 2), np.float32)
    return ContentTower(
        ContentWeights(
            text=np.eye(2, dtype=np.float32),
            image=nothing,
            label=np.array([[-1, 0]], np.float32),
            label_names=bytes_of("tag:west"),
            price_edges=np.zeros(0),
            text_model=bytes_of("a model"),
        )
    )


@pytest.fixture
async def shop(make_world, make_snapshot, request):
    """The world of five letters, and whatever is written of others; a parameter is the fusion."""
    world = make_world(snapshot=make_snapshot(fusion=request.param)) if hasattr(request, "param") else make_world()
    stored, damaged, texts = {}, set(), Texts()
    newcomers = Newcomers(len(world.snapshot.catalog) + 1, 2)
    new = NewItems(newcomers, world.live, world.snapshot.manifest.encoder.temperature, lambda: world.clock.now_s)

    async def read(item_id):
        if item_id in damaged:
            raise Unavailable(f"the record of item {item_id!r} cannot be read")
        return stored.get(item_id)

    made = Arrivals(world.snapshot.catalog, tower(), newcomers, read, texts, lambda: world.clock.now_s)
    together = Together(world.live, made)
    pulling = Pulls(newcomers, world.states)
    for copies in (pulling, world.states):
        with contextlib.suppress(ValueError):
            world.writer.remove(copies)
        world.writer.add(copies)  # pulls before states

    def recommender(share=0.0):
        return Recommender(
            world.snapshot, world.states, live=world.live, clock=lambda: world.clock.now_s, new=new, explore_share=share
        )

    def upsert(*items):
        stored.update((item.item_id, item) for item in items)
        together.apply(items, [])

    def delete(item_id):
        del stored[item_id]
        together.apply([], [item_id])

    async def placed(*item_ids):
        await until(lambda: all(item_id in newcomers for item_id in item_ids))

    async def ask(limit=10, share=0.0, user_id="ann", **query):
        return (await recommender(share).recommend(Query(user_id, limit, **query), SOON_S)).recommendations

    async def ids(**query):
        return [item.item_id for item in await ask(**query)]

    yield SimpleNamespace(
        world=world,
        recommender=recommender,
        new=new,
        texts=texts,
        newcomers=newcomers,
        upsert=upsert,
        delete=delete,
        damaged=damaged,
        placed=placed,
        ask=ask,
        ids=ids,
    )
    await made.close()
    await pulling.close()


async def test_a_new_item_is_recommended_to_whom_it_suits(shop):
    await shop.world.did("ann", "a")  # who is at 0 degrees, the east
    shop.upsert(Item("x", title="east of everything"), Item("y", title="north"))
    await shop.placed("x", "y")
    found = {item.item_id: item for item in await shop.ask()}
    assert found["x"].title == "east of everything"
    assert found["x"].sources[0][0] is Source.ENCODER
    assert found["x"].score > found["y"].score


@pytest.mark.parametrize("shop", [Fusion(FAINT[0], 0.0, 1.0), Fusion(FAINT[0], 1.0, 0.0)], indirect=True)
async def test_a_new_item_suits_whom_it_suits_where_another_source_is_better_than_the_encoder(shop):
    await shop.world.did("ann", "a")
    shop.upsert(Item("x", title="east of everything"), Item("y", title="north"))
    await shop.placed("x", "y")
    found = {item.item_id: item for item in await shop.ask()}
    assert found["x"].score > 2 * found["y"].score


async def test_labels_alone_place_an_item_and_nothing_known_places_none(shop):
    await shop.world.did("ann", "a")
    shop.upsert(Item("w", tags=("west",)), Item("?", brand="nobody knows"))
    await shop.placed("w")
    assert shop.newcomers.vectors.tolist() == [[-1, 0]]
    assert "?" not in shop.newcomers
    assert shop.texts.calls == []


async def test_a_deleted_or_unavailable_one_is_gone_at_the_next_request(shop):
    await shop.world.did("ann", "a")
    shop.upsert(Item("x", title="east"), Item("y", title="east"))
    await shop.placed("x", "y")
    assert {"x", "y"} <= set(await shop.ids())
    shop.upsert(Item("y", title="east", available=False))
    shop.delete("x")
    assert {"x", "y"}.isdisjoint(await shop.ids())


async def test_what_a_request_does_not_want_and_what_somebody_has_had_do_not_appear(shop):
    await shop.world.did("ann", "a")
    for name in "vwxyz":
        shop.upsert(Item(name, title="east", tags=("new",) if name in "xyz" else ()))
    await shop.placed(*"vwxyz")
    assert await shop.ids(item_filter=HasTag(frozenset(["new"]))) == ["x", "y", "z"]
    assert sorted(await shop.ids(include_item_ids=["v", "b"])) == ["b", "v"]
    assert {"x", "y"}.isdisjoint(await shop.ids(exclude_item_ids=["x"], session_item_ids=["y"]))
    await shop.world.did("ann", "z")
    assert "z" not in await shop.ids()


async def test_whoever_turns_to_a_new_item_pulls_it_once(shop):
    shop.upsert(Item("x", title="east"))
    await shop.placed("x")
    for number in range(20):
        await shop.world.did(f"n{number}", "d")  # in the north
        await shop.ask(user_id=f"n{number}")
        for _ in range(3):
            await shop.world.did(f"n{number}", "xx")
    assert shop.newcomers.events[0] == 20
    assert shop.newcomers.vectors[0][1] > 0.9


async def test_whoever_dislikes_it_does_not_pull_it(shop, event):
    await shop.world.did("ann", "d")
    await shop.ask()
    shop.upsert(Item("x", title="east"))
    await shop.placed("x")
    await shop.world.write(event("e9", "x", 99.0, type=EventType.DISLIKE))
    assert shop.newcomers.events[0] == 0
    assert "x" not in [item.item_id for item in await shop.ask()]


async def test_a_new_item_is_no_likelier_than_the_best_that_was_learned(shop):
    await shop.world.did("ann", "a")
    shop.upsert(Item("x", title="east"))  # exactly where ann is; of the others, b is nearest
    await shop.placed("x")
    said = {item.item_id: dict(item.sources).get(Source.ENCODER) for item in await shop.ask(limit=2)}
    assert said["x"] == pytest.approx(said["b"])


async def test_what_was_kept_ends_when_a_new_item_expires(shop):
    recommender = shop.recommender()
    shop.upsert(Item("x", title="east", publish_time_s=2_000.0, expire_time_s=3_000.0))
    await shop.placed("x")
    versions = []
    for shop.world.clock.now_s in (1_999.0, 2_000.0, 2_999.0, 3_000.0):
        versions.append(recommender.catalog_version(Query("ann")))
    assert versions[1] == versions[2]
    assert len(set(versions)) == 3


async def test_what_else_is_known_places_an_item_whose_text_cannot_be_read(shop, monkeypatch):
    monkeypatch.setattr(waiting_line, "TRY_AGAIN_S", 0.01)
    shop.texts.failure = Unavailable("there is no language model")
    shop.upsert(Item("x", title="east", tags=("west",)))
    await shop.placed("x")
    assert shop.newcomers.vectors[0].tolist() == [-1, 0]
    shop.texts.failure = None
    await until(lambda: shop.newcomers.vectors[0].tolist() != [-1, 0])


async def test_whom_nothing_is_known_of_explores_any_of_them(shop):
    for number in range(200):
        shop.upsert(Item(f"x{number}", tags=("west",)))
    await shop.placed(*(f"x{number}" for number in range(200)))
    shown = {item.item_id for n in range(50) for item in await shop.ask(limit=5, share=1.0, user_id=f"new-{n}")}
    assert len(shown) > 60


async def test_an_item_that_is_written_anew_is_placed_anew(shop):
    shop.upsert(Item("x", title="east"))
    await shop.placed("x")
    shop.upsert(Item("x", title="north"))
    shop.upsert(Item("y", title="east"))
    await shop.placed("y")  # after it
    assert shop.newcomers.vectors.tolist() == [[0, 1], [1, 0]]


async def test_items_of_the_snapshot_are_not_new(shop):
    shop.upsert(Item("a", title="east"), Item("x", title="east"))
    await shop.placed("x")
    assert "a" not in shop.newcomers


async def test_while_texts_cannot_be_read_items_wait_and_are_placed_later(shop, monkeypatch):
    monkeypatch.setattr(waiting_line, "TRY_AGAIN_S", 0.01)
    shop.texts.failure = Unavailable("the worker is down")
    shop.upsert(Item("x", title="east"))
    await asyncio.sleep(0.03)
    assert "x" not in shop.newcomers
    shop.texts.failure = None
    await shop.placed("x")


async def test_what_needs_no_text_is_placed_while_texts_are_waited_for(shop):
    shop.texts.answering_allowed.clear()
    shop.upsert(Item("x", title="east"), Item("y", title="east", tags=("west",)))
    await shop.placed("y")
    shop.upsert(Item("z", tags=("west",)))
    await shop.placed("z")
    assert "x" not in shop.newcomers
    assert shop.newcomers.vectors.tolist() == [[-1, 0], [-1, 0]]
    shop.texts.answering_allowed.set()
    await shop.placed("x")


async def test_an_item_stays_where_it_is_until_its_new_text_is_read(shop):
    shop.upsert(Item("x", title="north", tags=("west",)))
    await shop.placed("x")
    await until(lambda: shop.newcomers.vectors[0][1] > 0.0)
    before = shop.newcomers.vectors[0].tolist()
    shop.texts.failure = Unavailable("the worker is down")
    shop.upsert(Item("x", title="north of it", tags=("west",)))
    await until(lambda: len(shop.texts.calls) == 2)
    assert shop.newcomers.vectors[0].tolist() == before


async def test_a_text_that_cannot_be_read_holds_up_no_others(shop):
    """Neither those that are read with it nor those that come later, though it is tried again after five seconds."""
    shop.upsert(Item("?", title="poison"), *(Item(f"x{n}", title=f"east {n}") for n in range(100)))
    await shop.placed(*(f"x{n}" for n in range(100)))
    for n in range(10):
        shop.upsert(Item(f"y{n}", title=f"north {n}"))
        await shop.placed(f"y{n}")
    assert sum("poison" in texts for texts in shop.texts.calls) == 2  # with others, and alone


async def test_a_text_that_could_not_be_read_is_tried_again(shop, monkeypatch):
    monkeypatch.setattr(waiting_line, "TRY_AGAIN_S", 0.01)
    shop.upsert(Item("?", title="poison"), Item("x", title="east"))
    await shop.placed("x")
    await asyncio.sleep(0.05)
    shop.texts.poison = "another"
    await shop.placed("?")


async def test_a_record_that_is_damaged_holds_up_no_others(shop, monkeypatch):
    monkeypatch.setattr(waiting_line, "TRY_AGAIN_S", 0.01)
    shop.damaged.add("x7")
    shop.upsert(*(Item(f"x{n}", tags=("west",)) for n in range(50)))
    await shop.placed(*(f"x{n}" for n in range(50) if n != 7))
    assert "x7" not in shop.newcomers
    shop.damaged.clear()
    await shop.placed("x7")


async def test_who_cannot_read_any_text_is_not_asked_for_each(shop):
    shop.texts.failure = Unavailable("there is no language model")
    shop.upsert(*(Item(f"x{n}", title=f"east {n}") for n in range(200)))
    await asyncio.sleep(0.1)
    assert [len(texts) for texts in shop.texts.calls] == [32, 1, 1, 1]


async def test_after_a_thousand_failures_it_is_still_tried(shop, monkeypatch):
    monkeypatch.setattr(waiting_line, "TRY_AGAIN_S", 0.0)
    shop.texts.failure = Unavailable("there is no language model")
    shop.upsert(*(Item(f"x{n}", title=f"east {n}") for n in range(1_100)))
    await until(lambda: len(shop.texts.calls) > 1_100)
    shop.texts.failure = None
    await shop.placed("x0", "x1099")


async def test_what_an_item_said_before_does_not_count_when_it_is_read_late(shop):
    shop.texts.answering_allowed.clear()
    shop.upsert(Item("x", title="east"))
    await until(lambda: shop.texts.calls)
    shop.upsert(Item("x", tags=("west",)))  # which has no text
    await shop.placed("x")
    shop.texts.answering_allowed.set()
    await asyncio.sleep(0.01)
    assert shop.newcomers.vectors.tolist() == [[-1, 0]]


async def test_what_is_deleted_before_its_turn_is_not_placed(shop, monkeypatch):
    monkeypatch.setattr(waiting_line, "TRY_AGAIN_S", 0.01)
    shop.texts.failure = Unavailable("the worker is down")
    shop.upsert(Item("x", title="east"), Item("y", title="east"))
    await asyncio.sleep(0.005)
    shop.delete("x")
    shop.texts.failure = None
    await shop.placed("y")
    assert "x" not in shop.newcomers


async def test_what_was_had_long_before_it_is_described_is_not_recommended(shop):
    await shop.world.did("ann", ["x", *(f"unheard-of-{n}" for n in range(100)), "d"])
    shop.upsert(Item("x", title="north"), Item("y", title="north"))
    await shop.placed("x", "y")
    found = await shop.ids()
    assert "y" in found
    assert "x" not in found


async def test_a_share_of_the_places_is_for_new_items(shop):
    await shop.world.did("ann", "a")
    for number in range(30):
        shop.upsert(Item(f"x{number}", tags=("west",)))  # which suit nobody here
    await shop.placed(*(f"x{number}" for number in range(30)))
    usual, explored = await shop.ask(limit=4), await shop.ask(limit=4, share=1.0)
    assert [item.item_id for item in usual] == ["b", "c", "e", "d"]
    assert explored[0] == usual[0]
    taken = [item for item in explored if item.sources[0][0] is Source.EXPLORATION]
    assert len(taken) >= 2
    assert all(item.item_id.startswith("x") for item in taken)
    assert [item.score for item in explored] == [item.score for item in usual]
    assert await shop.ask(limit=4, share=1.0) == explored


async def test_items_without_events_in_the_snapshot_are_new_as_well(shop):
    manifest = replace(shop.world.snapshot.manifest, item_count=3, new_item_count=2)
    recommender = Recommender(
        replace(shop.world.snapshot, manifest=manifest), shop.world.states, live=shop.world.live, explore_share=1.0
    )
    await shop.world.did("ann", "a")
    answer = await recommender.recommend(Query("ann", 2), SOON_S)
    assert answer.recommendations[1].item_id in "de"
    assert answer.recommendations[1].sources[0][0] is Source.EXPLORATION


async def test_nobody_needs_to_find_out_about_an_item_to_which_many_turn(shop):
    world = shop.world
    manifest = replace(world.snapshot.manifest, item_count=3, new_item_count=2)
    trending = Trending(world.snapshot.catalog, lambda: world.clock.now_s)
    recommender = Recommender(
        replace(world.snapshot, manifest=manifest), world.states, live=world.live, clock=lambda: world.clock.now_s,
        trending=trending, explore_share=1.0,
    )  # fmt: skip
    world.writer.add(trending)
    await world.did("ann", "a")
    for number in range(2 * WELL_KNOWN_EVENTS):
        await world.did(f"n{number}", "e")
    shown = (await recommender.recommend(Query("ann", 2), SOON_S)).recommendations[1]
    assert (shown.item_id, shown.sources[0]) == ("d", (Source.EXPLORATION, 1.0))  # and not one of the two


async def test_a_kept_answer_ends_when_a_new_item_comes(shop):
    newcomers = Newcomers(len(shop.world.snapshot.catalog) + 1, 1)
    new = NewItems(newcomers, shop.world.live, 0.1, lambda: shop.world.clock.now_s)
    recommender = Recommender(shop.world.snapshot, shop.world.states, live=shop.world.live, new=new)
    before = recommender.catalog_version(Query("ann"))
    newcomers.put("x", np.ones(1, np.float32))
    assert recommender.catalog_version(Query("ann")) != before


async def test_a_new_item_trends_where_trends_are_asked_for(shop):
    world, others = shop.world, [f"y{n}" for n in range(200)]
    trending = Trending(world.snapshot.catalog, lambda: world.clock.now_s)
    world.writer.add(trending)
    shop.upsert(Item("x", title="east of everything"), *(Item(item_id, title="north") for item_id in others))
    await shop.placed("x", *others)
    for user in ("bea", "cid", "dan"):
        await world.did(user, ["x"])
    recommender = Recommender(world.snapshot, world.states, live=world.live, trending=trending, new=shop.new)
    weights = tuple((source, float(source is Source.TRENDING)) for source in Source if source < Source.INTERESTS)
    found = (await recommender.recommend(Query("new", 3, source_weights=weights), SOON_S)).recommendations
    assert found[0].item_id == "x"
    assert found[0].sources[0][0] is Source.TRENDING


async def test_new_items_are_ranked_among_others(shop):
    await shop.world.did("ann", "a")  # in the east
    shop.upsert(Item("x", title="east of everything"), Item("y", title="north"))
    await shop.placed("x", "y")
    asked = ["?", "y", "c", "x", "b", "y"]
    ranked, reason = await shop.recommender().rank(Query("ann"), asked, SOON_S)
    order = [item.item_id for item in ranked]
    assert reason == ""
    assert sorted(order) == ["?", "b", "c", "x", "y"]
    assert order.index("x") < order.index("y")
    assert [item.known for item in ranked] == [True] * 4 + [False]
    assert order[-1] == "?"


async def test_new_items_alone_are_ranked_too(shop):
    await shop.world.did("ann", "a")
    shop.upsert(Item("x", title="east of everything"), Item("y", title="north"))
    await shop.placed("x", "y")
    ranked, _ = await shop.recommender().rank(Query("ann"), ["y", "x"], SOON_S)
    assert [(item.item_id, item.known) for item in ranked] == [("x", True), ("y", True)]


# Who pulls new items


@pytest.fixture
async def x(shop):
    """The item x, in the east."""
    shop.upsert(Item("x", title="east"))
    await shop.placed("x")
    return SimpleNamespace(
        events=lambda: int(shop.newcomers.events[0]),
        vector=lambda: shop.newcomers.vectors[0],
    )


async def test_somebody_who_only_writes_events_pulls_an_item(shop, x):
    for number in range(20):
        await shop.world.did(f"n{number}", "d")  # in the north
        await shop.world.did(f"n{number}", "x")
    await until(lambda: x.events() == 20)
    assert x.vector()[1] > 0.9
    assert shop.world.states.count == 0  # they take no room from who asks


async def test_somebody_pulls_an_item_towards_what_they_wanted_before(shop, x):
    """Neither what came with it counts nor what they did until they were recalled."""
    await shop.world.did("ann", "d")
    shop.world.store.reading_allowed.clear()
    await shop.world.did("ann", ["x", "e"])
    await shop.world.did("ann", ["e", "x", "c"])
    shop.world.store.reading_allowed.set()
    await until(lambda: x.events() == 1)
    wanted = shop.world.snapshot.embeddings[4] + PRIOR_EVENTS * np.array([1, 0])
    assert x.vector() == pytest.approx(wanted / np.linalg.norm(wanted))


async def test_somebody_whose_state_was_dropped_pulls_an_item_as_before(shop, x):
    await shop.world.did("ann", "d")
    await shop.ask()
    shop.world.states.forget(["user:ann"])
    await shop.world.did("ann", "x")
    await until(lambda: x.events() == 1)


async def test_who_comes_back_does_not_count_again_also_when_they_have_to_be_recalled(shop, x):
    await shop.world.did("ann", "d")
    for _ in range(3):
        await shop.world.did("ann", "x")
        await asyncio.sleep(0.01)
    assert x.events() == 1


async def test_of_whom_nothing_is_known_nothing_is_asked(shop, x):
    await shop.world.did("ann", "x")
    await asyncio.sleep(0.01)
    assert (x.events(), shop.world.store.reads) == (0, [])


async def test_while_the_encoder_is_down_nobody_is_recalled(shop, x, monkeypatch):
    monkeypatch.setattr(pulls, "PAUSE_S", 0.05)
    for user in ("ann", "bea", "cid"):
        await shop.world.did(user, "d")
    shop.world.encoder.failure = EncoderUnavailable("down")
    await shop.world.did("ann", "x")
    await until(lambda: shop.world.encoder.calls)
    await asyncio.sleep(0.01)
    shop.world.encoder.failure = None
    await shop.world.did("bea", "x")  # too early
    await asyncio.sleep(0.1)
    await shop.world.did("cid", "x")
    await until(lambda: x.events() == 1)
    assert shop.world.store.reads == ["ann", "cid"]


async def test_somebody_who_cannot_be_encoded_keeps_nobody_from_pulling(shop, x, event):
    shop.world.encoder.unsound = (5,)
    people = [f"n{number}" for number in range(20)]
    for user_id in people:
        await shop.world.did(user_id, "e" if user_id == "n3" else "d")
    await shop.world.write(*(event(f"x-{user_id}", "x", 100.0, user_id) for user_id in people))
    await until(lambda: x.events() == 19)


async def test_no_more_people_wait_to_be_recalled_than_there_is_room_for(shop, x, monkeypatch):
    monkeypatch.setattr(pulls, "MOST_WAITING", 2)
    monkeypatch.setattr(pulls, "AT_ONCE", 1)
    for number in range(6):
        await shop.world.did(f"n{number}", "d")
    shop.world.store.reading_allowed.clear()
    await shop.world.did("n0", "x")
    await asyncio.wait_for(shop.world.store.read_begun.acquire(), SOON_S)
    for number in range(1, 6):
        await shop.world.did(f"n{number}", "x")
    shop.world.writer.forget(["user:n1"])  # who has their data deleted
    shop.world.store.reading_allowed.set()
    await until(lambda: x.events() == 2)
    await asyncio.sleep(0.01)
    assert shop.world.store.reads == ["n0", "n2"]


# Places


@pytest.fixture
def three_places(shop, monkeypatch):
    """There are no more, and whether there is room is looked at all the time."""
    for module in (arrivals, newcomers):
        monkeypatch.setattr(module, "MAX_NEWCOMERS", 3)
    monkeypatch.setattr(arrivals, "LOOK_FOR_ROOM_EVERY_S", 0.01)

    def write(item_id, written_s, **rest):
        shop.upsert(Item(item_id, tags=("west",), update_time_s=written_s, **rest))

    async def are(item_ids):
        await until(lambda: sorted(one for one in "abcdefghijklmnopqrstuvwxyz" if one in shop.newcomers) == [*item_ids])

    return SimpleNamespace(write=write, are=are)


async def test_where_there_are_too_many_at_once_the_items_that_were_written_last_have_places(three_places):
    for written_s, item_id in enumerate("pqrstuvwxyz"):
        three_places.write(item_id, float(written_s))
    await three_places.are("xyz")


@pytest.mark.parametrize("order", ["pqrstuvwxyz", "zyxwvutsrqp", "tzqxwpyuvrs"])
async def test_the_items_that_were_written_last_have_places_whichever_are_placed_first(three_places, order):
    for item_id in order:
        three_places.write(item_id, written_s=float(ord(item_id)))
        await asyncio.sleep(0.005)
    await three_places.are("xyz")
    three_places.write("q", written_s=500.0)
    await three_places.are("qyz")


async def test_an_item_that_has_expired_gives_its_place_up(shop, three_places):
    three_places.write("x", 1.0)
    three_places.write("y", 2.0, expire_time_s=2_000.0)
    three_places.write("z", 3.0)
    await three_places.are("xyz")
    three_places.write("w", 0.0)
    shop.world.clock.now_s = 2_000.0
    await three_places.are("wxz")
    three_places.write("y", 4.0, expire_time_s=2_000.0)
    three_places.write("x", 5.0, expire_time_s=1_999.0)
    await three_places.are("wz")


async def test_an_item_that_is_not_yet_published_keeps_its_place(three_places):
    for item_id, written_s in (("x", 2.0), ("y", 3.0), ("z", 4.0)):
        three_places.write(item_id, written_s, publish_time_s=9_000.0)
    await three_places.are("xyz")
    three_places.write("w", 1.0)
    await asyncio.sleep(0.03)
    await three_places.are("xyz")


async def test_an_item_that_cannot_be_had_gives_its_place_up_to_others_and_comes_back_as_it_was(shop, three_places):
    for item_id, written_s in (("x", 1.0), ("y", 2.0), ("z", 3.0)):
        three_places.write(item_id, written_s)
    await three_places.are("xyz")
    for _ in range(5):
        shop.newcomers.please("z", np.array([0, 1], np.float32))
    three_places.write("z", 4.0, available=False)
    await three_places.are("xyz")  # nobody else needs it
    three_places.write("w", 0.5)
    await three_places.are("wxy")
    three_places.write("z", 5.0)
    await three_places.are("xyz")
    assert shop.newcomers.events[shop.newcomers.placed(["z"])] == [5]


async def test_items_that_were_left_out_have_places_when_others_go_the_newest_first(shop, three_places):
    for number, item_id in enumerate("stuvwxyz"):
        three_places.write(item_id, float(number))
    await three_places.are("xyz")
    shop.delete("y")
    await three_places.are("wxz")
    for item_id in "wxz":
        shop.delete(item_id)
    await three_places.are("uv")  # as many are remembered as there are places


async def test_texts_of_items_that_have_no_place_are_not_read(shop, three_places):
    for item_id in "xyz":
        three_places.write(item_id, 2.0)
    await three_places.are("xyz")
    shop.upsert(Item("w", title="east", update_time_s=1.0))
    await asyncio.sleep(0.03)
    assert shop.texts.calls == []
    shop.delete("x")
    await three_places.are("wyz")


# Similar items


@pytest.fixture
def alike(shop):
    """Of the letters content knows that a and b are in the east, and c in the north."""
    content = np.array([[0, 0], [1, 0], [1, 0], [0, 1], [0, 0], [0, 0]], np.float32)
    world = shop.world
    similar = SimilarItems(spaces_of(world.snapshot.embeddings, content))
    finder = ItemFinder(world.snapshot, similar, world.live, shop.new, lambda: world.clock.now_s)

    async def find(item_id, basis=None, **query):
        found = (await finder.find(ItemQuery(item_id, basis=basis, **query))).items
        return [item.item_id for item in found]

    return find


async def test_new_items_are_among_those_that_are_like_an_item(shop, alike):
    shop.upsert(Item("x", title="east of everything"), Item("y", title="north"))
    await shop.placed("x", "y")
    assert set(await alike("a", Basis.CONTENT, limit=2)) == {"b", "x"}
    assert (await alike("c", Basis.CONTENT))[0] == "y"
    assert "x" in await alike("a", Basis.BEHAVIOR, limit=10)
    assert "x" in await alike("a")


async def test_what_is_like_a_new_item_is_found(shop, alike):
    shop.upsert(Item("x", title="east of everything"), Item("z", title="far east"))
    await shop.placed("x", "z")
    assert set((await alike("x", Basis.CONTENT))[:3]) == {"a", "b", "z"}  # all of them are the east
    assert set((await alike("x", Basis.BEHAVIOR))[:2]) == {"a", "z"}
    assert set((await alike("x"))[:2]) == {"a", "z"}


async def test_a_new_item_that_may_not_appear_is_not_like_any(shop, alike):
    shop.upsert(Item("x", title="east", available=False), Item("z", title="east", tags=("t",)))
    await shop.placed("x", "z")
    assert "x" not in await alike("a")
    assert "z" not in await alike("a", exclude_item_ids=["z"])
    assert await alike("a", item_filter=HasTag(frozenset(["t"]))) == ["z"]
    assert "z" in await alike("x")  # what may not appear may be asked about


async def test_what_is_like_an_item_that_nobody_knows_cannot_be_found(alike):
    with pytest.raises(NotFound, match="'x' is not known"):
        await alike("x")


@pytest.fixture
def search(monkeypatch):
    """A search for similar items stops before it begins, until it may go on."""
    found = SimpleNamespace(begun=threading.Event(), may_go_on=threading.Event())
    find = SimilarItems.find

    def stopped(*arguments):
        found.begun.set()
        found.may_go_on.wait(SOON_S)
        return find(*arguments)

    monkeypatch.setattr(SimilarItems, "find", stopped)
    return found


@pytest.mark.parametrize("after", [Item("z", title="east", available=False), Item("z", title="east")])
async def test_a_new_item_that_goes_during_a_search_is_not_found_under_the_name_of_another(shop, alike, search, after):
    shop.upsert(Item("x", title="east"), Item("y", title="east"))
    await shop.placed("x", "y")
    searching = asyncio.create_task(alike("a"))
    await asyncio.to_thread(search.begun.wait, SOON_S)
    shop.delete("x")
    shop.upsert(after)
    await shop.placed("z")
    assert shop.new.numbers(["z"]) == shop.new.first  # which was x's
    search.may_go_on.set()
    assert {"x", "y", "z"} & set(await searching) == {"y"}


async def test_a_new_item_that_is_taken_away_during_a_search_is_not_found(shop, alike, search):
    shop.upsert(Item("x", title="east"))
    await shop.placed("x")
    searching = asyncio.create_task(alike("a"))
    await asyncio.to_thread(search.begun.wait, SOON_S)
    shop.upsert(Item("x", title="east", available=False))
    search.may_go_on.set()
    assert "x" not in await searching


async def test_new_items_are_compared_aside(shop, alike, monkeypatch):
    threads, cosines = [], shop.new.cosines

    def seen(*arguments):
        threads.append(threading.current_thread())
        return cosines(*arguments)

    monkeypatch.setattr(shop.new, "cosines", seen)
    shop.upsert(Item("x", title="east"))
    await shop.placed("x")
    await alike("a", Basis.BOTH)
    assert threads
    assert threading.main_thread() not in threads
