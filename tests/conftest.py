import os

import pytest
import torch
from tests.redis_servers import redis_cluster, redis_server


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
