"""A log file as events: what is read, what is refused with which reason, and that a second time changes nothing."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtide import EventError, InvalidEventsError, WriteResult
from longtide_server.errors import InvalidInput, LogError
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import Event, EventType
from longtide_server.training.files import importing
from longtide_server.training.files.importing import BadRowsFile, Outcome, import_log, into_store, read_events
from longtide_server.training.files.log import read_log
from longtide_server.training.files.tables.columns import BadRow
from longtide_server.training.stored import export, read_store

LOG = """user_id,item_id,timestamp,event_type,value,session_id,event_id,custom_type,attribution_token
ann,a,1700000000,view,,s1,e1,,t1
,b,1700000001,purchase,9.5,s2,e2,,
bob,c,1700000002,custom,,,e3,hummed,
"""
EVENTS = [
    Event("e1", "ann", "a", EventType.VIEW, 1_700_000_000.0, None, "", "s1", "t1"),
    Event("e2", "", "b", EventType.PURCHASE, 1_700_000_001.0, 9.5, "", "s2"),
    Event("e3", "bob", "c", EventType.CUSTOM, 1_700_000_002.0, None, "hummed"),
]


@pytest.fixture
async def store(tmp_path):
    store = SqliteEventStore(tmp_path / "events.db")
    yield store
    await store.close()


@pytest.fixture
def write_log(tmp_path):
    def written(text, name="log.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


async def imported(path, store):
    with BadRowsFile(path.with_name("bad.csv")) as bad:
        done = await import_log(path, {}, into_store(store), bad, lambda _: None)
    return done.written, done.duplicates, done.bad


def read(path):
    return [event for piece in read_events(path, {}) for event in piece.events]


def test_every_column_is_read(write_log):
    assert read(write_log(LOG)) == EVENTS


def test_zipped_csv_parquet_and_json_lines_say_the_same(write_log, tmp_path):
    plain = write_log(LOG)
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    names, *rows = [line.split(",") for line in LOG.splitlines()]
    records = [
        {
            name: float(cell) if name in ("timestamp", "value") else cell
            for name, cell in zip(names, row, strict=True)
            if cell
        }
        for row in rows
    ]
    jsonl = write_log("".join(json.dumps(record) + "\n" for record in records), "log.jsonl")
    everything = [{name: record.get(name) for name in names} for record in records]
    pq.write_table(pa.Table.from_pylist(everything), tmp_path / "log.parquet")
    for path in (tmp_path / "log.csv.gz", tmp_path / "log.parquet", jsonl):
        assert read(path) == EVENTS


@pytest.mark.parametrize("piece_rows", [1, 2, 3, 100])
def test_pieces_of_any_size_say_the_same(write_log, monkeypatch, piece_rows):
    monkeypatch.setattr(importing, "PIECE_ROWS", piece_rows)
    pieces = list(read_events(write_log(LOG), {}))
    assert [event for piece in pieces for event in piece.events] == EVENTS
    assert [row for piece in pieces for row in piece.rows] == [2, 3, 4]
    assert max(len(piece.events) for piece in pieces) <= piece_rows
    assert pieces[-1].read_share == 1.0


def test_the_first_rows_say_how_times_are_written(write_log, monkeypatch):
    monkeypatch.setattr(importing, "PIECE_ROWS", 1)
    path = write_log("user_id,item_id,timestamp\nann,a,1700000000000\nann,b,5\n")
    assert [event.time_s for event in read(path)] == [1_700_000_000.0, 0.005]


def test_an_id_that_is_not_given_follows_from_what_the_event_says(write_log):
    rows = ["ann,a,1", "ann,a,1", "ann,a,2", "ann,b,1", "bob,a,1"]
    first = [event.event_id for event in read(write_log("user_id,item_id,timestamp\n" + "\n".join(rows)))]
    assert first[0] == first[1]
    assert len(set(first)) == 4
    again = read(write_log("item_id,user_id,timestamp\na,ann,1\n", "other.csv"))
    assert again[0].event_id == first[0]


async def test_an_import_of_any_length_is_written_once(write_log, store, monkeypatch):
    monkeypatch.setattr(importing, "PIECE_ROWS", 7)
    rows = [f"user-{n % 5},item-{n % 9},{1_700_000_000 + n // 2}" for n in range(100)]
    path = write_log("user_id,item_id,timestamp\n" + "\n".join([*rows, rows[3], rows[50]]))
    assert await imported(path, store) == (100, 2, 0)
    assert await imported(path, store) == (0, 102, 0)
    assert not path.with_name("bad.csv").exists()


async def test_an_import_that_was_cut_off_is_gone_on_with(write_log, store, monkeypatch):
    monkeypatch.setattr(importing, "PIECE_ROWS", 10)
    path = write_log("user_id,item_id,timestamp\n" + "\n".join(f"ann,item-{n},{n}" for n in range(100)))
    pieces = 0

    async def fails_in_the_middle(events):
        nonlocal pieces
        pieces += 1
        if pieces == 5:
            raise ConnectionError("killed")
        return await into_store(store)(events)

    with BadRowsFile(path.with_name("bad.csv")) as bad, pytest.raises(ConnectionError):
        await import_log(path, {}, fails_in_the_middle, bad, lambda _: None)
    assert await imported(path, store) == (60, 40, 0)


async def test_what_cannot_be_taken_goes_into_a_file_with_the_reason(write_log, store, monkeypatch):
    monkeypatch.setattr(importing, "PIECE_ROWS", 2)
    path = write_log(
        "user_id,item_id,timestamp,event_type\n"
        "ann,a,1700000000,view\n"
        "ann,,1700000001,view\n"
        "ann,b\n"
        "ann,c,yesterday,view\n"
        "ann,d,1700000002,waved\n"
        "ann,e,1700000003,custom\n"
        ",f,1700000004,view\n"
        "ann,g,1700000005,view\n"
    )
    assert await imported(path, store) == (2, 0, 6)
    assert path.with_name("bad.csv").read_text().splitlines() == [
        "row,column,reason",
        "3,item_id,must not be empty",
        '4,,"the header has 4 fields, this row 2"',
        "5,timestamp,\"'yesterday' is not a number, as the column's first time is\"",
        "6,event_type,\"'waved' is not an event type; use one of view, click, add_to_cart, purchase, watch, read, like,"
        ' dislike, share, comment, rate, custom"',
        "7,custom_type,must not be empty",
        "8,user_id,must not be empty",
    ]


async def test_what_a_server_refuses_is_told_by_row(write_log):
    path = write_log("user_id,item_id,timestamp\nann,,1\nann,a,1\nann,b,2\n")

    async def refuse_the_second(events):
        return Outcome(1, 0, [(1, "event_time", "is too old")])

    with BadRowsFile(path.with_name("bad.csv")) as bad:
        done = await import_log(path, {}, refuse_the_second, bad, lambda _: None)
    assert (done.written, done.bad) == (1, 2)
    assert path.with_name("bad.csv").read_text().splitlines()[1:] == [
        "2,item_id,must not be empty",
        "4,event_time,is too old",
    ]


OLD = "row,column,reason\r\n7,item_id,must not be empty\r\n"


@pytest.fixture
def report(tmp_path):
    """That of an earlier run."""
    path = tmp_path / "bad.csv"
    path.write_text(OLD)
    return path


def test_a_report_takes_the_place_of_an_earlier_one_when_it_is_whole(report):
    with BadRowsFile(report) as bad:
        bad.add([BadRow(2, "user_id", "is missing")])
        assert report.read_bytes().decode() == OLD
    assert report.read_text().splitlines() == ["row,column,reason", "2,user_id,is missing"]
    assert [path.name for path in report.parent.iterdir()] == ["bad.csv"]


def test_a_report_is_gone_once_everything_was_taken(report):
    with BadRowsFile(report) as bad:
        bad.add([])
        assert report.exists()
    assert not report.exists()


def test_a_run_that_fails_keeps_an_earlier_report_or_tells_what_it_found(report):
    for found, lines in ([], OLD.splitlines()), ([BadRow(2, "", "is torn")], ["row,column,reason", "2,,is torn"]):
        with pytest.raises(ConnectionError), BadRowsFile(report) as bad:
            bad.add(found)
            raise ConnectionError("killed")
        assert report.read_text().splitlines() == lines


@pytest.mark.parametrize("content", ["", "my,own,notes\n", "row,column,reason,mine\n", "\xff"])
def test_a_file_that_is_no_report_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.csv"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=r"--bad-rows: .*notes\.csv is there, and is no report of an import"):
        BadRowsFile(path)
    assert path.read_text() == content


def test_a_report_needs_a_folder_and_is_none(tmp_path):
    for path in (tmp_path, tmp_path / "no" / "bad.csv"):
        with pytest.raises(InvalidInput, match="--bad-rows: "):
            BadRowsFile(path)


def test_values_keep_all_their_digits(write_log):
    path = write_log("user_id,item_id,timestamp,value\nann,a,1,19.99\nann,b,2,16777217\n")
    assert [event.value for event in read(path)] == [19.99, 16_777_217.0]


@pytest.mark.parametrize("piece_rows", [1, 2, 100])
def test_a_json_column_may_first_occur_far_from_the_beginning(write_log, monkeypatch, piece_rows):
    monkeypatch.setattr(importing, "PIECE_ROWS", piece_rows)
    records = [
        {"item_id": "a", "timestamp": 1, "session_id": "s"},
        {"item_id": "b", "timestamp": 2, "user_id": "ann", "rating": 3},
        {"item_id": "c", "timestamp": 3, "user_id": "ann", "rating": 4},
    ]
    path = write_log("".join(json.dumps(record) + "\n" for record in records), "log.jsonl")
    pieces = list(read_events(path, {}))
    events = [event for piece in pieces for event in piece.events]
    assert [(event.item_id, event.type, event.value) for event in events] == [("b", 11, 3.0), ("c", 11, 4.0)]
    assert [bad.reason for piece in pieces for bad in piece.bad] == ["a rate event needs the rating as its value"]


def test_rows_without_a_time_do_not_decide_how_times_are_written(write_log, monkeypatch):
    monkeypatch.setattr(importing, "PIECE_ROWS", 2)
    path = write_log("user_id,item_id,timestamp\nann,a,?\nann,b,\nann,c,1700000000000\nann,d,1700000001000\n")
    assert [event.time_s for event in read(path)] == [1_700_000_000.0, 1_700_000_001.0]


def test_rows_that_cannot_be_taken_apart_come_in_pieces_too(write_log, monkeypatch):
    monkeypatch.setattr(importing, "PIECE_ROWS", 1_000)
    path = write_log("user_id,item_id,timestamp\n" + "ann,a\n" * 5_000 + "ann,a,1\n")
    pieces = list(read_events(path, {}))
    assert max(len(piece.bad) for piece in pieces) <= 1_512
    assert sum(len(piece.bad) for piece in pieces) == 5_000
    assert [event.item_id for piece in pieces for event in piece.events] == ["a"]


async def test_every_refusal_of_a_server_is_told(monkeypatch):
    class Client:
        """Refuses every event, and tells the reasons of the first thousand as a stream does."""

        async def stream_events(self, events):
            raise InvalidEventsError(self._result(list(events), 1_000))

        async def write_events(self, events):
            raise InvalidEventsError(self._result(list(events), None))

        def _result(self, events, told):
            errors = tuple(EventError(n, one.event_id, "event_time", "is too old") for n, one in enumerate(events))
            return WriteResult(refused_count=len(errors), errors=errors[:told])

    events = [Event(f"e{n}", "ann", "a", 1, 1.0) for n in range(5_000)]
    outcome = await importing.into_server(Client())(events)
    assert (outcome.written, outcome.duplicates, len(outcome.refused)) == (0, 0, 5_000)
    assert outcome.refused[-1] == (4_999, "event_time", "is too old")


@pytest.mark.parametrize("text", ["", "user_id,item_id\nann,a\n"])
def test_a_file_that_is_no_log_is_named(write_log, text):
    with pytest.raises(LogError, match=r"log\.csv"):
        read(write_log(text))


async def test_an_export_is_read_back_as_it_was(store, tmp_path):
    await store.write(EVENTS)
    told = []
    assert await export(store, tmp_path / "out.parquet", told.append) == 3
    assert told == [3]
    assert read(tmp_path / "out.parquet") == EVENTS


async def test_training_reads_the_same_from_a_store_its_export_and_the_log_itself(write_log, store, tmp_path):
    rows = [f"{'' if n % 4 == 0 else f'u{n % 3}'},i{n % 7},{100 + n},rate,{n % 5},s{n % 2}" for n in range(50)]
    path = write_log("user_id,item_id,timestamp,event_type,value,session_id\n" + "\n".join([*rows, rows[9]]))
    await imported(path, store)
    await export(store, tmp_path / "out.parquet", lambda _: None)
    stored = await read_store(store, lambda _: None)
    for found in (read_log(path)[0], read_log(tmp_path / "out.parquet")[0]):
        for name in ("owners", "item_ids"):
            assert getattr(found, name) == getattr(stored, name)
        for name in ("user", "item", "time_s", "event_type", "value"):
            assert getattr(found, name).tolist() == getattr(stored, name).tolist()
    assert {name for name in stored.owners if name.startswith("session:")} == {"session:s0"}


async def test_a_stored_value_that_32_bits_do_not_hold_is_absent(store):
    await store.write([Event(f"e{n}", "ann", "a", EventType.VIEW, n, value) for n, value in enumerate([1e300, 2.5])])
    np.testing.assert_array_equal((await read_store(store, lambda _: None)).value, [np.nan, 2.5])


async def test_an_empty_store_is_no_log(store):
    with pytest.raises(LogError, match="the event store holds no events"):
        await read_store(store, lambda _: None)


async def test_an_export_that_fails_leaves_no_file(store, tmp_path):
    await store.write(EVENTS)

    def fails(_):
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        await export(store, tmp_path / "out.parquet", fails)
    assert [path.name for path in tmp_path.iterdir() if "parquet" in path.name] == []
