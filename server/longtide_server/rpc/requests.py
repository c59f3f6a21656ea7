"""Reads protobuf requests into domain values, and says which field is wrong when that cannot be."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence

from longtide.v1 import catalog_pb2, events_pb2, recommendation_pb2, users_pb2
from longtide_server.answers import Query
from longtide_server.attribution import MAX_SURFACE_BYTES
from longtide_server.errors import FieldViolation, InvalidInput
from longtide_server.event_store import Place
from longtide_server.events import MAX_BATCH_EVENTS, Event, id_violation, owner_key, owner_violation
from longtide_server.items.item_filter import ItemFilter
from longtide_server.rpc.filter_requests import read_filter
from longtide_server.serving.item_finder import ItemQuery
from longtide_server.sources.candidates import UNWEIGHTED, Source
from longtide_server.sources.similar_items import Basis

MAX_LIMIT = 1_000
DEFAULT_LIMIT = 10
MAX_ITEM_IDS = 10_000
MAX_SESSION_ITEMS = 1_000
MAX_ROWS = 1_000
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
MAX_SOURCE_WEIGHT = 10.0
PAGE_TOKEN = ">dq"
_SOURCES = frozenset(map(int, set(Source).difference(UNWEIGHTED)))
_BASES: Mapping[int, Basis | None] = {0: None} | {int(basis): basis for basis in Basis}


def read_event(message: events_pb2.Event) -> Event:
    """An event as it was sent; `events.violation` says whether it is valid."""
    time_s = message.event_time.seconds + message.event_time.nanos / 1e9
    return Event(
        event_id=message.event_id,
        user_id=message.user_id,
        item_id=message.item_id,
        type=message.type,
        time_s=time_s if message.HasField("event_time") else math.nan,
        value=message.value if message.HasField("value") else None,
        custom_type=message.custom_type,
        session_id=message.session_id,
        attribution_token=message.attribution_token,
    )


def check_batch(events: Sequence[events_pb2.Event]) -> None:
    """A batch holds 1 to 10,000 events."""
    if not 1 <= len(events) <= MAX_BATCH_EVENTS:
        raise InvalidInput.of("events", f"holds {len(events)} events; 1 to {MAX_BATCH_EVENTS} are allowed")


def read_query(message: recommendation_pb2.RecommendRequest, request_time_s: float | None) -> Query:
    """A request for recommendations, at a time that the message may say better; InvalidInput names what is wrong."""
    least = message.min_similarity if message.HasField("min_similarity") else None
    item_filter, filter_violations = _filter("filter", message.HasField("filter"), message.filter)
    interests, interests_violations = _filter("interests", message.HasField("interests"), message.interests)
    source_weights, weights_violations = _source_weights(message.source_weights)
    raise_for(
        [
            owner_violation(message.user_id, message.session_id),
            _limit_violation(message.limit) if message.HasField("limit") else None,
            _similarity_violation(least),
            _time_violation(message),
            _surface_violation(message.surface),
            *_ids_violations("exclude_item_ids", message.exclude_item_ids, 0, MAX_ITEM_IDS),
            *_ids_violations("session_item_ids", message.session_item_ids, 0, MAX_SESSION_ITEMS),
            *_ids_violations("include_items.item_ids", message.include_items.item_ids, 0, MAX_ITEM_IDS),
            *filter_violations,
            *interests_violations,
            *weights_violations,
        ]
    )
    return Query(
        user_id=message.user_id,
        limit=message.limit if message.HasField("limit") else DEFAULT_LIMIT,
        exclude_item_ids=message.exclude_item_ids,
        session_item_ids=message.session_item_ids,
        min_similarity=least,
        request_time_s=_request_time_s(message, request_time_s),
        session_id=message.session_id,
        surface=message.surface,
        item_filter=item_filter,
        include_item_ids=message.include_items.item_ids if message.HasField("include_items") else None,
        source_weights=source_weights,
        interests=interests,
        include_seen=message.include_seen,
    )


def read_rank_query(message: recommendation_pb2.RankRequest, request_time_s: float | None) -> Query:
    """Who wants an order, and when; InvalidInput names every field of the request that is wrong."""
    raise_for(
        [
            owner_violation(message.user_id, message.session_id),
            _time_violation(message),
            *_ids_violations("item_ids", message.item_ids, 1, MAX_ITEM_IDS),
            _repeated_violation("item_ids", message.item_ids),
            *_ids_violations("session_item_ids", message.session_item_ids, 0, MAX_SESSION_ITEMS),
        ]
    )
    return Query(
        user_id=message.user_id,
        limit=1,
        session_item_ids=message.session_item_ids,
        request_time_s=_request_time_s(message, request_time_s),
        session_id=message.session_id,
    )


def read_behavior_query(message: recommendation_pb2.PredictBehaviorRequest) -> Query:
    """Who is asked about; InvalidInput names every field of the request that is wrong."""
    raise_for(
        [
            owner_violation(message.user_id, message.session_id),
            *_ids_violations("item_ids", message.item_ids, 0, MAX_ITEM_IDS),
            _repeated_violation("item_ids", message.item_ids),
            *_ids_violations("session_item_ids", message.session_item_ids, 0, MAX_SESSION_ITEMS),
        ]
    )
    return Query(message.user_id, 1, session_item_ids=message.session_item_ids, session_id=message.session_id)


def read_similar_users(message: recommendation_pb2.ListSimilarUsersRequest) -> tuple[str, int, float | None]:
    """The owner, the limit and the least similarity asked for; InvalidInput names every field that is wrong."""
    least = message.min_similarity if message.HasField("min_similarity") else None
    raise_for(
        [
            owner_violation(message.user_id, message.session_id),
            _limit_violation(message.limit) if message.HasField("limit") else None,
            _similarity_violation(least),
        ]
    )
    owner = owner_key(message.user_id, message.session_id)
    return owner, message.limit if message.HasField("limit") else DEFAULT_LIMIT, least


def read_interests(message: recommendation_pb2.GetInterestsRequest) -> tuple[str, int]:
    """The owner and the limit asked for; InvalidInput names every field that is wrong."""
    raise_for(
        [
            owner_violation(message.user_id, message.session_id),
            _limit_violation(message.limit) if message.HasField("limit") else None,
        ]
    )
    return owner_key(message.user_id, message.session_id), message.limit if message.HasField("limit") else DEFAULT_LIMIT


def read_similar_items(message: recommendation_pb2.ListSimilarItemsRequest) -> ItemQuery:
    """A request for similar items; InvalidInput names every field that is wrong."""
    item_filter, filter_violations = _filter("filter", message.HasField("filter"), message.filter)
    known = message.basis in _BASES
    raise_for(
        [
            id_violation("item_id", message.item_id),
            _limit_violation(message.limit) if message.HasField("limit") else None,
            None if known else FieldViolation("basis", f"{message.basis} is not a basis of similarity"),
            *filter_violations,
            *_ids_violations("exclude_item_ids", message.exclude_item_ids, 0, MAX_ITEM_IDS),
        ]
    )
    return ItemQuery(
        item_id=message.item_id,
        limit=message.limit if message.HasField("limit") else DEFAULT_LIMIT,
        basis=_BASES[message.basis],
        item_filter=item_filter,
        exclude_item_ids=message.exclude_item_ids,
    )


def read_owner(field: str, message: users_pb2.Owner) -> str:
    """Whose data are meant; InvalidInput when nobody's are."""
    name = message.WhichOneof("name")
    if name is None:
        raise InvalidInput.of(field, "must name a user_id or a session_id")
    raise_for([id_violation(f"{field}.{name}", getattr(message, name))])
    return owner_key(message.user_id, message.session_id)


def read_page(message: users_pb2.ListUserEventsRequest) -> tuple[int, Place | None]:
    """The size of a page and where it begins; InvalidInput names the field that is wrong."""
    size = message.page_size if message.HasField("page_size") else DEFAULT_PAGE_SIZE
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise InvalidInput.of("page_size", f"is {size}; 1 to {MAX_PAGE_SIZE} are allowed")
    if not message.page_token:
        return size, None
    try:
        time_s, position = struct.unpack(PAGE_TOKEN, bytes.fromhex(message.page_token))
    except (ValueError, struct.error) as exc:
        raise InvalidInput.of("page_token", "is not one that this service has given") from exc
    return size, Place(time_s, position)


def page_token(place: Place) -> str:
    """Says where a page ended."""
    return struct.pack(PAGE_TOKEN, *place).hex()


def check_rows(message: recommendation_pb2.StreamRecommendRequest) -> None:
    """A message of a stream holds 1 to 1,000 requests."""
    if not 1 <= len(message.requests) <= MAX_ROWS:
        raise InvalidInput.of("requests", f"holds {len(message.requests)} requests; 1 to {MAX_ROWS} are allowed")


def raise_for(violations: Iterable[FieldViolation | None]) -> None:
    """Raise InvalidInput when anything is wrong."""
    wrong = tuple(violation for violation in violations if violation is not None)
    if wrong:
        raise InvalidInput("; ".join(f"{violation.field}: {violation.reason}" for violation in wrong), wrong)


def _filter(
    field: str, present: bool, message: catalog_pb2.ItemFilter
) -> tuple[ItemFilter | None, tuple[FieldViolation, ...]]:
    """The filter in a field of a request, if it is present, and what is wrong with it."""
    if not present:
        return None, ()
    try:
        return read_filter(field, message), ()
    except InvalidInput as exc:
        return None, exc.violations


def _source_weights(
    messages: Sequence[recommendation_pb2.SourceWeight],
) -> tuple[tuple[tuple[Source, float], ...], list[FieldViolation]]:
    """The weights by their sources, in the sources' order, and what is wrong with them."""
    weights: dict[Source, float] = {}
    wrong: list[FieldViolation] = []
    for index, message in enumerate(messages[: len(Source) + 1]):
        field = f"source_weights[{index}]"
        if message.source not in _SOURCES:
            wrong.append(FieldViolation(f"{field}.source", f"{message.source} is not a source that can be weighted"))
        elif Source(message.source) in weights:
            wrong.append(FieldViolation(f"{field}.source", f"{Source(message.source).name} is named twice"))
        elif not 0.0 <= message.weight <= MAX_SOURCE_WEIGHT:  # false for NaN
            wrong.append(
                FieldViolation(f"{field}.weight", f"is {message.weight}; 0 to {MAX_SOURCE_WEIGHT:g} is allowed")
            )
        else:
            weights[Source(message.source)] = message.weight
    return tuple(sorted(weights.items())), wrong


def _repeated_violation(field: str, ids: Sequence[str]) -> FieldViolation | None:
    return FieldViolation(field, "an item is listed twice") if len(set(ids)) < len(ids) else None


def _limit_violation(limit: int) -> FieldViolation | None:
    if 1 <= limit <= MAX_LIMIT:
        return None
    return FieldViolation("limit", f"is {limit}; 1 to {MAX_LIMIT} are allowed")


def _surface_violation(surface: str) -> FieldViolation | None:
    size = len(surface.encode())
    if size <= MAX_SURFACE_BYTES:
        return None
    return FieldViolation("surface", f"is {size} bytes long; at most {MAX_SURFACE_BYTES} are allowed")


def _time_violation(
    message: recommendation_pb2.RecommendRequest | recommendation_pb2.RankRequest,
) -> FieldViolation | None:
    if not message.HasField("request_time") or message.request_time.seconds >= 0:
        return None
    return FieldViolation("request_time", f"{message.request_time.seconds} s is not a time since 1970-01-01")


def _request_time_s(
    message: recommendation_pb2.RecommendRequest | recommendation_pb2.RankRequest, default: float | None
) -> float | None:
    if not message.HasField("request_time"):
        return default
    return message.request_time.seconds + message.request_time.nanos / 1e9


def _similarity_violation(value: float | None) -> FieldViolation | None:
    if value is None or -1.0 <= value <= 1.0:  # false for NaN
        return None
    return FieldViolation("min_similarity", f"is {value}; -1 to 1 is allowed")


def _ids_violations(field: str, ids: Sequence[str], least: int, most: int) -> list[FieldViolation]:
    if not least <= len(ids) <= most:
        return [FieldViolation(field, f"holds {len(ids)} ids; {least} to {most} are allowed")]
    found = (id_violation(f"{field}[{index}]", item_id) for index, item_id in enumerate(ids))
    return [violation for violation in found if violation is not None][:10]
