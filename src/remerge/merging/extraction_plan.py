"""What an adapter can say of the difference between two checkpoints, parameter by parameter.

Both are seen as models of one transformers class, so that an adapter's names are the model's and
every way of storing (fused, split, stacked, tied) is that of the loader. Nothing is read yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from remerge.adapters.facts import ModelHint, Wanted
from remerge.adapters.meta_model import knows
from remerge.adapters.model_names import ModelNames, likeliest_names
from remerge.adapters.regions import Region, matrix_view
from remerge.adapters.vocabulary import counts_tokens
from remerge.errors import BadInput, Unsupported
from remerge.sources.checkpoint import Checkpoint
from remerge.sources.dtypes import MERGEABLE
from remerge.sources.reading import Source, decoded

# How PEFT holds the factors of a layer; "turned" are those of a weight stored (in, out), "stack"
# those of experts, "matrix" those of a bare parameter; "whole" is a parameter without factors.
Form = Literal["linear", "turned", "embedding", "conv", "matrix", "stack", "whole"]
_FORMS: Mapping[str, Form] = {
    "Linear": "linear",
    "Conv1D": "turned",
    "Embedding": "embedding",
    "Conv1d": "conv",
    "Conv2d": "conv",
    "Conv3d": "conv",
}
# Buffers that count or mask.
_COUNTS = frozenset({"BOOL", "U8", "I32", "I64"})
_SHOWN = 5


@dataclass(frozen=True)
class Opened:
    """A checkpoint as a model of its class: ``tensors`` as they read, decoded where quantised."""

    checkpoint: Checkpoint
    tensors: Mapping[str, Source]
    model: PreTrainedModel
    names: ModelNames


@dataclass(frozen=True)
class Parameter:
    """A parameter that both models have: its shapes, and where each checkpoint holds it.

    ``saved``: it can only be brought with all of its module, which then has no factors.
    ``transposed``: a stack of experts stored (in, out).
    """

    name: str
    form: Form
    kind: str
    shape: tuple[int, ...]
    merged_shape: tuple[int, ...]
    base: tuple[Region, ...]
    merged: tuple[Region, ...]
    saved: bool = False
    transposed: bool = False

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def resized(self) -> bool:
        return self.shape != self.merged_shape

    @property
    def view(self) -> tuple[int, int]:
        """Rows and columns of the parameter's matrix view in the base."""
        return matrix_view(self.shape, self.kind)

    @property
    def merged_view(self) -> tuple[int, int]:
        return matrix_view(self.merged_shape, self.kind)

    @property
    def matrices(self) -> int:
        """How many matrices are factored apart: one, or one an expert."""
        return self.shape[0] if self.form == "stack" else 1


@dataclass(frozen=True)
class ExtractionPlan:
    """Two checkpoints side by side.

    ``tied`` are second names of parameters that the base stores once, each with the name of that
    parameter: untied in the merged model where its values differ there. ``outside`` are stored
    tensors that no parameter of the model is made of, on both sides; ``absent`` those of one side.
    """

    base: Opened
    merged: Opened
    parameters: tuple[Parameter, ...]
    tied: Mapping[str, str]
    outside: tuple[str, ...]
    absent: tuple[str, ...]
    modules: tuple[str, ...]
    names: tuple[str, ...]


def open_model(
    checkpoint: Checkpoint, hint: ModelHint | None = None, wanted: Wanted | None = None
) -> Opened:
    """The checkpoint as the model that its config.json names, or that an adapter was trained with:
    ``hint`` and ``wanted`` are what that says of it.

    Raises `Unsupported` for a model type that transformers does not have.
    """
    if not knows(checkpoint.config.get("model_type")):
        raise Unsupported(
            f"transformers has no model type {checkpoint.config.get('model_type')!r}.",
            why="Which layers an adapter can change is asked of the model's class, and code that "
            "comes with a checkpoint is never run.",
            hint="Convert both models to a type of transformers, or update transformers.",
        )
    reads = decoded(checkpoint)
    names = likeliest_names(
        reads.config, reads.tensors, hint or ModelHint(), wanted or Wanted({}, {})
    )
    return Opened(checkpoint, reads.tensors, names.model, names)


def plan_extraction(base: Opened, merged: Opened) -> ExtractionPlan:
    """Pair the parameters of two models of one class.

    Raises `BadInput` where they are not of one architecture, naming tensors and shapes.
    """
    one, other = (type(side.model).__name__ for side in (base, merged))
    if one != other:
        raise BadInput(
            f"The base is a {one}, the merged model a {other}.",
            why="Only two checkpoints of one architecture have a difference.",
        )
    found: list[Parameter] = []
    tied: dict[str, str] = {}
    missing: list[str] = []
    for name, twin in state_of(base):
        regions = base.names.regions(name), merged.names.regions(name)
        if twin is not None:
            tied[name] = twin
        elif all(regions):
            found.append(parameter_of(base, merged, name, *regions))
        elif any(regions):
            missing.append(f"{name} ({'merged model' if regions[0] else 'base'})")
    if missing or not found:
        raise BadInput(
            f"{len(missing)} of {len(found) + len(missing)} parameters are stored on one side "
            f"only, or in another shape than config.json says; missing: {some(missing)}.",
            why="The two are not of one architecture, or a download is incomplete.",
        )
    inside = [_inside(side) for side in (base, merged)]
    before, after = (
        {name for name in side.tensors if name not in used}
        for side, used in zip((base, merged), inside, strict=True)
    )
    twins = _twins(base) | _twins(merged)
    return ExtractionPlan(
        base,
        merged,
        tuple(found),
        tied,
        tuple(sorted(before & after)),
        tuple(sorted((before ^ after) - twins - inside[0] - inside[1])),
        module_names(base),
        tuple(name for name, _ in state_of(base)),
    )


def some(names: Sequence[str]) -> str:
    """A few names of many, for a sentence."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def module_names(opened: Opened) -> tuple[str, ...]:
    """Paths of all modules, those of a shared one included."""
    model: Any = opened.model
    return tuple(name for name, _ in model.named_modules(remove_duplicate=False) if name)


def state_of(opened: Opened) -> Iterator[tuple[str, str | None]]:
    """Names of parameters and kept buffers; a second name of a shared one with its first."""
    seen: dict[int, str] = {}
    state: dict[str, Any] = opened.model.state_dict(keep_vars=True)
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            tied = next(
                (other for other in opened.names.tied(name) if other in seen.values()), name
            )
            first = seen.setdefault(id(value), tied)
            yield name, None if first == name else first


def parameter_of(
    base: Opened,
    merged: Opened,
    name: str,
    before: tuple[Region, ...],
    after: tuple[Region, ...],
) -> Parameter:
    """A parameter of two models of one class; these may be the same."""
    shape, other = base.names.shape(name) or (), merged.names.shape(name) or ()
    resized = shape != other
    if resized and not (counts_tokens(name) and len(shape) == 2 and shape[1:] == other[1:]):
        raise BadInput(
            f"{name} is {list(shape)} in the base and {list(other)} in the merged model.",
            why="Only a vocabulary may have grown; anything else is another architecture.",
            hint="Give the base that the merged model was made from.",
        )
    layer = base.names.layer(name.rpartition(".")[0])
    kind, turned = ("", False) if layer is None else (layer.kind, layer.transposed)
    forms = _module_forms(base, name.rpartition(".")[0])
    form = forms[name.rpartition(".")[2]]
    for side, regions in ((base, before), (merged, after)):
        _check_dtypes(side, name, regions)
    floats = all(base.tensors[region.tensor].dtype in MERGEABLE for region in before)
    if resized or not floats or 0 in shape:
        form = "whole"
    module = base.model.get_submodule(name.rpartition(".")[0])
    saved = is_leaf(module) and not resized and all(form == "whole" for form in forms.values())
    return Parameter(name, form, kind, shape, other, before, after, saved, turned)


def _check_dtypes(side: Opened, name: str, regions: Sequence[Region]) -> None:
    for region in regions:
        dtype = side.tensors[region.tensor].dtype
        if dtype not in MERGEABLE and dtype not in _COUNTS:
            raise Unsupported(
                f"{name} is stored as {dtype} in {side.checkpoint.path}.",
                why="Those are codes without their scales, which have no difference.",
                hint="Give the checkpoint in 16 or 32 bits.",
            )


def _module_forms(opened: Opened, path: str) -> dict[str, Form]:
    """The form of each parameter and buffer of a module by its name there."""
    module = opened.model.get_submodule(path)
    layer = opened.names.layer(path)
    kind, groups = ("", 1) if layer is None else (layer.kind, layer.groups)
    leaf = is_leaf(module)
    forms: dict[str, Form] = {name: "whole" for name, _ in module.named_buffers(recurse=False)}
    for name, value in module.named_parameters(recurse=False):
        forms[name] = "whole"
        if kind in _FORMS:
            if name == "weight" and groups == 1:
                forms[name] = _FORMS[kind]
        elif leaf and path and min(value.shape, default=0) > 1 and kind != "MultiheadAttention":
            # A wrapper around a module with layers of its own would rename those.
            bare: dict[int, Form] = {2: "matrix", 3: "stack"}
            forms[name] = bare.get(value.dim(), "whole")
    return forms


def is_leaf(module: nn.Module) -> bool:
    """Whether no layer lies below; an activation function is none."""
    return not any(True for child in module.children() for _ in child.state_dict())


def _inside(opened: Opened) -> set[str]:
    """The stored tensors that the model's parameters are made of."""
    return {region.tensor for name, _ in state_of(opened) for region in opened.names.regions(name)}


def _twins(opened: Opened) -> set[str]:
    """Stored copies of a tied parameter under its other names."""
    return {
        opened.names.checkpoint_name(other)
        for name, _ in state_of(opened)
        for other in opened.names.tied(name)
    }
