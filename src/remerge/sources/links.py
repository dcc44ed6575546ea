"""Symbolic links among inputs: followed inside their directory and the Hub's cache only."""

from __future__ import annotations

import os
from pathlib import Path

from remerge.errors import BadInput


def check_inside(file: Path, directory: Path) -> None:
    """Refuse a file of ``directory`` that links out of it: what it names may be anybody's.

    The Hub's cache is a directory of links to the blobs beside it; these are followed.
    """
    if not file.is_symlink() or file.resolve().is_relative_to(directory.resolve()):
        return
    blob = Path(os.path.normpath(file.parent.resolve() / file.readlink()))
    repository = blob.parent.parent
    cached = blob.parent.name == "blobs"
    cached = cached and repository / "snapshots" in file.parent.resolve().parents
    # A blob of huggingface_hub 2.4 may itself link to the store that repositories share.
    stores = (blob.parent, repository.parent / "blobs")
    if cached and any(blob.resolve().is_relative_to(store) for store in stores):
        return
    raise BadInput(
        f"{file} links to {blob}, out of its directory.",
        why="A link may name any file of this machine, and the output may be published.",
        hint="Put the file itself there, or give the directory that it lies in.",
    )
