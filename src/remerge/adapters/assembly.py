"""Slots gathered by tensor: the changes of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from remerge.adapters.blocks import Step
from remerge.adapters.deltas import Change, Delta, LowRank, Replaced, Rounded
from remerge.adapters.edits import Context
from remerge.adapters.placing import Home, place
from remerge.adapters.regions import Region, matrix_view
from remerge.adapters.tying import Slot
from remerge.errors import Unsupported
from remerge.sources.dtypes import MERGEABLE, torch_dtype


@dataclass
class _Pending:
    """A tensor whose steps are still being gathered."""

    shape: tuple[int, ...]
    dtype: str
    view: tuple[int, int]
    source: str | None = None
    steps: list[Delta] = field(default_factory=list[Delta])


def assemble(context: Context, slots: Iterable[Slot]) -> dict[str, Change]:
    """The changes by checkpoint name.

    Raises `Unsupported` where a parameter is stored in a way that its steps cannot follow, and
    for codes of a quantised base.
    """
    pending: dict[str, _Pending] = {}
    for slot in slots:
        if slot.created is not None:
            _create(context, pending, slot, slot.created)
        elif slot.shape != context.names.shape(slot.parameter):
            _resize(context, pending, slot)
        else:
            _patch(context, pending, slot)
    return {name: _change(name, tensor) for name, tensor in sorted(pending.items())}


def _create(context: Context, pending: dict[str, _Pending], slot: Slot, name: str) -> None:
    dtype = usual_dtype(context)
    if slot.source is not None:
        dtype = context.base.tensors[slot.source].dtype
    view = context.view(slot.parameter, slot.shape)
    created = pending[name] = _Pending(slot.shape, dtype, view, slot.source)
    created.steps += _placed(slot.steps, _identity(name, slot.parameter, view), created, view)


def _resize(context: Context, pending: dict[str, _Pending], slot: Slot) -> None:
    """A parameter that is replaced in another shape: nothing of the base's tensor is left."""
    regions = context.names.regions(slot.parameter)
    shape = context.names.shape(slot.parameter)
    if len(regions) != 1 or shape is None or not _is_identity(context, regions[0], shape):
        raise Unsupported(
            f"{slot.parameter} gets a new shape, {slot.shape}, but shares its tensors on disk.",
            hint="Resize the base with transformers, save it, and merge onto that.",
        )
    tensor = regions[0].tensor
    dtype = context.base.tensors[tensor].dtype
    _check_dtype(tensor, dtype)
    view = context.view(slot.parameter, slot.shape)
    resized = pending[tensor] = _Pending(slot.shape, dtype, view)
    resized.steps += _placed(slot.steps, _identity(tensor, slot.parameter, view), resized, view)


def _identity(tensor: str, parameter: str, view: tuple[int, int]) -> Region:
    rows, cols = range(view[0]), range(view[1])
    return Region(tensor, rows, cols, parameter, rows, cols)


def _placed(
    steps: Sequence[Step], region: Region, tensor: _Pending, view: tuple[int, int]
) -> list[Delta]:
    home = Home(tensor.view, torch_dtype(tensor.dtype))
    return [moved for step in steps for moved in place(step, region, home, view)]


def _patch(context: Context, pending: dict[str, _Pending], slot: Slot) -> None:
    regions = context.names.regions(slot.parameter)
    _check_cover(context, slot, regions)
    for region in regions:
        tensor = _pending(context, pending, slot.parameter, region.tensor)
        view = context.view(slot.parameter, slot.shape)
        tensor.steps += _placed(_near(slot.steps, region), region, tensor, view)


def _near(steps: Sequence[Step], region: Region) -> Sequence[Step]:
    """The steps that can meet the region: a stack has one for each of hundreds of experts, and
    tensors of one expert each have as many regions."""
    rows = region.parameter_rows
    if not isinstance(rows, range):
        return steps
    first, last = rows[0], rows[-1]
    return [
        step
        for step in steps
        if not isinstance(step, LowRank)
        or (step.row <= last and first < step.row + step.left.shape[0])
    ]


def _pending(context: Context, pending: dict[str, _Pending], parameter: str, name: str) -> _Pending:
    if name not in pending:
        facts = context.base.tensors[name]
        _check_dtype(name, facts.dtype)
        view = matrix_view(facts.shape, context.kind(parameter))
        pending[name] = _Pending(tuple(facts.shape), facts.dtype, view)
    return pending[name]


def _check_cover(context: Context, slot: Slot, regions: Sequence[Region]) -> None:
    held = sum(len(region.rows) * len(region.cols) for region in regions)
    if held != math.prod(slot.shape):
        raise Unsupported(
            f"The checkpoint holds {held} of the {math.prod(slot.shape)} values of "
            f"{slot.parameter}.",
            why="The base is incomplete, or stores this parameter in a form not known here.",
        )


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in MERGEABLE:
        raise Unsupported(
            f"The base stores {name} as {dtype}.",
            why="Those are codes of a quantised weight, to which nothing can be added.",
            hint="Give the base in 16 or 32 bits.",
        )


def _change(name: str, tensor: _Pending) -> Change:
    steps = sorted(tensor.steps, key=lambda step: step.stage)
    rounded = [step for step in steps if isinstance(step, Rounded)]
    if rounded:
        # Every residual of a fused tensor is rounded at once, before anything is added.
        steps = [step for step in steps if not isinstance(step, Rounded) or step is rounded[0]]
    whole = bool(steps) and isinstance(steps[0], Replaced) and steps[0].whole
    return Change(
        name,
        tensor.shape,
        tensor.dtype,
        tensor.view,
        tuple(steps),
        reads_base=not whole,
        source=tensor.source,
    )


def _is_identity(context: Context, region: Region, shape: tuple[int, ...]) -> bool:
    rows, cols = context.view(region.parameter, shape)
    stored = tuple(context.base.tensors[region.tensor].shape)
    return (
        not region.transposed
        and stored == shape
        and list(region.rows) == list(region.parameter_rows) == list(range(rows))
        and list(region.cols) == list(region.parameter_cols) == list(range(cols))
    )


def usual_dtype(context: Context) -> str:
    """The float dtype that most of the base's values have: that of tensors it does not have."""
    counts: dict[str, int] = {}
    for facts in context.base.tensors.values():
        if facts.dtype in MERGEABLE:
            counts[facts.dtype] = counts.get(facts.dtype, 0) + math.prod(facts.shape)
    return max(sorted(counts), key=lambda name: counts[name]) if counts else "F32"
