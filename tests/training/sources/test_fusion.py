from math import log2

import numpy as np
import pytest

from longtide_server.ranking import Fusion, rank
from longtide_server.sources.candidates import Candidates, Source
from longtide_server.training.metrics import NOT_RANKED
from longtide_server.training.sources import fusion as module
from longtide_server.training.sources.fusion import LineUp, fit_fusion, fused_scores, ranks, source_metrics
from longtide_server.training.sources.gathering import told_of

NONE = np.zeros(0, np.int64)


def candidates(**probability: list[float]) -> Candidates:
    """Items 1, 2, 3 ... with what each source says of them; a source that is not named says nothing."""
    count = len(next(iter(probability.values())))
    table = np.zeros((count, len(Source)))
    for name, column in probability.items():
        table[:, Source[name.upper()] - 1] = column
    return Candidates(np.arange(1, count + 1), table)


def line_up(users: list[Candidates], targets: np.ndarray, places: np.ndarray) -> LineUp:
    return module.line_up([told_of(found) for found in users], targets, places)


def by_number(item_count: int) -> np.ndarray:
    """Of equal items, the one with the smaller number is first."""
    return np.arange(item_count + 1)


def test_a_target_is_found_among_the_candidates_of_its_user():
    found = [
        Candidates(np.array([3, 5]), np.full((2, len(Source)), 0.1)),
        Candidates(np.array([2, 4, 9]), np.full((3, len(Source)), 0.2)),
        Candidates(np.array([7]), np.full((1, len(Source)), 0.3)),
    ]
    lined_up = line_up(found, np.array([5, 4, 8]), by_number(9))
    assert lined_up.starts.tolist() == [0, 2, 5]
    assert lined_up.target.tolist() == [1, 3, NOT_RANKED]
    assert lined_up.said[Source.ENCODER].tolist() == [0.1, 0.1, 0.2, 0.2, 0.2, 0.3]


def test_a_rank_counts_the_users_own_better_candidates():
    lined_up = line_up([candidates(encoder=[0, 0, 0]), candidates(encoder=[0, 0])], np.array([2, 2]), by_number(3))
    assert ranks(lined_up, np.array([0.9, 0.5, 0.7, 0.1, 0.8])).tolist() == [2, 0]


def test_of_equal_scores_the_smaller_item_is_first():
    same = [candidates(encoder=[0, 0, 0])] * 3
    assert ranks(line_up(same, np.array([1, 2, 3]), by_number(3)), np.ones(9)).tolist() == [0, 1, 2]


def test_of_equal_scores_the_item_with_the_smaller_place_is_first():
    same = [candidates(encoder=[0, 0, 0])] * 3
    assert ranks(line_up(same, np.array([1, 2, 3]), np.array([0, 3, 1, 2])), np.ones(9)).tolist() == [2, 0, 1]


def test_a_target_that_is_no_candidate_is_not_ranked():
    assert ranks(line_up([candidates(encoder=[0.5])], np.array([9]), by_number(9)), np.ones(1)).tolist() == [NOT_RANKED]


def test_users_without_any_candidate_are_not_ranked():
    """As where the catalogue holds one item and everyone has had it."""
    nothing = Candidates(np.zeros(0, np.int64), np.zeros((0, len(Source))))
    assert ranks(line_up([nothing, nothing], np.array([1, 1]), by_number(1)), np.zeros(0)).tolist() == [NOT_RANKED] * 2
    lined_up = line_up([nothing, candidates(encoder=[0.5]), nothing], np.array([1, 1, 1]), by_number(1))
    assert ranks(lined_up, np.ones(1)).tolist() == [NOT_RANKED, 0, NOT_RANKED]


def test_ranks_are_places_in_the_order_that_is_served():
    rng = np.random.default_rng(4)
    fusion = Fusion(1.0, 0.5, 0.3, 0.0, floor=0.1)
    users = []
    for _ in range(40):
        items = np.sort(rng.choice(np.arange(1, 101), 30, replace=False))
        probability = np.where(rng.random((30, 5)) < 0.5, rng.integers(1, 4, (30, 5)) / 100, 0.0)  # many ties
        probability[:, Source.POPULARITY - 1] = (101 - items) / 5050  # as published: falling from item 1 on
        users.append(Candidates(items, np.pad(probability, ((0, 0), (0, len(Source) - 5)))))
    targets = np.array([found.items[rng.integers(30)] for found in users])
    lined_up = line_up(users, targets, by_number(100))

    found = ranks(lined_up, fused_scores(lined_up, fusion))
    served = [rank(one, fusion, list(Source), 100, limit=30).items.tolist() for one in users]
    assert found.tolist() == [order.index(target) for order, target in zip(served, targets.tolist(), strict=True)]


RIGHT, WRONG = [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]  # of three items, the target is always the third


@pytest.mark.parametrize(
    ("right", "wrong"), [("neighbors", "transitions"), ("transitions", "neighbors")], ids=["neighbors", "transitions"]
)
def test_the_source_that_knows_gets_the_weight(right, wrong):
    user = candidates(encoder=[0.34, 0.33, 0.33], **{right: RIGHT, wrong: WRONG})
    fusion = fit_fusion(line_up([user] * 4, np.array([3] * 4), by_number(3)))
    assert getattr(fusion, right) > 0
    assert getattr(fusion, wrong) == 0
    assert rank(user, fusion, list(Source), 3, limit=1).items.tolist() == [3]


def test_a_source_that_adds_nothing_gets_no_weight():
    user = candidates(encoder=RIGHT, neighbors=WRONG, transitions=WRONG, popularity=WRONG)
    fusion = fit_fusion(line_up([user] * 4, np.array([3] * 4), by_number(3)))
    assert (fusion.encoder, fusion.neighbors, fusion.transitions, fusion.popularity) == (1, 0, 0, 0)


def test_popularity_has_a_say_where_it_alone_knows():
    user = candidates(encoder=[0.34, 0.33, 0.33], popularity=RIGHT)
    fusion = fit_fusion(line_up([user] * 4, np.array([3] * 4), by_number(3)))
    assert fusion.popularity > 0
    assert rank(user, fusion, list(Source), 3, limit=1).items.tolist() == [3]


def test_relations_have_a_say_where_they_alone_know():
    user = candidates(encoder=[0.34, 0.33, 0.33], relations=RIGHT)
    lined_up = line_up([user] * 4, np.array([3] * 4), by_number(3))
    fusion = fit_fusion(lined_up)
    assert fusion.relations > 0
    assert rank(user, fusion, list(Source), 3, limit=1).items.tolist() == [3]
    assert source_metrics(lined_up, fusion)["relations"] == {"hr@10": 1.0, "ndcg@10": 1.0}


def test_without_targets_the_defaults_stand_and_nothing_is_measured():
    nobody = line_up([], NONE, by_number(3))
    assert fit_fusion(nobody) == Fusion()
    assert source_metrics(nobody, Fusion()) == {}


def test_metrics_are_those_of_the_fusion_and_of_every_source_alone_that_says_something():
    user = candidates(encoder=[0.2, 0.3, 0.5], neighbors=[0.5, 0.3, 0.2], transitions=[0.5, 0.1, 0.4])
    found = source_metrics(line_up([user], np.array([3]), by_number(3)), Fusion(1.0, 0.0, 0.0, 0.0))
    assert found == {
        "fusion": {"hr@10": 1.0, "ndcg@10": 1.0},
        "encoder": {"hr@10": 1.0, "ndcg@10": 1.0},
        "neighbors": {"hr@10": 1.0, "ndcg@10": 0.5},  # third: 1 / log2(4)
        "transitions": {"hr@10": 1.0, "ndcg@10": round(1 / log2(3), 4)},  # second
    }


def test_what_content_says_counts_where_it_helps():
    """The encoder takes two items for equally likely; content knows which."""
    user = candidates(encoder=[0.4, 0.4, 0.2], neighbors=[0, 0, 0], transitions=[0, 0, 0], content=[0.1, 0.8, 0.1])
    assert fit_fusion(line_up([user] * 3, np.array([2] * 3), by_number(3))).content > 0
    misled = candidates(encoder=[0.4, 0.4, 0.2], neighbors=[0, 0, 0], transitions=[0, 0, 0], content=[0.8, 0.1, 0.1])
    assert fit_fusion(line_up([misled] * 3, np.array([2] * 3), by_number(3))).content == 0


def test_weights_are_sought_given_all_others():
    """Neighbours are of use until content, which knows more, has its weight; then they only mislead."""
    even, nothing = [1 / 3] * 3, [0, 0, 0]
    both_know = candidates(encoder=[0.6, 0.2, 0.2], neighbors=RIGHT, transitions=nothing, content=RIGHT)
    content_knows = candidates(encoder=[0.6, 0.2, 0.2], neighbors=even, transitions=nothing, content=RIGHT)
    misled = candidates(encoder=[0.2, 0.2, 0.6], neighbors=WRONG, transitions=nothing, content=even)
    users = [*[both_know] * 3, content_knows, *[misled] * 2]
    fusion = fit_fusion(line_up(users, np.array([3] * 6), by_number(3)))
    assert fusion.neighbors == 0
    assert fusion.content > 0
    for user in users:
        assert rank(user, fusion, list(Source), 3, limit=1).items.tolist() == [3]


@pytest.mark.parametrize("knows", ["transitions", "popularity"])
def test_no_source_alone_is_better_than_the_fusion(knows):
    """The encoder is sure of what is wrong, and more so than the one that knows is of what is right."""
    wrong = {"encoder": [0.999, 0.001, 0, 0], knows: [0.1, 0.5, 0.2, 0.2]}
    lined_up = line_up([candidates(**wrong)] * 4, np.full(4, 2), by_number(4))
    fusion = fit_fusion(lined_up)
    metrics = source_metrics(lined_up, fusion)
    assert metrics["fusion"]["ndcg@10"] >= metrics[knows]["ndcg@10"] == 1.0
    assert (fusion.encoder, getattr(fusion, knows)) == (0.001, 1.0)  # not 0: the encoder speaks for new items


def test_of_equals_those_weights_are_taken_that_are_surer_of_the_targets():
    """The encoder alone ranks every target first; that the neighbours say the same must not be lost."""
    user = candidates(encoder=RIGHT, neighbors=RIGHT, transitions=WRONG, popularity=WRONG)
    fusion = fit_fusion(line_up([user] * 4, np.array([3] * 4), by_number(3)))
    assert fusion.neighbors > 0 == fusion.transitions
