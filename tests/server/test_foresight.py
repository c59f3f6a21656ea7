"""What somebody does next, read by a head that can be worked out by eye."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest

from longtide_server import recommender as recommender_module
from longtide_server.answers import Query
from longtide_server.errors import Conflict, EncoderUnavailable
from longtide_server.events import EventType
from longtide_server.sources.behavior import BehaviorWeights

SOON_S = 5.0


def head() -> BehaviorWeights:
    """Views are three times as probable as purchases at a, and as probable at d; a value is 3 + 2 max(0, cosine)."""
    types = len(EventType) + 1
    bias = np.full(types, -100.0, np.float32)
    bias[[EventType.VIEW, EventType.PURCHASE]] = 0.0
    view = np.zeros((types, 2), np.float32)
    view[EventType.VIEW, 0] = math.log(3) / math.sqrt(2)
    cosine = np.array([[0, 0, 0, 0, 0.5, 0.5], [0] * 6], np.float32)  # of both vectors and their product, the latter
    return BehaviorWeights(
        view, bias, cosine, np.zeros(2, np.float32), np.array([1, 0], np.float32), np.zeros(1, np.float32),
        np.array([3, 2], np.float32),
    )  # fmt: skip


@pytest.fixture
def told(make_world, make_snapshot):
    """A world whose snapshot foresees types and values."""
    snapshot = make_snapshot()
    manifest = replace(snapshot.manifest, model={"use_values": True})
    return make_world(snapshot=replace(snapshot, manifest=manifest, behavior=head()))


async def behavior(world, item_ids=(), **query):
    return await world.recommender.behavior(Query(**{"user_id": "ann"} | query), item_ids, SOON_S)


async def test_every_type_has_its_probability_the_most_probable_first(told):
    await told.did("ann", "a")
    found = await behavior(told)
    assert [kind for kind, _ in found.types[:2]] == [EventType.VIEW, EventType.PURCHASE]
    assert [share for _, share in found.types[:2]] == pytest.approx([0.75, 0.25])
    assert {kind for kind, _ in found.types} == set(EventType)
    assert sum(share for _, share in found.types) == pytest.approx(1.0)
    assert (found.values, found.degraded_reason) == ((), "")


async def test_known_items_get_their_values_in_the_order_asked(told):
    await told.did("ann", "a")
    found = await behavior(told, ["d", "zz", "a", "b"])
    assert [item for item, _ in found.values] == ["d", "a", "b"]
    assert [value for _, value in found.values] == pytest.approx([3.0, 5.0, 3.0 + math.sqrt(3)], abs=1e-5)


async def test_while_values_are_foreseen_others_have_their_turn(told, held):
    await told.did("ann", "a")
    found, _ = await asyncio.gather(behavior(told, ["a"]), held(recommender_module, "foreseen"))
    assert [item for item, _ in found.values] == ["a"]


async def test_what_was_just_viewed_counts(told):
    await told.did("ann", "a")
    found = await behavior(told, ["a"], session_item_ids=("d",))
    assert found.types[0][1] == pytest.approx(0.5)
    assert dict(found.values)["a"] == pytest.approx(3.0, abs=1e-5)


async def test_of_somebody_without_events_nothing_is_foreseen(told):
    found = await behavior(told, ["a"], user_id="nobody")
    assert (found.types, found.values, found.degraded_reason) == ((), (), "")


async def test_without_the_encoder_the_last_known_state_foresees(told):
    await told.did("ann", "a")
    await behavior(told)
    await told.did("ann", "d")
    told.encoder.failure = EncoderUnavailable("down")
    found = await behavior(told)
    assert found.types[0][1] == pytest.approx(0.75)
    assert found.degraded_reason == "the encoder could not be asked: down"


async def test_a_log_without_values_foresees_types_alone(told, make_world):
    world = make_world(snapshot=replace(told.snapshot, manifest=replace(told.snapshot.manifest, model={})))
    await world.did("ann", "a")
    found = await behavior(world, ["a"])
    assert len(found.types) == len(EventType)
    assert found.values == ()


async def test_a_snapshot_that_learned_no_behaviour_says_so(world):
    with pytest.raises(Conflict, match="it foresees no behaviour"):
        await behavior(world)
