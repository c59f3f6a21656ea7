"""The Python SDK of Longtide, a real-time recommender: write what people do, ask what they want next."""

from longtide._answers import (
    Neighbor,
    RankedItem,
    Ranking,
    Recommendation,
    Recommendations,
    SimilarUser,
    SimilarUsers,
    Source,
    SourceShare,
)
from longtide._async_client import AsyncClient
from longtide._client import Client
from longtide._errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    InvalidEventsError,
    LongtideError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnknownError,
)
from longtide._filters import (
    AllOf,
    AnyOf,
    Available,
    Brands,
    Category,
    Domains,
    FlagAttribute,
    ItemFilter,
    Languages,
    NoneOf,
    NumberAttribute,
    Price,
    Published,
    Tags,
    TextAttribute,
)
from longtide._types import DeletedData, Event, EventError, EventType, FieldViolation, SnapshotInfo, WriteResult
from longtide._version import __version__

__all__ = [
    "AllOf",
    "AnyOf",
    "AsyncClient",
    "Available",
    "Brands",
    "Category",
    "Client",
    "DeadlineExceededError",
    "DeletedData",
    "Domains",
    "Event",
    "EventError",
    "EventType",
    "FailedPreconditionError",
    "FieldViolation",
    "FlagAttribute",
    "InternalError",
    "InvalidArgumentError",
    "InvalidEventsError",
    "ItemFilter",
    "Languages",
    "LongtideError",
    "Neighbor",
    "NoneOf",
    "NotFoundError",
    "NumberAttribute",
    "PermissionDeniedError",
    "Price",
    "Published",
    "RankedItem",
    "Ranking",
    "Recommendation",
    "Recommendations",
    "ResourceExhaustedError",
    "SimilarUser",
    "SimilarUsers",
    "SnapshotInfo",
    "Source",
    "SourceShare",
    "Tags",
    "TextAttribute",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownError",
    "WriteResult",
    "__version__",
]

# Tracebacks and documentation name the public home of each class, not the file that happens to hold it.
for _name in __all__:
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = "longtide"
