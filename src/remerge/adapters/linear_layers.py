"""Which tensors of a checkpoint are the weights of linear layers, asked from the model's class.

What quantisers mean by ``Linear``: fully connected layers of the text model. Not meant are the
output head, heads of tasks, the routers of experts, and towers of other modalities. Experts count
where the checkpoint stores each as a matrix of its own, whatever the model makes of them in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION
from transformers.utils.quantization_config import QuantizationMethod

from remerge.adapters.model_names import ModelNames
from remerge.adapters.regions import Region
from remerge.errors import Unsupported

_WEIGHT = ".weight"
# As compressed-tensors tells routers by their class (`get_vllm_module_type` of
# quantization/quant_config.py).
_ROUTER = re.compile(r"Router|Gating|Gate(?![a-z])")


@dataclass(frozen=True)
class LinearLayer:
    """A matrix (out, in) of the checkpoint: ``module`` is its name there without ``.weight``, and
    ``in_memory`` what the model calls it. ``experts`` names the stack that it is one matrix of."""

    tensor: str
    module: str
    in_memory: str
    experts: str | None = None


@dataclass
class LinearLayers:
    """The linear layers of a model, and what else has a weight that somebody may take for one.

    ``others`` are names of modules, in both spellings; ``stacked`` are modules of experts whose
    matrices the checkpoint stores in one tensor, or turned round.
    """

    layers: dict[str, LinearLayer] = field(default_factory=dict[str, LinearLayer])
    others: dict[str, None] = field(default_factory=dict[str, None])
    stacked: dict[str, None] = field(default_factory=dict[str, None])


def linear_layers(names: ModelNames) -> LinearLayers:
    """The linear layers of the model that ``names`` are of.

    Raises `Unsupported` for models whose layers are stored (in, out), and for those that
    transformers builds in another way once their weights are quantised.
    """
    model = names.model
    modules = dict(cast(Any, model).named_modules())
    _check(modules)
    within = _quantised_parts(model, modules)
    output = cast(Any, model).get_output_embeddings()
    found = LinearLayers()
    for name, module in modules.items():
        weight = f"{name}{_WEIGHT}"
        shape = names.shape(weight) if weight in names.parameters else None
        if shape is None or len(shape) < 2 or isinstance(module, nn.Embedding):
            continue
        tied = bool(names.tied(weight))
        region = None if tied else _whole(names, weight)
        stored = region.tensor.removesuffix(_WEIGHT) if region is not None else None
        inside = any(name == part or name.startswith(part) for part in within)
        if (
            stored is None
            or not inside
            or not isinstance(module, nn.Linear)
            or module is output
            or _is_router(name, module, modules)
        ):
            found.others |= dict.fromkeys(filter(None, (stored, name)))
        else:
            found.layers[f"{stored}{_WEIGHT}"] = LinearLayer(f"{stored}{_WEIGHT}", stored, name)
    _add_experts(names, within, found)
    return found


def _check(modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        if isinstance(module, Conv1D):
            raise Unsupported(
                f"The model's layer {name} is a Conv1D, whose weight is stored (in, out).",
                why="compressed-tensors knows only layers that are stored (out, in).",
                hint="Write 16 bits, or --to gguf:Q8_0.",
            )
        patched: Any = MODULES_TO_PATCH_FOR_QUANTIZATION.get(type(module).__name__, {})
        if QuantizationMethod.COMPRESSED_TENSORS in patched.get("quantization_methods", ()):
            raise Unsupported(
                f"transformers builds {name} ({type(module).__name__}) in another way once the "
                "model is quantised, and then does not load experts that are stored in one tensor.",
                hint="Write 16 bits, or quantise the result with llm-compressor.",
            )


def _quantised_parts(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Prefixes of the modules that are quantised: of a model of several modalities its text model,
    else the base model, without the heads of tasks."""
    config: Any = model.config
    text = config.get_text_config()
    if type(text) is not type(config):
        inner = [
            f"{name}."
            for name, module in modules.items()
            if isinstance(module, PreTrainedModel)
            and type(module.config) is type(text)
            # The part that holds the layers, not a head around it.
            and module.base_model is module
        ]
        if not inner:
            raise Unsupported(
                f"Which layers of {type(model).__name__} belong to its text model is not known.",
                hint="Write 16 bits, and quantise the result with llm-compressor.",
            )
        return tuple(inner)
    base: Any = cast(Any, model).base_model
    return ("",) if base is model else (f"{model.base_model_prefix}.",)


def _is_router(name: str, module: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a layer chooses experts, or weighs them: known by its class, or because it stands
    beside experts and has one output for each of them, or a single one."""
    if _ROUTER.search(type(module).__name__):
        return True
    parent = name.rpartition(".")[0]
    experts = modules.get(f"{parent}.experts")
    if experts is None or not isinstance(module, nn.Linear):
        return False
    counts = {len(experts)} if isinstance(experts, nn.ModuleList) else set[int]()
    counts |= {p.shape[0] for p in experts.parameters(recurse=False) if p.dim() == 3}
    return module.out_features in {1, *counts}


def _whole(names: ModelNames, parameter: str) -> Region | None:
    """The region of a parameter that is one tensor of the checkpoint as it stands, else None."""
    regions = names.regions(parameter)
    if len(regions) != 1 or not regions[0].tensor.endswith(_WEIGHT):
        return None
    region, shape = regions[0], names.shape(parameter)
    straight = (region.rows, region.cols) == (region.parameter_rows, region.parameter_cols)
    same = names.stored_shape(region.tensor) == shape and isinstance(region.rows, range)
    return region if same and straight and not region.transposed else None


def _add_experts(names: ModelNames, within: tuple[str, ...], found: LinearLayers) -> None:
    """Parameters that are stacks of matrices: the experts of the checkpoint that feed them."""
    for parameter, shape in names.parameters.items():
        if len(shape) != 3 or parameter.endswith(_WEIGHT):
            continue
        regions = names.regions(parameter)
        stack = parameter.rpartition(".")[0]
        matrices = [_matrix(names, region) for region in regions]
        if not any(parameter.startswith(part) for part in within):
            continue
        if regions and all(matrices):
            for region in regions:
                stored = region.tensor.removesuffix(_WEIGHT)
                found.layers[region.tensor] = LinearLayer(
                    region.tensor, stored, stack, _experts_of(region.tensor)
                )
        else:
            spellings = (stack, *(_experts_of(region.tensor) for region in regions))
            found.stacked |= dict.fromkeys(spellings)


def _experts_of(tensor: str) -> str:
    """The module of all experts that a tensor belongs to: ``mlp.experts`` of
    ``mlp.experts.0.up_proj.weight`` and of ``mlp.experts.up_proj``."""
    parts = tensor.removesuffix(_WEIGHT).split(".")[:-1]
    return ".".join(parts[:-1] if parts[-1:] and parts[-1].isdigit() else parts)


def _matrix(names: ModelNames, region: Region) -> bool:
    """Whether a region is a whole matrix of the checkpoint, as it stands."""
    shape = names.stored_shape(region.tensor)
    return (
        region.tensor.endswith(_WEIGHT)
        and len(shape) == 2
        and not region.transposed
        and region.rows == range(shape[0])
        and region.cols == range(shape[1])
    )
