"""The published, immutable bundle that answers come from: what is in it, how it is checked and loaded.

A snapshot is a folder of files and a manifest that names each with its size and checksum. A snapshot directory holds
one folder per snapshot and the file CURRENT, which names the active one and is replaced atomically.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longtide_server.catalog.catalog import Catalog, read_catalog
from longtide_server.catalog.content import ContentTower, ContentWeights
from longtide_server.errors import InvalidInput, SnapshotError
from longtide_server.events import owner_key, session_of, user_of
from longtide_server.ranking import Fusion
from longtide_server.sources.behavior import BehaviorWeights
from longtide_server.sources.candidates import Transitions, TransitionSettings
from longtide_server.sources.neighbors import NeighborIndex, Positions
from longtide_server.sources.relations import RelationArrays, Relations
from longtide_server.sources.repeats import RepeatWeights
from longtide_server.sources.request_time import RequestTimeWeights

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
CURRENT = "CURRENT"
ENCODER = "encoder.pt"
CATALOG = "catalog.parquet"
USERS = "users.parquet"
EMBEDDINGS = "embeddings.npy"
POPULARITY = "popularity.npy"
TRANSITIONS = "transitions.npz"
POSITIONS = "positions.npz"
INDEX = "positions.ann"
DIRECTIONS = "directions.npy"
BEHAVIOR = "behavior.npz"
REQUEST_TIME = "request_time.npz"
CONTENT_VECTORS = "content_vectors.npy"
CONTENT = "content.npz"
RELATIONS = "relations.npz"
REPEATS = "repeats.npz"

DRAFT, TRAINING = ".draft-", ".training-"
"""What the folders begin with that only trainings under way need."""
LEFTOVER_AGE_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What the server must know of the encoder."""

    dim: int
    """Width D of query vectors and item embeddings."""
    state_size: int
    """Floats S of one user's state."""
    temperature: float
    """Cosines are divided by this before the softmax."""


@dataclass(frozen=True, slots=True)
class NeighborSettings:
    """How neighbours are searched and how they vote."""

    count: int = 400
    """Similar moments that vote, at most."""
    dim: int = 64
    """Directions that moments are compared along, of the encoder's dimensions those that hold most of the vectors."""
    trees: int = 20
    """Trees of the Annoy index."""
    search_k: int = 4000
    """Vectors that Annoy may look at in one search, chosen when the snapshot was published."""
    recall: float = 0.0
    """Recall@50 against brute force on held-out queries at that search_k."""
    min_similarity: float = 0.0
    """Least cosine of a neighbour that votes, -1 to 1, when the request does not say."""
    temperature: float = 0.1
    """Cosines are divided by this before they become votes."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file of the snapshot must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a snapshot that is not an array."""

    snapshot_id: str
    created_time: str
    """ISO 8601, UTC."""
    encoder: EncoderFacts
    neighbors: NeighborSettings
    transitions: TransitionSettings
    fusion: Fusion
    user_count: int
    item_count: int
    """Items of the log."""
    event_count: int
    model: dict[str, str | float | int | bool | list[float]]
    """The shape of the encoder, as it was trained."""
    training: dict[str, str | float | int | bool]
    """The settings it was trained with."""
    metrics: dict[str, dict[str, float]]
    """Validation metrics by what was measured, for example `fusion` -> `ndcg@10`."""
    new_item_count: int = 0
    """Items of the catalogue that have no event in the log; their vectors come from their content."""
    format_version: int = FORMAT_VERSION
    files: dict[str, FileFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A loaded snapshot. Immutable, shared by every request."""

    manifest: Manifest
    path: Path
    catalog: Catalog
    owners: tuple[str, ...]
    """Whose moments the neighbour index holds."""
    owner_numbers: Mapping[str, int]
    """Their indexes in owners."""
    embeddings: NDArray[np.float32]
    """(I + 1, D) unit vectors; row 0 is padding. I is all items, those without events at the end."""
    popularity: NDArray[np.float64]
    """(I + 1,) probabilities; 0 for padding, and for items without an event that counts."""
    transitions: Transitions
    neighbors: NeighborIndex
    behavior: BehaviorWeights | None = None
    """Reads the next behaviour from a query vector; None where the log had neither types nor values to learn."""
    request_time: RequestTimeWeights | None = None
    """What the time of a request changes; None where the log had no real times to learn it from."""
    content_vectors: NDArray[np.float32] | None = None
    """(I + 1, D) unit vectors of what is known of the items, zeros where nothing is; None where nothing was of any."""
    content: ContentTower | None = None
    """Gives items that the snapshot does not hold a vector; None where nothing was known of items to learn it from."""
    relations: Relations | None = None
    """What links items by what they share; None where there was no knowledge graph."""
    repeats: RepeatWeights | None = None
    """When people turn to something once more; None where nobody of the log did."""

    @property
    def snapshot_id(self) -> str:
        """The snapshot's name."""
        return self.manifest.snapshot_id


def publish(directory: Path, build: Callable[[Path], Manifest]) -> Path:
    """Let `build` write a snapshot's files, seal them with a manifest, and make the snapshot the current one.

    Readers see the snapshot before or this one, never a half: the folder is renamed into place when complete, and
    CURRENT replaced after that.
    """
    prepare(directory)
    draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=directory))
    try:
        manifest = build(draft)
        files = {path.name: _facts(path) for path in sorted(draft.iterdir())}
        sealed = replace(manifest, files=files)
        (draft / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(sealed), indent=2))
        draft.chmod(0o755)
        target = directory / manifest.snapshot_id
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    set_current(directory, manifest.snapshot_id)
    return target


def set_current(directory: Path, name: str) -> None:
    """Make a snapshot of the directory, by its folder's name, the one that is served by whoever starts."""
    pointer = directory / f".{CURRENT}-{os.getpid()}"
    pointer.write_text(name + "\n", encoding="utf-8")
    pointer.replace(directory / CURRENT)


def published(directory: Path) -> list[tuple[Path, Manifest]]:
    """The snapshots of a directory that this Longtide can read, with their folders, the newest first."""
    found = []
    for path in directory.glob(f"[!.]*/{MANIFEST}"):
        with suppress(SnapshotError):  # of another format, or deleted a moment ago
            found.append((path.parent, read_manifest(path.parent)))
    return sorted(found, key=lambda one: (one[1].created_time, one[1].snapshot_id), reverse=True)


def copy_snapshot(folder: Path, directory: Path) -> Path:
    """Copy a whole, checked snapshot into another directory, without making it the current one; its folder there."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    target = directory / manifest.snapshot_id
    if target.exists():
        check_files(target, read_manifest(target))
        return target
    prepare(directory)
    draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=directory))
    try:
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        draft.chmod(0o755)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target


def prepare(directory: Path) -> None:
    """Make a snapshot directory that can be written to. InvalidInput when that cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as exc:
        raise InvalidInput(f"{directory}: cannot be a snapshot directory: {exc.strerror}") from exc


def sweep(directory: Path, now_s: float) -> None:
    """Clear away what killed trainings left in a snapshot directory, and nobody has taken up for a week."""
    for prefix in (DRAFT, TRAINING):
        for folder in directory.glob(f"{prefix}*"):
            with suppress(FileNotFoundError):  # of the processes that train together, each does this
                if now_s - folder.stat().st_mtime > LEFTOVER_AGE_S:
                    shutil.rmtree(folder, ignore_errors=True)


def resolve(directory: Path) -> Path:
    """The folder of a snapshot: `directory` itself when it is one, else the one that its CURRENT names."""
    if (directory / MANIFEST).is_file():
        return directory
    pointer = directory / CURRENT
    if directory.is_file():
        raise SnapshotError(f"{directory}: is a file; name the directory that a snapshot was published into")
    if not pointer.is_file():
        raise SnapshotError(f"{directory}: no snapshot here; `longtide train LOG --out {directory}` makes one")
    try:
        target = directory / pointer.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SnapshotError(f"{pointer}: cannot be read: {exc}") from exc
    if not (target / MANIFEST).is_file():
        raise SnapshotError(f"{pointer}: names {target.name!r}, which is not there")
    return target


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest alone."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
        version = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("format_version")
        if version is None or msgspec.json.decode(version) != FORMAT_VERSION:
            found = "none" if version is None else bytes(version).decode("utf-8", "replace")
            raise SnapshotError(f"{path}: format version {found}; this Longtide reads version {FORMAT_VERSION}")
        return msgspec.json.decode(raw, type=Manifest)
    except (OSError, msgspec.MsgspecError) as exc:
        raise SnapshotError(f"{path}: cannot be read: {exc}") from exc


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest: there, whole and unchanged."""
    for name in (ENCODER, CATALOG, USERS, EMBEDDINGS, POPULARITY, TRANSITIONS, POSITIONS, INDEX, DIRECTIONS):
        if name not in manifest.files:
            raise SnapshotError(f"{folder / MANIFEST}: does not list {name}")
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise SnapshotError(f"{path}: is missing")
        size = path.stat().st_size
        if size != expected.bytes:
            raise SnapshotError(f"{path}: is {size} bytes long, {expected.bytes} were published (truncated copy?)")
        if _facts(path).sha256 != expected.sha256:
            raise SnapshotError(f"{path}: its checksum differs from the published one (damaged or edited)")


def load_snapshot(directory: Path) -> Snapshot:
    """Load and check the snapshot that a directory holds. SnapshotError says what is wrong with it."""
    folder = resolve(directory)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    with np.load(folder / TRANSITIONS) as arrays:
        transitions = Transitions(arrays["offsets"], arrays["items"], arrays["probability"])
    with np.load(folder / POSITIONS) as arrays:
        positions = Positions(arrays["user"], arrays["next_item"], arrays["weight"])
    behavior = None
    if BEHAVIOR in manifest.files:
        with np.load(folder / BEHAVIOR) as arrays:
            behavior = BehaviorWeights(**arrays)
    request_time = None
    if REQUEST_TIME in manifest.files:
        with np.load(folder / REQUEST_TIME) as arrays:
            request_time = RequestTimeWeights(**arrays)
    content_vectors = np.load(folder / CONTENT_VECTORS) if CONTENT_VECTORS in manifest.files else None
    content = None
    if CONTENT in manifest.files:
        with np.load(folder / CONTENT) as arrays:
            content = ContentTower(ContentWeights(**arrays))
    relations = None
    if RELATIONS in manifest.files:
        with np.load(folder / RELATIONS) as arrays:
            relations = Relations(RelationArrays(**arrays))
    repeats = None
    if REPEATS in manifest.files:
        with np.load(folder / REPEATS) as arrays:
            repeats = RepeatWeights(**arrays)
    owners = read_owners(folder / USERS)
    return Snapshot(
        manifest=manifest,
        path=folder,
        catalog=read_catalog(folder / CATALOG),
        owners=owners,
        owner_numbers={owner: number for number, owner in enumerate(owners)},
        embeddings=np.load(folder / EMBEDDINGS),
        popularity=np.load(folder / POPULARITY),
        transitions=transitions,
        neighbors=NeighborIndex(folder / INDEX, np.load(folder / DIRECTIONS), positions),
        behavior=behavior,
        request_time=request_time,
        content_vectors=content_vectors,
        content=content,
        relations=relations,
        repeats=repeats,
    )


def write_owners(owners: Sequence[str], path: Path) -> None:
    """Write the users, and the anonymous sessions, who are in the index, in order."""
    columns = {"user_id": map(user_of, owners), "session_id": map(session_of, owners)}
    pq.write_table(pa.table({name: pa.array(ids, pa.string()) for name, ids in columns.items()}), path)


def read_owners(path: Path) -> tuple[str, ...]:
    """What `write_owners` wrote."""
    table = pq.read_table(path)
    return tuple(map(owner_key, table["user_id"].to_pylist(), table["session_id"].to_pylist()))


def _facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        return FileFacts(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
