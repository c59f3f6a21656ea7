"""What is Redis' own: what survives its end, what happens without it, and what it must be told."""

import asyncio
import contextlib
import signal

import pytest
import redis.exceptions
import structlog
import trustme
from tests.redis_servers import cli, free_port, redis_cluster, redis_server

from longtide_server.errors import Conflict, InvalidInput, Overloaded, Unavailable
from longtide_server.event_store import Known, Version, redis_log, redis_merges
from longtide_server.event_store import redis as redis_store
from longtide_server.event_store.redis_commands import key
from longtide_server.event_store.urls import check_store_url, open_store


async def ids(store, owner="user:ann"):
    return [event.event_id for event in (await store.history(owner)).events]


async def test_what_was_acknowledged_survives_a_killed_redis(tmp_path, event):
    """Kills Redis while several callers write; what it was said to hold, it holds, and each batch is whole."""
    acknowledged, enough = [], asyncio.Event()

    async def write_for_ever(store, caller):
        with contextlib.suppress(Unavailable):
            for batch in range(1_000_000):
                sent = [event(f"{caller}-{batch}-{n}", time_s=float(batch)) for n in range(3)]
                await store.write(sent)
                acknowledged.extend(one.event_id for one in sent)
                if len(acknowledged) > 600:
                    enough.set()

    port = free_port()
    with redis_server(tmp_path, port=port) as (_, process):
        store = await open_store(f"redis://127.0.0.1:{port}")
        writers = [asyncio.create_task(write_for_ever(store, caller)) for caller in range(4)]
        await enough.wait()
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*writers)
        with pytest.raises(Unavailable, match="the event store cannot write"):
            await store.write([event("e1")])
        with pytest.raises(Unavailable, match="the event store cannot answer"):
            await store.history("user:ann")
    with redis_server(tmp_path, port=port):
        kept = await ids(store)  # the same store goes on by itself
        assert set(acknowledged) <= set(kept)
        assert len(kept) == len(set(kept))
        assert len(kept) % 3 == 0
        written = await store.write([event(name) for name in acknowledged])
        assert (written.new, written.duplicates) == (0, len(acknowledged))
        await store.close()


async def test_a_cluster_that_loses_a_master_is_unavailable_until_it_is_back(tmp_path, event):
    def everybody(turn):
        return [event(f"e{turn}", user_id=f"user-{n}") for n in range(30)]

    with redis_cluster(tmp_path, node_timeout_ms=1_000) as nodes:
        store = await open_store(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        assert (await store.write(everybody(0))).new == 30
        nodes[1].process.kill()
        for _ in range(2):
            async with asyncio.timeout(8.0):  # soon, also for callers without a deadline
                with pytest.raises(Unavailable, match="the event store cannot write"):
                    await store.write(everybody(1))
        with nodes[1].running():
            new = 0
            for _ in range(100):
                with contextlib.suppress(Unavailable):
                    new = (await store.write(everybody(1))).new
                    break
                await asyncio.sleep(0.2)
            # Whom the first tries reached, they reached once and whole.
            assert 0 < new <= 30
            assert (await store.write(everybody(1))).new == 0
            for n in range(30):
                assert len((await store.history(f"user:user-{n}")).events) == 2
        await store.close()


@pytest.fixture
async def store(redis_port):
    cli(redis_port, "flushall")
    store = await open_store(f"redis://127.0.0.1:{redis_port}")
    yield store
    await store.close()


def let_go(port):
    """End the holds of an operation that was cut off, as time does."""
    for owner in ("user:ann", "user:guest", "session:s"):
        cli(port, "del", key(owner, "held"))


def failing_after(store, commands):
    """Lets so many commands through, and then none."""
    sent, left = store.commands.client.execute_command, commands

    async def execute_command(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise redis.exceptions.ConnectionError("cut off")
        return await sent(*args)

    return execute_command


@pytest.mark.parametrize("commands", range(3, 22))
async def test_a_merge_that_was_cut_off_anywhere_is_finished_by_whoever_reads_next(
    store, event, monkeypatch, commands, redis_port
):
    monkeypatch.setattr(redis_log, "PIECE_EVENTS", 4)
    await store.write([event(f"s{n}", time_s=float(n), user_id="", session_id="s") for n in range(10)])
    await store.write([event("g", time_s=20.0, user_id="guest"), event("a", time_s=30.0)])
    await store.merge("user:guest", "session:s")
    with monkeypatch.context() as patched:
        patched.setattr(store.commands.client, "execute_command", failing_after(store, commands))
        with contextlib.suppress(Unavailable):
            await store.merge("session:s", "user:ann")
    let_go(redis_port)
    kept = await ids(store)
    if kept != ["a"]:  # not even begun: then it is as if it had not been asked for
        assert kept == [*(f"s{n}" for n in range(10)), "g", "a"]
    await store.merge("session:s", "user:ann")
    everything = [one.event_id for _, one in [pair async for piece in store.everything() for pair in piece]]
    assert sorted(everything) == sorted(await ids(store)) == sorted(["a", "g", *(f"s{n}" for n in range(10))])
    for name in ("user:guest", "session:s"):
        assert (await store.history(name)).owner == "user:ann"


@pytest.mark.parametrize("commands", range(2, 14))
async def test_a_deletion_that_was_cut_off_anywhere_can_be_called_again(
    store, event, monkeypatch, commands, redis_port
):
    sent = [event("s", user_id="", session_id="s"), event("g", user_id="guest"), event("a")]
    await store.write([*sent, event("b", user_id="bob")])
    await store.merge("session:s", "user:ann")
    await store.merge("user:guest", "user:ann")
    with monkeypatch.context() as patched:
        patched.setattr(store.commands.client, "execute_command", failing_after(store, commands))
        with contextlib.suppress(Unavailable):
            await store.delete("user:ann", 100.0)
    let_go(redis_port)
    await store.delete("user:ann", 100.0)
    written = await store.write(sent)
    assert (written.new, written.duplicates) == (0, 3)
    assert [owner async for piece in store.everything() for owner, _ in piece] == ["user:bob"]


async def test_a_name_that_is_not_merged_is_not_deleted_with_another(store, event):
    await store.write([event("k", user_id="kim"), event("l", user_id="lee")])
    await store.commands.run("SADD", key("user:lee", "names"), "user:kim")  # as a merge that never happened left it
    assert (await store.delete("user:lee", 100.0)).events == 1
    assert [one.event_id for one in (await store.history("user:kim")).events] == ["k"]


async def test_merges_of_one_user_wait_for_each_other_and_not_for_ever(store, monkeypatch):
    monkeypatch.setattr(redis_merges, "HOLD_WAIT_S", 0.1)
    async with store._merges._holding("user:ann"):
        with pytest.raises(Unavailable, match="another merge or deletion of the same user is under way"):
            await store.merge("session:s", "user:ann")
        assert (await store.merge("session:t", "user:bob")).events == 0
    assert (await store.merge("session:s", "user:ann")).events == 0


async def test_a_thousand_merges_at_once(store, event):
    sessions = [f"s{n}" for n in range(1_000)]
    await store.write([event(f"e{name}", user_id="", session_id=name) for name in sessions])
    merged = await asyncio.gather(*(store.merge(f"session:{name}", f"user:{name}") for name in sessions))
    assert sum(one.events for one in merged) == 1_000


async def test_who_reads_while_a_merge_is_under_way_does_not_wait_for_it(store, event):
    await store.write([event("a"), event("s", user_id="", session_id="s")])
    await store.commands.run("HSET", key("user:ann", "meta"), "merging", "session:s")
    async with store._merges._holding("user:ann"):
        async with asyncio.timeout(1.0):
            assert await ids(store) == ["a"]
    assert await ids(store) == ["a", "s"]


async def test_a_reader_who_gives_up_holds_nothing(store, event):
    await store.write([event("a"), event("s", user_id="", session_id="s")])
    for _ in range(30):
        await store.commands.run("HSET", key("user:ann", "meta"), "merging", "session:s")
        reading = asyncio.create_task(store.history("user:ann"))
        await asyncio.sleep(0.001)
        reading.cancel()
        await asyncio.wait((reading,))
    await asyncio.sleep(0.2)
    assert await store.commands.run("EXISTS", key("user:ann", "held")) == 0


async def test_a_deletion_by_another_name_that_was_cut_off_goes_on_when_it_is_called_again(
    store, event, monkeypatch, redis_port
):
    await store.write([event("s", user_id="", session_id="s"), event("a")])
    for commands in range(1, 18):
        for name in ("session:s", "user:guest", "session:t"):
            await store.merge(name, "user:ann")
        await store.write([event(f"a{commands}", time_s=1_000.0 * commands)])
        with monkeypatch.context() as patched:
            patched.setattr(store.commands.client, "execute_command", failing_after(store, commands))
            with contextlib.suppress(Unavailable):
                await store.delete("session:s", 1_000.0 * commands + 1)
        let_go(redis_port)
        await store.delete("session:s", 1_000.0 * commands + 1)
        # The names are nobody's any more: what they do now is their own.
        await store.write([event(f"g{commands}", user_id="guest", time_s=1_000.0 * commands + 2)])
        assert (await ids(store), await ids(store, "user:guest")) == ([], [f"g{commands}"])


@pytest.mark.parametrize("commands", range(2, 14))
async def test_the_opposite_of_a_merge_that_was_cut_off_is_refused(store, event, monkeypatch, commands, redis_port):
    await store.write([event("s", user_id="guest"), event("a")])
    with monkeypatch.context() as patched:
        patched.setattr(store.commands.client, "execute_command", failing_after(store, commands))
        with contextlib.suppress(Unavailable):
            await store.merge("user:guest", "user:ann")
    let_go(redis_port)
    with contextlib.suppress(Conflict):
        await store.merge("user:ann", "user:guest")
    assert sorted(await ids(store)) == ["a", "s"]
    assert (await store.delete("user:ann", 9.0)).events == 2


async def test_a_call_that_writes_under_two_names_does_not_hide_what_others_wrote_between(store, event):
    await store.merge("session:s", "user:ann")
    both = [event("1"), event("3", time_s=3.0, user_id="", session_id="s")]
    first, second = await asyncio.gather(store.write(both), store.write([event("2", time_s=2.0)]))
    appended = [first.appended["user:ann"], second.appended["user:ann"]]
    for one in appended:
        count = one.after.position - one.before.position
        assert one.before == Version(-1) or len(one.events) == count


async def test_what_one_owner_cannot_take_is_not_anothers_failure(store, event, redis_port):
    cli(redis_port, "set", key("user:broken", "log"), "no stream")
    tries = (store.write([event(f"e{n}", user_id=user)]) for n, user in enumerate(["ann", "broken", "bob"]))
    ann, broken, bob = await asyncio.gather(*tries, return_exceptions=True)
    assert (ann.new, bob.new) == (1, 1)
    assert isinstance(broken, Unavailable)
    assert "WRONGTYPE" in str(broken)


async def test_events_that_redis_has_lost_are_noticed(store, event, redis_port):
    """As after a failover to a replica that had not got them yet: their positions are given to others."""

    def lose(position, last):
        cli(redis_port, "xdel", key("user:ann", "log"), f"{position + 1}-0")
        cli(redis_port, "hset", key("user:ann", "meta"), "position", str(position), "last", last)

    await store.write([event("e1"), event("lost", time_s=1.0)])
    history = await store.history("user:ann")
    known = Known("user:ann", history.version)
    lose(1, "e1")
    found = await store.history("user:ann", known)
    assert ([one.event_id for one in found.events], found.whole) == (["e1"], True)
    cli(redis_port, "del", key("user:ann", "log"))  # a stream remembers its last id
    cli(redis_port, "xadd", key("user:ann", "log"), "1-0", "e", "x")
    cli(redis_port, "del", key("user:ann", "log"))
    await store.write([event("e2", time_s=2.0)])
    found = await store.history("user:ann", known)
    assert ([one.event_id for one in found.events], found.whole) == (["e2"], True)


@pytest.mark.parametrize("kind", ["redis", "cluster"])
async def test_many_readers_at_once_wait_for_their_turn(kind, redis_port, cluster_ports, event):
    url = f"redis://127.0.0.1:{redis_port}" if kind == "redis" else f"redis+cluster://127.0.0.1:{cluster_ports[0]}"
    store = await open_store(url)
    await store.write([event("e1", user_id="many")])
    histories = await asyncio.gather(*(store.history("user:many") for _ in range(500)))
    assert all(len(history.events) == 1 for history in histories)
    await store.close()


async def test_scripts_that_redis_has_forgotten_are_sent_again(redis_port, event):
    cli(redis_port, "flushall")
    store = await open_store(f"redis://127.0.0.1:{redis_port}")
    await store.write([event("e1"), event("b1", user_id="bob")])
    cli(redis_port, "script", "flush")
    assert (await store.write([event("e2"), event("b2", user_id="bob")])).new == 2
    cli(redis_port, "script", "flush")
    assert (await store.delete("user:bob", 5.0)).events == 2
    await store.close()


async def test_a_redis_that_is_full_is_unavailable_and_leaves_nothing_half_written(tmp_path, event):
    with redis_server(tmp_path, "--maxmemory", "8mb") as (port, _):
        store = await open_store(f"redis://127.0.0.1:{port}")
        await store.write([event("e1")])
        with pytest.raises(Unavailable, match="maxmemory"):
            for n in range(100):
                await store.write([event(f"{n}-{k}", "x" * 500) for k in range(300)])
        kept = await ids(store)
        assert kept[0] == "e1"
        assert len(kept) % 300 == 1
        cli(port, "config", "set", "maxmemory", "200mb")
        assert (await store.write([event("e2")])).new == 1
        await store.close()


async def test_a_probe_of_a_full_redis_fails_until_there_is_room(tmp_path):
    with redis_server(tmp_path) as (port, _):
        store = await open_store(f"redis://127.0.0.1:{port}")
        cli(port, "config", "set", "maxmemory", "1")
        with pytest.raises(Unavailable, match="maxmemory"):
            await store.probe()
        cli(port, "config", "set", "maxmemory", "200mb")
        await store.probe()
        await store.close()


async def test_only_so_many_events_may_wait(redis_port, event, monkeypatch):
    cli(redis_port, "flushall")
    monkeypatch.setattr(redis_store, "MAX_WAITING_EVENTS", 3)
    store = await open_store(f"redis://127.0.0.1:{redis_port}")
    waiting = asyncio.ensure_future(store.write([event("e1"), event("e2"), event("e3")]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="3 events are waiting"):
        await store.write([event("too many")])
    assert (await waiting).new == 3
    assert (await store.write([event("too many")])).new == 1
    await store.close()


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (("--appendonly", "no"), "appendonly"),
        (("--appendfsync", "everysec"), "appendfsync"),
        (("--maxmemory-policy", "allkeys-lru"), "maxmemory-policy"),
    ],
)
async def test_settings_that_may_lose_events_are_warned_of(tmp_path, options, setting):
    with redis_server(tmp_path, *options) as (port, _), structlog.testing.capture_logs() as logs:
        await (await open_store(f"redis://127.0.0.1:{port}")).close()
    assert [line["setting"] for line in logs if line["event"] == "redis_may_lose_events"] == [setting]


async def test_safe_settings_are_not_warned_of(redis_port):
    with structlog.testing.capture_logs() as logs:
        await (await open_store(f"redis://127.0.0.1:{redis_port}")).close()
    assert logs == []


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A Redis with TLS and a password: its HOST:PORT, and the file of the authority that vouches for it."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    files = {"ca-cert-file": "ca.pem", "cert-file": "cert.pem", "key-file": "key.pem"}
    options = [part for name, file in files.items() for part in (f"--tls-{name}", str(folder / file))]
    trusting = ("--tls", "--cacert", str(folder / "ca.pem"))
    with redis_server(folder, *options, "--tls-auth-clients", "no", "--requirepass", "sesame", tls=trusting) as (
        port,
        _,
    ):
        yield f"127.0.0.1:{port}", folder / "ca.pem"


async def test_a_redis_with_tls_and_a_password_is_a_store(guarded, event):
    address, authority = guarded
    store = await open_store(f"rediss://:sesame@{address}/0?ssl_ca_certs={authority}")
    assert (await store.write([event("e1")])).new == 1
    assert await ids(store) == ["e1"]
    await store.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("rediss://:sesame@{address}", "CERTIFICATE_VERIFY_FAILED"),
        ("rediss://:simsim@{address}?ssl_ca_certs={authority}", "invalid username-password pair"),
        ("rediss://{address}?ssl_ca_certs={authority}", "already authenticated"),
        ("redis://:sesame@{address}", "the event store cannot"),
    ],
    ids=["an authority it does not know", "another password", "no password", "no TLS"],
)
async def test_a_guarded_redis_lets_nobody_else_in(guarded, url, why):
    address, authority = guarded
    with pytest.raises(Unavailable, match=why) as caught:
        await open_store(url.format(address=address, authority=authority))
    assert "sesame" not in str(caught.value)
    assert "simsim" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://host/x", "postgres://host/db", "events.db", ""])
def test_a_url_of_no_store_is_refused(url):
    with pytest.raises(InvalidInput, match="store"):
        check_store_url(url)


@pytest.mark.parametrize(
    "url", ["redis://[::1", "redis://h:notaport", "redis+cluster://", "redis://h?socket_timeout=x"]
)
async def test_a_url_that_redis_cannot_read_is_refused(url):
    with pytest.raises(InvalidInput, match="store"):
        await open_store(url)


async def test_a_password_is_not_shown():
    with pytest.raises(InvalidInput) as caught:
        await open_store("redis://ann:secret@h:notaport")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite:///x.db", "sqlite:////a/x.db", "rediss://h:1/2", "rediss+cluster://h"])
def test_a_url_of_a_store_is_accepted(url):
    check_store_url(url)
