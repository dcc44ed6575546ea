"""Steps that answer for a window, against PEFT's transforms of the whole matrix in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import FourierFTConfig, WaveFTConfig
from peft.tuners.c3a.utils import get_circulant_fast
from peft.tuners.fourierft.layer import FourierFTLinear
from peft.tuners.waveft.layer import WaveFTLinear

from remerge.adapters.blocks import BlockStep
from remerge.adapters.factors import made
from remerge.adapters.regions import Index
from remerge.adapters.tuners.c3a import Circulant
from remerge.adapters.tuners.fourierft import Frequencies
from remerge.adapters.tuners.randlora import RandomSum
from remerge.adapters.tuners.waveft import Wavelets
from remerge.adapters.tuners.wavelets import LOW_PASS

SIZES = st.integers(1, 19)
SCALES = st.floats(-9, 9)


def _window(data: st.DataObject, size: int) -> Index:
    """A run of positions, or some of them in any order."""
    if data.draw(st.booleans()):
        first = data.draw(st.integers(0, size - 1))
        return range(first, data.draw(st.integers(first + 1, size)))
    some = st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True)
    return np.asarray(data.draw(some))


def _agrees(step: BlockStep, whole: torch.Tensor, data: st.DataObject) -> None:
    rows, cols = (_window(data, size) for size in whole.shape)
    start = torch.randn(len(rows), len(cols), dtype=torch.float64)
    block, base = start.clone(), torch.zeros(1)
    unused: Any = base
    step.change(block, rows, cols, lambda factor: factor.read(), step.prepare(unused, _read))
    wanted = whole[torch.as_tensor(np.asarray(rows))][:, torch.as_tensor(np.asarray(cols))]
    assert torch.allclose(
        block - start, wanted, rtol=1e-9, atol=1e-9 * float(1 + whole.abs().max())
    )


def _read(factor: Any) -> torch.Tensor:
    return factor.read()


def _column(values: torch.Tensor) -> Any:
    return made((values.numel(), 1), lambda: values)


@given(SIZES, SIZES, SCALES, st.integers(0, 99), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_frequencies(
    outputs: int, inputs: int, scale: float, seed: int, flipped: bool, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, outputs * inputs))
    config = FourierFTConfig(scaling=scale, random_loc_seed=seed)
    layer = FourierFTLinear(torch.nn.Linear(inputs, outputs), "default", config, count)
    places, values = layer.indices["default"], torch.randn(count, dtype=torch.float64)
    spectrum = torch.zeros(outputs, inputs, dtype=torch.float64)
    spectrum[places[0], places[1]] = values
    whole = torch.fft.ifft2(spectrum).real * scale
    shape = (inputs, outputs) if flipped else (outputs, inputs)
    step = Frequencies(_column(values), seed, shape, scale, flipped)
    _agrees(step, whole.T if flipped else whole, data)


@given(SIZES, SIZES, st.sampled_from(sorted(LOW_PASS)), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_wavelets(
    outputs: int, inputs: int, family: str, flipped: bool, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, outputs * inputs))
    config = WaveFTConfig(scaling=2.0, random_loc_seed=5, wavelet_family=family)
    layer = WaveFTLinear(torch.nn.Linear(inputs, outputs), "default", config, count)
    values = torch.randn(count, dtype=torch.float64)
    layer.waveft_spectrum["default"] = torch.nn.Parameter(values)
    whole = layer.get_delta_weight("default").detach()
    shape = (inputs, outputs) if flipped else (outputs, inputs)
    step = Wavelets(_column(values), family, 5, shape, 2.0, flipped)
    _agrees(step, whole.T if flipped else whole, data)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_circulants(tall: int, wide: int, size: int, data: st.DataObject) -> None:
    kernel = torch.randn(tall, wide, size, dtype=torch.float64)
    whole = get_circulant_fast(kernel) / (wide * size)
    _agrees(Circulant(made((tall, wide * size), lambda: kernel), size), whole, data)


@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 30), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_random_sums(rank: int, least: int, more: int, flipped: bool, data: st.DataObject) -> None:
    bases, most = -(-least // rank), least + more
    sizes = (rank, least + 2), (most + 3, (bases + 2) * rank), (rank, bases), (bases, least)
    a, b, weights, gamma = (torch.randn(size, dtype=torch.float64) for size in sizes)
    factors = [made((v.shape[0], v.shape[1]), lambda v=v: v) for v in (a, b, weights, gamma)]
    # As PEFT: the bases run faster in one factor, the ranks in the other.
    scaled = weights[:, :, None] * a[:, None, :least] * gamma[None]
    whole = b[:most, : bases * rank] @ scaled.flatten(end_dim=1) * 0.7
    _agrees(RandomSum(*factors, 0.7, flipped), whole.T if flipped else whole, data)
