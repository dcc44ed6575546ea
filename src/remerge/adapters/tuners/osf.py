"""OSF: the smaller singular values and vectors of a weight, trained (PEFT osf/layer.py).

``W + U S V - U0 S0 V0``, where the second product is what the base held of these singular values.
PEFT finds it again by a float32 decomposition of the base and rounds its factors to the base's
dtype; so does this step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.config import PeftConfig
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Context, Edit
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Keys, Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer
from remerge.adapters.tuners.gathered import svd_bytes, whole
from remerge.adapters.tuners.weights import Weight, all_fit

# torch ships no types for it.
_LINALG: Any = torch.linalg
_KEY = re.compile(r"(?P<module>.+)\.osf_svd_params(?:\.(?![USV]_low$)[^.]+)?\.(?P<part>[USV]_low)")


@dataclass(frozen=True)
class Replacement:
    """``W + left (out, c) @ right (c, in)`` less the part of W's ``c`` smallest singular values."""

    left: Factor
    right: Factor
    band: int = 0
    gathers: bool = True

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.left, self.right)

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of `prepare` on a matrix of this shape."""
        return svd_bytes(shape)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """The base's own factors, float32: as wide as the adapter's."""
        left, values, right = _LINALG.svd(whole(base), full_matrices=False)
        kept = values.numel() - self.left.shape[1]
        parts = {"left": left[:, kept:], "values": values[kept:], "right": right[kept:]}
        return {
            name: part.to(base.dtype).to(torch.float32).contiguous() for name, part in parts.items()
        }

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        down, across = span_of(rows), span_of(cols)
        block.addmm_(load(self.left)[down], load(self.right)[:, across])
        before = {
            "left": prepared["left"][down],
            "values": prepared["values"],
            "right": prepared["right"][:, across],
        }
        wide = {name: part.to(block.device, torch.float64) for name, part in before.items()}
        block.addmm_(wide["left"] * wide["values"], wide["right"], alpha=-1)


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    return None if found is None else (found["module"], found["part"])


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense = dense_layer(context, parts, conv1d=False)
        if dense is not None:
            edits += _edit(context, parts, dense)
    return edits


def _edit(context: Context, parts: Parts, dense: Weight) -> list[Edit]:
    names = context.all_of(parts, "U_low", "S_low", "V_low", prefix="osf_svd_params.")
    if names is None:
        return []
    most, stored = min(dense.outputs, dense.inputs), context.stored(names[1])
    count = min(stored[0], most) if stored else most
    shapes = (dense.outputs, count), (count,), (count, dense.inputs)
    if not all_fit(context, dense, dict(zip(names, shapes, strict=True))):
        return []
    basis, values = matrix(context.adapter, names[0]), matrix(context.adapter, names[1], (1, count))
    left = made(basis.shape, lambda: basis.read() * values.read())
    return [Edit(dense.parameter, (Replacement(left, matrix(context.adapter, names[2])),))]


def _notes(context: Context, keys: Keys) -> list[str]:
    return [
        "OSF adapters replace a part of the base's singular value decomposition, which was derived "
        "again from this base as PEFT does."
    ]


OSF = Tuner("osf", PeftConfig, _layer_key, _edits, notes=_notes)
