"""Layouts and regions against the same steps done to numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from transformers import core_model_loading as loading

from remerge.adapters.layouts import Layout, concatenate, permute, reshape, take, whole
from remerge.adapters.placement import regions_of
from remerge.adapters.regions import matrix_view
from remerge.adapters.tracing import TracedTensor
from remerge.errors import Unsupported

Shapes = dict[str, list[tuple[int, ...]]]


def numbers(shape: Sequence[int], first: int = 0) -> torch.Tensor:
    count = math.prod(shape)
    return torch.arange(first, first + count, dtype=torch.float32).reshape(tuple(shape))


def from_regions(layout: Layout, tensors: dict[str, torch.Tensor], kind: str = "") -> torch.Tensor:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    out = torch.full(matrix_view(layout.shape, kind), float("nan"))
    for region in regions_of(layout, "parameter", kind, shapes):
        matrix = tensors[region.tensor].reshape(matrix_view(shapes[region.tensor], kind))
        values = matrix[np.ix_(region.rows, region.cols)]
        at = np.ix_(region.parameter_rows, region.parameter_cols)
        assert bool(out[at].isnan().all())
        out[at] = values.T if region.transposed else values
    return out.reshape(layout.shape)


# --- transformers' own operations, on numbers and on traced tensors -------------------------------
EXPERTS: Shapes = {"e.*.w1": [(5, 3)] * 4, "e.*.w3": [(5, 3)] * 4}
MODEL = torch.nn.ModuleDict(
    {
        "q": torch.nn.Linear(6, 4),
        "k": torch.nn.Linear(6, 2),
        "same": torch.nn.Linear(4, 6, bias=False),
    }
)
OPERATIONS: dict[str, tuple[list[Any], Shapes, list[str]]] = {
    "stack": ([loading.MergeModulelist()], {"e.*.w2": [(3, 5)] * 4}, ["e.down"]),
    "stack and fuse": (
        [loading.MergeModulelist(), loading.Concatenate(dim=1)],
        EXPERTS,
        ["e.gate_up"],
    ),
    "fuse": ([loading.Concatenate(0)], {"q": [(4, 6)], "k": [(2, 6)], "v": [(2, 6)]}, ["qkv"]),
    "fuse biases": ([loading.Concatenate(0)], {"q": [(4,)], "k": [(2,)], "v": [(2,)]}, ["qkv"]),
    "fuse columns": ([loading.Concatenate(1)], {"a": [(4, 6)], "b": [(4, 2)]}, ["ab"]),
    "fuse stacks": ([loading.Concatenate(1)], {"g": [(3, 4, 5)], "u": [(3, 4, 5)]}, ["gu"]),
    "fuse kernels": ([loading.Concatenate(0)], {"q": [(4, 1, 3)], "k": [(2, 1, 3)]}, ["qk"]),
    "chunk": ([loading.Chunk(0)], {"qkv": [(12, 5)]}, ["q", "k", "v"]),
    "chunk biases": ([loading.Chunk(0)], {"qkv": [(12,)]}, ["q", "k", "v"]),
    "chunk columns": ([loading.Chunk(1)], {"ab": [(3, 8)]}, ["a", "b"]),
    "split": ([loading.Split(0)], {"qk.weight": [(6, 6)]}, ["q.weight", "k.weight"]),
    "transpose": ([loading.Transpose(0, 1)], {"w": [(4, 6)]}, ["v"]),
    "transpose experts": ([loading.Transpose(1, 2)], {"w": [(7, 4, 6)]}, ["v"]),
    "transpose few wide experts": ([loading.Transpose(1, 2)], {"w": [(2, 4, 6)]}, ["v"]),
    "transpose if needed": (
        [loading.Transpose(0, 1, check_dims=True)],
        {"w": [(4, 6)]},
        ["same.weight"],
    ),
    "transpose not needed": (
        [loading.Transpose(0, 1, check_dims=True)],
        {"w": [(6, 4)]},
        ["same.weight"],
    ),
    "interleave": ([loading.Interleave(0)], {"w": [(8, 3)]}, ["v"]),
    "interleave back": ([loading.Interleave(0, inverse=True)], {"w": [(8, 3)]}, ["v"]),
    "interleave stacks": ([loading.Interleave(1)], {"w": [(3, 8, 2)]}, ["v"]),
    "interleave and chunk": (
        [loading.Interleave(1), loading.Chunk(1)],
        {"w": [(3, 8, 2)]},
        ["g", "u"],
    ),
    "rope": ([loading.PermuteForRope()], {"w": [(8, 3)]}, ["v"]),
    "rope bias": ([loading.PermuteForRope()], {"w": [(8,)]}, ["v"]),
    "rope back": ([loading.PermuteForRope(inverse=True)], {"w": [(8, 3)]}, ["v"]),
    "chunk and rope": (
        [loading.Chunk(0), loading.PermuteForRope(permute_layer_names=["q", "k"])],
        {"w": [(24, 3)]},
        ["q", "k", "v"],
    ),
    "rope and fuse": (
        [loading.PermuteForRope(permute_layer_names=["q"]), loading.Concatenate(0)],
        {"q": [(8, 3)], "v": [(8, 3)]},
        ["qv"],
    ),
    "unstack": ([loading.SplitModulelist()], {"e.down": [(4, 3, 5)]}, ["e.*.w2"]),
    "unfuse and unstack": (
        [loading.Chunk(1), loading.SplitModulelist()],
        {"e.gate_up": [(4, 10, 3)]},
        ["e.*.w1", "e.*.w3"],
    ),
    "flatten kernel": (
        [loading.Conv3dToLinear(3, (2, 4, 4))],
        {"w": [(5, 3, 2, 4, 4)]},
        ["v"],
    ),
    "kernel": ([loading.LinearToConv3d(3, (2, 4, 4))], {"w": [(5, 96)]}, ["v"]),
    "text and vision experts": (
        [loading.ErnieFuseAndSplitTextVisionExperts()],
        EXPERTS,
        ["text", "vision"],
    ),
    "text and vision experts back": (
        [loading.ErnieSplitAndDecoupleTextVisionExperts()],
        {"text": [(2, 10, 3)], "vision": [(2, 10, 3)]},
        ["e.*.w1", "e.*.w3"],
    ),
}


def converted(
    name: str, make: Callable[[str, tuple[int, ...], int], torch.Tensor]
) -> dict[str, torch.Tensor]:
    operations, shapes, targets = OPERATIONS[name]
    converter: Any = loading.WeightConverter(list(shapes), list(targets), operations)
    first = targets[0]
    count = 0
    for pattern, stored in shapes.items():
        for index, shape in enumerate(stored):
            key = pattern.replace("*", str(index))
            converter.add_tensor(first, key, pattern, make(key, shape, count))
            count += math.prod(shape)
    config = SimpleNamespace(num_attention_heads=2)
    made = converter.convert(first, model=MODEL, config=config)
    return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_transformers_are_followed(name: str) -> None:
    tensors: dict[str, torch.Tensor] = {}

    def real(key: str, shape: tuple[int, ...], first: int) -> torch.Tensor:
        tensors[key] = numbers(shape, first)
        return tensors[key]

    expected = converted(name, real)
    traced = converted(name, lambda key, shape, _: TracedTensor(whole(key, shape)))
    assert traced.keys() == expected.keys()
    for target, value in expected.items():
        layout = traced[target].origin  # type: ignore[attr-defined]
        assert torch.equal(from_regions(layout, tensors), value), target


def test_arithmetic_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"aten\.sub"):
        _ = TracedTensor(whole("w", (4, 3))) - 1


# --- layouts against numpy ------------------------------------------------------------------------
def values(layout: Layout, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    out = torch.full(layout.shape, float("nan"))
    for block in layout.blocks:
        places = np.full((1,) * len(block.axes), block.start)
        for dim, axis in enumerate(block.axes):
            along = [1] * len(block.axes)
            along[dim] = -1
            places = places + np.asarray(axis.offset).reshape(along)
        flat = tensors[block.tensor].reshape(-1)
        out[np.ix_(*(axis.at for axis in block.axes))] = flat[places]
    return out


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout:
    # What is no box any more is refused; that is allowed, a wrong answer is not.
    try:
        return reshape(layout, shape)
    except Unsupported:
        reject()


@st.composite
def steps(draw: st.DrawFn) -> tuple[Layout, torch.Tensor, dict[str, torch.Tensor]]:
    """A layout after some random steps, what the same steps make of numbers, and the sources."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)))
    tensors = {"w0": numbers(shape)}
    layout, expected = whole("w0", shape), tensors["w0"]
    for number in range(draw(st.integers(0, 5))):
        dims = len(expected.shape)
        dim = draw(st.integers(0, dims - 1))
        match draw(st.sampled_from(["take", "concatenate", "permute", "merge", "split", "add"])):
            case "take":
                start = draw(st.integers(0, expected.shape[dim] - 1))
                stop = draw(st.integers(start + 1, expected.shape[dim]))
                layout = take(layout, dim, start, stop)
                expected = expected.narrow(dim, start, stop - start)
            case "concatenate":
                name = f"w{number + 1}"
                tensors[name] = numbers(expected.shape, 1000 * (number + 1))
                layout = concatenate([layout, whole(name, expected.shape)], dim)
                expected = torch.cat([expected, tensors[name]], dim)
            case "permute":
                order = draw(st.permutations(range(dims)))
                layout, expected = permute(layout, order), expected.permute(*order)
            case "merge":
                stop = draw(st.integers(dim + 1, dims))
                merged = (*expected.shape[:dim], -1, *expected.shape[stop:])
                expected = expected.reshape(merged)
                layout = reshaped(layout, expected.shape)
            case "split":
                size = expected.shape[dim]
                part = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
                cut = (*expected.shape[:dim], size // part, part, *expected.shape[dim + 1 :])
                expected = expected.reshape(cut)
                layout = reshaped(layout, cut)
            case _:
                expected = expected.unsqueeze(dim)
                layout = reshaped(layout, expected.shape)
    return layout, expected, tensors


@given(steps())
@settings(max_examples=200, deadline=None)
def test_layouts_follow_any_steps(
    case: tuple[Layout, torch.Tensor, dict[str, torch.Tensor]],
) -> None:
    layout, expected, tensors = case
    assert layout.shape == tuple(expected.shape)
    assert torch.equal(values(layout, tensors), expected)


def test_cost_follows_the_sides_and_not_the_area() -> None:
    layout = permute(whole("w", (128, 100_000, 100_000)), (0, 2, 1))
    regions = regions_of(layout, "p", "", {"w": (128, 100_000, 100_000)})
    assert len(regions) == 128
    assert all(isinstance(r.rows, range) and isinstance(r.cols, range) for r in regions)


def test_a_one_dimensional_kernel_is_a_matrix_of_its_filters() -> None:
    (region,) = regions_of(whole("w", (4, 3, 5)), "p", "Conv1d", {"w": (4, 3, 5)})
    assert (region.rows, region.cols) == (range(4), range(15))
