"""What the server knows of items now: the columns say what each item says, whatever was written before."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtide_server.catalog.catalog import Catalog, ItemInfo
from longtide_server.catalog.live_catalog import KEPT_MASKS, MAX_KEPT_SIZE, LiveCatalog
from longtide_server.catalog.live_catalogs import LiveCatalogs
from longtide_server.items.item import Item
from longtide_server.items.item_fields import changed
from longtide_server.items.item_filter import (
    AllOf,
    AnyOf,
    HasBrand,
    HasFlag,
    HasNumber,
    HasPrice,
    HasTag,
    HasText,
    InCategory,
    InDomain,
    InLanguage,
    IsAvailable,
    NoneOf,
    Published,
    Span,
    passes,
)

LETTERS = "abcde"
CATALOG = Catalog(tuple(LETTERS), tuple(ItemInfo(f"Title {one}", (one.upper(), "All")) for one in LETTERS))
NEW = HasTag(frozenset(["new"]))


@pytest.fixture
def live():
    return LiveCatalog(CATALOG)


def passing(live, wanted):
    """The letters that pass a filter."""
    return "".join(LETTERS[number - 1] for number in np.flatnonzero(live.mask(wanted)))


def offered(live, now_s=0.0):
    """The letters that may be recommended."""
    mask = live.recommendable(now_s)
    return LETTERS if mask is None else "".join(LETTERS[number - 1] for number in np.flatnonzero(mask))


# What is known of an item


def test_an_item_that_was_never_written_says_what_the_snapshot_says(live):
    assert passing(live, InCategory(("A",))) == "a"
    assert passing(live, InCategory(("All",))) == "abcde"
    assert passing(live, InCategory(("A", "All"))) == ""  # each of its categories is at the top
    assert passing(live, IsAvailable(True)) == "abcde"
    assert live.title(1) == "Title a"
    assert live.recommendable(0.0) is None


def test_a_written_item_replaces_what_the_snapshot_says(live):
    live.apply([Item("a", title="New title", categories=(("B", "C"),), tags=("new",))], [])
    assert passing(live, InCategory(("A",))) == ""
    assert passing(live, InCategory(("B",))) == "ab"
    assert passing(live, InCategory(("B", "C"))) == "a"
    assert passing(live, NEW) == "a"
    assert live.title(1) == "New title"


def test_filters_ask_what_the_snapshot_knows():
    info = ItemInfo("Title a", ("A > B",), tags=("new",), brand="Acme", price=3.0, domain="books")
    live = LiveCatalog(Catalog(("a", "b"), (info, ItemInfo())))
    for wanted in (NEW, HasBrand(frozenset(["Acme"])), HasPrice(Span(3, 3)), InDomain(frozenset(["books"]))):
        assert passing(live, wanted) == "a"
    assert passing(live, InCategory(("A", "B"))) == "a"


def test_of_an_item_written_in_part_the_snapshot_says_the_rest(live):
    part = changed(None, Item("a", available=False, tags=("new",)), frozenset(["availability", "tags"]))
    live.apply([part], [])
    assert passing(live, IsAvailable(False)) == passing(live, NEW) == passing(live, InCategory(("A",))) == "a"
    live.apply([changed(part, Item("a"), frozenset(["availability", "categories"]))], [])
    assert passing(live, IsAvailable(True)) == "abcde"
    assert passing(live, InCategory(("A",))) == ""  # which somebody has emptied
    assert passing(live, NEW) == "a"


def test_an_item_written_whole_says_all_there_is(live):
    part = changed(None, Item("a", available=False), frozenset(["availability"]))
    live.apply([changed(part, Item("a"), None)], [])
    assert passing(live, InCategory(("A",))) == ""


def test_the_snapshots_title_stands_in_for_one_that_was_not_written(live):
    live.apply([Item("a", price=1.0)], [])
    assert live.title(1) == "Title a"


def test_a_deleted_item_passes_nothing(live):
    live.apply([], ["b"])
    assert passing(live, InCategory(("All",))) == "acde"
    assert passing(live, NoneOf(frozenset([NEW]))) == "acde"
    assert offered(live) == "acde"


def test_an_item_comes_back(live):
    live.apply([], ["b"])
    live.apply([Item("b", tags=("new",))], [])
    assert passing(live, NEW) == "b"
    assert offered(live) == LETTERS


def test_a_deleted_id_that_nobody_knows_changes_nothing(live):
    live.apply([], ["unknown"])
    assert (live.revision, live.row("unknown")) == (0, 0)


def test_an_item_beyond_the_snapshot_has_a_row_and_no_number(live):
    live.apply([Item("x", tags=("new",)), Item("a", tags=("new",))], [])
    assert live.row("x") == 6
    assert live.row_mask(NEW).tolist() == [False, True, False, False, False, False, True]
    assert live.mask(NEW).tolist() == [False, True, False, False, False, False]
    assert live.recommendable(0.0) is None


def test_the_rows_of_deleted_items_beyond_the_snapshot_are_used_again(live):
    for round_number in range(100):
        live.apply([Item(f"x{round_number}", tags=("new",))], [])
        assert live.row_mask(NEW).tolist() == [False] * 6 + [True]
        live.apply([], [f"x{round_number}"])
    assert live.row("x99") == 0


def test_an_empty_snapshot_takes_items():
    live = LiveCatalog(Catalog((), ()))
    live.apply([Item("x", tags=("new",))], [])
    assert live.row("x") == 1
    assert live.row_mask(NEW).tolist() == [False, True]
    assert live.mask(NEW).tolist() == [False]


# When an item may be recommended


def test_what_cannot_be_had_is_not_recommended(live):
    live.apply([Item("a", available=False), Item("b", publish_time_s=10.0), Item("c", expire_time_s=10.0)], [])
    assert offered(live, 9.5) == "cde"
    assert offered(live, 10.0) == "bde"
    assert live.recommendable_count(10.0) == 3
    live.apply([Item("a")], [])
    assert offered(live, 10.0) == "abde"


def test_a_clock_that_is_set_back_is_followed(live):
    live.apply([Item("a", publish_time_s=10.0)], [])
    assert offered(live, 20.0) == LETTERS
    assert offered(live, 5.0) == "bcde"
    assert offered(live, 10.0) == LETTERS


def test_a_clock_that_is_set_back_after_a_change_is_followed(live):
    assert offered(live, 0.0) == LETTERS
    live.apply([Item("a", publish_time_s=10.0)], [])
    assert offered(live, 20.0) == LETTERS
    assert offered(live, 5.0) == "bcde"


def test_a_boundary_written_later_counts(live):
    live.apply([Item("a", expire_time_s=100.0)], [])
    assert offered(live, 1.0) == LETTERS
    live.apply([Item("b", expire_time_s=50.0)], [])
    assert offered(live, 1.0) == LETTERS
    assert offered(live, 50.0) == "acde"


def test_many_changes_between_two_looks_all_count():
    ids = tuple(map(str, range(3_000)))
    live = LiveCatalog(Catalog(ids, (ItemInfo(),) * 3_000))
    assert live.recommendable_count(0.0) == 3_000
    live.apply([Item(one, available=False) for one in ids[:2_500]], [])
    assert live.recommendable_count(0.0) == 500


def test_a_mask_that_was_given_away_cannot_be_written(live):
    live.apply([Item("a", available=False)], [])
    for mask in (live.recommendable(0.0), live.mask(NEW)):
        with pytest.raises(ValueError, match="read-only"):
            mask[1] = True


def test_masks_are_kept_until_anything_changes(live):
    mask = live.mask(NEW)
    assert np.shares_memory(live.mask(HasTag(frozenset(["new"]))), mask)
    live.apply([Item("a", tags=("new",))], [])
    assert live.mask(NEW).tolist() == [False, True, False, False, False, False]


def test_only_so_many_masks_are_kept_and_none_of_a_large_filter(live):
    mask = live.mask(NEW)
    for number in range(KEPT_MASKS):
        live.mask(HasTag(frozenset([str(number)])))
    assert not np.shares_memory(live.mask(NEW), mask)
    large = HasTag(frozenset(map(str, range(MAX_KEPT_SIZE))))
    assert not np.shares_memory(live.mask(large), live.mask(large))


# Revisions


def test_every_change_has_its_revision(live):
    item = Item("a", title="Title a", categories=(("A",), ("All",)), attributes={"size": 1.0})
    seen = [live.revision]
    for one in (item, replace(item, price=2.0), replace(item, price=2.0, tags=("x",)), Item("x")):
        live.apply([one], [])
        seen.append(live.revision)
    live.apply([], ["x"])
    seen.append(live.revision)
    assert seen == sorted(set(seen))


def test_what_changes_nothing_has_no_revision(live):
    live.apply([Item("a", tags=("new",), price=1.0, attributes={"size": 1.0})], [])
    before = live.revision
    live.apply([Item("a", tags=("new",), price=1.0, attributes={"size": 1.0}, description="Longer.")], ["unknown"])
    assert live.revision == before


def test_the_offers_revision_is_of_what_is_offered_and_shown(live):
    live.apply([Item("a", title="A", expire_time_s=100.0)], [])
    seen = [live.offer_revision(0.0)]
    live.apply([Item("a", title="A", expire_time_s=100.0, price=5.0), Item("x")], [])
    assert live.offer_revision(1.0) == seen[0]  # a price, and an item without a number, are nothing to it
    for change, now_s in (([Item("a", title="B", expire_time_s=100.0)], 1.0), ([Item("b", available=False)], 1.0)):
        live.apply(change, [])
        seen.append(live.offer_revision(now_s))
    seen.append(live.offer_revision(100.0))  # a expires
    assert seen == sorted(set(seen))


def test_an_item_that_left_and_came_back_under_another_title_is_another_offer(live):
    before = live.offer_revision(0.0)
    live.apply([], ["a"])
    live.apply([Item("a", title="Alpha")], [])
    assert offered(live) == LETTERS
    assert live.offer_revision(0.0) > before


# Filters over everything


names = st.sampled_from(["x", "y", "z"])
name_sets = st.frozensets(names, min_size=1)
numbers = st.sampled_from([0.0, 1.0, 2.5, 7.0])
times = st.sampled_from([10.0, 20.0, 30.0])
paths = st.lists(names, min_size=1, max_size=3).map(tuple)
spans = st.builds(Span, st.sampled_from([-math.inf, 0.0, 1.0]), st.sampled_from([1.0, 5.0, math.inf]))
attribute_names = st.sampled_from(["p", "q"])
leaves = st.one_of(
    st.builds(InCategory, paths),
    st.builds(HasTag, name_sets),
    st.builds(HasBrand, name_sets),
    st.builds(InDomain, name_sets),
    st.builds(InLanguage, name_sets),
    st.builds(HasPrice, spans),
    st.builds(Published, st.sampled_from([-math.inf, 10.0, 20.0]), st.sampled_from([20.0, 30.0, math.inf])),
    st.builds(IsAvailable, st.booleans()),
    st.builds(HasText, attribute_names, name_sets),
    st.builds(HasNumber, attribute_names, spans),
    st.builds(HasFlag, attribute_names, st.booleans()),
)
filters = st.recursive(
    leaves,
    lambda inner: st.sampled_from([AllOf, AnyOf, NoneOf]).flatmap(
        lambda kind: st.builds(kind, st.frozensets(inner, min_size=1, max_size=3))
    ),
    max_leaves=8,
)
KNOWN, BEYOND = [f"known-{n}" for n in range(6)], [f"beyond-{n}" for n in range(4)]
items = st.builds(
    Item,
    st.sampled_from(KNOWN + BEYOND),
    categories=st.lists(paths, max_size=2).map(tuple),
    tags=st.lists(names, max_size=3, unique=True).map(tuple),
    brand=names | st.just(""),
    price=st.none() | numbers,
    publish_time_s=st.none() | times,
    expire_time_s=st.none() | st.just(40.0),
    available=st.booleans(),
    language=names | st.just(""),
    attributes=st.dictionaries(attribute_names, names | numbers | st.booleans()),
    domain=names | st.just(""),
)
writes = st.lists(
    st.tuples(st.lists(items, max_size=4), st.lists(st.sampled_from(KNOWN + BEYOND), max_size=2)), max_size=5
)
SNAPSHOT = Catalog(tuple(KNOWN), tuple(ItemInfo("", ("x", "y")[: n % 3]) for n in range(6)))


@settings(max_examples=100, deadline=None)
@given(writes, st.lists(filters, min_size=1, max_size=4), st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_the_columns_say_what_each_item_says(written, wanted, moments):
    live = LiveCatalog(SNAPSHOT)
    truth = {
        one: Item(one, categories=tuple((name,) for name in info.categories))
        for one, info in zip(SNAPSHOT.item_ids, SNAPSHOT.infos, strict=True)
    }
    for batch, deleted in [([], []), *written]:
        live.apply(batch, deleted)
        truth |= {item.item_id: item for item in batch}
        for item_id in deleted:
            truth.pop(item_id, None)
        for one in wanted:
            found = {
                item_id for item_id in KNOWN + BEYOND if live.row(item_id) and live.row_mask(one)[live.row(item_id)]
            }
            assert found == {item_id for item_id, item in truth.items() if passes(one, item)}
            assert live.row_mask(one).sum() == len(found)
            assert live.mask(one).tolist() == live.row_mask(one)[:7].tolist()
        for now_s in moments:
            mask = live.recommendable(now_s)
            allowed = set(KNOWN) if mask is None else {SNAPSHOT.item_id(n) for n in np.flatnonzero(mask).tolist()}
            assert allowed == {one for one in KNOWN if one in truth and truth[one].recommendable(now_s)}


def test_long_histories_of_one_item_leave_no_trace(live):
    """Logs of changes are tidied while nobody reads them."""
    rng = np.random.default_rng(0)
    for _ in range(2_000):
        tag, number = rng.choice(["new", "old"]), float(rng.integers(3))
        live.apply([Item("a", tags=(tag,), attributes={"size": number}), Item("b", tags=("new", "old"))], [])
    assert passing(live, HasTag(frozenset([tag]))) == "ab"
    assert passing(live, HasTag(frozenset({"new", "old"} - {tag}))) == "b"
    assert passing(live, HasNumber("size", Span(number, number))) == "a"
    live.apply([Item("a"), Item("b")], [])
    assert passing(live, AnyOf(frozenset([NEW, HasNumber("size", Span())]))) == ""


@pytest.mark.parametrize("count", [200, 6_000])
def test_words_and_numbers_of_many_items_are_followed(count):
    """Long logs are read in other ways than short ones."""
    rng = np.random.default_rng(count)
    ids = [f"item-{number}" for number in range(count)]
    live, truth = LiveCatalog(Catalog(tuple(ids), (ItemInfo(),) * count)), {}
    wanted = [NEW, HasTag(frozenset(["new", "rare"])), HasTag(frozenset(["rare"])), HasNumber("size", Span(2.0, 3.0))]
    for share in (1.0, 0.05, 0.3, 0.3, 0.3):
        for item_id in rng.choice(ids, int(share * count), replace=False).tolist():
            tags = [tag for tag, often in (("new", 0.9), ("rare", 0.01)) if rng.random() < often]
            attributes = {"size": float(rng.integers(5))} if rng.random() < 0.8 else {}
            truth[item_id] = Item(item_id, tags=tuple(tags), attributes=attributes)
            live.apply([truth[item_id]], [])
        for one in wanted:
            expected = [False, *(passes(one, truth[item_id]) for item_id in ids)]
            assert live.mask(one).tolist() == expected
    live.apply([Item(item_id, tags=("rare",)) for item_id in ids], [])
    assert [int(live.mask(one).sum()) for one in wanted] == [0, count, count, 0]


# Every catalogue at work


async def nothing_stored():
    for page in ():
        yield page


async def test_what_is_stored_reaches_every_catalogue():
    catalogs, both = LiveCatalogs(nothing_stored), [LiveCatalog(CATALOG), LiveCatalog(CATALOG)]
    for one in both:
        await catalogs.add(one)
    catalogs.apply([Item("a", tags=("new",))], ["b"])
    assert [passing(one, NEW) for one in both] == ["a", "a"]
    catalogs.remove(both[0])
    catalogs.apply([], ["a"])
    assert [passing(one, NEW) for one in both] == ["a", ""]


async def test_a_new_catalogue_reads_what_is_stored(live):
    async def pages():
        yield [Item("a", tags=("new",)), Item("x", tags=("new",))], ["c"]
        yield [Item("b", tags=("new",))], []
        yield [], ["d"] * 1_000

    await LiveCatalogs(pages).add(live)
    assert passing(live, NEW) == "ab"
    assert offered(live) == "abe"
    assert live.row("x")


async def test_what_is_written_while_pages_are_read_is_newer_than_they_are(live):
    async def pages():
        yield [Item("b", tags=("new",))], []
        catalogs.apply([Item("a")], ["b"])
        yield [Item("a", tags=("new",)), Item("c", tags=("new",))], ["d"]

    catalogs = LiveCatalogs(pages)
    await catalogs.add(live)
    assert passing(live, NEW) == "c"
    assert offered(live) == "ace"
    catalogs.apply([Item("a", tags=("new",))], [])
    assert passing(live, NEW) == "ac"


async def test_a_catalogue_that_cannot_be_read_is_told_nothing(live):
    async def pages():
        yield [Item("a", tags=("new",))], []
        raise OSError("gone")

    catalogs = LiveCatalogs(pages)
    with pytest.raises(OSError, match="gone"):
        await catalogs.add(live)
    catalogs.apply([Item("b", tags=("new",))], [])
    assert passing(live, NEW) == "a"
