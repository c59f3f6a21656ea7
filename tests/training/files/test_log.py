import gzip
import json
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longtide_server.errors import LogError
from longtide_server.events import EVENT_TYPE_NAMES, Event, EventType, violation
from longtide_server.training.files.log import EVENT_TYPES_BY_NAME, Log, read_log, read_request_times, times_are_real
from longtide_server.training.files.tables.columns import MAX_BAD_ROW_DETAILS, BadRow

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the repository")

HEAD = "user_id,item_id,timestamp\n"
NAN = float("nan")
NOW_S = time.time()


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def write(content: str | bytes, name: str = "log.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path):
    def write(**columns) -> Path:
        path = tmp_path / "log.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write


def read(path: Path, columns: dict[str, str] | None = None) -> Log:
    log, bad_rows = read_log(path, columns or {})
    assert bad_rows.count == 0
    return log


def complaint(path: Path, columns: dict[str, str] | None = None) -> str:
    """What the LogError says, without the file's name, which it must start with."""
    with pytest.raises(LogError) as caught:
        read_log(path, columns or {})
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# What a log becomes


def test_ids_are_numbered_by_first_appearance_and_rows_stay_in_the_files_order(write):
    log = read(write(HEAD + "eva,lamp,30\nbob,book,10\neva,book,20\n"))

    assert len(log) == 3
    assert log.owners == ("user:eva", "user:bob")
    assert log.item_ids == ("lamp", "book")
    assert log.user.tolist() == [0, 1, 0]
    assert log.item.tolist() == [0, 1, 1]
    assert log.time_s.tolist() == [30.0, 10.0, 20.0]
    assert log.event_type.tolist() == [EventType.VIEW] * 3
    assert np.isnan(log.value).all()
    assert log.repeated_rows == 0
    assert [log.user.dtype, log.item.dtype, log.time_s.dtype] == [np.int32, np.int32, np.float64]
    assert [log.event_type.dtype, log.value.dtype] == [np.uint8, np.float32]


def test_every_format_reads_the_same(write, write_parquet):
    text = HEAD + "7,a,10\n8,b,20\n"
    lines = '{"user_id": 7, "item_id": "a", "timestamp": 10}\n{"user_id": "8", "item_id": "b", "timestamp": 20.0}\n'
    paths = [
        write(text),
        write(gzip.compress(text.encode()), "log.csv.gz"),
        write(lines, "log.jsonl"),
        write(gzip.compress(lines.encode()), "log.ndjson.gz"),
        write_parquet(user_id=[7, 8], item_id=["a", "b"], timestamp=[10, 20]),
    ]

    for path in paths:
        log = read(path)
        assert (log.owners, log.item_ids, log.time_s.tolist()) == (("user:7", "user:8"), ("a", "b"), [10.0, 20.0]), path


def test_columns_name_what_the_file_calls_otherwise(write):
    log = read(write("userId,movieId,when\n1,2,3\n"), {"user_id": "userId", "item_id": "movieId", "timestamp": "when"})
    assert (log.owners, log.item_ids) == (("user:1",), ("2",))


def test_csv_ids_are_kept_exactly_as_written(write):
    log = read(write(HEAD + '007, a ,1\n12.0,"x,y",2\nNA,é,3\n'))
    assert log.owners == ("user:007", "user:12.0", "user:NA")
    assert log.item_ids == (" a ", "x,y", "é")


def test_number_ids_become_their_digits(write, write_parquet):
    log = read(write_parquet(user_id=[12.0, 13.0], item_id=[2**60, 5], timestamp=[1, 2]))
    assert (log.owners, log.item_ids) == (("user:12", "user:13"), (str(2**60), "5"))

    lines = ['{"user_id": 1.0, "item_id": "1", "timestamp": 1}', '{"user_id": "1", "item_id": 1, "timestamp": 2}']
    log = read(write("\n".join(lines), "log.jsonl"))
    assert (log.owners, log.item_ids) == (("user:1",), ("1",))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEAD + "u,i,1\n",
        "user_id,item_id,timestamp\r\nu,i,1\r\n",
        "user_id,item_id,timestamp\ru,i,1\r",
        HEAD + "u,i,1",
        HEAD + "\nu,i,1\n\n\n",
        'user_id, "item_id" ,timestamp\nu,i,1\n'.replace('"', ""),
        "timestamp,extra,item_id,user_id,session_id\n1,?,i,u,s\n",
    ],
    ids=["BOM", "CRLF", "CR", "no last newline", "empty lines", "spaces in the header", "other columns"],
)
def test_harmless_differences_are_read_over(write, text):
    log = read(write(text))
    assert (log.owners, log.item_ids, log.time_s.tolist()) == (("user:u",), ("i",), [1.0])


def test_a_quoted_cell_may_hold_line_breaks(write):
    log = read(write('user_id,note,item_id,timestamp\nu,"two\nlines",i,1\nu,,j,2\n'))
    assert log.item_ids == ("i", "j")


def test_a_row_that_repeats_an_event_counts_once(write):
    rows = ["u,i,1,view,", "u,i,1,view,", "u,i,1,click,", "u,i,2,view,", "u,i,1,view,5", "u,i,1,view,5", "u,i,1,view,"]
    log = read(write("user_id,item_id,timestamp,event_type,value\n" + "\n".join(rows)))

    assert log.repeated_rows == 3
    assert log.time_s.tolist() == [1, 1, 2, 1]
    assert log.event_type.tolist() == [EventType.VIEW, EventType.CLICK, EventType.VIEW, EventType.VIEW]
    np.testing.assert_array_equal(log.value, np.array([NAN, NAN, NAN, 5], np.float32))


def test_one_user_and_one_item_are_a_log(write):
    assert len(read(write(HEAD + "u,i,1\n"))) == 1


# Times


@pytest.mark.parametrize(
    ("written", "time_s"),
    [
        ("1569888000", 1569888000.0),
        ("1569888000.25", 1569888000.25),
        ("1.569888e9", 1569888000.0),
        ("1569888000250", 1569888000.25),
        ("1569888000250000", 1569888000.25),
        ("1569888000250000000", 1569888000.25),
        ("2019-10-01T00:00:00Z", 1569888000.0),
        ("2019-10-01 00:00:00 UTC", 1569888000.0),
        ("2019-10-01 00:00:00.25", 1569888000.25),
        ("2019-10-01T02:00:00+02:00", 1569888000.0),
        ("2019-10-01", 1569888000.0),
        ("20191001", 1569888000.0),
        ("20191301", 20191301.0),
        ("0", 0.0),
    ],
)
def test_times_are_numbers_or_iso_text(write, written, time_s):
    assert read(write(HEAD + f"u,i,{written}\n")).time_s.tolist() == [pytest.approx(time_s, abs=1e-6)]


def test_the_unit_of_numbers_is_the_columns_not_the_rows(write):
    log = read(write(HEAD + "u,i,0\nu,j,1569888000000\nu,k,1569888001000\n"))
    assert log.time_s.tolist() == [0.0, 1569888000.0, 1569888001.0]


def test_one_time_in_another_unit_does_not_change_the_others(write):
    path = write(HEAD + "u,i,1569888000\nu,j,1569888000000\nu,k,1569888001\n")
    assert complaint(path) == "row 3, column timestamp: '1569888000000' is more than a day in the future"


def test_numbers_are_days_only_where_all_of_them_are(write):
    assert read(write(HEAD + "u,i,20191001\nu,j,20191002\n")).time_s.tolist() == [1569888000.0, 1569974400.0]
    assert read(write(HEAD + "u,i,20191001\nu,j,20191099\n")).time_s.tolist() == [20191001.0, 20191099.0]


def test_parquet_times_and_dates_are_read(write_parquet):
    moment = datetime(2019, 10, 1, 0, 0, 0, 250_000, tzinfo=UTC)
    for unit in ("ms", "us", "ns"):
        path = write_parquet(user_id=["u"], item_id=["i"], timestamp=pa.array([moment], pa.timestamp(unit, "UTC")))
        assert read(path).time_s.tolist() == [1569888000.25]
    path = write_parquet(user_id=["u"], item_id=["i"], timestamp=[date(2019, 10, 1)])
    assert read(path).time_s.tolist() == [1569888000.0]


# Event types and values


def test_event_types_are_names_or_aliases_in_any_case(write):
    names = ["view", "CART", "add-to-cart", "Add to Cart", "transaction", "buy", "play"]
    rows = [f"u,i,{n},{name}\n" for n, name in enumerate(names)]
    log = read(write("user_id,item_id,timestamp,event_type\n" + "".join(rows)))

    cart, purchase = EventType.ADD_TO_CART, EventType.PURCHASE
    assert log.event_type.tolist() == [EventType.VIEW, cart, cart, cart, purchase, purchase, EventType.WATCH]


def test_every_name_means_itself_and_no_alias_is_out_of_reach():
    assert EVENT_TYPES_BY_NAME.items() >= EVENT_TYPE_NAMES.items()
    assert all(name == name.lower().replace("-", "_") for name in EVENT_TYPES_BY_NAME)


def test_a_rating_column_without_types_makes_ratings(write):
    log = read(write("user_id,item_id,timestamp,rating\nu,i,1,4.5\nu,j,2,3\n"))
    assert log.event_type.tolist() == [EventType.RATE] * 2
    assert log.value.tolist() == [4.5, 3.0]


def test_rating_is_the_value_of_ratings_and_value_that_of_the_others(write):
    rows = "u,i,1,rate,7,5\nu,i,2,view,7,5\nu,i,3,view,,5\n"
    log = read(write("user_id,item_id,timestamp,event_type,value,rating\n" + rows))
    np.testing.assert_array_equal(log.value, np.array([5, 7, NAN], np.float32))


def test_value_is_the_rating_where_there_is_no_rating_column(write):
    log = read(write("user_id,item_id,timestamp,event_type,value\nu,i,1,rate,5\n"))
    assert log.value.tolist() == [5.0]


# Bad rows


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (",i,1", "column user_id: must not be empty"),
        ("u,,1", "column item_id: must not be empty"),
        ("é" * 257 + ",i,1", "column user_id: is 514 bytes long; at most 512 are allowed"),
        ("u,i,", "column timestamp: is missing"),
        ("u,i,-1", "column timestamp: '-1' is before 1970"),
        ("u,i,99999999999", "column timestamp: '99999999999' is more than a day in the future"),
        ("u,i,nan", "column timestamp: 'nan' is not a number, as the column's first time is"),
        ("u,i,1e999", "column timestamp: '1e999' is more than a day in the future"),
        ("u,i,1_000", "column timestamp: '1_000' is not a number, as the column's first time is"),
        ("u,i,2019-10-01", "column timestamp: '2019-10-01' is not a number, as the column's first time is"),
        ("u,i", "the header has 3 fields, this row 2"),
        ("u,i,1,x", "the header has 3 fields, this row 4"),
        ('u,i,"1', "a quote opens in it and never closes"),
        ('"u"x,i,1', "is not well-formed CSV: ',' expected after '\"'"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_column(write, row, what):
    path = write(HEAD + f"u,h,1\n{row}\n")
    colon = ", " if what.startswith("column") else ": "
    assert complaint(path) == f"row 3{colon}{what}"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("u,i,1,steal,", f"column event_type: 'steal' is not an event type; use one of {', '.join(EVENT_TYPE_NAMES)}"),
        ("u,i,1,,", f"column event_type: is missing; use one of {', '.join(EVENT_TYPE_NAMES)}"),
        ("u,i,1,view,cheap", "column value: 'cheap' is not a finite number (of 32 bits)"),
        ("u,i,1,view,inf", "column value: 'inf' is not a finite number (of 32 bits)"),
        ("u,i,1,view,NaN", "column value: 'NaN' is not a finite number (of 32 bits)"),
        ("u,i,1,view,1e39", "column value: '1e39' is not a finite number (of 32 bits)"),
        ("u,i,1,rate,", "column value: a rate event needs the rating as its value"),
    ],
)
def test_a_bad_type_or_value_is_named(write, row, what):
    assert complaint(write(f"user_id,item_id,timestamp,event_type,value\n{row}\n")) == f"row 2, {what}"


@pytest.mark.parametrize("user", ["u", "", "x" * 512, "x" * 513])
@pytest.mark.parametrize(
    "time_s",
    [0.0, -1.0, 1e9, NOW_S + 80_000, NOW_S + 90_000],
    ids=["1970", "before 1970", "2001", "tomorrow", "later"],
)
@pytest.mark.parametrize("value", [None, 5.0, float("inf")])
@pytest.mark.parametrize("kind", ["view", "rate"])
def test_a_row_is_bad_where_the_event_would_be_refused(write, user, time_s, value, kind):
    record = {"user_id": user, "item_id": "i", "timestamp": time_s, "event_type": kind, "value": value}
    path = write(json.dumps(record), "log.jsonl")
    event = Event("e", user, "i", EVENT_TYPE_NAMES[kind], time_s, value)

    if violation(event, time.time()):
        assert complaint(path).startswith("row 1, column ")
    else:
        assert len(read(path)) == 1


@pytest.mark.parametrize("rest", [5, 20_000], ids=["to the end", "longer than a field may be"])
def test_a_quote_that_swallows_rows_is_never_skipped_over(write, rest):
    path = write(HEAD + 'u,h,1\nu,"i,2\n' + "u,j,3\n" * rest)
    with pytest.raises(LogError, match=r"row 3: .*; it runs on over the \d+ lines after it"):
        read_log(path, skip_bad_rows=True)


def test_a_missing_number_of_a_parquet_file_is_nothing(write_parquet):
    path = write_parquet(user_id=["u", "u"], item_id=["i", "j"], timestamp=[1, 2], value=[NAN, 5.0])
    np.testing.assert_array_equal(read(path).value, np.array([NAN, 5.0], np.float32))
    path = write_parquet(user_id=["u"], item_id=[NAN], timestamp=[1])
    assert complaint(path) == "row 1, column item_id: is missing"


def test_ids_that_are_decimals_keep_all_their_digits(write_parquet):
    ids = [Decimal(1_700_000_000_000_000_001), Decimal(1_700_000_000_000_000_002)]
    path = write_parquet(user_id=pa.array(ids, pa.decimal128(38, 0)), item_id=["i", "i"], timestamp=[1, 1])
    assert read(path).owners == ("user:1700000000000000001", "user:1700000000000000002")
    prices = pa.array([Decimal("2.50"), Decimal("3.00")], pa.decimal128(9, 2))
    path = write_parquet(user_id=["u", "u"], item_id=["i", "j"], timestamp=[1, 2], value=prices)
    assert read(path).value.tolist() == [2.5, 3.0]


def test_the_first_bad_row_of_the_file_is_told_whatever_is_wrong_with_it(write):
    path = write(HEAD + "u,i,1\nu,i,soon\n,i,1\nu\n")
    assert complaint(path).startswith("row 3, column timestamp: 'soon'")


def test_row_numbers_count_empty_lines_and_quoted_line_breaks_as_rows(write):
    assert complaint(write(HEAD + '\n"u\nv",i,1\nu,i,x\n')).startswith("row 4, column timestamp")


def test_the_files_own_column_name_is_told(write):
    path = write("userId,item_id,timestamp\n,i,1\n")
    assert complaint(path, {"user_id": "userId"}) == "row 2, column userId: must not be empty"


def test_a_long_bad_value_is_shortened(write):
    message = complaint(write(HEAD + f"u,i,{'x' * 5000}\n"))
    assert "xxx…xxx" in message
    assert len(message) < 200


def test_bytes_that_are_not_utf8_spoil_their_row(write):
    message = complaint(write(HEAD.encode() + b"u,i,1\nu,caf\xe9,2\n"))
    assert message == "row 3, column item_id: 'caf\\udce9' is not UTF-8 text"


def test_skipped_rows_are_counted_and_listed_and_leave_no_ids(write):
    path = write(HEAD + "ghost,i,never\neva,lamp,1\nu\nbob,,2\nbob,lamp,3\n")
    log, bad_rows = read_log(path, skip_bad_rows=True)

    assert (log.owners, log.item_ids, log.time_s.tolist()) == (("user:eva", "user:bob"), ("lamp",), [1.0, 3.0])
    assert bad_rows.count == 3
    assert bad_rows.details == (
        BadRow(2, "timestamp", "'never' is not a number, as the column's first time is"),
        BadRow(4, "", "the header has 3 fields, this row 1"),
        BadRow(5, "item_id", "must not be empty"),
    )


def test_only_so_many_bad_rows_are_listed(write):
    bad = MAX_BAD_ROW_DETAILS + 5
    _, bad_rows = read_log(write(HEAD + "u,i,1\n" + "u,,1\n" * bad), skip_bad_rows=True)
    assert bad_rows.count == bad
    assert [detail.row for detail in bad_rows.details] == list(range(3, MAX_BAD_ROW_DETAILS + 3))


@pytest.mark.parametrize("rows", ["u,,1\n,i,1\n", "u\nv\n"])
def test_a_log_of_bad_rows_only_is_an_error_even_when_skipping(write, rows):
    with pytest.raises(LogError, match=r"every row is bad.*; the first is row 2"):
        read_log(write(HEAD + rows), skip_bad_rows=True)


# Bad files


def test_a_missing_file_is_an_error(tmp_path):
    assert complaint(tmp_path / "log.csv") == "no such file"


def test_a_directory_is_an_error(tmp_path):
    assert complaint(tmp_path) == "is a directory, not a file"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("log.csv", "", "is empty, or its first row is"),
        ("log.csv", "\nuser_id\n", "is empty, or its first row is"),
        ("log.csv", HEAD, "holds no rows of data"),
        ("log.csv", HEAD.strip(), "holds no rows of data"),
        ("log.jsonl", "\n", "holds no rows of data"),
        ("log.csv", "user_id,item_id,item_id,timestamp\n1,2,3,4\n", "has 2 columns named item_id"),
        ("log.csv", (HEAD + "u,i,1\n").encode("utf-16"), "row 1: the column names are not UTF-8 text"),
        ("log.csv.gz", gzip.compress(HEAD.encode() * 999, mtime=0)[:-9], "its gzip data is cut short or damaged"),
        ("log.jsonl.gz", gzip.compress(b"{}", mtime=0)[:12] + b"??", "its gzip data is cut short or damaged"),
        ("log.parquet", "", "cannot be read as Parquet"),
        ("log.parquet", "PAR1 and then nothing of the kind PAR1", "cannot be read as Parquet"),
        ("log.xlsx", "", "is of no known format; the name must end in .csv"),
        ("log.jsonl", '{"user_id": 1', "every row is bad; the first is row 1: is not JSON: "),
        ("log.jsonl", "[1]\n", "every row is bad; the first is row 1: [1] is not a JSON object"),
        ("log.jsonl", b'{"user_id": "\xff"}', "every row is bad; the first is row 1: is not UTF-8 text"),
    ],
)
def test_a_broken_file_is_an_error_in_words(write, name, content, what):
    assert complaint(write(content, name)).startswith(what)


def test_a_damaged_parquet_file_is_an_error(write_parquet, write):
    whole = write_parquet(user_id=["u"] * 99, item_id=["i"] * 99, timestamp=list(range(99))).read_bytes()
    for size in (3, len(whole) // 2, len(whole) - 1):
        assert complaint(write(whole[:size], "cut.parquet")).startswith("cannot be read as Parquet")


def test_a_parquet_column_of_no_use_is_an_error(write_parquet):
    path = write_parquet(user_id=[True], item_id=["i"], timestamp=[1])
    assert complaint(path) == "column user_id is of type bool; text, numbers or times are needed"


def test_parquet_nulls_and_broken_numbers_are_bad_rows(write_parquet):
    good = {"item_id": ["i", "i"], "timestamp": [1, 2]}
    assert complaint(write_parquet(user_id=["u", None], **good)) == "row 2, column user_id: is missing"
    message = complaint(write_parquet(user_id=[1.0, 1.5], **good))
    assert message == "row 2, column user_id: 1.5 is not an id: a number must be whole"


@pytest.mark.parametrize(
    ("user", "what"),
    [
        ("null", "is missing"),
        ("true", "is true or false, not text or a number"),
        ('{"a": 1}', "is an object, not text or a number"),
        ('["a"]', "is a list, not text or a number"),
        ('"\\ud800"', "'\\ud800' is not UTF-8 text"),
    ],
)
def test_json_that_is_no_id_is_a_bad_row(write, user, what):
    good = '{"user_id": "u", "item_id": "i", "timestamp": 1}\n'
    path = write(good + '{"user_id": USER, "item_id": "i", "timestamp": 1}'.replace("USER", user), "log.jsonl")
    assert complaint(path) == f"row 2, column user_id: {what}"


def test_a_missing_column_says_what_there_is_and_how_to_name_it(write):
    path = write("session_id,item_id,timestamp\ns,i,1\n")
    assert complaint(path) == (
        "has no column user_id; it has session_id, item_id, timestamp; "
        "if one of these is meant, say so with --columns user_id=ITS_NAME"
    )
    assert read(path, {"user_id": "session_id"}).owners == ("user:s",)


def test_a_wrong_mapping_is_an_error(write):
    path = write(HEAD + "u,i,1\n")
    assert complaint(path, {"value": "price"}) == (
        "has no column price, which --columns names as value; it has user_id, item_id, timestamp"
    )
    assert complaint(path, {"user": "user_id"}) == (
        "--columns: there is no column user to map; "
        "the names are user_id, item_id, timestamp, event_type, value, rating, session_id"
    )


anything = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300).map(str.encode),
    st.text(alphabet='ui,"\n\r1.-é{}[]:', max_size=60).map(lambda rows: (HEAD + rows).encode()),
    st.binary(max_size=60).map(lambda rows: HEAD.encode() + rows),
    st.binary(max_size=60).map(lambda rest: b"\x1f\x8b\x08\x00" + rest),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(HEAD.strip().split(",")), inner),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({name: st.floats() | st.integers() | st.text() for name in HEAD.strip().split(",")}).map(
        lambda record: json.dumps(record).encode()
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=anything, name=st.sampled_from(["x.csv", "x.jsonl", "x.csv.gz", "x.parquet"]), skip=st.booleans())
def test_whatever_a_file_holds_it_is_a_log_or_a_log_error(tmp_path, content, name, skip):
    path = tmp_path / name
    path.write_bytes(content)
    try:
        log, _ = read_log(path, skip_bad_rows=skip)
    except LogError:
        return
    assert len(log) >= 1
    assert np.isfinite(log.time_s).all()
    assert set(log.user.tolist()) == set(range(len(log.owners)))


# Whether times are times


@pytest.mark.parametrize(
    ("rows", "real"),
    [
        ("a,i,0\na,j,1\na,k,2\nb,i,0\nb,j,1\n", False),
        ("a,i,0\nb,i,1\na,j,2\nb,j,3\na,k,4\n", False),
        ("a,i,1700000000\na,j,1700000000\nb,i,1700000000\n", False),
        ("a,i,1700000000\na,j,1700000001\na,k,1700000002\n", False),
        ("a,i,1700000000\na,j,1700000060\na,k,1700000061\n", True),
        ("a,i,1700000000\nb,i,1700086400\n", True),
    ],
    ids=["counter per user", "counter per log", "all equal", "counter from a date", "gaps", "one event a user"],
)
def test_a_counter_is_not_a_time(write, rows, real):
    assert times_are_real(read(write(HEAD + rows))) is real


def test_request_times_may_lie_ahead_and_the_last_of_a_user_counts(write):
    path = write("user_id,timestamp\nada,2999-01-01T00:00:00Z\nbob,1970-01-01\nbob,1970-01-01T00:00:02Z\n")
    assert read_request_times(path) == {"ada": 32_472_144_000.0, "bob": 2.0}


@pytest.mark.parametrize("time", ["", "inf", "nan", "-1", "1e30", "soon"])
def test_a_request_time_that_is_none_is_named(write, time):
    path = write(f"user_id,timestamp\nada,5\nbob,5\ncho,{time}\n")
    with pytest.raises(LogError, match="row 4, column timestamp: "):
        read_request_times(path)


def test_no_option_is_named_for_request_times_that_lack_a_column(write):
    path = write("who,timestamp\nada,5\n")
    with pytest.raises(LogError) as caught:
        read_request_times(path)
    assert str(caught.value) == f"{path}: has no column user_id; it has who, timestamp"


@needs_data
@pytest.mark.parametrize(
    ("name", "columns", "size", "real"),
    [
        ("movielens-1m/interactions.csv.gz", {}, (1_000_209, 6_040, 3_706), False),
        ("amazon-beauty/interactions.csv.gz", {}, (198_502, 22_363, 12_101), True),
        (
            "movielens-latest-small/ratings.csv.gz",
            {"user_id": "userId", "item_id": "movieId"},
            (100_004, 671, 9_066),
            True,
        ),
        (
            "rees46-sample/events.csv",
            {"item_id": "product_id", "timestamp": "event_time", "value": "price"},
            (1_000, 330, 534),
            True,
        ),
    ],
)
def test_public_logs_are_read_whole(name, columns, size, real):
    log = read(DATA / name, columns)
    assert (len(log), len(log.owners), len(log.item_ids)) == size
    assert times_are_real(log) is real


# Anonymous sessions


def test_a_row_without_a_user_is_its_sessions(write):
    log = read(write("user_id,session_id,item_id,timestamp\nann,s1,a,1\n,s1,b,2\n,7,c,3\nann,,d,4\n"))
    assert log.owners == ("user:ann", "session:s1", "session:7")
    assert log.user.tolist() == [0, 1, 2, 0]


def test_a_user_who_is_called_like_a_session_is_another(write):
    log = read(write("user_id,session_id,item_id,timestamp\n7,,a,1\n,7,b,2\nsession:7,,c,3\n"))
    assert log.owners == ("user:7", "session:7", "user:session:7")
    assert log.user.tolist() == [0, 1, 2]


def test_what_is_wrong_with_a_session_is_said_of_its_column(write):
    assert complaint(write(f"user_id,session_id,item_id,timestamp\n,s1,a,1\n,{'s' * 513},b,2\n")) == (
        "row 3, column session_id: is 513 bytes long; at most 512 are allowed"
    )


def test_a_row_without_a_user_and_a_session_is_bad(write):
    assert complaint(write("user_id,session_id,item_id,timestamp\nann,s1,a,1\n,,b,2\n")) == (
        "row 3, column user_id: must not be empty"
    )
