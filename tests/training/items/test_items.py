import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.errors import LogError
from longtide_server.training.items import items

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the repository")


@pytest.fixture
def write(tmp_path):
    """Writes a text file and returns its path."""

    def write(content: str, name: str = "items.csv") -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def read_infos(path: Path, columns: dict[str, str] | None = None):
    return items.read_items(path, columns or {}).infos


def complaint(path: Path, columns: dict[str, str] | None = None) -> str:
    with pytest.raises(LogError) as caught:
        read_infos(path, columns or {})
    return str(caught.value).removeprefix(f"{path}: ")


def test_items_have_a_title_and_categories(write):
    path = write('item_id,title,genres\n1,"Heat, The",Action|Crime\n2,Up,\n')
    assert read_infos(path) == {"1": ItemInfo("Heat, The", ("Action", "Crime")), "2": ItemInfo("Up", ())}


def test_only_the_id_is_needed(write):
    assert list(read_infos(write("item_id\nb\na\n"))) == ["b", "a"]


def test_a_title_may_hold_line_breaks(write):
    assert read_infos(write('item_id,title\n1,"two\nlines"\n'))["1"].title == "two\nlines"


def test_columns_name_what_the_file_calls_otherwise(write):
    path = write("movieId,name\n1,Up\n")
    assert read_infos(path, {"item_id": "movieId", "title": "name"}) == {"1": ItemInfo("Up")}


def test_categories_come_before_genres_and_none_twice(write):
    path = write("item_id,genres,categories\n1, b |c||,a|b\n2,,\n")
    assert read_infos(path) == {"1": ItemInfo(categories=("a", "b", "c")), "2": ItemInfo()}


def test_a_description_is_any_longer_text_by_any_name(write):
    path = write("item_id,title,keywords\n1,Up, balloons house \n2,Heat,\n")
    assert read_infos(path, {"description": "keywords"}) == {
        "1": ItemInfo("Up", description="balloons house"),
        "2": ItemInfo("Heat"),
    }


def test_json_and_parquet_may_list_categories(write, tmp_path):
    lines = (
        '{"item_id": 1, "title": null, "categories": ["a", "b"]}\n{"item_id": 2, "title": 1984, "categories": "c"}\n'
    )
    assert read_infos(write(lines, "items.jsonl")) == {
        "1": ItemInfo("", ("a", "b")),
        "2": ItemInfo("1984", ("c",)),
    }
    pq.write_table(pa.table({"item_id": [1, 2], "categories": [["a", "b"], None]}), tmp_path / "items.parquet")
    assert read_infos(tmp_path / "items.parquet") == {"1": ItemInfo("", ("a", "b")), "2": ItemInfo()}


def test_tags_brand_price_and_domain_are_read_where_there_are_any(write):
    path = write("item_id,tags,brand,price,domain\n1,vegan| new |vegan,Lumo,12.50,shop\n2,,,,\n")
    assert read_infos(path) == {
        "1": ItemInfo(tags=("vegan", "new"), brand="Lumo", price=12.5, domain="shop"),
        "2": ItemInfo(),
    }
    assert read_infos(write('{"item_id": 1, "tags": ["a", "b"], "price": 0}\n', "items.jsonl")) == {
        "1": ItemInfo(tags=("a", "b"), price=0.0)
    }


def test_what_an_export_of_the_catalogue_says_is_read(write, tmp_path):
    line = {
        "item_id": "1",
        "categories": [["Beauty", "Skin care"], ["Gifts"]],
        "tags": ["x, y", "z"],
        "attributes": {"colour": "green", "grams": 50, "refill": True},
        "available": False,
        "publish_time": "2026-01-31T12:00:00Z",
    }
    said = ItemInfo(categories=("Beauty > Skin care", "Gifts"), tags=("x, y", "z"), attributes=(("colour", "green"),))
    assert read_infos(write(json.dumps(line), "items.jsonl")) == {"1": said}
    columns = {name: [json.dumps(value) if isinstance(value, dict) else value] for name, value in line.items()}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    assert read_infos(tmp_path / "items.parquet") == {"1": said}


def test_what_nothing_is_learned_of_may_be_in_any_form(write):
    path = write("item_id,title,available,publish_time,language\n1,Up,in stock,last week,de\n")
    assert read_infos(path) == {"1": ItemInfo("Up")}


def test_vectors_come_along(write):
    lines = ['{"item_id": 1, "image_vector": [3, 4], "text_vector": [2.0]}', '{"item_id": 2}', '{"item_id": 3}']
    found = items.read_items(write("\n".join(lines), "items.jsonl")).vectors
    assert found.image_of(["2", "1"]).tolist() == [[0, 0], [0, 0], pytest.approx([0.6, 0.8])]
    assert found.text is None  # of one in three alone: a language model knows more
    found = items.read_items(write("\n".join(lines[:2]), "items.jsonl")).vectors
    assert found.text_of(["1", "2"]).tolist() == [[0], [1], [0]]


@pytest.mark.parametrize("vector", ["[1]", "[1, NaN]", "[1, 2, 3]"])
def test_a_vector_that_does_not_go_with_the_first_is_an_error(write, vector):
    path = write(f'item_id,text_vector\n1,"[1, 2]"\n2,"{vector}"\n')
    assert complaint(path) == "row 3, column text_vector: is not of 2 finite numbers, as the first one is"


@pytest.mark.parametrize(
    ("price", "what"),
    [
        ("cheap", "'cheap' is no number"),
        ("-1", "'-1' is not a price: finite, 0 or more"),
        ("inf", "'inf' is not a price: finite, 0 or more"),
        ("nan", "'nan' is not a price: finite, 0 or more"),
    ],
)
def test_a_price_that_is_none_is_an_error(write, price, what):
    assert complaint(write(f"item_id,price\n1,2\n2,{price}\n")) == f"row 3, column price: {what}"


def test_an_item_given_twice_names_both_rows(write):
    path = write("item_id,title\n1,a\n2,b\n1,c\n")
    assert complaint(path) == "row 4, column item_id: '1' is already the item of row 2"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("item_id,title\n,a\n", "row 2, column item_id: must not be empty"),
        ("item_id,title\n1,a\n2\n", "row 3: the header has 2 fields, this row 1"),
        ("item_id,title\n", "holds no rows of data"),
    ],
)
def test_a_bad_file_is_an_error_in_words(write, content, what):
    assert complaint(write(content)) == what


def test_a_missing_id_column_says_what_there_is_and_how_to_name_it(write):
    assert complaint(write("movieId\n1\n")) == (
        "has no column item_id; it has movieId; if one of these is meant, say so with --item-columns item_id=ITS_NAME"
    )
    assert complaint(write("movieId\n1\n"), {"item_id": "sku"}) == (
        "has no column sku, which --item-columns names as item_id; it has movieId"
    )
    assert complaint(write("item_id\n1\n"), {"sku": "item_id"}).startswith("--item-columns: there is no column sku")


@needs_data
def test_movielens_items_are_read():
    found = read_infos(DATA / "movielens-latest-small" / "movies.csv.gz", {"item_id": "movieId"})
    assert len(found) == 9_125
    assert found["2"] == ItemInfo("Jumanji (1995)", ("Adventure", "Children", "Fantasy"))
