"""Opening an adapter directory, whichever trainer wrote it."""

from __future__ import annotations

from pathlib import Path

from remerge.adapters import peft_files
from remerge.adapters.opened import Adapter, AdapterTensor, check_finite
from remerge.adapters.trainers import TRAINERS
from remerge.errors import BadInput

__all__ = ["Adapter", "AdapterTensor", "check_finite", "is_adapter", "open_adapter"]


def open_adapter(path: Path) -> Adapter:
    """Read an adapter directory; the only adapter among its sub-folders also counts.

    Raises `BadInput` when it holds no adapter, several, or a damaged one.
    """
    if not path.is_dir():
        raise BadInput(f"{path} is not a directory.", hint="Give the adapter's directory.")
    found = _open(path)
    if found is not None:
        return found
    folder = peft_files.adapter_folder(path)
    found = _open(folder) if folder != path else None
    # Nobody's files: PEFT's reader says what is missing.
    return found or peft_files.open_(folder)


def is_adapter(path: Path) -> bool:
    """Whether the directory itself holds files of a trainer that is known."""
    return any(trainer.recognises(path) for trainer in TRAINERS)


def _open(path: Path) -> Adapter | None:
    trainer = next((t for t in TRAINERS if t.recognises(path)), None)
    return None if trainer is None else trainer.open_(path)
