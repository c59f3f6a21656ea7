"""Packs a handler and its weights into a TorchServe archive (.mar), the same bytes for the same input.

Written with `zipfile`, not with torch-model-archiver: that one stages its files in a fixed folder of the machine's
temporary directory (two publishers would mix theirs) and stamps the time, so no two archives are equal.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from longtide_server.errors import SnapshotError

MANIFEST_PATH = "MAR-INF/MANIFEST.json"
CONFIG_PATH = "model-config.yaml"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time a zip file can hold
_TIME = "01/01/1980 00:00:00"
_CHUNK_BYTES = 1 << 20


def build_archive(
    out: Path,
    *,
    model_name: str,
    version: str,
    handler: Path,
    weights: Path,
    extra_files: Sequence[Path] = (),
    config: Mapping[str, object] | None = None,
) -> None:
    """Write `out`, whole or not at all. The handler reads `config` as `context.model_yaml_config`."""
    model = {"modelName": model_name, "modelVersion": version, "handler": handler.name, "serializedFile": weights.name}
    with _writing(out) as archive:
        _write_about(archive, {"createdOn": _TIME, "runtime": "python", "archiverVersion": "1"}, model, config)
        for path in _distinct(handler, weights, *extra_files):
            with path.open("rb") as source:
                _copy(source, path.stat().st_size, path.name, archive)


def copy_archive(source: Path, out: Path, settings: Mapping[str, object]) -> None:
    """Write a copy whose configuration has `settings` too.

    TorchServe takes a model's workers and timeouts from the archive's configuration where there is one, its defaults
    included (120 s to respond), and only otherwise from config.properties. So settings belong here.
    """
    with _reading(source) as old, _writing(out) as new:
        manifest = json.loads(old.read(MANIFEST_PATH))
        model = manifest.pop("model")
        config_path = model.get("configFile")
        config = json.loads(old.read(config_path)) if config_path else {}
        _write_about(new, manifest, model, {**config, **settings})
        for entry in old.infolist():
            if entry.filename not in (MANIFEST_PATH, config_path):
                with old.open(entry) as file:
                    _copy(file, entry.file_size, entry.filename, new)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as exc:
        raise SnapshotError(f"{path}: not a TorchServe archive made by Longtide: {exc}") from exc


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[zipfile.ZipFile]:
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:  # weights do not compress
            yield archive
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _write_about(
    archive: zipfile.ZipFile,
    manifest: Mapping[str, object],
    model: Mapping[str, object],
    config: Mapping[str, object] | None,
) -> None:
    if config is not None:
        model = {**model, "configFile": CONFIG_PATH}
        archive.writestr(_entry(CONFIG_PATH), _json(config))  # JSON is YAML
    archive.writestr(_entry(MANIFEST_PATH), _json({**manifest, "model": model}))


def _distinct(*paths: Path) -> Iterator[Path]:
    seen = {CONFIG_PATH}
    for path in paths:
        if path.name in seen:
            raise SnapshotError(f"{path}: the archive already holds a file named {path.name!r}")
        seen.add(path.name)
        yield path


def _copy(source: IO[bytes], size_bytes: int, name: str, archive: zipfile.ZipFile) -> None:
    entry = _entry(name)
    entry.file_size = size_bytes  # tells zipfile when it needs 64-bit sizes
    with archive.open(entry, "w") as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    return entry


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
