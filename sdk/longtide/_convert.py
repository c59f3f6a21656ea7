"""Turns the SDK's values into messages of the contract and back: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from longtide._answers import (
    Basis,
    Behavior,
    Interest,
    InterestKind,
    Interests,
    Neighbor,
    RankedItem,
    Ranking,
    Recommendation,
    Recommendations,
    RelationLink,
    SimilarItem,
    SimilarItems,
    SimilarUser,
    SimilarUsers,
    Source,
    SourceShare,
    TypeShare,
)
from longtide._batches import IDS_PER_MESSAGE
from longtide._errors import error_from_row
from longtide._filter_messages import filter_message
from longtide._filters import ItemFilter
from longtide._items import AttributeValue, Item
from longtide._types import DeletedData, Event, EventType, SnapshotInfo, number, text, texts, utc
from longtide.v1 import catalog_pb2, events_pb2, recommendation_pb2, snapshots_pb2, users_pb2

_TYPE_NUMBERS = {kind: events_pb2.EventType.Value(f"EVENT_TYPE_{kind.name}") for kind in EventType}
_TYPES = {number: kind for kind, number in _TYPE_NUMBERS.items()}
_SOURCE_NUMBERS = {
    source: recommendation_pb2.Source.Value(f"SOURCE_{source.name}") for source in Source if source != Source.UNKNOWN
}
_BASIS_NUMBERS = {basis: recommendation_pb2.SimilarityBasis.Value(f"SIMILARITY_BASIS_{basis.name}") for basis in Basis}
_BASES = {number: basis for basis, number in _BASIS_NUMBERS.items()}
_SOURCES = {number: source for source, number in _SOURCE_NUMBERS.items()}
_CONTRACT_NAMES = {"available": "availability"}


RowRequest = Callable[[str], recommendation_pb2.RecommendRequest]


def event_message(event: Event) -> events_pb2.Event:
    """The event as it is sent."""
    if not isinstance(event, Event):
        raise TypeError(f"events must be longtide.Event objects, not {type(event).__name__}: {event!r}")
    message = events_pb2.Event(
        event_id=event.event_id,
        user_id=event.user_id,
        item_id=event.item_id,
        type=_TYPE_NUMBERS[event.type],
        custom_type=event.custom_type,
        value=event.value,
        session_id=event.session_id,
        attribution_token=event.attribution_token,
    )
    message.event_time.FromDatetime(event.time)
    return message


def recommend_request(
    user_id: str,
    limit: int,
    exclude_item_ids: Iterable[str],
    min_similarity: float | None,
    session_items: Iterable[str],
    request_time: datetime | float | None,
    session_id: str = "",
    surface: str = "",
    wanted: ItemFilter | None = None,
    include_item_ids: Iterable[str] | None = None,
    source_weights: Mapping[str, float] | None = None,
    interests: ItemFilter | None = None,
    include_seen: bool = False,
) -> recommendation_pb2.RecommendRequest:
    """Asks for items for one user."""
    return recommendation_pb2.RecommendRequest(
        user_id=text("user_id", user_id),
        session_id=text("session_id", session_id),
        surface=text("surface", surface),
        limit=limit,
        exclude_item_ids=texts("exclude_item_ids", exclude_item_ids),
        min_similarity=min_similarity,
        session_item_ids=texts("session_items", session_items),
        request_time=_timestamp("request_time", request_time),
        filter=None if wanted is None else filter_message(wanted),
        include_items=_included(include_item_ids),
        source_weights=_source_weights(source_weights or {}),
        interests=None if interests is None else filter_message(interests),
        include_seen=include_seen,
    )


_UNWEIGHTED = (Source.EXPLORATION, Source.REPEATS)


def _source_weights(weights: Mapping[str, float]) -> list[recommendation_pb2.SourceWeight]:
    numbers = {str(source): number for source, number in _SOURCE_NUMBERS.items() if source not in _UNWEIGHTED}
    messages = []
    for name, weight in weights.items():
        if name not in numbers:
            raise ValueError(f"{name!r} is not a source: {', '.join(numbers)}")
        messages.append(recommendation_pb2.SourceWeight(source=numbers[name], weight=number("source_weights", weight)))
    return messages


def row_request(
    limit: int,
    min_similarity: float | None,
    request_time: datetime | float | None,
    surface: str,
    wanted: ItemFilter | None,
    include_item_ids: Iterable[str] | None,
    source_weights: Mapping[str, float] | None,
    include_seen: bool,
) -> RowRequest:
    """Asks for items for one user after another."""
    asked = recommend_request(
        "", limit, (), min_similarity, (), request_time, "", surface, wanted, include_item_ids, source_weights,
        include_seen=include_seen,
    )  # fmt: skip

    def row(user_id: str) -> recommendation_pb2.RecommendRequest:
        request = recommendation_pb2.RecommendRequest(user_id=text("user_id", user_id))
        request.MergeFrom(asked)
        return request

    return row


def rank_request(
    user_id: str,
    item_ids: Iterable[str],
    session_items: Iterable[str],
    request_time: datetime | float | None,
    session_id: str,
) -> recommendation_pb2.RankRequest:
    """Asks for an order of given items."""
    return recommendation_pb2.RankRequest(
        user_id=text("user_id", user_id),
        session_id=text("session_id", session_id),
        item_ids=texts("item_ids", item_ids),
        session_item_ids=texts("session_items", session_items),
        request_time=_timestamp("request_time", request_time),
    )


def similar_users_request(
    user_id: str, limit: int, min_similarity: float | None, session_id: str
) -> recommendation_pb2.ListSimilarUsersRequest:
    """Asks who is like a user."""
    return recommendation_pb2.ListSimilarUsersRequest(
        user_id=text("user_id", user_id),
        session_id=text("session_id", session_id),
        limit=limit,
        min_similarity=min_similarity,
    )


def behavior_request(
    user_id: str, item_ids: Iterable[str], session_items: Iterable[str], session_id: str
) -> recommendation_pb2.PredictBehaviorRequest:
    """Asks what a user does next."""
    return recommendation_pb2.PredictBehaviorRequest(
        user_id=text("user_id", user_id),
        session_id=text("session_id", session_id),
        item_ids=texts("item_ids", item_ids),
        session_item_ids=texts("session_items", session_items),
    )


def behavior(user_id: str, response: recommendation_pb2.PredictBehaviorResponse) -> Behavior:
    """What a user does next."""
    return Behavior(
        user_id=user_id,
        types=tuple(TypeShare(_TYPES.get(one.type, EventType.CUSTOM), one.probability) for one in response.types),
        values={one.item_id: one.value for one in response.values},
        snapshot_id=response.snapshot_id,
        degraded=response.degraded,
        degraded_reason=response.degraded_reason,
    )


def interests_request(user_id: str, limit: int, session_id: str) -> recommendation_pb2.GetInterestsRequest:
    """Asks what a user is interested in."""
    return recommendation_pb2.GetInterestsRequest(
        user_id=text("user_id", user_id), session_id=text("session_id", session_id), limit=limit
    )


def interests(user_id: str, response: recommendation_pb2.GetInterestsResponse) -> Interests:
    """What a user is interested in."""
    return Interests(
        user_id=user_id,
        long_term=tuple(map(_interest, response.long_term)),
        short_term=tuple(map(_interest, response.short_term)),
        snapshot_id=response.snapshot_id,
        degraded=response.degraded,
        degraded_reason=response.degraded_reason,
    )


def similar_items_request(
    item_id: str, limit: int, basis: str | None, wanted: ItemFilter | None, exclude_item_ids: Iterable[str]
) -> recommendation_pb2.ListSimilarItemsRequest:
    """Asks which items are like an item."""
    return recommendation_pb2.ListSimilarItemsRequest(
        item_id=text("item_id", item_id),
        limit=limit,
        basis=recommendation_pb2.SIMILARITY_BASIS_UNSPECIFIED if basis is None else _BASIS_NUMBERS[Basis(basis)],
        filter=None if wanted is None else filter_message(wanted),
        exclude_item_ids=texts("exclude_item_ids", exclude_item_ids),
    )


def similar_items(item_id: str, response: recommendation_pb2.ListSimilarItemsResponse) -> SimilarItems:
    """Which items are like an item."""
    return SimilarItems(
        item_id=item_id,
        entries=tuple(SimilarItem(item.item_id, item.title, item.similarity) for item in response.items),
        snapshot_id=response.snapshot_id,
        basis=_BASES.get(response.basis),
        degraded=response.degraded,
        degraded_reason=response.degraded_reason,
    )


def owner(user_id: str, session_id: str) -> users_pb2.Owner:
    """Whose data are meant: a user's, or an anonymous session's."""
    if bool(user_id) == bool(session_id):
        raise ValueError("name either a user or a session")
    if user_id:
        return users_pb2.Owner(user_id=text("user_id", user_id))
    return users_pb2.Owner(session_id=text("session_id", session_id))


def user_events_request(owner: users_pb2.Owner, page_size: int, page_token: str) -> users_pb2.ListUserEventsRequest:
    """Asks for a page of somebody's events."""
    return users_pb2.ListUserEventsRequest(owner=owner, page_size=page_size, page_token=page_token)


def merge_request(source_user_id: str, session_id: str, user_id: str) -> users_pb2.MergeUsersRequest:
    """Asks to join a history to a user's."""
    if bool(source_user_id) == bool(session_id):
        raise ValueError("say whose history it is: either session_id or source_user_id")
    return users_pb2.MergeUsersRequest(source=owner(source_user_id, session_id), user_id=text("user_id", user_id))


def events(messages: Iterable[events_pb2.Event]) -> list[Event]:
    """Events as they were written."""
    return [
        Event(
            message.user_id,
            message.item_id,
            _TYPES.get(message.type, EventType.CUSTOM),
            time=message.event_time.ToDatetime(UTC),
            value=message.value if message.HasField("value") else None,
            event_id=message.event_id,
            session_id=message.session_id,
            custom_type=message.custom_type,
            attribution_token=message.attribution_token,
        )
        for message in messages
    ]


def deleted_data(response: users_pb2.DeleteUserDataResponse) -> DeletedData:
    """What became of somebody's data."""
    return DeletedData(response.deleted_count, response.deleted_time.ToDatetime(UTC))


def item_message(item: Item) -> catalog_pb2.Item:
    """The item as it is sent."""
    if not isinstance(item, Item):
        raise TypeError(f"items must be longtide.Item objects, not {type(item).__name__}: {item!r}")
    return catalog_pb2.Item(
        item_id=item.item_id,
        title=item.title,
        description=item.description,
        categories=[catalog_pb2.CategoryPath(names=names) for names in item.categories],
        tags=item.tags,
        brand=item.brand,
        price=item.price,
        publish_time=_timestamp("publish_time", item.publish_time),
        expire_time=_timestamp("expire_time", item.expire_time),
        availability=catalog_pb2.AVAILABILITY_AVAILABLE if item.available else catalog_pb2.AVAILABILITY_UNAVAILABLE,
        language=item.language,
        text_vector=_vector(item.text_vector),
        image_vector=_vector(item.image_vector),
        attributes=[_attribute(name, value) for name, value in item.attributes.items()],
        domain=item.domain,
    )


def item(message: catalog_pb2.Item) -> Item:
    """An item as it is stored."""
    return Item(
        message.item_id,
        message.title,
        description=message.description,
        categories=[tuple(path.names) for path in message.categories],
        tags=message.tags,
        brand=message.brand,
        price=message.price if message.HasField("price") else None,
        publish_time=message.publish_time.ToDatetime(UTC) if message.HasField("publish_time") else None,
        expire_time=message.expire_time.ToDatetime(UTC) if message.HasField("expire_time") else None,
        available=message.availability != catalog_pb2.AVAILABILITY_UNAVAILABLE,
        language=message.language,
        text_vector=message.text_vector.values if message.HasField("text_vector") else None,
        image_vector=message.image_vector.values if message.HasField("image_vector") else None,
        attributes={
            one.name: getattr(one, kind) for one in message.attributes if (kind := one.WhichOneof("value")) is not None
        },
        domain=message.domain,
        update_time=message.update_time.ToDatetime(UTC) if message.HasField("update_time") else None,
    )


def field_mask(fields: Iterable[str] | None) -> FieldMask | None:
    """Which fields a write changes, by the names of Item's attributes or of the contract; None for all."""
    if fields is None:
        return None
    return FieldMask(paths=[_CONTRACT_NAMES.get(name, name) for name in texts("fields", fields)])


def item_request(item_id: str) -> catalog_pb2.GetItemRequest:
    """Asks for one item."""
    return catalog_pb2.GetItemRequest(item_id=text("item_id", item_id))


def items_request(page_size: int, page_token: str, wanted: ItemFilter | None) -> catalog_pb2.ListItemsRequest:
    """Asks for a page of items."""
    return catalog_pb2.ListItemsRequest(
        page_size=page_size, page_token=page_token, filter=None if wanted is None else filter_message(wanted)
    )


def delete_items_requests(item_ids: Iterable[str]) -> Iterator[catalog_pb2.DeleteItemsRequest]:
    """Ask for items to be deleted, in as many messages as it takes."""
    ids = texts("item_ids", item_ids)
    for at in range(0, len(ids), IDS_PER_MESSAGE):
        yield catalog_pb2.DeleteItemsRequest(item_ids=ids[at : at + IDS_PER_MESSAGE])


def snapshot_request(snapshot_id: str) -> snapshots_pb2.GetSnapshotRequest:
    """Asks what a snapshot is."""
    return snapshots_pb2.GetSnapshotRequest(snapshot_id=text("snapshot_id", snapshot_id))


def activate_request(snapshot_id: str) -> snapshots_pb2.ActivateSnapshotRequest:
    """Asks to serve a snapshot."""
    return snapshots_pb2.ActivateSnapshotRequest(snapshot_id=text("snapshot_id", snapshot_id))


def snapshot_info(message: snapshots_pb2.Snapshot) -> SnapshotInfo:
    """What a snapshot is."""
    metrics: dict[str, dict[str, float]] = {}
    for metric in message.metrics:
        metrics.setdefault(metric.source, {})[metric.name] = metric.value
    return SnapshotInfo(
        snapshot_id=message.snapshot_id,
        created_time=message.created_time.ToDatetime(UTC),
        active=message.active,
        user_count=message.user_count,
        item_count=message.item_count,
        event_count=message.event_count,
        metrics=metrics,
    )


def recommendations(user_id: str, response: recommendation_pb2.RecommendResponse) -> Recommendations:
    """The answer for one user."""
    return Recommendations(
        user_id=user_id,
        entries=tuple(map(_recommendation, response.recommendations)),
        snapshot_id=response.snapshot_id,
        degraded=response.degraded,
        degraded_reason=response.degraded_reason,
        attribution_token=response.attribution_token,
    )


def row(result: recommendation_pb2.RecommendResult) -> Recommendations:
    """The answer for one row of a stream, or the row's error."""
    if result.WhichOneof("outcome") == "response":
        return recommendations(result.user_id, result.response)
    error = result.error
    return Recommendations(user_id=result.user_id, error=error_from_row(error.code, error.field, error.reason))


def ranking(user_id: str, response: recommendation_pb2.RankResponse) -> Ranking:
    """The order of given items."""
    return Ranking(
        user_id=user_id,
        entries=tuple(RankedItem(item.item_id, item.score, item.known) for item in response.items),
        snapshot_id=response.snapshot_id,
        degraded=response.degraded,
        degraded_reason=response.degraded_reason,
    )


def similar_users(user_id: str, response: recommendation_pb2.ListSimilarUsersResponse) -> SimilarUsers:
    """Who is like a user."""
    return SimilarUsers(
        user_id=user_id,
        entries=tuple(SimilarUser(user.user_id, user.similarity, tuple(user.next_item_ids)) for user in response.users),
        snapshot_id=response.snapshot_id,
        degraded=response.degraded,
        degraded_reason=response.degraded_reason,
    )


def _interest(message: recommendation_pb2.Interest) -> Interest:
    kind = InterestKind(message.WhichOneof("kind") or "unknown")
    if kind is InterestKind.CATEGORY:
        return Interest(kind, tuple(message.category.names), message.share)
    return Interest(kind, "" if kind is InterestKind.UNKNOWN else getattr(message, kind), message.share)


def _included(item_ids: Iterable[str] | None) -> recommendation_pb2.ItemIds | None:
    return None if item_ids is None else recommendation_pb2.ItemIds(item_ids=texts("include_item_ids", item_ids))


def _timestamp(name: str, time: datetime | float | None) -> Timestamp | None:
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(utc(name, time))
    return message


def _vector(values: tuple[float, ...] | None) -> catalog_pb2.Vector | None:
    return None if values is None else catalog_pb2.Vector(values=values)


def _attribute(name: str, value: AttributeValue) -> catalog_pb2.Attribute:
    if isinstance(value, bool):
        return catalog_pb2.Attribute(name=name, flag=value)
    if isinstance(value, str):
        return catalog_pb2.Attribute(name=name, text=value)
    return catalog_pb2.Attribute(name=name, number=value)


def _recommendation(message: recommendation_pb2.Recommendation) -> Recommendation:
    return Recommendation(
        item_id=message.item_id,
        title=message.title,
        score=message.score,
        sources=tuple(
            SourceShare(_SOURCES.get(share.source, Source.UNKNOWN), share.probability) for share in message.sources
        ),
        neighbors=tuple(Neighbor(neighbor.user_id, neighbor.similarity) for neighbor in message.neighbors),
        links=tuple(RelationLink(link.item_id, link.relation, link.entity) for link in message.links),
    )
