"""Base weights that training changed before it began: PiSSA, OLoRA, KaSA.

The adapter was trained on ``W - s * B0 @ A0`` (PiSSA arXiv:2404.02948, OLoRA arXiv:2406.01775) or
on ``W`` without its smallest singular values (KaSA arXiv:2412.06071), stored in the base's dtype.
PEFT derives it again from the original base on load (lora/layer.py, pissa_init and olora_init;
lora/variants.py, KasaLinearVariant); so does this step, with the same float32 decompositions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from remerge.adapters.deltas import (
    BaseMatrix,
    Delta,
    Factor,
    Load,
    Prepared,
    Rounded,
    Window,
    overlap,
)
from remerge.adapters.lora.config import LoraConfig
from remerge.adapters.placing import Home, spans_of
from remerge.adapters.regions import Region
from remerge.errors import Unsupported

Method = Literal["pissa", "olora", "kasa"]
_BLOCK_ELEMENTS = 2**20
# torch ships no types for these.
_LINALG: Any = torch.linalg


@dataclass(frozen=True)
class Residual:
    """``W[row:, col:] -= scale * left @ right``, the factors found by decomposing the block itself.

    ``shape`` is the block's in the tensor; with ``transposed`` the layer's weight is the block's
    transpose. The result must be rounded to the base's dtype (`Rounded`) before anything is added.
    """

    method: Method
    rank: int
    scale: float
    shape: tuple[int, int]
    transposed: bool = False
    row: int = 0
    col: int = 0
    stage: ClassVar[int] = 1

    @property
    def factors(self) -> tuple[Factor, ...]:
        return ()

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of `prepare` on a tensor with this matrix view: the block in float32, its
        decomposition and LAPACK's work space."""
        rows, cols = self.shape
        small = min(rows, cols)
        matrices = 2 * rows * cols + 2 * (rows + cols) * small
        return 4 * (matrices + 8 * small * small) + 8 * max(_BLOCK_ELEMENTS, shape[1])

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """The two factors in the block's orientation: ``(rows, r)`` and ``(r, cols)``."""
        weight = self._weight(base)
        left, right = _DECOMPOSE[self.method](weight, self.rank, self.scale)
        if self.transposed:
            left, right = right.T, left.T
        return {
            "left": left.to(torch.float64).contiguous(),
            "right": right.to(torch.float64).contiguous(),
        }

    def moved(self, region: Region, home: Home) -> tuple[Delta, ...]:
        """The step on the region's tensor, and the rounding after it: PEFT keeps the residual in
        the base's dtype. Raises `Unsupported` where the tensor holds the weight in pieces."""
        height, width = self.shape
        found = spans_of(region, self.row, height, self.col, width)
        if found is None or any(s.take is not None for s in found):
            raise Unsupported(
                f"{self.method} on {region.parameter}, which {region.tensor} does not hold in one "
                "piece.",
                why="PEFT decomposes the whole weight to find what was trained.",
            )
        shape = (width, height) if region.transposed else (height, width)
        transposed = self.transposed != region.transposed
        row, col = found[0].start, found[1].start
        moved = replace(self, shape=shape, transposed=transposed, row=row, col=col)
        return (moved, Rounded(home.dtype))

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        rows = overlap(window.rows, self.row, self.shape[0])
        cols = overlap(window.cols, self.col, self.shape[1])
        if rows is None or cols is None:
            return
        left, right = prepared["left"], prepared["right"]
        # KaSA's factors are what is dropped; the others still lack the scale.
        scale = 1.0 if self.method == "kasa" else self.scale
        tile[rows[0], cols[0]].addmm_(
            left[rows[1]].to(tile.device), right[:, cols[1]].to(tile.device), alpha=-scale
        )

    def _weight(self, base: BaseMatrix) -> torch.Tensor:
        rows, cols = self.shape
        weight = torch.empty(rows, cols, dtype=torch.float32)
        step = max(1, _BLOCK_ELEMENTS // base.shape[1])
        for first in range(0, rows, step):
            last = min(first + step, rows)
            block = base.rows(range(self.row + first, self.row + last))
            weight[first:last] = block[:, self.col : self.col + cols]
        return weight.T if self.transposed else weight


def residual_method(config: LoraConfig) -> Method | None:
    """Which residual, if any, an adapter of this configuration was trained on."""
    if config.kasa_config is not None:
        return "kasa"
    if config.init == "pissa":
        return "pissa"
    return "olora" if config.init == "olora" else None


def refuse_residual(config: LoraConfig, module: str, kind: str) -> None:
    """Raise `Unsupported` for a layer that these initialisations cannot decompose."""
    if residual_method(config) is not None:
        raise Unsupported(
            f"{config.init or 'KaSA'} on {module}, a {kind} layer.",
            why="PEFT decomposes the weights of fully connected layers only.",
        )


def _pissa(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The principal part, split as PEFT's pissa_init does: in float32, divided by the scale."""
    left, values, right = _LINALG.svd(weight, full_matrices=False)
    roots = torch.diag(torch.sqrt(values[:rank] / scale))
    return left[:, :rank] @ roots, roots @ right[:rank]


def _olora(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The first columns of Q and rows of R (PEFT's olora_init); the scale is applied later."""
    q, r = _LINALG.qr(weight)
    return q[:, :rank], r[:rank]


def _kasa(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of the ``rank`` smallest singular values (PEFT's _truncate_base_weight)."""
    left, values, right = _LINALG.svd(weight, full_matrices=False)
    kept = values.numel() - rank
    return left[:, kept:] * values[kept:], right[kept:]


_DECOMPOSE: dict[
    Method, Callable[[torch.Tensor, int, float], tuple[torch.Tensor, torch.Tensor]]
] = {"pissa": _pissa, "olora": _olora, "kasa": _kasa}
