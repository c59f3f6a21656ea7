"""The contract: generated code is what the .proto files give, and the files keep the rules they promise."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longtide.v1 import catalog_pb2, events_pb2, recommendation_pb2, snapshots_pb2, users_pb2

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PUBLIC = sorted(path.relative_to(ROOT / "proto").as_posix() for path in (ROOT / "proto").rglob("*.proto"))
TORCHSERVE = "longtide_server/torchserve/torchserve.proto"


def protoc(source: Path, out: Path, *kinds: str, files: list[str]) -> None:
    """Generate into `out`, as `make proto` does."""
    plugins = [f"--plugin=protoc-gen-{name}={BIN / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", *plugins]
    done = subprocess.run(
        [*command, *(f"--{kind}_out={out}" for kind in kinds), *files],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def generated(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*_pb2*.py*"))
        if "__pycache__" not in path.parts
    }


def test_the_sdks_generated_code_is_current(tmp_path):
    protoc(ROOT / "proto", tmp_path, "python", "mypy", "grpc_python", "mypy_grpc", files=PUBLIC)
    fresh = generated(tmp_path)
    # It defines no service, so `make proto` removes its empty stubs.
    without_service = {name for name in fresh if name.startswith("longtide/internal/") and "_grpc" in name}
    assert generated(ROOT / "sdk") == {name: code for name, code in fresh.items() if name not in without_service}
    assert len(fresh) == 24


def test_the_servers_generated_code_is_current(tmp_path):
    protoc(ROOT / "server", tmp_path, "python", "mypy", files=[TORCHSERVE])
    assert generated(ROOT / "server") == generated(tmp_path)
    assert len(generated(tmp_path)) == 2


def lint(folder: Path) -> str:
    done = subprocess.run([BIN / "buf", "lint"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_the_contract_keeps_bufs_rules():
    assert lint(ROOT / "proto") == ""


@pytest.mark.parametrize("module", [catalog_pb2, events_pb2, recommendation_pb2, snapshots_pb2, users_pb2])
def test_code_in_go_and_java_has_a_name_from_the_first_release_on(module):
    """To add one of these later, or to change it, is what `buf breaking` forbids."""
    options = module.DESCRIPTOR.GetOptions()
    assert (options.go_package, options.java_package) == ("longtide/v1;longtidev1", "longtide.v1")
    assert options.java_multiple_files
    assert options.java_outer_classname == f"{Path(module.DESCRIPTOR.name).stem.capitalize()}Proto"


@pytest.mark.parametrize(
    ("with_comment", "without", "complaint"),
    [
        ("// A batch to write.\nmessage", "message", 'Message "WriteEventsRequest" should have a non-empty comment'),
        ("  // How the user acted. Required.\n", "", 'Field "type" should have a non-empty comment'),
        ("// What a person did to an item.\nenum", "enum", 'Enum "EventType" should have a non-empty comment'),
        ("  // Read the item.\n", "", 'Enum value "EVENT_TYPE_READ" should have a non-empty comment'),
    ],
    ids=["message", "field", "enum", "value"],
)
def test_nothing_goes_without_a_comment(tmp_path, with_comment, without, complaint):
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    events = tmp_path / "proto" / "longtide" / "v1" / "events.proto"
    before = events.read_text()
    assert with_comment in before
    events.write_text(before.replace(with_comment, without))
    assert complaint in lint(tmp_path / "proto")
