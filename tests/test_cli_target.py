"""How the command line reaches a server: behind a proxy that speaks TLS and asks who calls."""

import json
import re

import grpc
import pytest
import trustme
from click.testing import CliRunner
from tests.sdk.conftest import FakeServer

from longtide_server.cli import cli
from longtide_server.training import scoring


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def server(authority):
    """Speaks TLS with a certificate of its own, and lets nobody in who does not say who they are."""
    own = authority.issue_cert("127.0.0.1")
    chain = b"".join(pem.bytes() for pem in own.cert_chain_pems)
    fake = FakeServer()
    fake.credentials = grpc.ssl_server_credentials([(own.private_key_pem.bytes(), chain)])
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def trusting(authority, server, tmp_path):
    """The options that reach the server."""
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    return ("--target", server.target, "--ca", tmp_path / "ca.pem", "--metadata", "authorization=Bearer a=b")


def run(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


COMMANDS = {
    "recommend": ("recommend", "ann"),
    "score": ("score", "users.txt", "--out", "out.parquet"),
    "snapshots": ("snapshots",),
    "activate": ("activate", "new"),
    "import": ("import", "log.csv"),
    "items import": ("items", "import", "items.csv"),
    "items export": ("items", "export", "items.jsonl"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_that_asks_a_server_reaches_one_behind_tls(server, trusting, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "AGAIN_AFTER_S", ())  # the server's lists are all degraded
    (tmp_path / "users.txt").write_text("ann\n")
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nann,a,1\n")
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
    done = run(*command, *trusting)
    assert done.exit_code == 0, (done.output, done.exception)
    assert server.requests
    assert server.metadata["authorization"] == "Bearer a=b"


def test_a_snapshot_is_published_through_tls(server, trusting, tiny_snapshots):
    done = run("publish", tiny_snapshots, "--activate", *trusting)
    assert re.fullmatch(r"longtide: there is no snapshot '.*'\n", done.stderr)  # says the server, which has others
    assert server.metadata["authorization"] == "Bearer a=b"


def test_metadata_may_be_several_and_need_no_tls(server, trusting):
    server.stop()
    server.credentials = None
    server.start()
    two = ("--metadata", "authorization=x", "--metadata", "x-tenant=shop")
    done = run("snapshots", "--target", server.target, *two, "--json")
    assert [one["snapshot_id"] for one in json.loads(done.stdout)] == ["new", "old"]
    assert (server.metadata["authorization"], server.metadata["x-tenant"]) == ("x", "shop")


def test_a_certificate_that_is_not_trusted_is_not(server):
    for options in (), ("--tls",):
        done = run("snapshots", "--target", server.target, *options)
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.output
    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ca", "gone.pem"], "--ca: gone.pem: No such file or directory"),
        (["--ca", "items.csv"], "--ca: items.csv holds no certificate (PEM)"),
        (["--metadata", "secret"], "--metadata: takes KEY=VALUE, for example authorization='Bearer TOKEN'"),
        (["--metadata", "Upper=x"], "--metadata: 'Upper' may only hold a-z, 0-9, -, _ and ."),
    ],
)
def test_what_cannot_be_right_is_said_in_a_sentence(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
    for command in (("snapshots",), ("items", "export", "out.jsonl")):
        done = run(*command, *options)
        assert (done.exit_code, done.stderr) == (2, f"longtide: {said}\n")
