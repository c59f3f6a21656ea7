"""A knowledge graph is read as facts of items; what its relations are worth is counted."""

import numpy as np
import pytest

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.errors import LogError
from longtide_server.items.text_arrays import names_of
from longtide_server.sources.relations import Relations
from longtide_server.training.dataset import Sequences
from longtide_server.training.files.graph import read_graph, with_facts
from longtide_server.training.sources import linking
from longtide_server.training.sources.linking import link


@pytest.fixture
def graph(tmp_path):
    """Reads triples, one a line."""

    def read(*lines):
        path = tmp_path / "kg.csv"
        path.write_text("\n".join(["head,relation,tail", *lines]) + "\n")
        return read_graph(path)

    return read


# Reading


def test_a_triple_is_a_fact_of_the_item_whichever_end_it_is(graph):
    assert graph("item:1,director,entity:Scott", "entity:Ford,acts in,item:2") == {
        "1": (("director", "Scott"),),
        "2": (("acts in", "Ford"),),
    }


def test_two_items_that_a_triple_joins_share_the_second(graph):
    assert graph("item:1,sequel,item:2") == {"1": (("sequel", "item:2"),), "2": (("sequel", "item:2"),)}


def test_a_fact_that_is_said_twice_is_one_and_entities_alone_are_none(graph):
    facts = graph("item:1,a,entity:x", "entity:x,is a,entity:y", "item:1,a,entity:x", "item:1,b,entity:x")
    assert facts == {"1": (("a", "x"), ("b", "x"))}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("1,a,entity:x", "row 3, column head: '1' is neither item:ID nor entity:NAME"),
        ("item:,a,entity:x", "row 3, column head: 'item:' is neither item:ID nor entity:NAME"),
        ("item:1,a,film:x", "row 3, column tail: 'film:x' is neither item:ID nor entity:NAME"),
        ("item:1,,entity:x", "row 3, column relation: is missing"),
    ],
)
def test_a_bad_triple_is_an_error_in_words(graph, line, what):
    with pytest.raises(LogError) as caught:
        graph("item:1,a,entity:x", line)
    assert what in str(caught.value)


def test_a_column_that_is_missing_is_named_and_no_option_that_there_is_not(tmp_path):
    (tmp_path / "kg.csv").write_text("subject,relation,tail\nitem:1,a,entity:x\n")
    with pytest.raises(LogError, match=r"has no column head; it has subject, relation, tail$"):
        read_graph(tmp_path / "kg.csv")


def test_facts_join_what_is_known_of_the_items_that_are_known():
    infos = {"1": ItemInfo("Alien"), "2": ItemInfo("Up")}
    facts = {"1": (("director", "Scott"),), "of the log": (("a", "b"),), "of neither": (("a", "b"),)}
    assert with_facts(infos, facts, ["1", "of the log"]) == {
        "1": ItemInfo("Alien", facts=(("director", "Scott"),)),
        "2": ItemInfo("Up"),
        "of the log": ItemInfo(facts=(("a", "b"),)),
    }


# Linking


def walks(*users):
    """Everyone's items in order."""
    lengths = [len(user) for user in users]
    count, most = sum(lengths), max(map(max, users))
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(users))),
        item_ids=tuple(str(n) for n in range(1, most + 1)),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        items=np.array([item for user in users for item in user], np.int64),
        types=np.ones(count, np.int64),
        times=np.arange(count, dtype=np.float64),
        gaps=np.zeros(count, np.float32),
        values=np.full(count, np.nan, np.float32),
    )


def facts(*rows):
    """facts("a=x b=y", ...): the facts of items 1, 2 ..."""
    pairs = [[tuple(fact.split("=")) for fact in row.split()] for row in rows]
    return [ItemInfo(facts=tuple(row)) for row in pairs]


def test_what_people_follow_has_weight_and_what_they_do_not_has_none():
    # Series 1-2 and 3-4: everybody stays in one. Languages 1-3 and 2-4: nobody does.
    infos = facts("series=s language=x", "series=s language=y", "series=t language=x", "series=t language=y")
    arrays = link(infos, walks([1, 2], [2, 1], [3, 4], [4, 3]))
    assert names_of(arrays.relation_names) == ("series", "language")
    # All steps, less the quarter that chance would give
    assert arrays.weight.tolist() == pytest.approx([0.75, 0.0])
    votes = Relations(arrays).votes(np.array([1]), 1.0)
    assert (votes.items.tolist(), votes.probability.tolist()) == ([2], [1.0])


def test_items_without_events_are_linked_too_and_count_little():
    infos = facts("series=s", "series=s", "", "series=s")
    arrays = link(infos, walks([1, 2, 3], [1, 2, 3]))
    votes = Relations(arrays).votes(np.array([1]), 1.0)
    assert votes.items.tolist() == [2, 4]
    assert votes.probability.tolist() == pytest.approx([3 / 4, 1 / 4])  # 2 events and 0, each and one more


def test_an_entity_of_one_item_links_nothing_and_one_of_very_many_neither(monkeypatch):
    assert link(facts("a=x", "a=y", ""), walks([1, 2, 3])) is None
    assert link(facts("", "", ""), walks([1, 2, 3])) is None
    monkeypatch.setattr(linking, "MOST_MEMBERS", 2)
    assert link(facts("a=x", "a=x", "a=x"), walks([1, 2, 3])) is None


def test_attributes_link_nothing_however_alike_their_words_are():
    infos = [ItemInfo(attributes=(("size", "M"),)), ItemInfo(attributes=(("audience", "M"),))]
    assert link(infos, walks([1, 2])) is None


def test_a_name_that_cannot_be_packed_is_left_out():
    infos = [ItemInfo(facts=(("a", "torn\0name"), ("a", "whole")))] * 2
    arrays = link(infos, walks([1, 2]))
    assert names_of(arrays.entity_names) == ("whole",)
    assert len(arrays.entity) == len(arrays.relation) == len(arrays.members) == 2
