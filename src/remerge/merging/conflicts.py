"""Do several adapters get along? Measured on their factors alone, without the base's values.

Two adapters disturb each other where both read the same inputs and write the same outputs. Of each
module that both change the common directions of their deltas are measured, whether the deltas
agree there, and on a sample of elements whether their signs do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import torch

from remerge.adapters.deltas import Change, Changes, Delta, LowRank, Replaced, ReplacedRows
from remerge.adapters.lora.dora import Dora
from remerge.merging.directions import Directions, by_chance, directions, meet
from remerge.merging.meetings import Module, Pair, Signs
from remerge.merging.methods.blocks import Block, Part, grouped, pieces, reader
from remerge.merging.replacements import Clash, IsCopy, brought_by, settle
from remerge.merging.samples import Grid, sampled
from remerge.sources.one_thread import one_thread


@dataclass(frozen=True)
class Measured:
    """All pairs of adapters; by name of the tensor every two that replace values of it by different
    ones, the adapters that replace it whole, and those whose change of it could not be compared."""

    pairs: tuple[Pair, ...]
    clashes: Mapping[str, tuple[Clash, ...]]
    wholes: Mapping[str, frozenset[int]]
    skipped: Mapping[str, tuple[int, ...]]
    dora: bool


@dataclass
class _Tensor:
    """What was found in one tensor."""

    squares: dict[int, float] = field(default_factory=lambda: defaultdict[int, float](float))
    modules: list[Module] = field(default_factory=list[Module])
    clashes: tuple[Clash, ...] = ()
    skipped: tuple[int, ...] = ()


def measure(found: Sequence[Changes], is_copy: IsCopy, threads: int) -> Measured:
    """How the changes of several adapters lie to each other, by pairs.

    ``is_copy`` compares replaced values with the base's, and is asked only where two adapters
    replace the same ones differently. ``threads`` changes no figure.
    """
    names = sorted({name for changes in found for name in changes.tensors})
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        tensors = list(pool.map(partial(_tensor, found, is_copy), names))
    squares = [[t.squares.get(i, 0.0) for t in tensors] for i in range(len(found))]
    norms = [math.sqrt(math.fsum(each)) for each in squares]
    modules: dict[tuple[int, int], list[Module]] = defaultdict(list)
    for module in (module for tensor in tensors for module in tensor.modules):
        modules[module.one, module.other].append(module)
    pairs = tuple(
        Pair(
            one,
            other,
            (norms[one], norms[other]),
            tuple(modules[one, other]),
        )
        for one, other in combinations(range(len(found)), 2)
    )
    return Measured(
        pairs,
        {name: t.clashes for name, t in zip(names, tensors, strict=True) if t.clashes},
        {name: adapters for name in names if (adapters := _replacing(found, name))},
        {name: t.skipped for name, t in zip(names, tensors, strict=True) if t.skipped},
        any(isinstance(s, Dora) for c in found for t in c.tensors.values() for s in t.steps),
    )


def _tensor(found: Sequence[Changes], is_copy: IsCopy, name: str) -> _Tensor:
    changes = {i: c.tensors[name] for i, c in enumerate(found) if name in c.tensors}
    result = _Tensor(clashes=_clashes(changes, is_copy))
    added = {i: steps for i, change in changes.items() if (steps := _added(change))}
    # Views differ where one of them resized the vocabulary; rows of both mean the same.
    rows, columns = zip(*(change.view for change in changes.values()), strict=True)
    view = max(rows), max(columns)
    products = {i: p for i, steps in added.items() if (p := _products(steps)) is not None}
    _compare_products(name, view, products, result)
    others = {i: steps for i, steps in added.items() if i not in products}
    if others:
        _compare_samples(name, view, products, others, result)
    return result


def _replacing(found: Sequence[Changes], name: str) -> frozenset[int]:
    """The adapters that bring all of a tensor."""
    return frozenset(
        adapter
        for adapter, changes in enumerate(found)
        if name in changes.tensors
        and any(isinstance(s, Replaced) and s.whole for s in changes.tensors[name].steps)
    )


def _clashes(changes: Mapping[int, Change], is_copy: IsCopy) -> tuple[Clash, ...]:
    """Every two adapters of which a merge could take only one's values."""
    found: list[Clash] = []
    for one, other in combinations(changes, 2):
        settled = settle(brought_by((changes[one], changes[other])), None, is_copy)
        if isinstance(settled, Clash):
            found.append(Clash(one, other))
    return tuple(found)


def _added(change: Change) -> tuple[Delta, ...]:
    """What a change adds to a tensor besides the values that it replaces."""
    return tuple(s for s in change.steps if not isinstance(s, Replaced | ReplacedRows))


def _products(steps: Sequence[Delta]) -> tuple[LowRank, ...] | None:
    """The steps as products of factors, DoRA's without its rescaling; None where one is none."""
    found = [step.product if isinstance(step, Dora) else step for step in steps]
    products = tuple(step for step in found if isinstance(step, LowRank))
    return products if len(products) == len(found) else None


def _compare_products(
    name: str, view: tuple[int, int], products: Mapping[int, Sequence[LowRank]], result: _Tensor
) -> None:
    parts = [
        Part(adapter, 1.0, step, step.row, step.col)
        for adapter, steps in products.items()
        for step in steps
    ]
    for block in grouped(name, parts):
        _compare_in(block, view, result)


def _compare_in(block: Block, view: tuple[int, int], result: _Tensor) -> None:
    shape = block.height, block.width
    grid, load, scales = Grid.of(shape), reader(), block.scales()
    left, tall = _gram(partial(block.left, load=load), block.height, scales, grid.rows)
    ones = torch.ones_like(scales)
    right, wide = _gram(partial(block.right, load=load), block.width, ones, grid.columns)
    spans: dict[int, slice] = {}
    for part, span in zip(block.parts, block.spans, strict=True):
        spans[part.adapter] = slice(spans.get(part.adapter, span).start, span.stop)
    found = dict(zip(spans, directions(left, right, list(spans.values())), strict=True))
    for adapter, delta in found.items():
        result.squares[adapter] += delta.norm**2
    changing = {adapter: delta for adapter, delta in found.items() if delta.norm}
    if len(changing) < 2:
        return
    values = {i: (tall[:, spans[i]] @ wide[:, spans[i]].T).reshape(-1) for i in changing}
    signs = _signs(values, grid.scale)
    place = _place(block, view)
    for (one, delta), (other, second) in combinations(changing.items(), 2):
        meeting = meet(delta, second, left, right)
        result.modules.append(
            Module(
                one,
                other,
                place,
                (delta.norm, second.norm),
                meeting.product,
                signs[one, other],
                meeting,
                block.turned,
                _chance(delta, second, shape),
            )
        )


def _gram(
    read: Callable[[range], torch.Tensor], length: int, scales: torch.Tensor, sample: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``M.T @ M`` and the sampled rows of a tall matrix (length, K) that is read piece by piece,
    its columns scaled."""
    gram = torch.zeros(len(scales), len(scales), dtype=torch.float64)
    rows: list[torch.Tensor] = []
    for piece in pieces(length, len(scales)):
        values = read(piece)
        gram.addmm_(values.T, values)
        inside = (sample >= piece.start) & (sample < piece.stop)
        rows.append(values[sample[inside] - piece.start])
    return gram * torch.outer(scales, scales), torch.cat(rows) * scales


def _chance(one: Directions, other: Directions, shape: tuple[int, int]) -> float:
    return math.sqrt(math.prod(by_chance(one, other, dimension) for dimension in shape))


def _place(block: Block, view: tuple[int, int]) -> str:
    """The tensor's name, with rows and columns where the block is a part of it."""
    rows = f"{block.row}:{block.row + block.height}"
    if block.width != view[1]:
        return f"{block.tensor}[{rows}, {block.col}:{block.col + block.width}]"
    return block.tensor if block.height == view[0] else f"{block.tensor}[{rows}]"


def _compare_samples(
    name: str,
    view: tuple[int, int],
    products: Mapping[int, Sequence[Delta]],
    others: Mapping[int, Sequence[Delta]],
    result: _Tensor,
) -> None:
    """Compare those that have no factors with each other and with those that have some."""
    grid, load = Grid.of(view), reader()
    values: dict[int, torch.Tensor] = {}
    skipped: list[int] = []
    for adapter, steps in sorted({**products, **others}.items()):
        delta = sampled(steps, grid, load)
        if delta is None:
            skipped.append(adapter)
            continue
        values[adapter] = delta
        if adapter in others:
            result.squares[adapter] += grid.scale * float(delta.square().sum())
    # One alone has nothing to be compared with.
    result.skipped = tuple(skipped) if len(products) + len(others) > 1 else ()
    values = {adapter: delta for adapter, delta in values.items() if bool(delta.any())}
    signs = _signs(values, grid.scale)
    for one, other in combinations(values, 2):
        if one in products and other in products:
            continue
        norms = [math.sqrt(grid.scale * float(values[i] @ values[i])) for i in (one, other)]
        product = grid.scale * float(values[one] @ values[other])
        pair = (norms[0], norms[1])
        result.modules.append(Module(one, other, name, pair, product, signs[one, other]))


def _signs(values: Mapping[int, torch.Tensor], scale: float) -> dict[tuple[int, int], Signs]:
    """For every pair of 1-D samples, from products of all: ``2 against = common - (a . b)`` with
    the signs of both, and the same with values for the weights."""
    if len(values) < 2:
        return {}
    stack = torch.stack(list(values.values()))
    signs, sizes = stack.sign(), stack.abs()
    changed = signs.abs()
    common, agree = changed @ changed.T, signs @ signs.T
    weight, product = sizes @ sizes.T, stack @ stack.T
    return {
        (one, other): Signs(
            scale * float(common[i, j]),
            scale * float(common[i, j] - agree[i, j]) / 2,
            scale * float(weight[i, j]),
            scale * float(weight[i, j] - product[i, j]) / 2,
        )
        for (i, one), (j, other) in combinations(enumerate(values), 2)
    }
