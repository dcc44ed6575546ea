"""Steps on weights that lie elsewhere than in the model: transposed, permuted, in pieces."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from remerge.adapters.blocks import BlockStep, place_block
from remerge.adapters.deltas import Factor, Window
from remerge.adapters.regions import Region
from remerge.adapters.tuners.gralora import Granular
from remerge.adapters.tuners.hira import Modulated
from remerge.adapters.tuners.hra import Mirrored
from remerge.adapters.tuners.ia3 import Scaled
from remerge.adapters.tuners.loha import HadamardProduct
from remerge.adapters.tuners.lokr import KroneckerProduct
from remerge.adapters.tuners.miss import BlockAffine, Repeated
from remerge.adapters.tuners.places import Scattered
from remerge.adapters.tuners.road import PairsTurned
from remerge.adapters.tuners.rotation import Rotated, Rotation
from remerge.adapters.tuners.weights import Turned

ROWS, COLS = 12, 18
# Some of them twice.
PLACES = torch.arange(30) * 29 % 20 * 10
PREPARED = dict(zip(("places", "order"), PLACES.sort(stable=True), strict=True))


def factor(rows: int, cols: int) -> Factor:
    values = torch.randn(rows, cols, dtype=torch.float64)
    return Factor((rows, cols), lambda: values)


STEPS: dict[str, Callable[[], BlockStep]] = {
    "hadamard": lambda: HadamardProduct(
        ((factor(ROWS, 2), factor(2, COLS)), (factor(ROWS, 3), factor(3, COLS))), 0.5
    ),
    "kronecker": lambda: KroneckerProduct(factor(3, 2), factor(4, 9), 0.5),
    "kronecker of a kernel": lambda: KroneckerProduct(factor(3, 2), factor(4, 9), 0.5, kernel=3),
    "scaled outputs": lambda: Scaled(factor(ROWS, 1), False),
    "scaled inputs": lambda: Scaled(factor(COLS // 3, 1), True, kernel=3),
    "scaled groups": lambda: Scaled(factor(COLS * 2, 1), True, 1, ROWS // 2, COLS),
    "rotated": lambda: Rotated((Rotation(factor(COLS, 3)),), factor(ROWS, 1)),
    "rotated in another order": lambda: Rotated(
        (Rotation(factor(COLS, 3), tuple(torch.randperm(COLS).tolist())),)
    ),
    "mirrored": lambda: Mirrored(factor(COLS, 8)),
    "pairs": lambda: PairsTurned(factor(ROWS, 2), 4),
    "repeated": lambda: Repeated(factor(5, 4)),
    "affine": lambda: BlockAffine(factor(ROWS, 3), 3),
    "granular": lambda: Granular(factor(3 * 6, 4), factor(COLS, 6), 3, 0.5),
    "modulated": lambda: Modulated(factor(ROWS, 2), factor(2, COLS)),
    "scattered": lambda: Scattered(factor(30, 1), PLACES.clone, (ROWS, COLS), 0.5),
    "turned": lambda: Turned(Modulated(factor(COLS, 2), factor(2, ROWS))),
}


def load(held: Factor) -> torch.Tensor:
    return held.read()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("permuted", ["no", "columns", "rows"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_follows_its_parameter(name: str, permuted: str, transposed: bool) -> None:
    torch.manual_seed(3)
    rng = random.Random(3)
    step = STEPS[name]()
    if permuted == "rows" and step.band > 1:
        pytest.skip("a band of rows must lie together")
    weight = torch.randn(ROWS, COLS, dtype=torch.float64)
    wanted = weight.clone()
    step.change(wanted, range(ROWS), range(COLS), load, PREPARED)
    assert not torch.equal(wanted, weight)

    rows = torch.randperm(ROWS) if permuted == "rows" else torch.arange(ROWS)
    cols = torch.randperm(COLS) if permuted == "columns" else torch.arange(COLS)
    stored, expected = weight[rows][:, cols], wanted[rows][:, cols]
    if transposed:
        stored, expected = stored.T.contiguous(), expected.T
    # The tensor holds other rows before and after.
    high, wide = stored.shape
    tensor = torch.cat([torch.zeros(2, wide), stored, torch.zeros(3, wide)]).to(torch.float64)
    region = Region(
        "tensor", range(2, 2 + high), range(wide), "weight", rows.numpy(), cols.numpy(), transposed
    )
    placed = place_block(step, region, (ROWS, COLS))
    first = 0
    while first < len(tensor):
        some = range(first, min(first + rng.randint(1, 4), len(tensor)))
        if placed.whole_rows:
            some = placed.widen(some)
            assert some.start == first
        window = Window(some, range(wide))
        placed.apply(tensor[some.start : some.stop], window, load, PREPARED)
        first = some.stop
    torch.testing.assert_close(tensor[2:-3], expected, rtol=1e-12, atol=1e-12)
    assert not tensor[:2].any() and not tensor[-3:].any()
