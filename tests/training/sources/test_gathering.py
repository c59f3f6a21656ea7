import numpy as np

from longtide_server.sources.candidates import Candidates, Source
from longtide_server.training.sources.gathering import gathered, told_of

SIZES = [3, 1, 4, 1, 5]


async def users():
    """Five of them, with so many candidates."""
    for size in SIZES:
        yield Candidates(np.arange(1, size + 1), np.full((size, len(Source)), 0.1))


async def test_everybody_stays_where_there_is_room():
    who, told = await gathered(users(), [4, 0, 3, 1, 2], most=sum(SIZES))
    assert who.tolist() == [0, 1, 2, 3, 4]
    assert [len(found.items) for found in told] == SIZES


async def test_where_there_is_less_those_whom_the_draw_puts_last_go():
    who, told = await gathered(users(), [4, 0, 3, 1, 2], most=8)
    assert who.tolist() == [1, 3, 4]  # the first goes, and then the third
    assert [len(found.items) for found in told] == [1, 1, 5]


async def test_nobody_takes_the_place_of_somebody_before_them_for_having_less():
    who, _ = await gathered(users(), [0, 3, 1, 2, 4], most=4)
    assert who.tolist() == [0]  # the fourth had room beside the first, but the third is before them and had none


async def test_one_user_stays_however_many_candidates_they_have():
    who, _ = await gathered(users(), [0, 1, 2, 3, 4], most=0)
    assert who.tolist() == [0]


def test_sources_that_say_nothing_take_no_room():
    table = np.zeros((2, len(Source)))
    table[1, Source.TRANSITIONS - 1] = 0.5
    told = told_of(Candidates(np.array([4, 7]), table))
    assert told.items.tolist() == [4, 7]
    assert {source: column.tolist() for source, column in told.said.items()} == {Source.TRANSITIONS: [0.0, 0.5]}
