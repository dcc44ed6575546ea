"""Tensors that somebody stored against the exact merge in float64: sums over their elements, from
which `remerge.validation.weights` takes its figures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from remerge.merging.merged import MergedCheckpoint
from remerge.merging.tensor_plan import TensorPlan
from remerge.sources.dtypes import torch_dtype

# Elements at hand at once, in each thread.
BLOCK = 2**19
# Bits of the mantissa that are stored, and the exponent of the smallest normal number.
_MANTISSA = {"F16": (10, -14), "BF16": (7, -126), "F32": (23, -126), "F64": (52, -1022)}


@dataclass
class Sums:
    """Over the elements of one tensor so far: squared norms of ``base``, of the exact merge where
    it is not what is stored (``size``), of its ``delta``, of the ``error`` (``noise`` where there
    is a delta) and of one ``rounding``; products with the delta of what is there of it (``kept``)
    and of what one rounding leaves (``expected``); errors in units in the last place, all
    (``units``) and the ``worst``."""

    elements: int = 0
    base: float = 0.0
    size: float = 0.0
    delta: float = 0.0
    kept: float = 0.0
    expected: float = 0.0
    error: float = 0.0
    noise: float = 0.0
    rounding: float = 0.0
    units: float = 0.0
    worst: float = 0.0

    def document(self) -> dict[str, float]:
        return asdict(self)


def add(
    sums: Sums,
    merged: MergedCheckpoint,
    plan: TensorPlan,
    values: torch.Tensor,
    rounds: str,
    first: int,
) -> None:
    """Add elements of a tensor from ``first`` on, as stored; ``rounds`` is the dtype that they were
    rounded to."""
    count = values.numel()
    sums.elements += count
    base = None
    if plan.source is not None and plan.compares:
        base = merged.reader.values(plan.source, first, count)
        sums.base += _dot(base.double(), base.double())
    if plan.change is None:
        assert base is not None or plan.source is not None
        exact = base if base is not None else merged.reader.values(plan.source, first, count)  # pyright: ignore[reportArgumentType]
        if values.dtype in (exact.dtype, torch.float32, torch.float64) and torch.equal(
            exact.to(values.dtype), values
        ):
            return
        exact = exact.double()
    else:
        exact = merged.exact(plan.change, plan.source)(first, count)
    stored = values.double()
    finite = torch.isfinite(stored)
    if not bool(finite.all()):
        # What is not finite in the base itself stays so, and is no error.
        lost = ~finite & torch.isfinite(exact)
        sums.error += math.inf if bool(lost.any()) else 0.0
        stored, exact = (torch.where(finite, side, 0.0) for side in (stored, exact))
        base = None if base is None else torch.where(finite, base, 0.0)
    error = stored - exact
    sums.size += _dot(exact, exact)
    unit = _units(exact, rounds)
    off = (error / unit).abs()
    sums.error += _dot(error, error)
    sums.rounding += _dot(unit, unit) / 12
    sums.units += float(off.sum())
    sums.worst = max(sums.worst, float(off.max()))
    if plan.change is None or base is None:
        return
    before = base.double()
    delta = exact - before
    once = exact.to(torch.float32).to(torch_dtype(rounds)).double()
    sums.delta += _dot(delta, delta)
    sums.kept += _dot(stored - before, delta)
    sums.expected += _dot(once - before, delta)
    sums.noise += _dot(error, error)


def held(values: torch.Tensor, dtype: str) -> str:
    """The narrowest dtype that holds these values: weights may have been rounded before they were
    written in a wider one."""
    if dtype not in ("F32", "F64"):
        return dtype
    for name in ("BF16", "F16"):
        if torch.equal(values.to(torch_dtype(name)).to(values.dtype), values):
            return name
    return dtype


def _units(exact: torch.Tensor, dtype: str) -> torch.Tensor:
    """A unit in the last place of ``dtype`` at each value."""
    bits, least = _MANTISSA[dtype]
    exponent = torch.frexp(exact)[1].clamp_(min=least + 1) - (bits + 1)
    return torch.ldexp(torch.ones_like(exact), exponent)


def _dot(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.dot(first, second))
