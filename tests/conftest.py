import os

import pytest


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
