"""Calls of a running server by the generated stubs."""

from google.protobuf import timestamp_pb2

from longtide.v1 import events_pb2, events_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc


def event(event_id, item_id="item-3", user_id="ann"):
    return events_pb2.Event(
        event_id=event_id,
        user_id=user_id,
        item_id=item_id,
        type=events_pb2.EVENT_TYPE_VIEW,
        event_time=timestamp_pb2.Timestamp(seconds=1_700_000_000),
    )


async def write(channel, *events):
    return await events_pb2_grpc.EventServiceStub(channel).WriteEvents(events_pb2.WriteEventsRequest(events=events))


async def recommended(channel, user_id="ann"):
    stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
    answer = await stub.Recommend(recommendation_pb2.RecommendRequest(user_id=user_id, limit=12))
    assert not answer.degraded, answer.degraded_reason
    return [item.item_id for item in answer.recommendations]
