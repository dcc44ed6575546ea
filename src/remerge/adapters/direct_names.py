"""Names where the checkpoint's own are the model's, which takes no model to know."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remerge.adapters.facts import FactorShapes, TensorFacts, Wanted
from remerge.adapters.regions import Layer, Region, matrix_view
from remerge.adapters.source_text import ModelSource, model_source

_KINDS = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}


@dataclass(frozen=True)
class DirectNames:
    """`Names` where every parameter is a tensor of the same name, and a layer's kind is told by the
    dimensions of its weight."""

    tensors: Mapping[str, TensorFacts]

    def layer(self, module: str) -> Layer | None:
        weight = self.tensors.get(f"{module}.weight")
        if weight is not None and len(weight.shape) in _KINDS:
            return Layer(_KINDS[len(weight.shape)])
        return Layer("Module") if any(n.startswith(f"{module}.") for n in self.tensors) else None

    def modules(self) -> Sequence[str]:
        return ()

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        found = self.tensors.get(parameter)
        return None if found is None else tuple(found.shape)

    def regions(self, parameter: str) -> tuple[Region, ...]:
        shape = self.shape(parameter)
        if shape is None:
            return ()
        layer = self.layer(parameter.rpartition(".")[0])
        view = matrix_view(shape, "" if layer is None else layer.kind)
        rows, cols = (range(size) for size in view)
        return (Region(parameter, rows, cols, parameter, rows, cols),)

    def tied(self, parameter: str) -> tuple[str, ...]:
        return ()

    def checkpoint_name(self, parameter: str) -> str:
        return parameter


def direct_names(tensors: Mapping[str, TensorFacts]) -> DirectNames:
    """Names taken as they stand in the checkpoint."""
    return DirectNames(tensors)


def are_direct(
    config: Mapping[str, Any], tensors: Mapping[str, TensorFacts], wanted: Wanted
) -> bool:
    """Whether `direct_names` provably says what the model would say."""
    source = model_source(str(config.get("model_type")))
    # A config within the config builds a submodel from another source file.
    if source is None or source.converted or _nested(config):
        return False
    if not _fits(tensors, wanted) or (source.transposes and not _tells_orientation(wanted, all)):
        return False
    touched = _touched(wanted)
    # With more dimensions, how the matrix view is taken depends on the layer.
    flat = all(len(tensors[name].shape) <= 2 for name in touched)
    return flat and (_unties(config) or not _may_be_tied(source, touched))


def are_plain(
    config: Mapping[str, Any], tensors: Mapping[str, TensorFacts], wanted: Wanted
) -> bool:
    """Whether names of a model without a source can be taken as they stand.

    All are in the checkpoint; the factors fit [out, in] weights, at least one of them not square,
    which shows that the model does not store [in, out]; neither embedding nor head can be tied.
    """
    if not _fits(tensors, wanted) or (wanted.modules and not _tells_orientation(wanted, any)):
        return False
    entries = config.get("vocab_size")
    return _unties(config) or (
        entries is not None and all(entries not in tensors[name].shape for name in _touched(wanted))
    )


def _touched(wanted: Wanted) -> list[str]:
    return [f"{module}.weight" for module in wanted.modules] + list(wanted.parameters)


def _fits(tensors: Mapping[str, TensorFacts], wanted: Wanted) -> bool:
    """Whether all names are in the checkpoint, weights in the shape that the factors ask for."""
    return all(name in tensors for name in _touched(wanted)) and all(
        tuple(tensors[f"{module}.weight"].shape) == _linear_shape(factors)
        for module, factors in wanted.modules.items()
    )


def _linear_shape(factors: Sequence[FactorShapes]) -> tuple[int, int] | None:
    """[out, in] of the one Linear with these factors, None where they are no Linear's."""
    if len(factors) != 1:
        return None
    a, b = factors[0].a, factors[0].b
    return (b[0], a[1]) if a is not None and b is not None and len(a) == len(b) == 2 else None


def _tells_orientation(wanted: Wanted, which: Callable[[Iterable[bool]], bool]) -> bool:
    """Whether weights (all or any of them) could not have these shapes as [in, out]."""
    shapes = (_linear_shape(factors) for factors in wanted.modules.values())
    return which(shape is not None and shape[0] != shape[1] for shape in shapes)


def _nested(config: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) and "model_type" in value for value in config.values())


def _unties(config: Mapping[str, Any]) -> bool:
    return config.get("tie_word_embeddings") is False


def _may_be_tied(source: ModelSource, names: Collection[str]) -> bool:
    return any(not source.tied.isdisjoint(name.split(".")) for name in names)
