"""The trainers whose adapters can be read. A new one is a converter and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from remerge.adapters import peft_files
from remerge.adapters.converters import kohya, mlx, torchtune
from remerge.adapters.opened import Adapter


@dataclass(frozen=True)
class Trainer:
    """How one trainer's directories are told from others, and read as PEFT adapters."""

    name: str
    recognises: Callable[[Path], bool]
    open_: Callable[[Path], Adapter]


# In the order in which they are asked. torchtune comes first: it writes its own file beside PEFT's.
TRAINERS: tuple[Trainer, ...] = (
    Trainer(torchtune.NAME, torchtune.recognises, torchtune.open_),
    Trainer("PEFT", peft_files.recognises, peft_files.open_),
    Trainer(mlx.NAME, mlx.recognises, mlx.open_),
    Trainer(kohya.NAME, kohya.recognises, kohya.open_),
)
