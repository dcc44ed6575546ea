"""PEFT's own adapter directory: adapter_config.json and adapter_model.safetensors (or .bin)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from remerge.adapters.opened import Adapter
from remerge.adapters.tensor_files import open_pickled, open_safetensors
from remerge.errors import BadInput
from remerge.sources.documents import read_json_object
from remerge.sources.links import check_inside

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

# TRL trains a value beside the model's logits (trl/models/modeling_value_head.py); LLaMA-Factory
# saves that head in files of its own.
_VALUE_HEAD = re.compile(r"(base_model\.model\.)?v_head\..+")
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin")


def recognises(path: Path) -> bool:
    """Whether PEFT would load this directory."""
    return (path / CONFIG).exists() and any(
        os.path.lexists(path / name) for name in (WEIGHTS, PICKLED)
    )


def open_(path: Path) -> Adapter:
    """Raises `BadInput` when a file is missing, damaged or links out of the directory."""
    config = read_json_object(path / CONFIG)
    for name in (CONFIG, WEIGHTS, PICKLED):
        check_inside(path / name, path)
    if os.path.lexists(path / WEIGHTS):
        name, file = WEIGHTS, open_safetensors(path / WEIGHTS)
    elif os.path.lexists(path / PICKLED):
        name, file = PICKLED, open_pickled(path / PICKLED)
    else:
        raise BadInput(
            f"{path} has {CONFIG} but neither {WEIGHTS} nor {PICKLED}.",
            why="The download or the training run's save is incomplete.",
        )
    heads = [key for key in file.tensors if _VALUE_HEAD.fullmatch(key)]
    tensors = {key: info for key, info in file.tensors.items() if key not in heads}
    left = [*heads, *(n for n in _VALUE_HEADS if os.path.lexists(path / n))]
    notes = (
        (f"The adapter comes with a value head, which is no part of the model: {', '.join(left)}.",)
        if left
        else ()
    )
    files = (CONFIG, name)
    return Adapter(path, config, tensors, files, file.read, file.changed, notes=notes)


def adapter_folder(path: Path) -> Path:
    """The directory with the configuration: this one, or its only sub-folder that has one.

    Raises `BadInput` when there is none, or several.
    """
    if (path / CONFIG).exists():
        return path
    named = sorted(child.parent.name for child in path.glob(f"*/{CONFIG}"))
    if len(named) == 1:
        return path / named[0]
    if named:
        raise BadInput(
            f"{path} holds {len(named)} adapters: {', '.join(named[:8])}.",
            hint=f"Pick one with {path.name}:{named[0]}.",
        )
    if (path / "config.json").exists():
        raise BadInput(
            f"{path} is a base checkpoint, not an adapter (it has config.json, no {CONFIG}).",
            hint="The base comes first: remerge merge BASE ADAPTER -o OUT.",
        )
    weights = sorted(file.name for file in path.glob("*.safetensors"))
    if len(weights) > 1:
        raise BadInput(
            f"{path} has no {CONFIG}, and {len(weights)} files of weights: "
            f"{', '.join(weights[:8])}.",
            hint="Put the one to merge into a directory of its own.",
        )
    raise BadInput(f"{path} has no {CONFIG}.", why="It is not a PEFT adapter.")
