import os
from dataclasses import replace

import hypothesis
import pytest
import torch
from tests.redis_servers import cli, redis_cluster, redis_server

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.training import pipeline
from longtide_server.training.dataset import to_sequences
from longtide_server.training.files.log import read_log
from longtide_server.training.pipeline import train_and_publish
from longtide_server.training.settings import settings_for, with_overrides

hypothesis.settings.register_profile("longtide", deadline=None)  # a busy machine is no counterexample
hypothesis.settings.load_profile("longtide")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What one test run keeps, the next does not find; processes that tests start see it too."""
    before = os.environ.get("LONGTIDE_CACHE")
    os.environ["LONGTIDE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LONGTIDE_CACHE"]
    else:
        os.environ["LONGTIDE_CACHE"] = before


@pytest.fixture(scope="module")
def one_thread():
    """Steps are too small to share: with more threads, a busy machine makes them a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory):
    """A real Redis server that forgets nothing."""
    with redis_server(tmp_path_factory.mktemp("redis")) as (port, _):
        yield port


@pytest.fixture(scope="session")
def cluster_ports(tmp_path_factory):
    """A real Redis cluster of three masters."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield [node.port for node in nodes]


@pytest.fixture(params=["sqlite", "shared-sqlite", "redis", "cluster"])
def store_kind(request):
    return request.param


@pytest.fixture
def store_url(store_kind, request, tmp_path):
    """The URL of an empty store of every kind, real: a file of SQLite, of one's own or shared, Redis, a cluster."""
    if "sqlite" in store_kind:
        return f"sqlite:///{tmp_path / 'data' / 'events.db'}"
    if store_kind == "redis":
        port = request.getfixturevalue("redis_port")
        cli(port, "flushall")
        return f"redis://127.0.0.1:{port}"
    ports = request.getfixturevalue("cluster_ports")
    for port in ports:
        cli(port, "flushall")
    return f"redis+cluster://127.0.0.1:{ports[0]}"


@pytest.fixture(scope="session")
def tiny_log(tmp_path_factory):
    """30 users, each with 10 events: user n goes round the items from item n on."""
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rows = [
        f"user-{user},item-{(user + step) % 12},{1_700_000_000 + user * 1_000 + step * 60},view,"
        for user in range(30)
        for step in range(10)
    ]
    rows[5::10] = [row.replace("view,", "purchase,9.5") for row in rows[5::10]]
    path.write_text("\n".join(["user_id,item_id,timestamp,event_type,value", *rows]) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_snapshots(tiny_log, tmp_path_factory):
    """The directory of a snapshot that was trained on the tiny log. Not to be changed."""
    return train_on(tiny_log, tmp_path_factory.mktemp("snapshots"))


def train_on(path, directory):
    log, _ = read_log(path)
    sequences = to_sequences(log)
    small = {"train.epochs": "1", "model.dim": "8", "model.hidden": "8", "train.chunk": "8"}
    settings = with_overrides(settings_for(sequences, times_are_real=True, seed=7), small)
    settings = replace(settings, model=replace(settings.model, use_values=True, value_std=2.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "MIN_TARGETS", 1)  # so that it is judged, small as it is
        train_and_publish(sequences, {"item-1": ItemInfo("One", ("odd",))}, settings, directory, lambda _: None)
    return directory
