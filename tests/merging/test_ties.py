"""float32 results at rounding ties: rational arithmetic is the oracle."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remerge.adapters.deltas import Change, Factor, LowRank
from remerge.merging.kernel import Scratch, merge_elements


def rounded(exact: Fraction) -> np.float32:
    """The float32 nearest to a rational number, ties to even."""
    near = np.float32(float(exact))
    candidates = [
        np.nextafter(near, np.float32(-np.inf)),
        near,
        np.nextafter(near, np.float32(np.inf)),
    ]
    return min(
        candidates,
        key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.int32)) & 1),
    )


def merged(
    base: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float
) -> torch.Tensor:
    def factor(values: torch.Tensor) -> Factor:
        return Factor((values.shape[0], values.shape[1]), lambda: values.double())

    step = LowRank(factor(left), factor(right), scale)
    change = Change("w", tuple(base.shape), "F32", (base.shape[0], base.shape[1]), (step,))
    out = base.clone().view(-1)
    scratch = Scratch.new(torch.device("cpu"))
    merge_elements(change, base.view(-1), out, 0, lambda f: f.read(), ({},), scratch)
    return out.view(base.shape)


def test_a_tie_is_broken_by_what_float64_cannot_hold():
    """1 + 2^-24 is a tie of float32; a term of 2^-80 decides it, and float64 drops that term."""
    base = torch.ones(1, 2)
    left = torch.tensor([[1.0, 1.0]])
    tiny = 2.0**-80
    right = torch.tensor([[2.0**-24, 2.0**-24], [tiny, -tiny]])
    found = merged(base, left, right, 1.0)
    assert found.tolist() == [[1.0 + 2.0**-23, 1.0]]


float32s = st.floats(-4, 4, width=32)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(float32s, min_size=3, max_size=3),
    st.lists(st.integers(-(2**10), 2**10), min_size=2, max_size=2),
    st.lists(st.integers(-(2**10), 2**10), min_size=6, max_size=6),
    st.integers(-40, 0),
    st.sampled_from([1.0, 0.5, 2.0, 1.5, 1 / 3]),
)
def test_every_float32_is_the_exact_sum_rounded(base, left, right, exponent, scale):
    w = torch.tensor([base])
    b = torch.tensor([left], dtype=torch.float32) * 2.0**exponent
    a = torch.tensor(right, dtype=torch.float32).view(2, 3)
    found = merged(w, b, a, scale)
    for j in range(3):
        product = sum(Fraction(float(b[0, k])) * Fraction(float(a[k, j])) for k in range(2))
        exact = Fraction(float(w[0, j])) + Fraction(scale) * product
        assert float(found[0, j]) == float(rounded(exact))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_torch_rounds_float64_to_16_bits_by_way_of_float32(values):
    """The kernel lets torch cast in one call; the path it documents is the one torch takes."""
    wide = torch.tensor(values, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        direct, by_way = wide.to(dtype), wide.to(torch.float32).to(dtype)
        assert torch.equal(direct.view(torch.int16), by_way.view(torch.int16))


def test_factors_of_few_bits_meet_ties_in_bulk():
    """bfloat16 factors land on float32 ties by the thousand; rational arithmetic agrees."""
    torch.manual_seed(0)
    w = torch.randn(64, 48) * 0.02
    b = (torch.randn(64, 8) * 0.02).bfloat16().float()
    a = (torch.randn(8, 48) * 0.004).bfloat16().float()
    for scale in (2.0, 1 / 3):
        found = merged(w, b, a, scale)
        for i, j in np.ndindex(*w.shape):
            product = sum(Fraction(float(b[i, k])) * Fraction(float(a[k, j])) for k in range(8))
            exact = Fraction(float(w[i, j])) + Fraction(scale) * product
            assert float(found[i, j]) == float(rounded(exact))
