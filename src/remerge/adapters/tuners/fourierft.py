"""FourierFT: a few trained frequencies of the change's discrete Fourier transform.

``W + s * Re(ifft2(F))`` with F zero but at places that a seed draws (arXiv:2405.03003; PEFT
fourierft/layer.py). The transform is separable: a row of the result is the inverse transform of a
row of sums over the frequencies, so that no more than a tile is ever computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from remerge.adapters.tuners.places import Seed
from remerge.adapters.tuners.spectra import Count, drawn_places, spectrum

# torch ships no types for it.
_FFT: Any = torch.fft
_ROOM = 2**18


class FourierFTConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (fourierft/config.py)."""

    n_frequency: Count = 1000
    n_frequency_pattern: dict[str, Count] | None = None
    scaling: Number = 150.0
    random_loc_seed: Seed = 777


Context = Reading[FourierFTConfig]


@dataclass(frozen=True)
class Frequencies:
    """``W + scale * Re(ifft2(F))``: ``values (k, 1)`` are F's at the places that ``seed`` draws.

    ``shape`` is the parameter's; with ``flipped`` F is that of its transpose.
    """

    values: Factor
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
        """The frequencies of each value, down and across."""
        return drawn_places(self.values.shape[0], self.shape, self.seed, self.flipped)

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        height, width = self.shape
        down, across = (prepared[name].to(block.device) for name in ("down", "across"))
        values, columns = load(self.values)[:, 0], span_of(cols)
        at = torch.arange(height)[span_of(rows)].to(block.device)
        step = max(1, _ROOM // max(width, values.numel()))
        for first in range(0, at.numel(), step):
            # Whole turns are taken off first, as integers: what is left is exact.
            turns = at[first : first + step].unsqueeze(1) * down % height
            angles = turns.to(torch.float64) * (2 * math.pi / height)
            waves = torch.polar(values.expand(turns.shape), angles)
            sums = waves.new_zeros(turns.shape[0], width).index_add_(1, across, waves)
            change = _FFT.ifft(sums, dim=1).real[:, columns]
            block[first : first + step] += change * (self.scale / height)


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense, config = dense_layer(context, parts), context.config
        if dense is None:
            continue
        counts = {config.n_frequency, *(config.n_frequency_pattern or {}).values()}
        name = spectrum(context, parts, dense, "fourierft_", counts)
        if name is not None:
            values = matrix(context.adapter, name, (context.stored(name)[0], 1))
            shape, flipped = dense.view, dense.transposed
            step = Frequencies(values, config.random_loc_seed, shape, config.scaling, flipped)
            edits.append(Edit(dense.parameter, (step,)))
    return edits


FOURIERFT = Tuner("fourierft", FourierFTConfig, part_keys("fourierft", "spectrum"), _edits)
