"""Tiny models with every element distinct, and their parameters put together from regions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from remerge.adapters.facts import ModelHint
from remerge.adapters.names import model_names
from remerge.adapters.regions import Names, matrix_view
from tests.adapters.plain import Facts, Speaks
from tests.corpus import arch_other, arch_text  # noqa: F401  (they fill ARCHS)
from tests.corpus.architectures import ARCHS


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk, as its headers and config.json say, and its values."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def facts(self) -> dict[str, Facts]:
        return {name: Facts(tuple(t.shape), "F32") for name, t in self.tensors.items()}

    def names(self, hint: ModelHint | None = None, wanted: Speaks | None = None) -> Names:
        default = ModelHint(None, self.config["architectures"][0])
        return model_names(self.config, self.facts, hint or default, wanted)


def tiny(name: str, cls: str | None = None, **changes: Any) -> transformers.PreTrainedModel:
    """The architecture of this name, every element distinct."""
    model_class = getattr(transformers, cls or ARCHS[name].cls)
    config_class = getattr(transformers, ARCHS[name].cls).config_class
    return counted(model_class(config_class(**{**ARCHS[name].config, **changes})))


def counted(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model with the integers 1, 2, 3... as its weights."""
    count = 1
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            values = torch.arange(count, count + tensor.numel(), dtype=torch.float32)
            tensor.data = values.reshape(tensor.shape)
            count += tensor.numel()
    assert count < 2**24, "more elements than float32 has integers"
    model.tie_weights()
    return model.eval()


def save(model: transformers.PreTrainedModel, path: Path) -> Saved:
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    return Saved(path, config, load_file(path / "model.safetensors"))


def rebuilt(names: Names, parameter: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The parameter as its regions say, in its matrix view; NaN where none of them covers it."""
    layer, shape = names.layer(parameter.rpartition(".")[0]), names.shape(parameter)
    assert layer is not None and shape is not None, parameter
    out = torch.full(matrix_view(shape, layer.kind), float("nan"))
    for region in names.regions(parameter):
        assert region.parameter == parameter
        tensor = tensors[region.tensor]
        matrix = tensor.reshape(matrix_view(tensor.shape, layer.kind))
        values = matrix[np.ix_(region.rows, region.cols)]
        at = np.ix_(region.parameter_rows, region.parameter_cols)
        assert bool(out[at].isnan().all()), f"{parameter} is covered twice"
        out[at] = values.T if region.transposed else values
    return out.reshape(shape)


def differing(names: Names, model: torch.nn.Module, saved: Saved) -> list[str]:
    """Parameters (and stored buffers) of the model that the regions do not reproduce."""
    return [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not torch.equal(rebuilt(names, name, saved.tensors), value)
    ]
