"""Steps on a parameter, moved to tensors that hold it cut, permuted, interleaved or transposed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from remerge.adapters.deltas import (
    Added,
    Delta,
    Factor,
    LowRank,
    Replaced,
    ReplacedRows,
    Rounded,
    Window,
)
from remerge.adapters.factors import made
from remerge.adapters.lora.dora import Dora
from remerge.adapters.lora.residual import Residual
from remerge.adapters.placing import Home, place
from remerge.adapters.regions import Index, Region
from remerge.errors import Unsupported

from .oracle import Matrix

ROWS, COLS = 12, 10


def factor(rows: int, cols: int) -> Factor:
    values = torch.randn(rows, cols, dtype=torch.float64)
    return made((rows, cols), lambda: values)


def load(factor: Factor) -> torch.Tensor:
    return factor.read()


def run(steps: Sequence[Delta], matrix: torch.Tensor) -> torch.Tensor:
    tile = matrix.clone()
    window = Window(range(matrix.shape[0]), range(matrix.shape[1]))
    for step in steps:
        prepared = step.prepare(Matrix(tile.clone(), torch.float32), load)
        step.apply(tile, window, load, prepared)
    return tile


def region(tensor: str, rows: Index, cols: Index, p_rows: Index, p_cols: Index, turn: bool):
    return Region(tensor, rows, cols, "p", p_rows, p_cols, turn)


def halves(turn: bool) -> list[Region]:
    """The upper and lower rows in tensors of their own."""
    return [
        region("a", range(0, 7), range(COLS), range(0, 7), range(COLS), False),
        region("b", range(COLS), range(5), range(7, 12), range(COLS), True)
        if turn
        else region("b", range(5), range(COLS), range(7, 12), range(COLS), False),
    ]


def interleaved() -> list[Region]:
    """Even rows in one tensor, odd rows in another's even rows, with a foreign block between."""
    return [
        region("a", range(6), range(COLS), range(0, 12, 2), range(COLS), False),
        region("b", range(0, 12, 2), range(COLS), range(1, 12, 2), range(COLS), False),
    ]


def permuted() -> list[Region]:
    rng = np.random.default_rng(0)
    rows, cols = rng.permutation(ROWS), rng.permutation(COLS)
    return [region("a", range(3, 3 + ROWS), range(2, 2 + COLS), rows, cols, False)]


def by_column() -> list[Region]:
    return [
        region("a", range(ROWS), range(4), range(ROWS), range(0, 4), False),
        region("b", range(6), range(ROWS), range(ROWS), range(4, 10), True),
    ]


LAYOUTS = {
    "halves": halves(False),
    "halves, one transposed": halves(True),
    "interleaved": interleaved(),
    "permuted inside a larger tensor": permuted(),
    "cut across": by_column(),
}


def check(steps: Sequence[Delta], regions: Sequence[Region], wider: int = 2) -> None:
    parameter = torch.randn(ROWS, COLS, dtype=torch.float64)
    wanted = run(steps, parameter)
    for part in regions:
        block = np.ix_(np.asarray(part.parameter_rows), np.asarray(part.parameter_cols))
        at = np.ix_(np.asarray(part.rows), np.asarray(part.cols))
        before, after = parameter.numpy()[block], wanted.numpy()[block]
        if part.transposed:
            before, after = before.T, after.T
        height, width = max(part.rows) + 3, max(part.cols) + 1 + wider
        tensor = torch.randn(height, width, dtype=torch.float64)
        tensor.numpy()[at] = before
        expected = tensor.clone()
        expected.numpy()[at] = after
        home = Home((height, width), torch.float64)
        placed = [moved for step in steps for moved in place(step, part, home, (ROWS, COLS))]
        torch.testing.assert_close(run(placed, tensor), expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_low_rank_of_a_block(layout: str) -> None:
    steps = [
        LowRank(factor(ROWS, 3), factor(3, COLS), 0.7),
        LowRank(factor(5, 2), factor(2, 4), -1.5, row=4, col=3),
    ]
    check(steps, LAYOUTS[layout])


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_rows_and_dense_values(layout: str) -> None:
    values = factor(ROWS, COLS)
    check([Added(values, 2.0)], LAYOUTS[layout], wider=0)
    rows = ReplacedRows(factor(3, COLS), (11, 2, 6))
    check([rows], LAYOUTS[layout], wider=0)
    with pytest.raises(Unsupported, match="parts of its rows"):
        check([rows], LAYOUTS[layout], wider=1)


@pytest.mark.parametrize("layout", ["halves, one transposed", "interleaved", "cut across"])
def test_replaced(layout: str) -> None:
    check([Replaced(factor(ROWS, COLS))], LAYOUTS[layout], wider=0 if "inter" in layout else 1)


def dora(by_column: bool) -> Dora:
    product = LowRank(factor(ROWS, 3), factor(3, COLS), 0.7)
    return Dora(product, factor(COLS if by_column else ROWS, 1), by_column, (ROWS, COLS))


def test_dora_where_the_normed_axis_is_whole() -> None:
    check([dora(by_column=False)], LAYOUTS["halves"])
    check([dora(by_column=False)], LAYOUTS["halves, one transposed"])
    check([dora(by_column=False)], LAYOUTS["permuted inside a larger tensor"])
    check([dora(by_column=True)], LAYOUTS["permuted inside a larger tensor"])
    check([dora(by_column=True)], LAYOUTS["cut across"])


@pytest.mark.parametrize(
    ("by_column", "layout"), [(True, "halves"), (False, "cut across"), (False, "interleaved")]
)
def test_dora_where_it_is_not(by_column: bool, layout: str) -> None:
    with pytest.raises(Unsupported, match="only a part"):
        check([dora(by_column)], LAYOUTS[layout])


@pytest.mark.parametrize("turn", [False, True])
def test_residual_of_a_block(turn: bool) -> None:
    step = Residual("pissa", 3, 0.5, (ROWS, COLS))
    rows, cols = (range(2, 2 + COLS), range(1, 1 + ROWS)) if turn else (range(ROWS), range(COLS))
    part = region("a", rows, cols, range(ROWS), range(COLS), turn)
    parameter = torch.randn(ROWS, COLS, dtype=torch.float64).to(torch.float32).to(torch.float64)
    tensor = torch.zeros(COLS + 2, ROWS + 1, dtype=torch.float64) if turn else parameter
    at = slice(rows.start, rows.stop), slice(cols.start, cols.stop)
    tensor[at] = parameter.T if turn else parameter
    moved, rounded = place(step, part, Home(tuple(tensor.shape), torch.float32), (ROWS, COLS))
    assert rounded == Rounded(torch.float32)
    after = run([moved], tensor)[at]
    torch.testing.assert_close(after.T if turn else after, run([step], parameter))


def test_residual_in_pieces_is_refused() -> None:
    with pytest.raises(Unsupported, match="in one piece"):
        home = Home((ROWS, COLS), torch.float32)
        place(Residual("olora", 3, 0.5, (ROWS, COLS)), LAYOUTS["halves"][0], home, (ROWS, COLS))
