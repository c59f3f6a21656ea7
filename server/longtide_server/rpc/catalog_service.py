"""The gRPC servicer of the catalogue: protobuf to domain and back, no logic."""

from __future__ import annotations

from collections.abc import Callable

from longtide.v1 import catalog_pb2, catalog_pb2_grpc
from longtide_server.catalog.catalog_writer import CatalogWriter
from longtide_server.catalog_store import CatalogStore, Upserted
from longtide_server.errors import NotFound
from longtide_server.items.item_filter import passes
from longtide_server.rpc import catalog_requests
from longtide_server.rpc.filter_requests import read_filter
from longtide_server.rpc.item_messages import write_item
from longtide_server.rpc.item_pages import listed
from longtide_server.rpc.status import Context, answered, remaining_s
from longtide_server.turns import Turns


class CatalogService(catalog_pb2_grpc.CatalogServiceServicer):
    """Reads the catalogue, and changes it so that it is felt."""

    def __init__(self, store: CatalogStore, writer: CatalogWriter, clock: Callable[[], float]) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    async def UpsertItems(
        self, request: catalog_pb2.UpsertItemsRequest, context: Context
    ) -> catalog_pb2.UpsertItemsResponse:
        """See the contract."""

        async def answer() -> catalog_pb2.UpsertItemsResponse:
            remaining_s(context)
            catalog_requests.check_batch(request)
            fields = catalog_requests.read_fields(request)
            batch = catalog_requests.Batch(fields)
            turns = Turns()
            for message in request.items:
                batch.read(message)
                await turns.pause()
            upserted = await self._writer.upsert(batch.items, fields, self._clock()) if batch.items else Upserted(0)
            errors = batch.errors(upserted.refused)
            return catalog_pb2.UpsertItemsResponse(written_count=upserted.written, errors=errors)

        return await answered(context, answer)

    async def GetItem(self, request: catalog_pb2.GetItemRequest, context: Context) -> catalog_pb2.GetItemResponse:
        """See the contract."""

        async def answer() -> catalog_pb2.GetItemResponse:
            remaining_s(context)
            item_id = catalog_requests.read_item_id(request)
            item = await self._store.get(item_id)
            if item is None:
                raise NotFound(f"there is no item {item_id!r}")
            return catalog_pb2.GetItemResponse(item=write_item(item))

        return await answered(context, answer)

    async def ListItems(self, request: catalog_pb2.ListItemsRequest, context: Context) -> catalog_pb2.ListItemsResponse:
        """See the contract."""

        async def answer() -> catalog_pb2.ListItemsResponse:
            remaining_s(context)
            size, after = catalog_requests.read_page(request)
            wanted = read_filter("filter", request.filter) if request.HasField("filter") else None
            page = await listed(self._store, size, after, lambda item: wanted is None or passes(wanted, item))
            token = "" if page.last is None else catalog_requests.page_token(page.last)
            return catalog_pb2.ListItemsResponse(items=page.messages, next_page_token=token)

        return await answered(context, answer)

    async def DeleteItems(
        self, request: catalog_pb2.DeleteItemsRequest, context: Context
    ) -> catalog_pb2.DeleteItemsResponse:
        """See the contract."""

        async def answer() -> catalog_pb2.DeleteItemsResponse:
            remaining_s(context)
            deleted = await self._writer.delete(catalog_requests.read_deleted(request))
            return catalog_pb2.DeleteItemsResponse(deleted_count=deleted)

        return await answered(context, answer)
