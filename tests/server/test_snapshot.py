"""Published whole or not at all; loaded unharmed or not at all."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from longtide_server.errors import InvalidInput, SnapshotError
from longtide_server.snapshot import (
    CURRENT,
    MANIFEST,
    load_snapshot,
    prepare,
    publish,
    read_manifest,
    read_owners,
    resolve,
    sweep,
    write_owners,
)

FILES = [
    "behavior.npz",
    "catalog.parquet",
    "directions.npy",
    "embeddings.npy",
    "encoder.pt",
    "popularity.npy",
    "positions.ann",
    "positions.npz",
    "request_time.npz",
    "transitions.npz",
    "users.parquet",
]


@pytest.fixture
def manifest(world):
    return world.snapshot.manifest


def writes(manifest, **files):
    """A build that writes these files."""

    def build(folder):
        for name, content in files.items():
            (folder / name).write_text(content)
        return manifest

    return build


def contents(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_published_snapshot_is_the_current_one(tmp_path, manifest):
    folder = publish(tmp_path / "snapshots", writes(manifest, one="1", two="22"))
    assert folder == tmp_path / "snapshots" / "world"
    assert contents(folder) == ["manifest.json", "one", "two"]
    assert contents(tmp_path / "snapshots") == [CURRENT, "world"]
    assert resolve(tmp_path / "snapshots") == folder
    assert resolve(folder) == folder
    sealed = read_manifest(folder)
    assert {name: facts.bytes for name, facts in sealed.files.items()} == {"one": 1, "two": 2}
    assert replace(sealed, files={}) == manifest


def test_the_next_snapshot_takes_its_place_and_the_first_stays(tmp_path, manifest):
    first = publish(tmp_path, writes(manifest, one="1"))
    second = publish(tmp_path, writes(replace(manifest, snapshot_id="next"), one="2"))
    assert resolve(tmp_path) == second
    assert (first / "one").read_text() == "1"


def test_a_build_that_fails_leaves_everything_as_it_was(tmp_path, manifest):
    first = publish(tmp_path, writes(manifest, one="1"))
    before = contents(tmp_path)

    def build(folder):
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, build)
    assert contents(tmp_path) == before
    assert resolve(tmp_path) == first


def test_while_it_is_built_the_one_before_is_current(tmp_path, manifest):
    first = publish(tmp_path, writes(manifest, one="1"))

    def build(folder):
        assert resolve(tmp_path) == first
        assert not (tmp_path / "next").exists()
        return replace(manifest, snapshot_id="next")

    assert publish(tmp_path, build).name == "next"


def test_a_snapshot_is_never_overwritten(tmp_path, manifest):
    first = publish(tmp_path, writes(manifest, one="1"))
    with pytest.raises(OSError, match="world"):
        publish(tmp_path, writes(manifest, one="2"))
    assert (first / "one").read_text() == "1"
    assert contents(tmp_path) == [CURRENT, "world"]


def test_where_nothing_can_be_written_there_is_no_snapshot_directory():
    with pytest.raises(InvalidInput, match="cannot be a snapshot directory"):
        prepare(Path("/proc"))


def test_what_killed_trainings_left_is_cleared_away_after_a_week(tmp_path):
    for name in (".draft-a", ".training-c", ".kept", "20260101T000000-1"):
        (tmp_path / name / "file").mkdir(parents=True)
    (tmp_path / ".training-c" / "file").touch()
    now_s = time.time()
    sweep(tmp_path, now_s + 6 * 86_400)
    assert len(list(tmp_path.iterdir())) == 4
    sweep(tmp_path, now_s + 8 * 86_400)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kept", "20260101T000000-1"]


def test_a_trained_snapshot_holds_what_the_log_says(tiny_snapshot):
    assert len(tiny_snapshot.catalog) == 12
    assert sorted(tiny_snapshot.owners) == sorted(f"user:user-{n}" for n in range(30))
    assert tiny_snapshot.owner_numbers["user:user-3"] == tiny_snapshot.owners.index("user:user-3")
    assert tiny_snapshot.embeddings.shape == (13, 8)
    assert np.linalg.norm(tiny_snapshot.embeddings[1:], axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    assert tiny_snapshot.popularity[0] == 0
    assert tiny_snapshot.popularity.sum() == pytest.approx(1.0)
    assert len(tiny_snapshot.neighbors) == 30 * 9  # every event that another one follows
    facts = tiny_snapshot.manifest
    assert (facts.user_count, facts.item_count, facts.event_count) == (30, 12, 300)
    assert sorted(facts.files) == FILES
    number = tiny_snapshot.catalog.number("item-1")
    assert tiny_snapshot.catalog.info(number).title == "One"


def test_users_and_anonymous_sessions_are_read_as_they_were_written(tmp_path):
    owners = ("user:s", "session:s", "user:session:s", "user:é")
    write_owners(owners, tmp_path / "users.parquet")
    assert read_owners(tmp_path / "users.parquet") == owners


@pytest.fixture
def copied(tiny_snapshots, tmp_path):
    """A snapshot to damage: its folder, in a directory of its own."""
    shutil.copytree(tiny_snapshots, tmp_path / "copied")
    return resolve(tmp_path / "copied")


def complaint(folder):
    with pytest.raises(SnapshotError) as caught:
        load_snapshot(folder.parent)
    return str(caught.value)


def test_a_copy_is_as_good(copied):
    assert load_snapshot(copied.parent).snapshot_id == load_snapshot(copied).snapshot_id == copied.name


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    assert complaint(copied) == f"{copied / name}: is missing"


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(copied, name):
    size = (copied / name).stat().st_size
    with (copied / name).open("rb+") as file:
        file.truncate(size - 1)
    assert complaint(copied) == f"{copied / name}: is {size - 1} bytes long, {size} were published (truncated copy?)"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_noticed(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    assert complaint(copied).startswith(f"{copied / name}: its checksum differs")


@pytest.mark.parametrize("version", [0, 2, 4, "3", None])
def test_another_format_version_is_refused_before_anything_is_read(copied, version):
    wanted = {"format_version": version} if version is not None else {}
    (copied / MANIFEST).write_bytes(msgspec.json.encode(wanted))
    found = "none" if version is None else msgspec.json.encode(version).decode()
    assert complaint(copied) == f"{copied / MANIFEST}: format version {found}; this Longtide reads version 3"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 3}'])
def test_a_broken_manifest_is_named(copied, content):
    (copied / MANIFEST).write_bytes(content)
    assert complaint(copied).startswith(f"{copied / MANIFEST}: cannot be read")


def test_a_manifest_that_forgets_a_file_is_refused(copied):
    manifest = read_manifest(copied)
    files = {name: facts for name, facts in manifest.files.items() if name != "users.parquet"}
    (copied / MANIFEST).write_bytes(msgspec.json.encode(replace(manifest, files=files)))
    (copied / "users.parquet").unlink()
    assert "users.parquet" in complaint(copied)


def test_without_a_manifest_there_is_no_snapshot(copied):
    (copied / MANIFEST).unlink()
    assert complaint(copied) == f"{copied.parent / CURRENT}: names {copied.name!r}, which is not there"


def test_a_pointer_to_nowhere_is_named(copied):
    (copied.parent / CURRENT).write_text("elsewhere\n")
    assert complaint(copied) == f"{copied.parent / CURRENT}: names 'elsewhere', which is not there"


def test_a_damaged_pointer_is_named(copied):
    (copied.parent / CURRENT).write_bytes(b"\xff\xfe\xfd")
    assert str(copied.parent / CURRENT) in complaint(copied)


def test_an_empty_directory_says_how_to_make_a_snapshot(tmp_path):
    with pytest.raises(SnapshotError, match="longtide train LOG --out"):
        load_snapshot(tmp_path)
    with pytest.raises(SnapshotError, match="no snapshot here"):
        load_snapshot(tmp_path / "not there")
