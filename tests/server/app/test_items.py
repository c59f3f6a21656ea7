"""What a running server knows of items, with the encoder in its own process."""

import asyncio
import time

import grpc
import pytest
from click.testing import CliRunner
from tests.redis_servers import cli
from tests.server.app.calls import recommended

from longtide import AsyncClient, Event, Item, NotFoundError, Source, Tags, UpsertResult
from longtide_server.app import running
from longtide_server.catalog import freshness
from longtide_server.catalog_store.redis import RedisCatalogStore
from longtide_server.cli import cli as commands
from longtide_server.errors import Unavailable


async def test_every_snapshot_that_is_served_knows_what_is_stored_of_items(config, copied):
    settings = config(snapshot_dir=copied("a", "b"))
    left = sorted(f"item-{n}" for n in range(12) if n not in (3, 4))
    async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:
        assert len(await recommended(channel)) == 12
        async with AsyncClient(address) as client:
            await client.upsert_items([Item("item-3", tags=["new"], available=False), Item("item-5", tags=["new"])])
            await client.delete_items(["item-4"])
            assert sorted(await recommended(channel)) == left
            await client.activate_snapshot("b")
            answer = await client.recommend("ann", filter=Tags("new") & ~Tags("old"))
        assert [item.item_id for item in answer] == ["item-5"]
        assert sorted(await recommended(channel)) == left
    async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:
        assert sorted(await recommended(channel)) == left


@pytest.fixture(scope="module")
def described_snapshots(tmp_path_factory):
    """Two kinds of letters, told apart by their tags, each liked by people of its own."""
    directory = tmp_path_factory.mktemp("described")
    log, items = directory / "log.csv", directory / "items.csv"
    kinds = {"early": "abcdefgh", "late": "stuvwxyz"}
    rows = [
        f"{kind}-{user},{letters[(user + step) % 8]},{1_700_000_000 + step}"
        for kind, letters in kinds.items()
        for user in range(16)
        for step in range(8)
    ]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    tags = [f"{letter},{kind}" for kind, letters in kinds.items() for letter in letters]
    items.write_text("\n".join(["item_id,tags", *tags]) + "\n")
    small = ("model.dim=8", "model.hidden=8", "train.epochs=12", "train.learning_rate=0.02")
    options = [part for one in small for part in ("--set", one)]
    out = directory / "snapshots"
    done = CliRunner().invoke(
        commands, ["train", str(log), "--items", str(items), "--text-model", "none", "--out", str(out), *options]
    )
    assert done.exit_code == 0, done.output
    return out


async def within_two_seconds(client, item_id):
    """What is recommended to ann once an item is among it."""
    async with asyncio.timeout(2.0):
        while True:
            found = {item.item_id: item.title for item in await client.recommend("ann", 17)}
            if item_id in found:
                return found
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_item_that_is_written_is_recommended_within_two_seconds(config, described_snapshots, workers):
    """Whichever worker is asked: each connection may be to another one."""
    settings = config(snapshot_dir=described_snapshots, explore_share=0.0, workers=workers)
    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event("ann", letter, "view", time=time.time()) for letter in "abc"])
        assert "new" not in [item.item_id for item in await client.recommend("ann", 17)]
        await client.upsert_items([Item("new", "A new one", tags=["early"]), Item("other", tags=["late"])])
        found = await within_two_seconds(client, "new")
        assert [*found].index("new") < 6  # ann likes the early ones
        assert found["new"] == "A new one"
        for _ in range(6):
            async with AsyncClient(address) as another:
                assert [*await within_two_seconds(another, "new")].index("new") < 6
        await client.upsert_items([Item("new", available=False)], ["available"])
        for _ in range(6):
            async with AsyncClient(address) as another:
                assert "new" not in [item.item_id for item in await another.recommend("ann", 17)]
    async with running(settings) as address, AsyncClient(address) as client:  # and what is stored is placed again
        await within_two_seconds(client, "other")


async def test_what_one_worker_takes_away_no_other_recommends_without_saying_that_it_is_behind(config):
    described = [Item(f"new-{n}", tags=[f"tag-{n}-{k}" for k in range(100)]) for n in range(500)]
    async with running(config(workers=2)) as address, AsyncClient(address) as client:
        for turn in range(2):
            await client.upsert_items([*described, Item(f"item-{turn}", available=False)])
            for _ in range(6):
                async with AsyncClient(address) as another:
                    answer = await another.recommend("ann", 12)
                    assert answer.degraded or f"item-{turn}" not in [item.item_id for item in answer]


async def test_answers_say_so_while_the_catalogue_of_others_cannot_be_asked(config, redis_port, monkeypatch):
    cli(redis_port, "flushall")
    monkeypatch.setattr(freshness, "STALE_AFTER_S", 0.2)
    settings = config(store=f"redis://127.0.0.1:{redis_port}", catalog_refresh_every_s=0.02)
    async with running(settings) as address, AsyncClient(address) as client:

        async def becomes(reason):
            async with asyncio.timeout(5.0):
                while True:
                    answer = await client.recommend("ann")
                    if reason in answer.degraded_reason and answer.degraded == bool(reason):
                        return
                    await asyncio.sleep(0.01)

        async def fails(self, since, limit):
            raise Unavailable("away")

        await becomes("")
        with monkeypatch.context() as patched:
            patched.setattr(RedisCatalogStore, "changes", fails)
            await becomes("the catalogue could not be asked: away")
            alike = await client.similar_items((await client.recommend("ann"))[0].item_id)
            assert (alike.degraded, alike.degraded_reason) == (True, "the catalogue could not be asked: away")
        await becomes("")


async def test_what_trends_and_what_is_like_an_item_are_asked_of_a_running_server(config, described_snapshots):
    async with running(config(snapshot_dir=described_snapshots)) as address, AsyncClient(address) as client:
        await client.write_events([Event(f"u{n}", "w", "view") for n in range(5)])
        others = {"encoder": 0, "neighbors": 0, "transitions": 0, "popularity": 0}
        [trend] = await client.recommend("somebody new", 1, source_weights=others | {"trending": 1})
        assert (trend.item_id, trend.sources[0].source) == ("w", Source.TRENDING)
        alike = [item.item_id for item in await client.similar_items("a", 7, "content")]
        assert sorted(alike) == list("bcdefgh")  # its tag is theirs


async def trending_now(client, count):
    """What trends, first to last."""
    others = {"encoder": 0, "neighbors": 0, "transitions": 0, "popularity": 0}
    found = await client.recommend("somebody new", count, source_weights=others | {"trending": 1})
    return [item.item_id for item in found if item.sources[0].source == Source.TRENDING]


async def test_what_trends_does_so_after_a_restart_and_under_another_snapshot(config, copied):
    settings = config(snapshot_dir=copied("a", "b"))
    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event(f"u{n}", "item-7", "view") for n in range(3)])
        await client.write_events([Event("u9", "item-5", "view")])
        assert await trending_now(client, 2) == ["item-7", "item-5"]
    async with running(settings) as address, AsyncClient(address) as client:
        assert await trending_now(client, 2) == ["item-7", "item-5"]
        await client.write_events([Event(f"v{n}", "item-5", "view") for n in range(5)])
        await client.activate_snapshot("b")
        assert await trending_now(client, 2) == ["item-5", "item-7"]
        await client.write_events([Event(f"w{n}", "item-7", "view") for n in range(9)])
        assert await trending_now(client, 2) == ["item-7", "item-5"]


async def how_new_suits(client, user_id):
    """The score of the item "new" among the early ones."""
    return next(item.score for item in await client.rank(user_id, ["new", *"abcdefgh"]) if item.item_id == "new")


async def test_new_items_stay_where_people_pulled_them_after_a_restart(config, described_snapshots):
    """An item of the late kind, chosen by early people, suits ann the better, who is one of them."""
    settings = config(snapshot_dir=described_snapshots, explore_share=0.0)

    async def suits_ann(client):
        await within_two_seconds(client, "new")  # so that it is placed
        return await how_new_suits(client, "ann")

    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event("ann", letter, "view", time=time.time()) for letter in "abc"])
        await client.upsert_items([Item("new", tags=["late"])])
        before = await suits_ann(client)
        for n in range(30):
            await client.write_events([Event(f"early-{n}", letter, "view") for letter in "abcdef"])
            await client.recommend(f"early-{n}")
            await client.write_events([Event(f"early-{n}", "new", "view")])
        pulled = await suits_ann(client)
        assert pulled > 1.5 * before
    async with running(settings) as address, AsyncClient(address) as client:
        assert await suits_ann(client) == pytest.approx(pulled, rel=1e-3)


async def test_people_who_never_ask_pull_new_items_too(config, described_snapshots):
    """An item of the late kind suits ann the better, who is an early one, once early people have turned to it."""
    settings = config(snapshot_dir=described_snapshots, explore_share=0.0)
    early = [Event(f"early-{n}", letter, "view") for n in range(30) for letter in "abcdef"]
    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event("ann", letter, "view", time=time.time()) for letter in "abc"])
        await client.write_events(early)
    async with running(settings) as address, AsyncClient(address) as client:
        await client.upsert_items([Item("new", tags=["late"])])
        await within_two_seconds(client, "new")
        before = await how_new_suits(client, "ann")
        await client.write_events([Event(f"early-{n}", "new", "view") for n in range(30)])
        async with asyncio.timeout(10.0):
            while True:
                await asyncio.sleep(0.05)
                if await how_new_suits(client, "ann") > 1.5 * before:
                    break


async def test_a_share_of_the_places_is_for_items_that_were_just_written(config, described_snapshots):
    settings = config(snapshot_dir=described_snapshots, explore_share=1.0)
    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event("ann", letter, "view", time=time.time()) for letter in "abc"])
        await client.upsert_items([Item(f"new-{n}", tags=["late"]) for n in range(20)])
        async with asyncio.timeout(2.0):
            while True:
                await asyncio.sleep(0.01)
                first, *others = await client.recommend("ann", 6)
                if Source.EXPLORATION in {item.sources[0].source for item in others}:
                    break
        assert first.sources[0].source != Source.EXPLORATION


async def test_two_servers_over_one_redis_have_one_catalogue(two_servers):
    here, there = two_servers
    mask = Item("i1", "Mask", price=12.5, text_vector=[1, 2], attributes={"refill": True})
    assert await here.upsert_items([mask]) == UpsertResult(1)
    assert await there.get_item("i1") == mask
    [error] = (await there.upsert_items([Item("i2", text_vector=[1, 2, 3]), Item("i3")])).errors
    assert (error.index, error.item_id, error.field) == (0, "i2", "text_vector")
    await there.upsert_items([Item("i1", price=9.0)], ["price"])
    assert (await here.get_item("i1")).price == 9.0
    assert [item.item_id async for item in here.list_items(page_size=1)] == ["i1", "i3"]
    assert await here.delete_items(["i1", "i1", "i9"]) == 1
    with pytest.raises(NotFoundError):
        await there.get_item("i1")


async def test_the_catalogue_survives_a_restart(config):
    items = [Item(f"i{n:04}", f"Title {n}") for n in range(1_200)]
    async with running(config()) as address, AsyncClient(address) as client:
        before_s = time.time()
        assert await client.upsert_items(items) == UpsertResult(1_200)
    async with running(config()) as address, AsyncClient(address) as client:
        found = [item async for item in client.list_items(page_size=1_000)]
        assert found == items
        assert all(before_s - 1 < item.update_time.timestamp() < time.time() + 1 for item in found)
