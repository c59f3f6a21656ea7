"""Files of items for the catalogue: what is read, what is refused with which reason, and that an export comes back."""

import gzip
import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.items import facts

import longtide
from longtide import UpsertResult
from longtide_server.errors import LogError
from longtide_server.items.item import Item
from longtide_server.training.files import item_files
from longtide_server.training.files.importing import BadRowsFile
from longtide_server.training.files.item_export import export_items
from longtide_server.training.files.item_files import import_items, read_item_file, sent_item

FULL = Item(
    "i1",
    title="Clay, mask",
    description="For the face.",
    categories=(("Beauty", "Skin care"), ("Gifts",)),
    tags=("vegan", "new"),
    brand="Lumo",
    price=12.5,
    publish_time_s=1_793_535_600.25,
    expire_time_s=1_800_000_000.0,
    available=False,
    language="en",
    text_vector=np.array([0.5, -2.0], np.float32),
    image_vector=np.array([1.0], np.float32),
    attributes={"colour": "green", "grams": 50.0, "refill": True},
    domain="shop",
)
CSV = """item_id,title,description,categories,genres,tags,brand,price,publish_time,expire_time,available,language,\
text_vector,image_vector,attributes,domain
i1,"Clay, mask",For the face.,Beauty > Skin care,Gifts,vegan|new|vegan,Lumo,12.5,2026-11-01T13:20:00.25+01:00,\
1800000000,no,en,"[0.5, -2]",[1],"{""colour"": ""green"", ""grams"": 50, ""refill"": true, ""size"": null}",shop
i2,,,,,,,,,,,,,,,
"""
RECORD = {
    "item_id": "i1",
    "title": "Clay, mask",
    "description": "For the face.",
    "categories": [["Beauty", "Skin care"], ["Gifts"]],
    "tags": ["vegan", "new"],
    "brand": "Lumo",
    "price": 12.5,
    "publish_time": "2026-11-01T12:20:00.250Z",
    "expire_time": 1_800_000_000,
    "available": False,
    "language": "en",
    "text_vector": [0.5, -2],
    "image_vector": [1],
    "attributes": {"colour": "green", "grams": 50, "refill": True},
    "domain": "shop",
}


@pytest.fixture
def write(tmp_path):
    def written(content, name="items.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def read(path, columns=None):
    return [piece for piece in read_item_file(path, columns or {}) if piece.items or piece.bad]


def bad(path):
    return [(row.row, row.column, row.reason) for piece in read(path) for row in piece.bad]


class FakeClient:
    """Takes items, and refuses the dear ones, as a server may."""

    def __init__(self):
        self.items = {}
        self.fields = []

    async def upsert_items(self, items, fields):
        items = list(items)
        self.fields.append(fields)
        errors = [
            longtide.ItemError(index, item.item_id, "price", "is too dear")
            for index, item in enumerate(items)
            if (item.price or 0) > 1_000
        ]
        self.items.update({item.item_id: item for item in items if (item.price or 0) <= 1_000})
        return UpsertResult(len(items) - len(errors), tuple(errors))


# Reading


def test_every_column_of_a_csv_is_read(write):
    [piece] = read(write(CSV))
    assert facts(piece.items[0]) == facts(FULL)
    assert facts(piece.items[1]) == facts(Item("i2"))
    assert (list(piece.rows), list(piece.bad), piece.read_share) == ([2, 3], [], 1.0)
    assert len(piece.fields) == 14


def test_zipped_csv_json_lines_and_parquet_say_the_same(write, tmp_path):
    pq.write_table(
        pa.Table.from_pylist([{**RECORD, "publish_time": datetime(2026, 11, 1, 12, 20, 0, 250_000, UTC)}]),
        tmp_path / "items.parquet",
    )
    for path in (
        write(gzip.compress(CSV.encode()), "items.csv.gz"),
        write(json.dumps(RECORD), "items.jsonl"),
        tmp_path / "items.parquet",
    ):
        assert facts(read(path)[0].items[0]) == facts(FULL)


def test_columns_may_have_names_of_their_own(write):
    [piece] = read(write("sku,name\n7,Mask\n"), {"item_id": "sku", "title": "name"})
    assert facts(piece.items[0]) == facts(Item("7", title="Mask"))
    assert piece.fields == {"title"}


def test_a_file_says_what_it_has_columns_for(write):
    [piece] = read(write("item_id,price,available,genres,stock\na,1.5,yes,Jazz,3\n"))
    assert piece.fields == {"price", "availability", "categories"}


def test_in_json_a_column_may_begin_late(write, monkeypatch):
    monkeypatch.setattr(item_files, "PIECE_ROWS", 1)
    lines = [{"item_id": "a", "title": "A"}, {"item_id": "b", "price": 3}]
    pieces = read(write("\n".join(map(json.dumps, lines)), "items.jsonl"))
    assert [piece.fields for piece in pieces] == [{"title", "price"}] * 2


@pytest.mark.parametrize(
    ("cell", "categories"),
    [
        ("Beauty", (("Beauty",),)),
        ("Beauty|Gifts", (("Beauty",), ("Gifts",))),
        (" Beauty > Masks | Gifts | ", (("Beauty", "Masks"), ("Gifts",))),
        ("R&B>Soul", (("R&B>Soul",),)),
        ("Beauty|Beauty", (("Beauty",),)),
        ("", ()),
    ],
)
def test_categories_in_text(write, cell, categories):
    [piece] = read(write(f"item_id,categories\na,{cell}\n"))
    assert piece.items[0].categories == categories


def test_a_list_of_names_is_taken_as_it_is(write):
    lines = [
        {"item_id": "a", "categories": [["A > B", " C "]]},
        {"item_id": "b", "categories": ["A > B", "C"]},
        {"item_id": "c", "categories": None},
    ]
    [piece] = read(write("\n".join(map(json.dumps, lines)), "items.jsonl"))
    assert [item.categories for item in piece.items] == [(("A > B", " C "),), (("A", "B"), ("C",)), ()]


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("price", "cheap", "'cheap' is no number"),
        ("price", "-1", "is -1.0; a finite number, 0 or more, is allowed"),
        ("publish_time", "soon", "'soon' is no time, in seconds since 1970 or as 2026-01-31T12:00:00Z"),
        ("expire_time", "1800000000000", "1.8e+12 s is not a time from 1970 to 9999"),
        ("available", "maybe", "'maybe' is neither true nor false"),
        ("text_vector", "0.5 0.5", "'0.5 0.5' is no list of numbers"),
        ("text_vector", '"[0.5, true]"', "'[0.5, true]' is no list of numbers"),
        ("image_vector", "[0]", "must hold finite numbers that are not all 0"),
        ("categories", '"[[1]]"', "'[[1]]' is no list of categories"),
        ("tags", "[1]", "'[1]' is no list of tags"),
        ("tags", "[oops", "'[oops' is no list of tags"),
        ("attributes", "green", "'green' is no object"),
        ("attributes", '"{""a"": []}"', "'{\"a\": []}' is no object of texts, numbers and truth values"),
        ("language", "x" * 36, "is 36 bytes long; at most 35 are allowed"),
    ],
)
def test_a_cell_that_says_nothing_that_can_be_is_named(write, column, cell, reason):
    path = write(f"item_id,{column}\na,{cell}\nb,\n")
    assert bad(path) == [(2, column, reason)]
    assert [item.item_id for item in read(path)[0].items] == ["b"]


def test_a_row_without_an_id_is_bad(write):
    assert bad(write("item_id,title\n,A\nb,B\n")) == [(2, "item_id", "must not be empty")]


def test_a_bad_column_is_named_as_the_file_names_it(write):
    [piece] = read(write("item_id,cost\na,cheap\n"), {"price": "cost"})
    assert [(row.column, row.reason) for row in piece.bad] == [("cost", "'cheap' is no number")]


def test_numbers_and_what_data_frames_leave_out_are_read(tmp_path):
    table = pa.table({"item_id": [1, 2], "title": [None, "B"], "price": [float("nan"), 2.0], "available": [None, True]})
    pq.write_table(table, tmp_path / "items.parquet")
    [piece] = read(tmp_path / "items.parquet")
    assert [facts(item) for item in piece.items] == [facts(Item("1")), facts(Item("2", title="B", price=2.0))]


def test_of_several_rows_of_an_item_the_last_counts(write):
    [piece] = read(write("item_id,title\na,first\nb,B\na,last\n"))
    assert ({item.item_id: item.title for item in piece.items}, piece.repeated) == ({"a": "last", "b": "B"}, 1)


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ("item_id\na\n", "items.csv", "has no column but item_id"),
        ("id,title\na,A\n", "items.csv", "has no column item_id; .* say so with --columns item_id=ITS_NAME$"),
        ("item_id,title\n", "items.txt", "is of no known format"),
    ],
)
def test_a_file_that_says_nothing_of_items_is_named(write, content, name, reason):
    with pytest.raises(LogError, match=reason):
        read(write(content, name))


# Importing and exporting


async def test_a_file_is_imported_and_what_is_bad_is_listed(write, tmp_path, monkeypatch):
    monkeypatch.setattr(item_files, "PIECE_ROWS", 2)
    path = write("item_id,price\na,1\nb,2000\nc,oops\nd,4\nd,5\n")
    client, shares = FakeClient(), []
    with BadRowsFile(tmp_path / "bad.csv") as file:
        done = await import_items(path, {}, client, file, lambda done: shares.append(done.read_share))
    assert (done.written, done.repeated, done.bad) == (3, 0, 2)
    assert {item_id: item.price for item_id, item in client.items.items()} == {"a": 1.0, "d": 5.0}
    assert client.fields == [["price"]] * 3
    assert (tmp_path / "bad.csv").read_text().splitlines() == [
        "row,column,reason",
        "3,price,is too dear",
        "4,price,'oops' is no number",
    ]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


async def each(items):
    for item in items:
        yield item


@pytest.mark.parametrize("name", ["items.jsonl", "items.parquet"])
async def test_what_is_exported_can_be_imported(tmp_path, name):
    items = [FULL, Item("i2"), Item("i3", attributes={"a": ""}, available=True, price=0.0)]
    sent = [sent_item(item) for item in items]
    counts = []
    assert await export_items(each(sent), tmp_path / name, counts.append) == 3
    [piece] = read(tmp_path / name)
    assert [facts(item) for item in piece.items] == [facts(item) for item in items]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["items.jsonl", "items.parquet"])
async def test_an_export_that_fails_leaves_no_file(tmp_path, name):
    async def cut_off():
        yield longtide.Item("i1")
        raise longtide.UnavailableError("gone")

    with pytest.raises(longtide.UnavailableError):
        await export_items(cut_off(), tmp_path / name, lambda _: None)
    assert list(tmp_path.iterdir()) == []


async def test_an_empty_catalogue_is_exported(tmp_path):
    assert await export_items(each([]), tmp_path / "items.parquet", lambda _: None) == 0
    assert pq.read_table(tmp_path / "items.parquet").num_rows == 0
