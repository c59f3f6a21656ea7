"""Recommending to a long list of users, through a real server."""

from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtide import AsyncClient, DeadlineExceededError, Event, ResourceExhaustedError, UnavailableError
from longtide_server.app import running
from longtide_server.config import ServerConfig
from longtide_server.errors import InvalidInput, LogError
from longtide_server.training import scoring
from longtide_server.training.scoring import Asked, Scored, read_users, score

USERS = [f"user-{n}" for n in range(30)]


@pytest.fixture
async def client(tiny_snapshots, tmp_path):
    config = ServerConfig(tiny_snapshots, tmp_path / "data", listen="127.0.0.1:0", encoder="local", stop_grace_s=1.0)
    async with running(config) as address, AsyncClient(address, timeout=20.0) as client:
        await client.write_events([Event(user, f"item-{n % 12}", time=1_700_000_000) for n, user in enumerate(USERS)])
        yield client


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "PART_USERS", 8)
    monkeypatch.setattr(scoring, "AGAIN_AFTER_S", (0.0, 0.0))
    return tmp_path / "recs.parquet"


async def scored(client, out, users=USERS):
    return await score(client, users, out, Asked(5, "mail"), lambda _: None, reconnect_timeout_s=5.0)


def rows(out):
    return pq.read_table(out).to_pylist()


class Failing:
    """Breaks the streams of a client after some answers each, until it has broken so many."""

    def __init__(self, client, answers, times, failure=None):
        self._client, self._answers, self._times = client, answers, times
        self._failure = failure or UnavailableError("the server is gone")

    async def recommend_many(self, user_ids, *args, **rest):
        count = 0
        async for answer in self._client.recommend_many(user_ids, *args, **rest):
            if count == self._answers and self._times:
                self._times -= 1
                raise self._failure
            count += 1
            yield answer


class Troubled:
    """Spoils the first few answers to some users each."""

    def __init__(self, client, users, times, **trouble):
        self._client, self._users, self._times, self._trouble = client, users, times, trouble
        self.asked = Counter()

    async def recommend_many(self, user_ids, *args, **rest):
        async for answer in self._client.recommend_many(user_ids, *args, **rest):
            self.asked[answer.user_id] += 1
            spoilt = answer.user_id in self._users and self.asked[answer.user_id] <= self._times
            yield replace(answer, **self._trouble) if spoilt else answer


async def test_every_user_has_a_row_in_their_order(client, out):
    assert await scored(client, out) == Scored(users=30)
    found = rows(out)
    assert [row["user_id"] for row in found] == USERS
    async for answer in client.recommend_many(USERS, 5):
        row = found[USERS.index(answer.user_id)]
        assert row["item_ids"] == [item.item_id for item in answer]
        assert row["scores"] == [item.score for item in answer]
        assert (row["snapshot_id"], row["degraded"], row["error"]) == (answer.snapshot_id, False, None)
        assert row["attribution_token"]
    assert [path.name for path in out.parent.iterdir() if path.name.startswith("recs")] == ["recs.parquet"]


async def test_a_user_that_the_server_refuses_has_the_reason(client, out):
    long = "x" * 513
    assert await scored(client, out, ["user-0", long, "user-1"]) == Scored(users=3, refused=1)
    found = rows(out)
    assert [len(row["item_ids"]) for row in found] == [5, 0, 5]
    assert "at most 512 are allowed" in found[1]["error"]


async def test_a_run_that_was_cut_off_goes_on_behind_the_last_part(client, out):
    await scored(client, out)
    expected = [row["item_ids"] for row in rows(out)]
    out.unlink()

    def report(done):
        if done.users == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await score(client, USERS, out, Asked(5, "mail"), report)
    assert not out.exists()
    assert await scored(client, out) == Scored(users=30, earlier=16)
    assert [row["user_id"] for row in rows(out)] == USERS
    assert [row["item_ids"] for row in rows(out)] == expected


async def test_a_server_that_stays_away_is_not_waited_for_for_ever(client, out):
    with pytest.raises(UnavailableError, match="the server is gone"):
        await score(Failing(client, 0, 1_000), USERS, out, Asked(5), lambda _: None, reconnect_timeout_s=0.3)
    assert not out.exists()


async def test_a_server_that_goes_away_for_a_while_is_asked_for_the_rest(client, out):
    await scored(client, out)
    expected = [row["item_ids"] for row in rows(out)]
    assert await scored(Failing(client, 3, 2), out) == Scored(users=30)
    assert [row["item_ids"] for row in rows(out)] == expected


@pytest.mark.parametrize("failure", [ResourceExhaustedError("full", retry_delay_s=0.2), DeadlineExceededError("slow")])
async def test_a_server_with_too_much_to_do_is_asked_again_when_it_says(client, out, failure):
    assert await scored(Failing(client, 3, 2, failure), out) == Scored(users=30)
    assert [row["user_id"] for row in rows(out)] == USERS


PASSING = {
    "degraded": {"degraded": True},
    "unavailable": {"error": UnavailableError("the log is locked")},
    "overloaded": {"error": ResourceExhaustedError("full")},
    "late": {"error": DeadlineExceededError("slow")},
}


@pytest.mark.parametrize("trouble", PASSING.values(), ids=PASSING)
async def test_answers_that_may_be_better_a_little_later_are_asked_for_again(client, out, trouble):
    troubled = Troubled(client, ("user-3", "user-11"), 2, **trouble)
    assert await scored(troubled, out) == Scored(users=30)
    assert [(row["user_id"], row["degraded"], row["error"]) for row in rows(out)] == [(u, False, None) for u in USERS]
    assert troubled.asked == Counter(USERS) + Counter(["user-3", "user-11"] * 2)


async def test_what_is_no_better_in_the_end_is_counted(client, out):
    assert await scored(Troubled(client, ("user-3", "user-11"), 9, degraded=True), out) == Scored(users=30, degraded=2)
    assert [row["user_id"] for row in rows(out) if row["degraded"]] == ["user-3", "user-11"]
    failing = Troubled(client, ("user-5",), 9, error=UnavailableError("the log is locked"))
    assert await scored(failing, out) == Scored(users=30, refused=1)
    assert [row["error"] for row in rows(out) if row["user_id"] == "user-5"] == ["the log is locked"]


async def test_what_an_earlier_run_left_degraded_is_counted_too(client, out):
    def report(done):
        if done.users == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await score(Troubled(client, ("user-3",), 9, degraded=True), USERS, out, Asked(5, "mail"), report)
    assert await scored(client, out) == Scored(users=30, earlier=8, degraded=1)


async def test_a_degraded_list_is_better_than_none(client, out):
    class Worse(Troubled):
        """Degraded first, then not answered at all."""

        async def recommend_many(self, user_ids, *args, **rest):
            async for answer in super().recommend_many(user_ids, *args, **rest):
                again = self.asked[answer.user_id] > 1
                yield replace(answer, error=UnavailableError("down")) if again else replace(answer, degraded=True)

    assert await scored(Worse(client, (), 0), out, USERS[:3]) == Scored(users=3, degraded=3)


async def test_the_parts_of_other_users_or_settings_are_not_gone_on_with(client, out):
    def report(done):
        if done.users == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await score(client, USERS, out, Asked(5, "mail"), report)
    with pytest.raises(InvalidInput, match=r"recs\.parquet\.parts is of other users; remove it to begin anew"):
        await scored(client, out, USERS[::-1])
    with pytest.raises(
        InvalidInput,
        match=r"recs\.parquet\.parts was made with limit 5, surface 'mail', include_seen False, not with limit 6, "
        "surface 'mail', include_seen False; remove it to begin anew",
    ):
        await score(client, USERS, out, Asked(6, "mail"), report)
    with pytest.raises(InvalidInput, match=r"not with limit 5, surface ''"):
        await score(client, USERS, out, Asked(5), report)
    (out.with_name("recs.parquet.parts") / "settings.json").unlink()  # as an earlier version left it
    with pytest.raises(InvalidInput, match=r"was made with unknown settings"):
        await scored(client, out)


async def test_a_run_that_was_killed_while_it_cleared_away_can_be_run_again(client, out, monkeypatch):
    def killed(folder, **_):
        for part in sorted(folder.glob("*.parquet"))[:1]:
            part.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring.shutil, "rmtree", killed)
        await scored(client, out)
    assert [row["user_id"] for row in rows(out)] == USERS
    assert await scored(client, out, USERS[:20]) == Scored(users=20)
    assert [row["user_id"] for row in rows(out)] == USERS[:20]
    assert [path.name for path in out.parent.iterdir() if path.name.startswith("recs")] == ["recs.parquet"]


async def test_nobody_is_a_file_without_rows(client, out):
    assert await scored(client, out, []) == Scored()
    assert rows(out) == []


def test_users_are_lines_or_a_column(tmp_path):
    (tmp_path / "users.txt").write_text("ann\n\n bob \ncara")
    (tmp_path / "users.csv").write_text("age,user_id\n3,ann\n4,bob\n5,cara\n")
    pq.write_table(pa.table({"user_id": ["ann", "bob", "cara"]}), tmp_path / "users.parquet")
    for name in ("users.txt", "users.csv", "users.parquet"):
        assert list(read_users(tmp_path / name)) == ["ann", "bob", "cara"]


def test_a_list_that_is_none_is_named(tmp_path):
    (tmp_path / "users.csv").write_text("age,user_id\n3,ann\n4,\n")
    with pytest.raises(LogError, match=r"users\.csv: row 3, column user_id"):
        list(read_users(tmp_path / "users.csv"))
    with pytest.raises(InvalidInput, match=r"no\.txt: no such file"):
        list(read_users(tmp_path / "no.txt"))
    (tmp_path / "users.csv").write_text("who\nann\n")
    with pytest.raises(LogError, match=r"has no column user_id; it has who$"):  # no option gives it another name
        list(read_users(tmp_path / "users.csv"))
