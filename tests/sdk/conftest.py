"""A small Longtide server behind real gRPC, in this process, and both clients in front of it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from concurrent import futures

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from longtide import AsyncClient, Client
from longtide.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)


def make_status(code, message, *details):
    """A status with google.rpc details, made by the real google.rpc packages."""
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)


def make_bad_request(violations):
    detail = error_details_pb2.BadRequest()
    for field, description in violations:
        detail.field_violations.add(field=field, description=description)
    return make_status(code_pb2.INVALID_ARGUMENT, "the request is wrong", detail)


class FakeServer(
    events_pb2_grpc.EventServiceServicer,
    recommendation_pb2_grpc.RecommendationServiceServicer,
    users_pb2_grpc.UserServiceServicer,
    snapshots_pb2_grpc.SnapshotServiceServicer,
    catalog_pb2_grpc.CatalogServiceServicer,
):
    """Keeps events by id, refuses those without a user, and fails as a test tells it to."""

    def __init__(self):
        self.port = 0
        self.credentials = None  # of a server that speaks TLS
        self.max_calls = None  # that may be under way, from the next start on
        self.health = health.HealthServicer()
        self.serving(True)
        self.stored = {}
        self.requests = []  # every request that arrived, failed ones included
        self.metadata = {}
        self.failures = deque()  # each is a status that one call fails with
        self.released = threading.Event()  # answers wait for it while `holding`
        self.holding = False
        self.together = threading.Barrier(1)  # calls wait for so many of them
        self.max_violations = 1_000
        self.lose_acknowledgement_of = None  # the batch that is stored, but breaks the stream before its answer
        self.last_words = grpc.StatusCode.UNAVAILABLE  # how it breaks; None ends it without an error
        self.acknowledge_every = 1
        self.stream_ended = threading.Event()
        self.sequence_numbers = []
        self.items = {}
        self.basis = recommendation_pb2.SIMILARITY_BASIS_BEHAVIOR  # it has learned from no content
        self.active = "old"  # of the snapshots "new" and "old"

    def start(self):
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=8),
            options=[("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=self.max_calls,
        )
        events_pb2_grpc.add_EventServiceServicer_to_server(self, self._server)
        recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(self, self._server)
        users_pb2_grpc.add_UserServiceServicer_to_server(self, self._server)
        snapshots_pb2_grpc.add_SnapshotServiceServicer_to_server(self, self._server)
        catalog_pb2_grpc.add_CatalogServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        address = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self.credentials)
        self._server.start()

    def stop(self):
        self._server.stop(0).wait()

    def restart(self):
        self.stop()
        self.start()

    def serving(self, yes):
        status = health_pb2.HealthCheckResponse.SERVING if yes else health_pb2.HealthCheckResponse.NOT_SERVING
        self.health.set("", status)

    @property
    def target(self):
        return f"127.0.0.1:{self.port}"

    def _arrived(self, request, context):
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.failures:
            context.abort_with_status(self.failures.popleft())
        self.together.wait(10)
        if self.holding:
            self.released.wait(30)

    def _store(self, events):
        errors, written = [], 0
        for index, event in enumerate(events):
            if not event.user_id:
                errors.append(
                    events_pb2.EventError(
                        index=index, event_id=event.event_id, field="user_id", reason="must not be empty"
                    )
                )
            elif event.event_id not in self.stored:
                self.stored[event.event_id] = event
                written += 1
        return written, len(events) - written - len(errors), errors

    def WriteEvents(self, request, context):
        self._arrived(request, context)
        written, duplicates, errors = self._store(request.events)
        if len(errors) == len(request.events):
            named = errors[: self.max_violations]
            context.abort_with_status(make_bad_request((f"events[{e.index}].{e.field}", e.reason) for e in named))
        return events_pb2.WriteEventsResponse(written_count=written, duplicate_count=duplicates, errors=errors)

    def StreamEvents(self, request_iterator, context):
        context.add_callback(self.stream_ended.set)
        answer = events_pb2.StreamEventsResponse()
        for request in request_iterator:
            self._arrived(request, context)
            self.sequence_numbers.append(request.sequence_number)
            written, duplicates, errors = self._store(request.events)
            if request.sequence_number == self.lose_acknowledgement_of:
                self.lose_acknowledgement_of = None
                if self.last_words is None:
                    return
                context.abort(self.last_words, "going away")
            answer.acknowledged_sequence_number = request.sequence_number
            answer.written_count += written
            answer.duplicate_count += duplicates
            for error in errors:
                answer.errors.add(sequence_number=request.sequence_number, error=error)
            if request.sequence_number % self.acknowledge_every == 0:
                yield answer
                answer = events_pb2.StreamEventsResponse()

    def _recommendation(self, request):
        response = recommendation_pb2.RecommendResponse(
            snapshot_id="snapshot-1", attribution_token="token-1", degraded=True, degraded_reason="the encoder is down"
        )
        for rank in range(request.limit):
            item = response.recommendations.add(item_id=f"{request.user_id}-{rank}", title=f"Title {rank}", score=0.5)
            item.sources.add(source=recommendation_pb2.SOURCE_ENCODER, probability=0.75)
            item.sources.add(source=99, probability=0.25)
            item.neighbors.add(user_id="bob", similarity=0.875)
            item.links.add(item_id="seen", relation="author", entity="Lem")
        return response

    def Recommend(self, request, context):
        self._arrived(request, context)
        return self._recommendation(request)

    def StreamRecommend(self, request_iterator, context):
        context.add_callback(self.stream_ended.set)
        for request in request_iterator:
            self._arrived(request, context)
            answer = recommendation_pb2.StreamRecommendResponse()
            for one in request.requests:
                result = answer.results.add(user_id=one.user_id)
                if one.user_id:
                    result.response.CopyFrom(self._recommendation(one))
                else:
                    result.error.code = code_pb2.INVALID_ARGUMENT
                    result.error.field, result.error.reason = "user_id", "must not be empty"
            yield answer

    def Rank(self, request, context):
        self._arrived(request, context)
        response = recommendation_pb2.RankResponse(snapshot_id="snapshot-1")
        for item_id in sorted(request.item_ids):
            response.items.add(item_id=item_id, score=0.5, known=True)
        return response

    def ListSimilarItems(self, request, context):
        self._arrived(request, context)
        items = [{"item_id": f"like-{request.item_id}", "title": "Alike", "similarity": 0.5}]
        return recommendation_pb2.ListSimilarItemsResponse(
            items=items,
            snapshot_id="snapshot-1",
            basis=self.basis,
        )

    def ListSimilarUsers(self, request, context):
        self._arrived(request, context)
        response = recommendation_pb2.ListSimilarUsersResponse(snapshot_id="snapshot-1")
        response.users.add(user_id="bob", similarity=0.875, next_item_ids=["a", "b"])
        return response

    def PredictBehavior(self, request, context):
        self._arrived(request, context)
        response = recommendation_pb2.PredictBehaviorResponse(snapshot_id="snapshot-1")
        response.types.add(type=events_pb2.EVENT_TYPE_PURCHASE, probability=0.75)
        response.types.add(type=99, probability=0.25)  # of a newer server
        for item_id in request.item_ids:
            response.values.add(item_id=item_id, value=4.5)
        return response

    def GetInterests(self, request, context):
        self._arrived(request, context)
        response = recommendation_pb2.GetInterestsResponse(snapshot_id="snapshot-1")
        response.long_term.add(category={"names": ["Books", "Crime"]}, share=0.75)
        response.long_term.add(tag="vegan", share=0.5)
        response.short_term.add(share=0.25)  # of a kind that a newer server knows
        return response

    def ListUserEvents(self, request, context):
        self._arrived(request, context)
        stored = list(self.stored.values())[int(request.page_token or 0) :]
        page = stored[: request.page_size]
        token = str(len(self.stored) - len(stored) + len(page)) if len(page) < len(stored) else ""
        return users_pb2.ListUserEventsResponse(events=page, next_page_token=token)

    def MergeUsers(self, request, context):
        self._arrived(request, context)
        if request.user_id == "bob":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "belongs to somebody else")
        return users_pb2.MergeUsersResponse(moved_count=7)

    def ExportUserData(self, request, context):
        self._arrived(request, context)
        for event in self.stored.values():
            yield users_pb2.ExportUserDataResponse(events=[event])

    def DeleteUserData(self, request, context):
        self._arrived(request, context)
        answer = users_pb2.DeleteUserDataResponse(deleted_count=len(self.stored))
        answer.deleted_time.FromSeconds(1_700_000_000)
        self.stored.clear()
        return answer

    def _snapshot(self, snapshot_id, context):
        if snapshot_id not in ("new", "old"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no snapshot {snapshot_id!r}")
        snapshot = snapshots_pb2.Snapshot(
            snapshot_id=snapshot_id, active=snapshot_id == self.active, user_count=3, item_count=2, event_count=7
        )
        snapshot.created_time.FromJsonString("2026-11-01T12:00:00.250Z")
        for source, name, value in (("fusion", "hr@10", 0.5), ("fusion", "ndcg@10", 0.25), ("encoder", "hr@10", 0.125)):
            snapshot.metrics.add(source=source, name=name, value=value)
        return snapshot

    def ListSnapshots(self, request, context):
        self._arrived(request, context)
        return snapshots_pb2.ListSnapshotsResponse(snapshots=[self._snapshot(one, context) for one in ("new", "old")])

    def GetSnapshot(self, request, context):
        self._arrived(request, context)
        return snapshots_pb2.GetSnapshotResponse(snapshot=self._snapshot(request.snapshot_id, context))

    def ActivateSnapshot(self, request, context):
        self._arrived(request, context)
        self._snapshot(request.snapshot_id, context)
        self.active = request.snapshot_id
        return snapshots_pb2.ActivateSnapshotResponse(snapshot=self._snapshot(request.snapshot_id, context))

    def UpsertItems(self, request, context):
        self._arrived(request, context)
        if "nonsense" in request.update_mask.paths:
            context.abort_with_status(make_bad_request([("update_mask", "'nonsense' cannot be changed")]))
        errors = [
            catalog_pb2.ItemError(index=index, item_id=item.item_id, field="price", reason="is too low")
            for index, item in enumerate(request.items)
            if item.price < 0
        ]
        if len(errors) == len(request.items):
            named = errors[: self.max_violations]
            context.abort_with_status(make_bad_request((f"items[{e.index}].{e.field}", e.reason) for e in named))
        self.items.update({item.item_id: item for item in request.items if item.price >= 0})
        return catalog_pb2.UpsertItemsResponse(written_count=len(request.items) - len(errors), errors=errors)

    def GetItem(self, request, context):
        self._arrived(request, context)
        if request.item_id not in self.items:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no item {request.item_id!r}")
        return catalog_pb2.GetItemResponse(item=self.items[request.item_id])

    def ListItems(self, request, context):
        self._arrived(request, context)
        ids = sorted(item_id for item_id in self.items if item_id > request.page_token)
        page = [self.items[item_id] for item_id in ids[: request.page_size]]
        token = page[-1].item_id if len(page) < len(ids) else ""
        return catalog_pb2.ListItemsResponse(items=page, next_page_token=token)

    def DeleteItems(self, request, context):
        self._arrived(request, context)
        there = [self.items.pop(item_id, None) for item_id in request.item_ids]
        return catalog_pb2.DeleteItemsResponse(deleted_count=sum(one is not None for one in there))


class BlockingAsyncClient:
    """An AsyncClient on a loop of its own, called like a Client, so that one test states the rule for both."""

    def __init__(self, target, **options):
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(target, options))

    async def _make(self, target, options):
        return AsyncClient(target, **options)

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if inspect.iscoroutinefunction(method):
            return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))
        return lambda *args, **kwargs: self._iterate(method(*args, **kwargs))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._runner.run(self._client.close())
        self._runner.close()

    def _iterate(self, iterator):
        end = object()

        async def following():
            return await anext(iterator, end)

        try:
            while (value := self._runner.run(following())) is not end:
                yield value
        finally:
            self._runner.run(iterator.aclose())


@pytest.fixture
def rich_status():
    return make_status


@pytest.fixture
def bad_request():
    return make_bad_request


@pytest.fixture
def server():
    fake = FakeServer()
    fake.start()
    yield fake
    fake.released.set()
    fake.stop()


@pytest.fixture(params=[Client, BlockingAsyncClient], ids=["sync", "async"])
def connect(request):
    """Makes a client of either kind."""
    return request.param


@pytest.fixture
def client(connect, server):
    with connect(server.target) as connected:
        yield connected
