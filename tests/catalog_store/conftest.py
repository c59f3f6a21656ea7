"""Stores of the catalogue over every kind of storage, as servers open them."""

import pytest

from longtide_server.stores import open_stores


@pytest.fixture
async def opened(store_url, store_kind):
    """Opens the stores of a URL, as a server does that starts or starts again; yields the catalogue's."""
    opened = []

    async def made():
        opened.append(await open_stores(store_url, shared=store_kind == "shared-sqlite"))
        return opened[-1].items

    async def close():
        while opened:
            await opened.pop().events.close()

    made.close = close
    yield made
    await close()


@pytest.fixture
async def store(opened):
    return await opened()
