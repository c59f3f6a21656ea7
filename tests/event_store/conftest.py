"""Every kind of event store, real: SQLite in a file of one's own or a shared one, a Redis server, a Redis cluster."""

import pytest

from longtide_server.event_store.urls import open_store
from longtide_server.events import Event, EventType


@pytest.fixture
def event():
    """Makes a valid event: event(event_id, item_id, time_s, user_id)."""

    def made(event_id, item_id="a", time_s=0.0, user_id="ann", **rest):
        return Event(event_id, user_id, item_id, rest.pop("type", EventType.VIEW), time_s, **rest)

    return made


@pytest.fixture
async def opened(store_url, store_kind):
    """Opens a store of the URL, as a server does that starts or starts again."""
    stores = []

    async def made():
        stores.append(await open_store(store_url, shared=store_kind == "shared-sqlite"))
        return stores[-1]

    yield made
    for store in stores:
        await store.close()


@pytest.fixture
async def store(opened):
    return await opened()
