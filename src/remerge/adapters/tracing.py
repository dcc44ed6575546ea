"""Tensors that hold no values but know where their values would come from.

transformers' own conversion code runs on them, so that what it does to a checkpoint is observed
and not restated here; a step that is no rearrangement (arithmetic, say) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from remerge.adapters.layouts import Layout, concatenate, permute, reshape, take
from remerge.errors import Unsupported


class TracedTensor(torch.Tensor):
    """A tensor of the shape of its layout, on the meta device."""

    origin: Layout

    @staticmethod
    def __new__(cls: type[TracedTensor], layout: Layout) -> TracedTensor:
        make = cast(Any, torch.Tensor)._make_wrapper_subclass
        return make(cls, layout.shape, dtype=torch.float32, device="meta")

    def __init__(self, layout: Layout) -> None:
        self.origin = layout

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = str(func.overloadpacket)
        rule = RULES.get(name)
        if rule is None:
            raise Unsupported(f"Loading the weights computes {name}, which only rearranging may.")
        return _wrapped(rule(*(_unwrapped(arg) for arg in args), **dict(kwargs or {})))


def _unwrapped(argument: Any) -> Any:
    if isinstance(argument, TracedTensor):
        return argument.origin
    if isinstance(argument, list | tuple):
        return [_unwrapped(item) for item in cast(Sequence[Any], argument)]
    return argument


def _wrapped(result: Layout | list[Layout]) -> TracedTensor | list[TracedTensor]:
    if isinstance(result, Layout):
        return TracedTensor(result)
    return [TracedTensor(layout) for layout in result]


def _same(tensor: Layout, **_: object) -> Layout:
    return tensor


def _cat(tensors: Sequence[Layout], dim: int = 0) -> Layout:
    return concatenate(tensors, dim % len(tensors[0].shape))


def _stack(tensors: Sequence[Layout], dim: int = 0) -> Layout:
    dim %= len(tensors[0].shape) + 1
    return concatenate([_unsqueeze(tensor, dim) for tensor in tensors], dim)


def _split_with_sizes(tensor: Layout, sizes: Sequence[int], dim: int = 0) -> list[Layout]:
    dim %= len(tensor.shape)
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [take(tensor, dim, stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]


def _split(tensor: Layout, size: int, dim: int = 0) -> list[Layout]:
    length = tensor.shape[dim]
    sizes = [min(size, length - start) for start in range(0, length, size)]
    return _split_with_sizes(tensor, sizes, dim)


def _slice(
    tensor: Layout, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> Layout:
    chosen = range(tensor.shape[dim])[start:stop]
    if step != 1:
        raise Unsupported(f"Loading the weights takes every {step}th row.")
    return take(tensor, dim % len(tensor.shape), chosen.start, chosen.stop)


def _select(tensor: Layout, dim: int, index: int) -> Layout:
    dim, index = dim % len(tensor.shape), index % tensor.shape[dim]
    shape = tensor.shape
    return reshape(take(tensor, dim, index, index + 1), shape[:dim] + shape[dim + 1 :])


def _unbind(tensor: Layout, dim: int = 0) -> list[Layout]:
    return [_select(tensor, dim, index) for index in range(tensor.shape[dim])]


def _permute(tensor: Layout, order: Sequence[int]) -> Layout:
    return permute(tensor, [dim % len(order) for dim in order])


def _transpose(tensor: Layout, dim0: int = -2, dim1: int = -1) -> Layout:
    order = list(range(len(tensor.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(tensor, order)


def _view(tensor: Layout, shape: Sequence[int]) -> Layout:
    return reshape(tensor, torch.empty(tensor.shape, device="meta").view(*shape).shape)


def _unsqueeze(tensor: Layout, dim: int) -> Layout:
    dim %= len(tensor.shape) + 1
    return reshape(tensor, (*tensor.shape[:dim], 1, *tensor.shape[dim:]))


def _squeeze(tensor: Layout, dim: int) -> Layout:
    dim %= len(tensor.shape)
    if tensor.shape[dim] != 1:
        return tensor
    return reshape(tensor, tensor.shape[:dim] + tensor.shape[dim + 1 :])


# By torch's own primitives, to which every conversion that only moves elements comes down.
RULES: Mapping[str, Callable[..., Layout | list[Layout]]] = {
    "aten.alias": _same,
    "aten.cat": _cat,
    "aten.clone": _same,
    "aten.detach": _same,
    "aten.permute": _permute,
    "aten.select": _select,
    "aten.slice": _slice,
    "aten.split": _split,
    "aten.split_with_sizes": _split_with_sizes,
    "aten.squeeze": _squeeze,
    "aten.stack": _stack,
    "aten.t": _transpose,
    "aten.transpose": _transpose,
    "aten.unbind": _unbind,
    "aten.unsqueeze": _unsqueeze,
    "aten.view": _view,
    "aten._unsafe_view": _view,
    "aten._to_copy": _same,
}
