"""Who is behind an answer, against looking at every moment for every item."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longtide_server.answers import Voter
from longtide_server.explanations import NEIGHBORS_SHOWN, voters
from longtide_server.sources.neighbors import Neighbors

MOMENTS = 40
OWNERS = [*(f"user:user-{n}" for n in range(5)), "session:user-5"]


def snapshot(next_items, users):
    positions = SimpleNamespace(next_item=np.array(next_items, np.int32), user=np.array(users, np.int32))
    return SimpleNamespace(neighbors=SimpleNamespace(positions=positions), owners=OWNERS)


def found(*moments):
    """Moments from the most similar one to the least."""
    return Neighbors(np.array(moments, np.int64), np.linspace(1.0, 0.5, len(moments)).astype(np.float32))


def test_each_person_is_named_once_at_their_most_similar_moment():
    known = snapshot(next_items=[7, 7, 8, 7], users=[2, 1, 1, 2])
    seven, eight, nine = voters(known, found(1, 3, 0, 2), [7, 8, 9])
    assert [(one.user_id, round(one.similarity, 2)) for one in seven] == [("user-1", 1.0), ("user-2", 0.83)]
    assert [one.user_id for one in eight] == ["user-1"]
    assert nine == ()


@given(
    st.lists(st.integers(1, 4), min_size=MOMENTS, max_size=MOMENTS),
    st.lists(st.integers(0, 5), min_size=MOMENTS, max_size=MOMENTS),
    st.permutations(range(MOMENTS)).map(lambda moments: moments[:25]),
)
def test_the_first_few_people_of_every_item_are_named(next_items, users, moments):
    known, neighbors = snapshot(next_items, users), found(*moments)
    for number, named in zip([1, 2, 3, 4], voters(known, neighbors, [1, 2, 3, 4]), strict=True):
        expected = {}
        for moment, similarity in zip(moments, neighbors.similarity.tolist(), strict=True):
            if next_items[moment] == number and users[moment] != 5:  # an anonymous session
                expected.setdefault(users[moment], Voter(f"user-{users[moment]}", similarity))
        assert named == tuple(expected.values())[:NEIGHBORS_SHOWN]
