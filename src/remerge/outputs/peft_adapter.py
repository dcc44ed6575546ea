"""Writing a LoRA adapter as PEFT reads it: factors in its layout, names in its spelling.

The rules are PEFT's: lora/layer.py for the layouts, tuners_utils.py for the names that a
configuration matches, utils/save_and_load.py for the keys.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch

from remerge.adapters.keys import PREFIX
from remerge.merging.extraction_plan import Parameter
from remerge.sources.dtypes import dtype_name
from remerge.sources.header import build_header
from remerge.sources.storage import cannot_write

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# PEFT's own word for "no layer has factors" (utils/constants.py).
NO_TARGETS = "dummy-target-modules"
_SPOOL = ".adapter_model.part"
# In models with stacks of experts PEFT takes layers of these names for experts of older files and
# stops targeting them (utils/transformers_weight_conversion.py); as parameters they stay.
_TAKEN_FOR_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


class Pair(Protocol):
    """A product ``left @ right`` of float matrices (rows, rank) and (rank, columns)."""

    @property
    def left(self) -> torch.Tensor: ...

    @property
    def right(self) -> torch.Tensor: ...


def factors(
    parameter: Parameter, fits: Sequence[Pair], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of a parameter as PEFT stores them, from one product (one an expert)."""
    left, right = fits[0].left, fits[0].right
    if parameter.form in ("turned", "embedding"):
        a, b = left.T, right.T
    elif parameter.form == "conv":
        ones = (1,) * (len(parameter.shape) - 2)
        a = right.reshape(-1, *parameter.shape[1:])
        b = left.reshape(*left.shape, *ones)
    elif parameter.form == "stack":
        pairs = [(fit.left.T, fit.right.T) for fit in fits]
        if not parameter.transposed:
            pairs = [(fit.right, fit.left) for fit in fits]
        # Rows of A expert by expert, columns of B rank by rank (ParamWrapper.get_delta_weight).
        a = torch.cat([pair[0] for pair in pairs])
        b = torch.stack([pair[1] for pair in pairs], dim=2).flatten(1)
    else:
        a, b = right, left
    return a.to(dtype).contiguous(), b.to(dtype).contiguous()


def keys_of(factored: Sequence[Parameter], loose: Iterable[Parameter]) -> dict[str, str]:
    """PEFT's keys: of the factors as ``parameter|A`` and ``parameter|B``, of whole parameters by
    their name. Each wrapper that PEFT puts around a module adds ``base_layer`` to what it wraps;
    bare parameters of one module are wrapped in their order, the first innermost."""
    wrappers = Counter(parameter.module for parameter in factored)
    done: Counter[str] = Counter()
    keys: dict[str, str] = {}
    for parameter in factored:
        done[parameter.module] += 1
        depth = wrappers[parameter.module] - done[parameter.module]
        place = PREFIX + parameter.module + ".base_layer" * depth
        for part in "AB":
            end = f"embedding_{part}" if parameter.form == "embedding" else f"{part}.weight"
            keys[f"{parameter.name}|{part}"] = f"{place}.lora_{end}"
    for parameter in loose:
        module, _, leaf = parameter.name.rpartition(".")
        place = module + ".base_layer" * wrappers[module]
        keys[parameter.name] = f"{PREFIX}{place}.{leaf}"
    return keys


def short_names(
    wanted: Collection[str], known: Collection[str], matches: Callable[[str, str], bool]
) -> list[str]:
    """Endings that match all the wanted names and no other known one; full names otherwise."""
    kept: dict[str, None] = {}
    found: dict[str, bool] = {}
    for name in wanted:
        pieces = name.split(".")
        for count in (1, 2):
            end = ".".join(pieces[-count:])
            if end not in found:
                found[end] = all(other in wanted for other in known if matches(end, other))
            if found[end]:
                kept[end] = None
                break
        else:
            kept[name] = None
    return sorted(kept)


def is_target(end: str, name: str) -> bool:
    """PEFT's rule for target_modules and target_parameters (tuners_utils.py)."""
    return name == end or name.endswith(f".{end}")


def is_saved(end: str, name: str) -> bool:
    """PEFT's rule for modules_to_save (utils/other.py, _set_trainable)."""
    return name.endswith(end)


def adapter_config(
    ranks: Mapping[str, int],
    factored: Sequence[Parameter],
    saved: Collection[str],
    modules: Collection[str],
    parameters: Collection[str],
    stated: Mapping[str, Any],
    *,
    has_experts: bool,
) -> dict[str, Any]:
    """adapter_config.json of a LoRA whose scale is 1 everywhere.

    ``ranks`` are those of the factored parameters by name, ``saved`` the modules to save,
    ``modules`` and ``parameters`` all names of the model, ``stated`` what goes in as it is;
    ``has_experts`` says that the model holds stacks of experts.
    """
    bare = {
        p.name
        for p in factored
        if p.form in ("matrix", "stack")
        or (has_experts and p.form == "linear" and p.name.split(".")[-2] in _TAKEN_FOR_EXPERTS)
    }
    layers = {p.module for p in factored if p.name not in bare}
    largest = max(ranks.values(), default=1)
    targets: list[str] | str = short_names(layers, modules, is_target)
    if not factored:
        targets = NO_TARGETS
    pattern = {
        f"^{re.escape(name)}": ranks[p.name]
        for p in factored
        if ranks[p.name] != largest
        # A layer that is targeted as a parameter goes by either name.
        for name in dict.fromkeys((p.name, p.module) if p.name in bare else (p.module,))
        if name == p.name or p.form not in ("matrix", "stack")
    }
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "modules_to_save": short_names(saved, modules, is_saved) or None,
        "fan_in_fan_out": not bare and any(p.form == "turned" for p in factored),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        **stated,
    }
    if bare:
        config["target_parameters"] = short_names(bare, parameters, is_target)
    return dict(sorted(config.items()))


class AdapterWriter:
    """adapter_model.safetensors written as its tensors come: the header, which comes first and
    is known last, waits while the values lie in a file beside it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._entries: list[tuple[str, str, tuple[int, ...]]] = []
        self._spool = directory / _SPOOL
        self._stream: BinaryIO = self._open(self._spool)

    def add(self, slot: str, tensor: torch.Tensor) -> None:
        """Append a whole tensor."""
        self.add_blocks(slot, tensor.dtype, tuple(tensor.shape), (tensor,))

    def add_blocks(
        self, slot: str, dtype: torch.dtype, shape: tuple[int, ...], blocks: Iterable[torch.Tensor]
    ) -> None:
        """Append a tensor of which the rows come in blocks."""
        self._entries.append((slot, dtype_name(dtype), shape))
        try:
            for block in blocks:
                # numpy knows no bfloat16, but every bit of it as bytes.
                self._stream.write(block.reshape(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise cannot_write(self._spool, error) from error

    def finish(self, keys: Mapping[str, str]) -> int:
        """Write the file under its name, with ``keys`` for the slots; returns its size."""
        header = build_header(
            ((keys[slot], dtype, shape) for slot, dtype, shape in self._entries), {"format": "pt"}
        )
        target = self._directory / WEIGHTS
        self._stream.close()
        try:
            with self._spool.open("rb") as values, target.open("wb") as stream:
                stream.write(struct.pack("<Q", len(header.raw)) + header.raw)
                shutil.copyfileobj(values, stream, 2**20)
                stream.flush()
                os.fsync(stream.fileno())
            self._spool.unlink()
        except OSError as error:
            raise cannot_write(target, error) from error
        return target.stat().st_size

    def close(self) -> None:
        self._stream.close()

    @staticmethod
    def _open(path: Path) -> BinaryIO:
        try:
            return path.open("wb")
        except OSError as error:
            raise cannot_write(path, error) from error


def task_of(model_type: str, model_class: type) -> dict[str, Any]:
    """What the configuration says of the class that PEFT must load: a task where its Auto class
    leads there, else the class itself (peft_model.py, save_pretrained)."""
    from transformers.models.auto import modeling_auto

    tables = {
        "CAUSAL_LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_2_SEQ_LM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    for task, table in tables.items():
        if cast("Mapping[str, Any]", table).get(model_type) == model_class.__name__:
            return {"task_type": task, "auto_mapping": None}
    mapping = {"base_model_class": model_class.__name__, "parent_library": model_class.__module__}
    return {"task_type": None, "auto_mapping": mapping}
