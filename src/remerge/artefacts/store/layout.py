"""Where a store keeps what, and how a process is alone in it.

store.json                  the format of the store
records/xx/ID.json          what an artefact is: immutable, named by its own SHA-256
states/xx/ID.json           what happened to it: pinned, proved, collected
blobs/canonical/xx/SHA256   what nothing brings back: adapters, bases, manifests, side files
blobs/derived/xx/SHA256     what base and adapter bring back; only here is ever deleted
refs/NAME                   the artefact that a name points to
log.jsonl                   one line for every change
journal.json                a change that is being carried out (`transactions`)
index.sqlite                the same once more, to be listed quickly; it can be made again
staging/                    what is on its way in
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remerge.artefacts.names import check_name
from remerge.errors import BadInput, Locked, TryAgain, UsageError
from remerge.outputs.directory import STORE, write_durably
from remerge.sources.storage import cannot_write, sync_directory
from remerge.sources.user_directories import data_directory

VARIABLE = "REMERGE_STORE"
_FORMAT = {"format": "remerge-store/1"}
_PATIENCE = 60.0
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Store:
    """A store by its directory."""

    root: Path

    def record(self, artefact: str) -> Path:
        return self.root / "records" / artefact[:2] / f"{artefact}.json"

    def state(self, artefact: str) -> Path:
        return self.root / "states" / artefact[:2] / f"{artefact}.json"

    def canonical(self, sha256: str) -> Path:
        return self.root / "blobs" / "canonical" / sha256[:2] / sha256

    def derived(self, sha256: str) -> Path:
        return self.root / "blobs" / "derived" / sha256[:2] / sha256

    @property
    def refs(self) -> Path:
        return self.root / "refs"

    def ref(self, name: str) -> Path:
        return self.refs / name

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def journal(self) -> Path:
        return self.root / "journal.json"

    @property
    def index(self) -> Path:
        return self.root / "index.sqlite"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    def __str__(self) -> str:
        return str(self.root)


def place_of_store(given: str | Path | None) -> Path:
    """The directory of the store: as given, as ``REMERGE_STORE`` says, else the user's own."""
    named = given or os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    data = data_directory()
    if data is None:
        raise UsageError("This user has no home for a store.", hint="Give --store DIR.")
    return data / "store"


def open_store(given: str | Path | None = None, *, create: bool = False) -> Store:
    """The store at ``given``, or the user's own; made where ``create`` allows it.

    Raises `UsageError` for a directory that is something else, `BadInput` where there is none.
    """
    root = place_of_store(given)
    marker = root / STORE
    if marker.is_file():
        _check_format(marker)
        return Store(root)
    if not create:
        raise BadInput(
            f"There is no store at {root}.",
            hint="Put something into one: remerge store add OUT. Another one: --store DIR.",
        )
    if root.exists() and (not root.is_dir() or any(_foreign(root))) and not marker.is_file():
        raise UsageError(
            f"{root} is not empty, and no store.",
            why="It may hold somebody's work.",
            hint="Choose an empty directory with --store DIR.",
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Another process may be making it.
        with alone(Store(root)):
            if not marker.is_file():
                _make(root, marker)
    except OSError as error:
        raise cannot_write(root, error, "--store") from error
    _check_format(marker)
    return Store(root)


def _make(root: Path, marker: Path) -> None:
    for name in ("records", "states", "blobs/canonical", "blobs/derived", "refs", "staging"):
        (root / name).mkdir(parents=True, exist_ok=True)
    sync_directory(root)
    # Last: a directory without it is no store yet, and may be made one again.
    write_durably(marker, (json.dumps(_FORMAT) + "\n").encode())
    sync_directory(root)


def names(store: Store) -> list[str]:
    """Every name there is: files of other names (a killed process's, a file manager's) are none."""
    return sorted(path.name for path in store.refs.iterdir() if _is_name(path))


def target_of(store: Store, name: str) -> str | None:
    """The id in a name's file; None where there is none, nothing ("") where it holds no id."""
    try:
        found = store.ref(name).read_bytes().strip().decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        return ""
    return found if _ID.fullmatch(found) else ""


def _is_name(path: Path) -> bool:
    try:
        check_name(path.name)
    except UsageError:
        return False
    return path.is_file()


def _foreign(root: Path) -> list[str]:
    ours = {"records", "states", "blobs", "refs", "staging", f"{STORE}~", "lock", "lost+found"}
    return [path.name for path in root.iterdir() if path.name not in ours]


def _check_format(marker: Path) -> None:
    try:
        found: object = json.loads(marker.read_bytes())
    except ValueError:
        found = None
    if found != _FORMAT:
        raise BadInput(
            f"{marker} names no format that this remerge knows.",
            why="A newer remerge made the store, or the file is damaged.",
        )


@contextmanager
def alone(store: Store) -> Generator[None]:
    """Hold the store's lock: short, for changes that must not meet. Raises `Locked` after a minute.

    The lock belongs to the process: it ends with it, so there is none to clear away.
    """
    path = store.root / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot_write(path, error, "--store") from error
    try:
        _wait(descriptor, store)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, store: Store) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise Locked(
                    f"Another remerge is changing the store {store}.",
                    hint="Wait for it to end, then try again.",
                ) from None
            time.sleep(0.02)
        except OSError as error:
            raise TryAgain(
                f"The file system of {store} has no locks ({error.strerror}).",
                why="Two processes could undo one another's changes there.",
                hint="Keep the store on a local disk: --store DIR.",
            ) from error
