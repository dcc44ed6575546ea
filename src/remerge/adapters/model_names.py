"""Names of a model in memory, as transformers builds it, in terms of the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, quantizers
from transformers.pytorch_utils import Conv1D

from remerge.adapters.facts import ModelHint, TensorFacts, Wanted
from remerge.adapters.layouts import whole
from remerge.adapters.loading import Loading
from remerge.adapters.meta_model import candidate_models, quiet
from remerge.adapters.placement import regions_of
from remerge.adapters.regions import Layer, Region
from remerge.errors import Unsupported

KINDS = (
    Conv1D,
    nn.Linear,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.MultiheadAttention,
)


class ModelNames:
    """`Names` of one model class against one checkpoint.

    A name that the model does not have is tried as one of an older transformers: as a checkpoint
    key it may lead to a parameter, or be a tensor that the model stores only as part of another
    (the matrix of one expert).
    """

    def __init__(self, model: PreTrainedModel, tensors: Mapping[str, TensorFacts]) -> None:
        self.model = model
        self._modules = _modules(model)
        self._shapes = {
            name: tuple(value.shape)
            for name, value in model.state_dict().items()
            if isinstance(value, torch.Tensor)
        }
        self._stored = {name: tuple(facts.shape) for name, facts in tensors.items()}
        self._loading = Loading(model, self._shapes, self._stored)
        self._ties = _tied_groups(model)
        self._regions: dict[str, tuple[Region, ...]] = {}

    @property
    def architecture(self) -> str:
        """The class whose names these are."""
        return type(self.model).__name__

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """The model's own parameters and buffers with their shapes."""
        return self._shapes

    def stored_shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor of the checkpoint."""
        return self._stored[tensor]

    def has(self, modules: Collection[str], parameters: Collection[str]) -> bool:
        """Whether all of these are names of the model itself."""
        return all(name in self._modules for name in modules) and all(
            name in self._shapes for name in parameters
        )

    def finds(self, modules: Collection[str], parameters: Collection[str]) -> bool:
        """Whether all of these mean something, if only in an older transformers."""
        return all(self.layer(name) is not None for name in modules) and all(
            self.shape(name) is not None for name in parameters
        )

    def quantised_weights(self) -> list[str]:
        """The weights that bitsandbytes quantises when transformers loads this model for QLoRA
        training (integrations/bitsandbytes.py): fully connected layers but the output head."""
        model: Any = self.model
        quantizer: Any = quantizers.base.HfQuantizer
        converts: Any = quantizers.quantizers_utils
        skipped = quantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        return [
            f"{name}.weight"
            for name, module in self._modules.items()
            if (type(module) is nn.Linear or isinstance(module, Conv1D))
            and converts.should_convert_module(name, skipped)
        ]

    def layer(self, module: str) -> Layer | None:
        if module in self._modules:
            return _layer(self._modules[module])
        weight = f"{module}.weight"
        parameter = self._parameter(weight)
        if parameter is not None:
            return _layer(self._modules[parameter.rpartition(".")[0]])
        return None if self._key(weight) is None else Layer("Linear")

    def modules(self) -> list[str]:
        return [name for name, _ in cast(Any, self.model).named_modules()]

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        known = self._parameter(parameter)
        if known is not None:
            return self._shapes[known]
        key = self._key(parameter)
        return None if key is None else self._stored[key]

    def regions(self, parameter: str) -> tuple[Region, ...]:
        if parameter not in self._regions:
            self._regions[parameter] = self._found_regions(parameter)
        return self._regions[parameter]

    def tied(self, parameter: str) -> tuple[str, ...]:
        known = self._parameter(parameter)
        group = self._ties.get(known or "", ())
        return tuple(name for name in group if name != known and name in self._shapes)

    def checkpoint_name(self, parameter: str) -> str:
        known = self._parameter(parameter)
        if known is not None:
            return self._loading.key_for(known)
        key = self._key(parameter)
        if key is None:
            raise Unsupported(f"{self.architecture} has no parameter {parameter!r}.")
        return key

    def _found_regions(self, parameter: str) -> tuple[Region, ...]:
        known = self._parameter(parameter)
        if known is None:
            key = self._key(parameter)
            if key is None:
                return ()
            return regions_of(whole(key, self._stored[key]), parameter, "Linear", self._stored)
        for name in (known, *self.tied(known)):
            layout = self._loading.layout(name)
            if layout is not None and layout.shape == self._shapes[known]:
                kind = _layer(self._modules[known.rpartition(".")[0]]).kind
                return regions_of(layout, parameter, kind, self._stored)
        return ()

    def _parameter(self, name: str) -> str | None:
        """The parameter of the model that bears this name, or bore it."""
        if name in self._shapes:
            return name
        renamed, pattern = self._loading.renamed(name)
        return renamed if pattern is None and renamed in self._shapes else None

    def _key(self, name: str) -> str | None:
        """The stored matrix or vector of this name, where the model has no parameter for it."""
        key = self._loading.spelling(name)
        if key is None and name in self._stored and self._loading.renamed(name)[1] is None:
            key = name
        if key is None or len(self._stored[key]) > 2 or self._transposes:
            return None
        return key

    @cached_property
    def _transposes(self) -> bool:
        """Whether some layers of the model store their weights [in, out], so that those outside
        of it cannot be trusted not to."""
        return any(isinstance(module, Conv1D) for module in self._modules.values())


def likeliest_names(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorFacts],
    hint: ModelHint,
    wanted: Wanted,
) -> ModelNames:
    """Names under the class that the adapter was trained with: the first in which all of its names
    exist, else the first in which all have a meaning, else the likeliest."""
    tried: list[ModelNames] = []
    for model in candidate_models(config, hint):
        with quiet():
            names = ModelNames(model, tensors)
        if names.has(wanted.modules, wanted.parameters):
            return names
        tried.append(names)
    for names in tried:
        if names.finds(wanted.modules, wanted.parameters):
            return names
    return tried[0]


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    # A module under two names (a shared block) is meant by either.
    return dict(cast(Any, model).named_modules(remove_duplicate=False))


def _layer(module: nn.Module) -> Layer:
    kind = next((known for known in KINDS if isinstance(module, known)), type(module))
    return Layer(
        kind.__name__,
        groups=int(getattr(module, "groups", 1)),
        transposed=bool(getattr(module, "is_transposed", False)),
    )


def _tied_groups(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Parameters that share memory, each with its whole group, the one on disk by custom first."""
    groups: dict[str, list[str]] = {}
    ties = cast(Mapping[str, str], cast(Any, model).all_tied_weights_keys)
    for target, source in ties.items():
        joined = groups.get(source, [source])
        joined += [name for name in groups.get(target, [target]) if name not in joined]
        for name in joined:
            groups[name] = joined
    return {name: tuple(group) for name, group in groups.items()}
