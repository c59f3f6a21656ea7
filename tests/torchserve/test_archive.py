"""Archives: equal for equal input, whole or absent, and able to load with nothing of Longtide installed."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from longtide_server.errors import SnapshotError
from longtide_server.torchserve.archive import build_archive, copy_archive

HERE = Path(__file__).parent
HANDLER = HERE / "longtide_echo_handler.py"


def bare_load(archive, folder):
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    command = [sys.executable, "-I", str(HERE / "bare_load.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_handler_initialises_from_the_archive_alone(archive, tmp_path):
    done = bare_load(archive, tmp_path)
    assert done.stdout == "initialised EchoHandler\n", done.stderr


def test_a_handler_that_imports_the_server_is_found_out(weights, tmp_path):
    handler = tmp_path / "longtide_greedy_handler.py"
    handler.write_text("import longtide_server\n")
    build_archive(tmp_path / "greedy.mar", model_name="greedy", version="1", handler=handler, weights=weights)
    done = bare_load(tmp_path / "greedy.mar", tmp_path / "unpacked")
    assert done.returncode != 0
    assert "No module named 'longtide_server'" in done.stderr


def test_the_same_input_gives_the_same_bytes(weights, tmp_path):
    one, two = tmp_path / "one.mar", tmp_path / "two.mar"
    for out in (one, two):
        build_archive(out, model_name="m", version="1", handler=HANDLER, weights=weights, config={"b": 1, "a": 2})
    assert one.read_bytes() == two.read_bytes()


def test_it_holds_every_file_and_says_what_it_is(weights, tmp_path):
    extra = tmp_path / "items.json"
    extra.write_text("[]")
    out = tmp_path / "m.mar"
    build_archive(
        out, model_name="m", version="3.1", handler=HANDLER, weights=weights, extra_files=[extra], config={"k": 5}
    )
    with zipfile.ZipFile(out) as packed:
        assert sorted(packed.namelist()) == [
            "MAR-INF/MANIFEST.json",
            "doubler.pt",
            "items.json",
            "longtide_echo_handler.py",
            "model-config.yaml",
        ]
        assert json.loads(packed.read("model-config.yaml")) == {"k": 5}
        model = json.loads(packed.read("MAR-INF/MANIFEST.json"))["model"]
    assert model == {
        "modelName": "m",
        "modelVersion": "3.1",
        "handler": "longtide_echo_handler.py",
        "serializedFile": "doubler.pt",
        "configFile": "model-config.yaml",
    }


def test_two_files_of_one_name_are_refused_and_nothing_is_left(weights, tmp_path):
    out = tmp_path / "m.mar"
    with pytest.raises(SnapshotError, match=r"already holds a file named 'doubler.pt'"):
        build_archive(out, model_name="m", version="1", handler=HANDLER, weights=weights, extra_files=[weights])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "served"), [(None, {"minWorkers": 2}), ({"k": 5, "minWorkers": 9}, {"k": 5, "minWorkers": 2})]
)
def test_a_copy_has_the_settings_and_everything_else(weights, tmp_path, config, served):
    source, out = tmp_path / "m.mar", tmp_path / "served.mar"
    build_archive(source, model_name="m", version="1", handler=HANDLER, weights=weights, config=config)
    copy_archive(source, out, {"minWorkers": 2})
    with zipfile.ZipFile(out) as packed:
        assert json.loads(packed.read("model-config.yaml")) == served
        assert packed.read("doubler.pt") == weights.read_bytes()
        assert len(packed.namelist()) == len(set(packed.namelist())) == 4
    assert bare_load(out, tmp_path / "unpacked").returncode == 0


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "x.mar").write_text("not a zip")
    with pytest.raises(SnapshotError, match=r"x\.mar: not a TorchServe archive"):
        copy_archive(tmp_path / "x.mar", tmp_path / "y.mar", {})
