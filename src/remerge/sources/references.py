"""What BASE and ADAPTER mean: a directory, or a repository on the Hub.

path/to/dir             an existing directory always wins
path/to/dir:name        the adapter in its sub-folder `name`
path/to/x.safetensors   the adapter in its directory, where these are the only weights
org/name                the Hub, at `main`
org/name@revision       a branch, a tag, a commit or refs/pr/1
org/name@revision:name  one adapter of several
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remerge.errors import BadInput
from remerge.sources import hub

Kind = Literal["base", "adapter"]

ADAPTER_CONFIG = "adapter_config.json"

# What git-check-ref-format forbids; the Hub's cache makes a path of the revision.
_BAD_REVISION = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|^[-/.]|/\.|[/.]$|\.lock(/|$)|^@?$"
)
_HUB_PAGE = re.compile(
    r"(?:https?://(?:huggingface\.co|hf\.co)/|hf://)(?P<id>[^/@]+/[^/@]+)(?:/tree/(?P<rev>[^/]+))?/?"
)
_BLOB = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Reference:
    """A directory to read from, and where it came from if that was the Hub."""

    path: Path
    hub_id: str | None = None
    commit: str | None = None
    subfolder: str | None = None

    @property
    def name(self) -> str:
        """The Hub's id, else the directory's name as text, whatever bytes it has on disk."""
        name = self.hub_id or self.path.resolve().name
        return name.encode("utf-8", "backslashreplace").decode()

    def __str__(self) -> str:
        if self.hub_id is None:
            return str(self.path)
        return f"{self.hub_id}@{self.commit}" + (f":{self.subfolder}" if self.subfolder else "")


def resolve(
    source: str | Path, kind: Kind, *, copy_code: bool = False, progress: bool = True
) -> Reference:
    """Find what `source` names, downloading it into the Hub's cache when it is a repository.

    A `Path` is a directory and never a repository: it has lost the "./" that told them apart.
    `copy_code` also fetches a repository's `.py` files; `progress` allows the Hub's own bars, which
    it draws on standard error and only on a terminal.
    """
    text = str(source)
    if local := _local(text, kind):
        return local
    if isinstance(source, Path):
        raise _neither(text)
    spec = _parse_hub(text, kind)
    with hub.explained(spec.repo_id, spec.revision):
        listing = hub.listing(spec.repo_id, spec.revision, progress=progress)
        subfolder = ""
        if kind == "adapter":
            folders = _adapter_folders(listing.names)
            if folders or not _holds_bare_weights(listing.names):
                subfolder = _choose_adapter(folders, spec.subfolder, spec.text)
            wanted = hub.adapter_files(listing.names, subfolder)
        else:
            wanted = hub.base_files(listing, copy_code=copy_code)
        hub.download(listing, wanted, progress=progress)
    return Reference(listing.folder / subfolder, spec.repo_id, listing.commit, subfolder or None)


def not_fetched(source: str | Path, *, progress: bool = True) -> int | None:
    """Bytes of a base's weights, as the Hub announces them, where `resolve` would fetch any of it;
    None where all of it is on this machine. Raises `BadInput`, and `TryAgain` without an answer."""
    text = str(source)
    if _local(text, "base") or isinstance(source, Path):
        return None
    spec = _parse_hub(text, "base")
    with hub.explained(spec.repo_id, spec.revision):
        nbytes, here = hub.weights_announced(
            hub.listing(spec.repo_id, spec.revision, progress=progress)
        )
    return None if here else nbytes


def labels_of(sources: Sequence[str | Path]) -> tuple[str, ...]:
    """Short names for adapters in messages and options: the last part of what was written, with a
    number where several have the same."""
    short = [_last_part(str(source)) for source in sources]
    return tuple(
        label if short.count(label) == 1 else f"{label}#{number}"
        for number, label in enumerate(short, 1)
    )


def _last_part(text: str) -> str:
    last = re.split(r"[/:]", text.rstrip("/"))[-1].partition("@")[0]
    return text if last in ("", ".", "..") else last


def stated_digest(path: Path) -> str | None:
    """The SHA-256 that the Hub's cache states for a file: the name of the blob it links to.

    It is what the Hub announced at the download, not a check of the bytes on disk.
    """
    # Only the first link is read: a blob may itself link to a store whose names are Xet hashes.
    link = path.parent.resolve() / path.name
    if not link.is_symlink():
        return None
    blob = Path(os.path.normpath(link.parent / link.readlink()))
    repository = blob.parent.parent
    in_cache = blob.parent.name == "blobs" and repository / "snapshots" in link.parents
    return blob.name if in_cache and _BLOB.fullmatch(blob.name) else None


# --- directories ---------------------------------------------------------------------------------


def _local(text: str, kind: Kind) -> Reference | None:
    """The directory that `text` names, or None when there is nothing at that path."""
    path = _path(text)
    name = None
    if kind == "adapter" and not _exists(path) and ":" in text:
        head, _, name = text.rpartition(":")
        path = _path(head)
    if not text or not _exists(path):
        return None
    if kind == "adapter" and name is None and path.suffix == ".safetensors" and path.is_file():
        path = _directory_of(path)
    if not path.is_dir():
        raise _not_a_directory(path, kind)
    if kind == "base":
        origin = hub_origin(path)
        # The Hub names whole repositories alone.
        return Reference(path) if origin is None or origin.subfolder else origin
    folders = _adapter_folders(_adapter_configs(path, name))
    if not folders and _holds_bare_weights([entry.name for entry in path.iterdir()]):
        return hub_origin(path) or Reference(path)
    subfolder = _choose_adapter(folders, name, str(path))
    found = path / subfolder
    return hub_origin(found) or Reference(found, subfolder=subfolder or None)


def hub_origin(path: Path) -> Reference | None:
    """The same directory with where it came from, if it lies in a cache of the Hub
    (``models--org--name/snapshots/COMMIT``), whoever filled that; nothing is asked or fetched."""
    real = path.resolve()
    for snapshot in (real, *real.parents):
        parts = snapshot.parent.parent.name.split("--")
        is_cache = snapshot.parent.name == "snapshots" and len(parts) == 3 and parts[0] == "models"
        if is_cache and _COMMIT.fullmatch(snapshot.name) and _is_repo_id("/".join(parts[1:])):
            below = real.relative_to(snapshot).as_posix()
            subfolder = None if below == "." else below
            return Reference(path, "/".join(parts[1:]), snapshot.name, subfolder)
    return None


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home of a user that there is not
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # a NUL, or a name too long to be one
        return False


def _directory_of(weights: Path) -> Path:
    """The directory of an adapter that was named by its only file of weights."""
    others = sorted(p.name for p in weights.parent.glob("*.safetensors") if p.name != weights.name)
    if others:
        raise BadInput(
            f"{weights} lies beside {_some(others)}.",
            why="An adapter is read as a directory, all files of which belong to it.",
            hint="Put it into a directory of its own and give that.",
        )
    return weights.parent


def _not_a_directory(path: Path, kind: Kind) -> BadInput:
    if path.is_symlink() and not path.exists():
        return BadInput(f"{path} is a symbolic link to nothing: {path.readlink()}.")
    if path.suffix == ".gguf":
        return BadInput(
            f"{path} is a GGUF file; remerge merges into Hugging Face checkpoints.",
            hint="Give the checkpoint that it was made from.",
        )
    return BadInput(
        f"{path} is not a directory; the {kind} is a directory of files.",
        hint=f"Give {path.parent} if that is it." if path.is_file() else None,
    )


def _adapter_configs(root: Path, name: str | None) -> list[str]:
    """Relative paths of the adapter configs in `root`, one level deep, and in `name`."""
    places = {"", *(entry.name for entry in root.iterdir() if entry.is_dir())}
    if name and _is_plain(name):
        places.add(name)
    candidates = [f"{place}/{ADAPTER_CONFIG}".lstrip("/") for place in sorted(places)]
    return [candidate for candidate in candidates if (root / candidate).exists()]


# --- several adapters in one place ---------------------------------------------------------------


def _adapter_folders(names: Sequence[str]) -> list[str]:
    """The folders among these relative paths that hold an adapter; "" is the root."""
    folders = [n.removesuffix(ADAPTER_CONFIG).rstrip("/") for n in names if _is_config(n)]
    return sorted(folder for folder in folders if not folder or _is_plain(folder))


def _holds_bare_weights(names: Sequence[str]) -> bool:
    """Whether these files are an adapter without a configuration: trainers of image models write
    the weights alone."""
    beside = {"config.json", "model_index.json", "model.safetensors.index.json"}
    weights = any(name.endswith(".safetensors") and "/" not in name for name in names)
    return weights and beside.isdisjoint(names)


def _is_config(name: str) -> bool:
    return name == ADAPTER_CONFIG or name.endswith("/" + ADAPTER_CONFIG)


def _choose_adapter(folders: Sequence[str], asked: str | None, place: str) -> str:
    """The folder to read: the one asked for, or the root when it holds an adapter."""
    if not folders:
        raise BadInput(
            f"{place} holds no adapter: there is no {ADAPTER_CONFIG}.",
            hint="If it is the base, BASE and ADAPTER may be swapped, or BASE was given twice or "
            "alone: the base comes first and once, then the adapters.",
        )
    if asked is None and "" in folders:
        return ""
    if asked in folders:
        return asked or ""
    if asked == "default" and "" in folders:
        return ""  # PEFT writes the adapter that it calls "default" into the directory itself
    named = [folder for folder in folders if folder]
    if asked is None:
        raise BadInput(
            f"{place} holds adapters only in sub-folders: {_some(named)}.",
            hint=f"Name one: {place}:{named[0]}",
        )
    close = difflib.get_close_matches(asked, named, n=3) or named
    raise BadInput(
        f"{place} has no adapter named {asked!r}.",
        hint=f"It has {_some(close)}." if close else "Leave the name out: it holds one adapter.",
    )


def _is_plain(folder: str) -> bool:
    """A relative folder that stays below where it starts."""
    return all(part not in ("", ".", "..") for part in folder.split("/")) and "\0" not in folder


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- repositories --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _HubSpec:
    text: str
    repo_id: str
    revision: str | None
    subfolder: str | None


def _parse_hub(text: str, kind: Kind) -> _HubSpec:
    """Take `org/name[@revision][:sub-folder]` apart; anything else is refused here, unasked."""
    if page := _HUB_PAGE.fullmatch(text):
        revision = f"@{page['rev']}" if page["rev"] else ""
        raise BadInput(
            f"{text!r} is an address; remerge takes paths and repository names.",
            hint=f"Give {page['id']}{revision}",
        )
    rest, colon, subfolder = text.partition(":")
    repo_id, at, revision = rest.partition("@")
    if text.startswith((".", "/", "~")) or repo_id.count("/") != 1 or not _is_repo_id(repo_id):
        raise _neither(text)
    if at and _BAD_REVISION.search(revision):
        raise BadInput(f"{text!r}: {revision!r} is not a branch, tag or commit.")
    if colon and kind == "base":
        raise BadInput(
            f"{text!r} names a part of {rest}; only an adapter is picked with a colon.",
            hint=f"Give {rest}",
        )
    if colon and not _is_plain(subfolder):
        raise BadInput(f"{text!r}: {subfolder!r} is not the name of a sub-folder.")
    return _HubSpec(text, repo_id, revision or None, subfolder or None)


def _is_repo_id(repo_id: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return False
    return True


def _neither(text: str) -> BadInput:
    """Say why `text` is neither a directory nor a repository, with names that are near."""
    path = _path(text.partition("\0")[0])
    near: list[str] = []
    # The parent may not be there either.
    with suppress(OSError):
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
        near = difflib.get_close_matches(path.name, siblings, n=3)
    hint = "Check the spelling."
    if near:
        hint = f"Did you mean {_some([str(path.parent / name) for name in near])}?"
    return BadInput(
        f"{text!r} is neither an existing directory nor the name of a repository on the Hub "
        "(org/name or org/name@revision).",
        hint=hint,
    )
