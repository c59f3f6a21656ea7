"""Item ids, their numbers, and what a person reads of them."""

import pyarrow as pa
import pyarrow.parquet as pq

from longtide_server.catalog.catalog import Catalog, ItemInfo, read_catalog, write_catalog

CATALOG = Catalog(("a", "ß", "🌊"), (ItemInfo("Alpha", ("x", "y")), ItemInfo(), ItemInfo("Wave")))


def test_numbers_begin_with_1():
    assert [CATALOG.number(item) for item in ("a", "ß", "🌊")] == [1, 2, 3]
    assert [CATALOG.item_id(number) for number in (1, 2, 3)] == ["a", "ß", "🌊"]
    assert CATALOG.info(1) == ItemInfo("Alpha", ("x", "y"))
    assert len(CATALOG) == 3


def test_an_unknown_item_has_the_number_0():
    assert CATALOG.number("never") == 0
    assert CATALOG.number("") == 0


def test_unknown_items_are_left_out_and_the_others_keep_their_order():
    numbers = CATALOG.numbers(["🌊", "never", "a", "🌊"])
    assert numbers.tolist() == [3, 1, 3]
    assert numbers.dtype == "int64"
    assert CATALOG.numbers(["never"]).dtype == "int64"


def test_a_written_catalogue_is_read_again(tmp_path):
    write_catalog(CATALOG, tmp_path / "catalog.parquet")
    again = read_catalog(tmp_path / "catalog.parquet")
    assert again.item_ids == CATALOG.item_ids
    assert again.infos == CATALOG.infos
    assert again.number("🌊") == 3


def test_what_filters_ask_is_stored(tmp_path):
    full = ItemInfo("Alpha", ("x > y",), tags=("first",), brand="Greek", price=0.0, domain="letters")
    write_catalog(Catalog(("a", "b"), (full, ItemInfo(price=2.5))), tmp_path / "catalog.parquet")
    assert read_catalog(tmp_path / "catalog.parquet").infos == (full, ItemInfo(price=2.5))


def test_the_catalogue_of_an_older_release_is_read(tmp_path):
    older = {"item_id": ["a"], "title": ["Alpha"], "categories": [["x"]]}
    pq.write_table(pa.table(older), tmp_path / "catalog.parquet")
    assert read_catalog(tmp_path / "catalog.parquet").infos == (ItemInfo("Alpha", ("x",)),)


def test_descriptions_are_not_stored(tmp_path):
    catalog = Catalog(("a",), (ItemInfo("Alpha", ("x",), "the first letter of many alphabets"),))
    write_catalog(catalog, tmp_path / "catalog.parquet")
    assert read_catalog(tmp_path / "catalog.parquet").infos == (ItemInfo("Alpha", ("x",)),)
