"""What callers are sent: answers as messages, the last ones kept until they are no longer true.

An answer depends on a user's history, a few settings of the request and what the catalogue says, and on nothing else as
long as the snapshot is the same. A user who asks again before they have done anything, and before the catalogue has
changed, is therefore sent what was worked out the first time: as bytes, which are small, and with a token of its own,
since it is shown a second time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from longtide.v1 import recommendation_pb2
from longtide_server.answers import Answer, Query
from longtide_server.event_store import Version, Written
from longtide_server.evidence import Asker
from longtide_server.observer import NOBODY, Observer
from longtide_server.recommender import Recommender

KEPT_BYTES = 128_000_000
OVERHEAD_BYTES = 500  # of a kept answer: its key and its version
SHOWN_BYTES = 80  # of an item of `shown`

ShownItems = Sequence[tuple[str, int]]
"""Items of an answer, each with the number of its first source."""
_Key = tuple[str, Hashable]
"""Who asks, and what else an answer depends on."""


@dataclass(frozen=True, slots=True)
class _Kept:
    version: tuple[Version, tuple[int, int, int, int]]
    """Of the history that it answers, and of the catalogue."""
    wire: bytes
    """A RecommendResponse without a token."""
    shown: ShownItems

    @property
    def size(self) -> int:
        """In bytes, about."""
        return len(self.wire) + SHOWN_BYTES * len(self.shown) + OVERHEAD_BYTES


class Responses:
    """The answers of one recommender, at most `capacity` of them, and `capacity_bytes`, kept."""

    def __init__(
        self,
        recommender: Recommender,
        shown: Callable[[str, ShownItems], str],
        capacity: int = 20_000,
        observer: Observer = NOBODY,
        capacity_bytes: int = KEPT_BYTES,
    ) -> None:
        """`shown` is told of every answer, where it is shown and what it holds, and gives its attribution token."""
        self.recommender = recommender
        self._shown = shown
        self._capacity = capacity
        self._observer = observer
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._keys: dict[str, set[_Key]] = {}
        """Of what is kept, by owner."""
        self.bytes = 0
        """What is kept takes, about."""

    @property
    def count(self) -> int:
        """How many answers are kept."""
        return len(self._kept)

    def apply(self, written: Written) -> None:
        """What is written needs no telling: an answer knows the version of the history that it answers."""

    def forget(self, names: Iterable[str]) -> None:
        """Keep nothing of owners whose history is another one now."""
        for name in names:
            for key in tuple(self._keys.get(name, ())):
                self._drop(key)

    async def recommend(self, query: Query, timeout_s: float) -> recommendation_pb2.RecommendResponse:
        """The best items, within `timeout_s`; see `Recommender.recommend`."""
        end_s = time.monotonic() + timeout_s
        asker = await self.recommender.asker(query.owner, timeout_s)
        depends_on = self.recommender.depends_on(query, asker)
        if depends_on is None:
            self._observer.answer_lookup("bypass")
            answer = await self.recommender.recommend_to(asker, query, end_s - time.monotonic())
            return self._with_token(query, write_answer(answer), shown_items(answer))
        key = (asker.user.owner, depends_on)
        kept, version = self._kept.get(key), self._version(asker, query)
        if kept is None or kept.version != version:
            self._observer.answer_lookup("miss")
            answer = await self.recommender.recommend_to(asker, query, end_s - time.monotonic())
            kept = _Kept(version, write_answer(answer).SerializeToString(), shown_items(answer))
            if self._version(asker, query) == version and not answer.degraded_reason and self._is_known(asker):
                self._keep(key, kept)
        else:
            self._observer.answer_lookup("hit")
            self._kept.move_to_end(key)
        return self._with_token(query, recommendation_pb2.RecommendResponse.FromString(kept.wire), kept.shown)

    def _version(self, asker: Asker, query: Query) -> tuple[Version, tuple[int, int, int, int]]:
        return asker.user.version, self.recommender.catalog_version(query)

    def _is_known(self, asker: Asker) -> bool:
        """Whether the one who asks has not been forgotten meanwhile."""
        return self.recommender.states.remembered(asker.user.owner) is asker.user

    def _keep(self, key: _Key, kept: _Kept) -> None:
        self._drop(key)
        self._kept[key] = kept
        self._keys.setdefault(key[0], set()).add(key)
        self.bytes += kept.size
        while len(self._kept) > self._capacity or self.bytes > self._capacity_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: _Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is None:
            return
        self.bytes -= kept.size
        self._keys[key[0]].discard(key)
        if not self._keys[key[0]]:
            del self._keys[key[0]]

    def _with_token(
        self, query: Query, response: recommendation_pb2.RecommendResponse, shown: ShownItems
    ) -> recommendation_pb2.RecommendResponse:
        response.attribution_token = self._shown(query.surface, shown)
        return response


def shown_items(answer: Answer) -> ShownItems:
    """What an answer shows."""
    return tuple((one.item_id, int(one.sources[0][0]) if one.sources else 0) for one in answer.recommendations)


def write_answer(answer: Answer) -> recommendation_pb2.RecommendResponse:
    """An answer as a message, without a token."""
    return recommendation_pb2.RecommendResponse(
        recommendations=[
            recommendation_pb2.Recommendation(
                item_id=item.item_id,
                title=item.title,
                score=item.score,
                sources=[
                    recommendation_pb2.SourceShare(source=int(source), probability=probability)  # type: ignore[arg-type]
                    for source, probability in item.sources
                ],
                neighbors=[
                    recommendation_pb2.Neighbor(user_id=voter.user_id, similarity=voter.similarity)
                    for voter in item.neighbors
                ],
                links=[
                    recommendation_pb2.RelationLink(item_id=one.item_id, relation=one.relation, entity=one.entity)
                    for one in item.links
                ],
            )
            for item in answer.recommendations
        ],
        snapshot_id=answer.snapshot_id,
        degraded=bool(answer.degraded_reason),
        degraded_reason=answer.degraded_reason,
    )
