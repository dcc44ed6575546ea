"""WaveFT: a few trained coefficients of the change's wavelet transform, or of the change itself.

``W + s * idwt2(C)`` with C zero but at places that a seed draws (arXiv:2505.12532; PEFT
waveft/layer.py). One level of a separable transform: coefficients spread down the rows by one
filter, then across by another, so that no more than a tile is ever computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.config import Number, PeftConfig
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, part_keys
from remerge.adapters.tuners.places import Scattered, Seed, local
from remerge.adapters.tuners.spectra import Count, drawn_places, spectrum
from remerge.adapters.tuners.wavelets import LOW_PASS, synthesis
from remerge.adapters.tuners.weights import Weight
from remerge.errors import Unsupported


class WaveFTConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (waveft/config.py)."""

    n_frequency: Count = 2592
    n_frequency_pattern: dict[str, Count] | None = None
    proportional_parameters: bool = False
    scaling: Number = 25.0
    wavelet_family: str = "db1"
    use_idwt: bool = True
    random_loc_seed: Seed = 777


Context = Reading[WaveFTConfig]


@dataclass(frozen=True)
class Wavelets:
    """``W + scale * idwt2(C)``: ``values (k, 1)`` are C's at the places that ``seed`` draws.

    ``shape`` is the parameter's; with ``flipped`` the places are those of its transpose.
    """

    values: Factor
    family: str
    seed: int
    shape: tuple[int, int]
    scale: float
    flipped: bool
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.values,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """The rows and columns at which the coefficients lie."""
        return drawn_places(self.values.shape[0], self.shape, self.seed, self.flipped)

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        filters = synthesis(self.family)
        length, width = filters.shape[1], self.shape[1]
        down, high_down = _halves(prepared["down"], self.shape[0], length)
        across, high_across = _halves(prepared["across"], width, length)
        at, values = local(rows, self.shape[0]), load(self.values)[:, 0].cpu()
        half = _padded(width, length) // 2
        spread = torch.zeros(len(rows), 2, half, dtype=torch.float64)
        for tap in range(length):
            row = 2 * down + tap - (length - 2)
            inside = (row >= 0) & (row < self.shape[0])
            here = torch.full_like(row, -1)
            here[inside] = at[row[inside]]
            kept = here >= 0
            # PEFT pairs the halves crosswise: across decides the filter down, and down that across.
            weighed = values[kept] * filters[high_across[kept], tap]
            spread.index_put_((here[kept], high_down[kept], across[kept]), weighed, accumulate=True)
        wide = torch.nn.functional.conv_transpose1d(spread, filters.unsqueeze(1), stride=2)
        change = wide[:, 0, length - 2 : length - 2 + width][:, span_of(cols)]
        block += change.to(block.device) * self.scale


def _padded(size: int, length: int) -> int:
    """The coefficients along an axis: more than the values by what the filter overlaps, even."""
    padded = size + length - 2
    return padded + padded % 2


def _halves(places: torch.Tensor, size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions within the low or the high half of the coefficients, and which half (0 or 1)."""
    padded = _padded(size, length)
    shifted = places + (padded - size) // 2
    return shifted % (padded // 2), shifted // (padded // 2)


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense, config = dense_layer(context, parts), context.config
        if dense is None:
            continue
        counts = {config.n_frequency, *(config.n_frequency_pattern or {}).values()}
        if config.proportional_parameters:
            counts = set[int]()
        name = spectrum(context, parts, dense, "waveft_", counts)
        if name is not None:
            values = matrix(context.adapter, name, (context.stored(name)[0], 1))
            edits.append(Edit(dense.parameter, (_step(config, dense, values),)))
    return edits


def _step(config: WaveFTConfig, dense: Weight, values: Factor) -> Wavelets | Scattered:
    seed, shape, flipped = config.random_loc_seed, dense.view, dense.transposed
    if config.use_idwt:
        family = config.wavelet_family
        return Wavelets(values, family, seed, shape, config.scaling, flipped)

    def places() -> torch.Tensor:
        drawn = drawn_places(values.shape[0], shape, seed, flipped)
        return drawn["down"] * shape[1] + drawn["across"]

    return Scattered(values, places, shape, config.scaling)


def _check(config: WaveFTConfig, raw: Mapping[str, Any]) -> None:
    if config.use_idwt and config.wavelet_family not in LOW_PASS:
        raise Unsupported(
            f"wavelet_family is {config.wavelet_family[:40]!r}, which cannot be merged.",
            why="PEFT itself builds adapters only with " + ", ".join(LOW_PASS) + ".",
        )


WAVEFT = Tuner("waveft", WaveFTConfig, part_keys("waveft", "spectrum"), _edits, check=_check)
