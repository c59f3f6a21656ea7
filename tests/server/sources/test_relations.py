"""What items share, worked out by hand: Alien and Blade Runner have a director, Alien and Aliens a series."""

import numpy as np
import pytest

from longtide_server.items.text_arrays import bytes_of_names
from longtide_server.sources.relations import Path, RelationArrays, Relations

ALIEN, BLADE, ALIENS, UP = 1, 2, 3, 4
DIRECTOR, SERIES = 0, 1
NOW = 0.5  # what an item counts against the one after it


@pytest.fixture
def relations():
    """Blade Runner is chosen three times as often as Legend (5), of the same director; of Up nothing is known."""
    return Relations(
        RelationArrays(
            offsets=np.array([0, 0, 2, 3, 4, 4, 5]),
            entity=np.array([0, 1, 0, 1, 0], np.int32),
            relation=np.array([DIRECTOR, SERIES, DIRECTOR, SERIES, DIRECTOR], np.int32),
            member_offsets=np.array([0, 3, 5]),
            members=np.array([ALIEN, BLADE, 5, ALIEN, ALIENS], np.int32),
            prior=np.array([9, 3, 1, 9, 2], np.float32),
            weight=np.array([0.2, 0.6], np.float32),
            relation_names=bytes_of_names(["director", "series"]),
            entity_names=bytes_of_names(["Scott", "Alien series"]),
        )
    )


def votes(relations, *recent):
    found = relations.votes(np.array(recent, np.int64), NOW)
    return dict(zip(found.items.tolist(), found.probability.tolist(), strict=True))


def test_a_relations_weight_is_divided_among_what_it_links_to_by_how_often_each_is_chosen(relations):
    # .6 to Aliens, .2 to the other films of the director: three quarters to Blade Runner
    assert votes(relations, ALIEN) == pytest.approx({ALIENS: 0.75, BLADE: 0.1875, 5: 0.0625})


def test_the_last_item_counts_most(relations):
    # From Aliens .6 to Alien; from Blade Runner, one step before, .2 to Alien (9 of 10) and Legend, halved
    assert votes(relations, BLADE, ALIENS) == pytest.approx({ALIEN: 0.69 / 0.7, 5: 0.01 / 0.7})


def test_where_nothing_is_known_nothing_is_said(relations):
    assert votes(relations) == votes(relations, UP) == {}
    assert relations.paths(np.array([UP, ALIEN]), UP, NOW) == ()


def test_an_item_does_not_link_to_itself(relations):
    assert ALIEN not in votes(relations, ALIEN)
    assert relations.paths(np.array([ALIEN]), ALIEN, NOW) == ()


def test_a_path_says_what_both_items_share_the_strongest_first(relations):
    assert relations.paths(np.array([ALIEN]), BLADE, NOW) == (Path(ALIEN, "director", "Scott"),)
    found = relations.paths(np.array([BLADE, ALIENS, UP]), ALIEN, NOW)
    assert found == (Path(ALIENS, "series", "Alien series"), Path(BLADE, "director", "Scott"))


def test_a_relation_of_no_weight_says_nothing():
    nothing = Relations(
        RelationArrays(
            offsets=np.array([0, 0, 1, 2]),
            entity=np.array([0, 0], np.int32),
            relation=np.array([0, 0], np.int32),
            member_offsets=np.array([0, 2]),
            members=np.array([1, 2], np.int32),
            prior=np.ones(2, np.float32),
            weight=np.zeros(1, np.float32),
            relation_names=bytes_of_names(["language"]),
            entity_names=bytes_of_names(["English"]),
        )
    )
    assert votes(nothing, 1) == {}
    assert nothing.paths(np.array([1]), 2, NOW) == ()
