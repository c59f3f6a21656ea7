"""The fusion's order, worked out by hand: one rule a test."""

import numpy as np
import pytest

from longtide_server.ranking import Fusion, Repeats, log_features, rank, with_repeats
from longtide_server.sources.candidates import Candidates, Scored, Source

EVERY = list(Source)
ENCODER_ONLY = Fusion(encoder=1.0, neighbors=0.0, transitions=0.0, popularity=0.0, floor=0.1)


def candidates(**rows):
    """candidates(i1=(.5, 0, 0, 0)): what encoder, neighbours, transitions and popularity say of item 1."""
    items = np.array([int(name[1:]) for name in rows], np.int64)
    return Candidates(items, columns(list(rows.values())))


def columns(first):
    """(C, sources) of rows that say what the first few sources say; the others say nothing."""
    said = np.array(first, float).reshape(len(first), -1 if first else 0)
    return np.pad(said, ((0, 0), (0, len(Source) - said.shape[1])))


def test_the_floor_spreads_a_share_over_the_catalogue():
    # 10 items: .9 x .5 + .1 / 10 = .46, and .01 where a source brings nothing
    assert np.exp(log_features(np.array([[0.5, 0.0]]), 0.1, 10)).tolist() == [pytest.approx([0.46, 0.01])]


def test_the_likelier_item_comes_first():
    ranked = rank(candidates(i1=(0.1, 0, 0, 0), i2=(0.6, 0, 0, 0), i3=(0.3, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 10)
    assert ranked.items.tolist() == [2, 3, 1]
    assert ranked.probability[:, 0].tolist() == [0.6, 0.3, 0.1]


def test_scores_are_shares_of_the_product_of_floored_probabilities():
    # Encoder .46 and .01, neighbours .01 and .91; weights 1 and 2: .46 x .0001 against .01 x .8281
    fusion = Fusion(encoder=1.0, neighbors=2.0, transitions=0.0, popularity=0.0, floor=0.1)
    ranked = rank(candidates(i1=(0.5, 0, 0, 0), i2=(0, 1.0, 0, 0)), fusion, EVERY, 10, 10)
    assert ranked.items.tolist() == [2, 1]
    assert ranked.score.tolist() == pytest.approx([0.008281 / 0.008327, 0.000046 / 0.008327])


def test_a_source_of_weight_0_has_no_say():
    ranked = rank(candidates(i1=(0.2, 0.9, 0.9, 0), i2=(0.3, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 10)
    assert ranked.items.tolist() == [2, 1]
    assert (ranked.contribution[:, 1:3] == 0).all()


def test_a_contribution_is_what_a_source_adds_above_its_floor():
    fusion = Fusion(encoder=1.0, neighbors=0.5, transitions=0.0, popularity=0.0, floor=0.1)
    ranked = rank(candidates(i1=(0.5, 1.0, 0.7, 0)), fusion, EVERY, 10, 10)
    assert ranked.contribution[0, :4].tolist() == pytest.approx([np.log(46), 0.5 * np.log(91), 0, 0])
    assert not ranked.contribution[0, 4:].any()


def test_ties_go_to_the_smaller_item():
    ranked = rank(candidates(i3=(0.2, 0, 0, 0), i5=(0.2, 0, 0, 0), i8=(0.2, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 10)
    assert ranked.items.tolist() == [3, 5, 8]


def test_popularity_decides_where_no_weighted_source_knows_anything():
    ranked = rank(candidates(i3=(0, 0, 0, 0.1), i5=(0, 0, 0, 0.3)), ENCODER_ONLY, EVERY, 10, 10)
    assert ranked.items.tolist() == [5, 3]


def test_popularity_does_not_outvote_a_source():
    ranked = rank(candidates(i3=(0, 0, 0, 1.0), i5=(0.01, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 10)
    assert ranked.items.tolist() == [5, 3]


def test_only_the_best_are_returned_and_their_scores_are_shares_of_all():
    ranked = rank(candidates(i1=(0.5, 0, 0, 0), i2=(0.4, 0, 0, 0), i3=(0.1, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 2)
    assert ranked.items.tolist() == [1, 2]
    assert ranked.score.tolist() == pytest.approx([0.46 / 0.93, 0.37 / 0.93], rel=1e-3)


@pytest.mark.parametrize("limit", [2, 3, 4])
def test_of_equals_the_first_come_first(limit):
    equals = candidates(i1=(0.1, 0, 0, 0), i2=(0.3, 0, 0, 0), i3=(0.3, 0, 0, 0), i4=(0.3, 0, 0, 0))
    assert rank(equals, ENCODER_ONLY, EVERY, 10, limit).items.tolist() == [2, 3, 4, 1][:limit]


def test_a_source_that_was_not_asked_has_no_say():
    fusion = Fusion(encoder=1.0, neighbors=0.0, transitions=0.1, popularity=0.0, floor=0.1)
    both = candidates(i1=(0.9, 0, 0, 0), i2=(0, 0, 0.9, 0))
    assert rank(both, fusion, EVERY, 10, 10).items.tolist() == [1, 2]
    assert rank(both, fusion, [Source.TRANSITIONS], 10, 10).items.tolist() == [2, 1]


def test_when_only_sources_of_weight_0_answered_they_count_equally():
    left = [Source.TRANSITIONS, Source.POPULARITY]
    ranked = rank(candidates(i1=(0.9, 0.9, 0, 0.1), i2=(0, 0, 0.5, 0.1)), ENCODER_ONLY, left, 10, 10)
    assert ranked.items.tolist() == [2, 1]
    assert ranked.contribution[0, Source.TRANSITIONS - 1] == pytest.approx(np.log(46))
    assert (ranked.contribution[:, : Source.NEIGHBORS] == 0).all()


def test_no_weight_at_all_counts_the_asked_sources_equally():
    fusion = Fusion(encoder=0.0, neighbors=0.0, transitions=0.0, popularity=0.0, interests=0.0)
    ranked = rank(candidates(i1=(0.4, 0, 0, 0), i2=(0.3, 0.3, 0, 0)), fusion, EVERY, 10, 10)
    assert ranked.items.tolist() == [2, 1]


def test_no_candidates_are_no_ranking():
    ranked = rank(candidates(), Fusion(), EVERY, 10, 5)
    assert len(ranked.items) == len(ranked.score) == 0
    assert ranked.probability.shape == ranked.contribution.shape == (0, len(Source))


def test_an_impossible_item_still_has_a_score_above_0():
    fusion = Fusion(encoder=1.0, neighbors=1.0, transitions=1.0, popularity=0.2, floor=0.03)
    ranked = rank(candidates(i1=(1, 1, 1, 1), i2=(0, 0, 0, 0)), fusion, EVERY, 1_000_000, 2)
    assert 0 < ranked.score[1] < ranked.score[0] <= 1


# Items without events


def test_of_a_new_item_the_encoder_speaks_for_the_sources_that_count_events():
    # Item 9 has no events. As far as the encoder knows, it is the better one.
    both = candidates(i1=(0.2, 0.2, 0.2, 0), i9=(0.3, 0, 0, 0))
    fusion = Fusion(encoder=1.0, neighbors=0.5, transitions=0.3, popularity=0.0)
    assert rank(both, fusion, EVERY, 9, 10).items.tolist() == [1, 9]
    ranked = rank(both, fusion, EVERY, 9, 10, learned=8, speaker=Source.ENCODER)
    assert ranked.items.tolist() == [9, 1]
    # 9 items: .9 x .3 + .1 / 9 against .9 x .2 + .1 / 9, to the power of all the weights
    better = ((0.27 + 0.1 / 9) / (0.18 + 0.1 / 9)) ** 1.8
    assert ranked.score[0] / ranked.score[1] == pytest.approx(better, rel=1e-3)
    assert (ranked.contribution[0, 1:] == 0).all()  # it alone brought the item
    assert ranked.brought[0].tolist() == [True, *([False] * (len(Source) - 1))]


def test_a_new_item_is_as_popular_as_the_average_one():
    both = candidates(i1=(0.3, 0, 0, 0.2), i2=(0.3, 0, 0, 0.01), i9=(0.3, 0, 0, 0))
    fusion = Fusion(encoder=1.0, neighbors=0.0, transitions=0.0, popularity=0.2)
    assert rank(both, fusion, EVERY, 9, 10, learned=8, speaker=Source.ENCODER).items.tolist() == [
        1,
        9,
        2,
    ]  # .2, 1 / 9, .01


def test_where_nobody_speaks_for_a_new_item_it_has_what_is_said_of_it():
    left = [Source.TRANSITIONS, Source.POPULARITY]
    both = candidates(i1=(0, 0, 0.2, 0.1), i9=(0, 0, 0, 0))
    assert rank(both, Fusion(), left, 9, 10, learned=8).items.tolist() == [1, 9]


def test_content_speaks_for_others_though_it_has_no_weight_of_its_own():
    # Of 9 the encoder thinks less than of 1; it is much like what the user had.
    both = candidates(i1=(0.3, 0.2, 0.2, 0), i9=(0.2, 0, 0, 0))
    both.probability[1, Source.CONTENT - 1] = 0.4
    both.probability[0, Source.CONTENT - 1] = 0.9  # of items that have events, others know more
    fusion = Fusion(encoder=1.0, neighbors=0.5, transitions=0.3)
    ranked = rank(both, fusion, EVERY, 9, 10, learned=8, speaker=Source.CONTENT)
    assert ranked.items.tolist() == [9, 1]
    rest = 0.1 / 9
    of_new = (0.18 + rest) * (0.36 + rest) ** 0.8
    of_old = (0.27 + rest) * (0.18 + rest) ** 0.8
    assert ranked.score[0] / ranked.score[1] == pytest.approx(of_new / of_old, rel=1e-3)
    assert ranked.contribution[0, Source.CONTENT - 1] > 0
    assert ranked.contribution[1, Source.CONTENT - 1] == 0
    assert ranked.brought[0, Source.CONTENT - 1]


# Which source brought an item


def brought(probability, limit):
    found = Candidates(np.arange(1, len(probability) + 1), columns(probability))
    ranked = rank(found, Fusion(encoder=1.0, neighbors=1.0, transitions=1.0, popularity=0.0), EVERY, 100, limit)
    assert not ranked.brought[:, 4:].any()
    return {item: row[:4].tolist() for item, row in zip(ranked.items.tolist(), ranked.brought, strict=True)}


def test_a_source_brought_what_it_would_have_listed_alone():
    found = brought([[0.6, 0.0, 0.1, 0.1], [0.3, 0.5, 0.0, 0.2], [0.1, 0.4, 0.9, 0.7]], limit=1)
    assert found == {3: [False, False, True, False]}
    found = brought([[0.6, 0.0, 0.1, 0.1], [0.3, 0.5, 0.0, 0.2], [0.1, 0.4, 0.9, 0.7]], limit=2)
    assert found == {3: [False, True, True, False], 2: [True, True, False, False]}


def test_where_no_source_would_have_listed_it_alone_the_strongest_brought_it():
    found = brought([[0.5, 0.0, 0.0, 0], [0.0, 0.5, 0.0, 0], [0.4, 0.4, 0.0, 0]], limit=1)
    assert found == {3: [True, False, False, False]}


def test_other_weights_take_the_place_of_those_that_are_named():
    fusion = Fusion(encoder=1.0, neighbors=0.5, transitions=0.3)
    other = fusion.weighted([(Source.ENCODER, 0.0), (Source.TRENDING, 2.0)])
    assert other.weights.tolist() == [0.0, 0.5, 0.3, 0.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0]
    assert fusion.weighted([]) is fusion


# What was had, beside what is new


def had(news, **shares):
    """had(.6, i7=.3): something new is next in six of ten cases, item 7 in three."""
    items = np.array([int(name[1:]) for name in shares], np.int64)
    return Repeats(Scored(items, np.array(list(shares.values()))), news)


def test_what_is_new_shares_what_repeats_leave():
    new = rank(candidates(i1=(0.6, 0, 0, 0), i2=(0.2, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 10)
    joined = with_repeats(new, had(0.6, i7=0.3, i8=0.1), 10)
    assert joined.items.tolist() == [1, 7, 2, 8]
    # .9 x .6 + .01 = .55 and .9 x .2 + .01 = .19, as shares of .74, of the .6 that are left
    assert joined.score.tolist() == pytest.approx([0.6 * 0.55 / 0.74, 0.3, 0.6 * 0.19 / 0.74, 0.1])
    repeats = Source.REPEATS - 1
    assert joined.probability[:, repeats].tolist() == [0.0, 0.3, 0.0, 0.1]
    assert np.flatnonzero(joined.brought[1]).tolist() == [repeats]


def test_shares_are_of_all_that_may_appear():
    new = rank(candidates(i1=(0.6, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 10)
    joined = with_repeats(new, had(0.2, i7=0.2), 10)
    assert joined.score.tolist() == pytest.approx([0.5, 0.5])


def test_only_so_many_are_kept_of_both():
    new = rank(candidates(i1=(0.6, 0, 0, 0), i2=(0.2, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 2)
    assert with_repeats(new, had(0.1, i7=0.9), 2).items.tolist() == [7, 1]


def test_without_repeats_the_order_is_what_it_was():
    new = rank(candidates(i1=(0.6, 0, 0, 0), i2=(0.2, 0, 0, 0)), ENCODER_ONLY, EVERY, 10, 10)
    joined = with_repeats(new, had(1.0), 10)
    assert (joined.items.tolist(), joined.score.tolist()) == (new.items.tolist(), new.score.tolist())


def test_where_nothing_is_new_what_was_had_is_left():
    new = rank(candidates(), ENCODER_ONLY, EVERY, 10, 10)
    assert with_repeats(new, had(0.7, i7=0.3), 10).items.tolist() == [7]
