"""Drawings: well-formed, complete, and not to be broken by names or figures."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from remerge.artefacts.test_result import Bisection, Interval, Suspect
from remerge.validation.report import figures
from remerge.validation.report.grid import Tensor, grid_of, of_comparison
from remerge.validation.report.measures import measures_of
from tests.validation.report import made

# What XML has no place for, and what it has a meaning for.
ODD = "".join(map(chr, range(0x20))) + "\ufffe\uffff\U0001ffff\ud800\udfff\x7f\x85</svg>&<!--]]>\"'"


def bisection(*names: str, share: float = 0.5) -> Bisection:
    suspects = tuple(Suspect(name=name, tensors=(), kl=0.1, share=share) for name in names)
    return Bisection(kl=1.0, suspects=suspects, proposal=None, command=None, proven=False)


def test_every_cell_is_drawn_in_its_place_and_colour():
    grid = grid_of(of_comparison(made.of_layers(5, 4)), "test")
    assert grid is not None
    for measure in measures_of(grid):
        root = ElementTree.fromstring(figures.heatmap(grid, measure))
        drawn = {e.get("data-cell"): e for e in root.iter() if e.get("data-cell") is not None}
        assert len(drawn) == len(grid.cells)
        corners: set[tuple[float, float]] = set()
        for number, cell in enumerate(grid.cells):
            path = drawn[str(number)]
            assert path.get("fill") == measure.colours[number]
            x, y = map(float, re.findall(r"M([\d.]+),([\d.]+)", path.get("d") or "")[0])
            corners.add((x, y))
            width, height = 26, 18
            assert (int(x // width), int(y // height)) == (cell.column, cell.row)
        assert len(corners) == len(grid.cells)
        crosses = [e for e in root.iter() if e.get("stroke") == "var(--mark)"]
        assert len(crosses) == len(grid.failing) == 2


def test_names_that_look_alike_have_rows_of_their_own():
    long = "x" * 60
    tensors = {f"l.0.{long}{end}{long}": Tensor(1, delta=1.0) for end in "ab"}
    grid = grid_of(tensors, "test")
    assert grid is not None
    drawn = figures.heatmap(grid, measures_of(grid)[0])
    cells = [e for e in ElementTree.fromstring(drawn).iter() if e.get("data-cell") is not None]
    assert len({cell.get("d") for cell in cells}) == 2


@pytest.mark.parametrize("name", [ODD, "", " ", "a" * 10_000, "漢字 عربي 👩‍👩‍👧"])
def test_odd_names(name: str):
    grid = grid_of({f"l.0.{name}": Tensor(1, delta=1.0), "l.0.b": Tensor(1, kept=0.0)}, "test")
    assert grid is not None
    table = made.table()
    rows = [replace(row, form=f"{row.form}{name}") for row in table.rows]
    for drawn in (
        *(figures.heatmap(grid, measure) for measure in measures_of(grid)),
        figures.scores([made.task(name.encode("utf-8", "replace").decode(), 0.1, 0.2, 0.3)]),
        figures.formats(rows),
        figures.suspects(bisection(name.encode("utf-8", "replace").decode())),
    ):
        assert ElementTree.fromstring(drawn).tag == "svg"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e300])
def test_odd_figures(value: float):
    odd = Tensor(1, base=value, delta=value, kept=value, noise=value, excess=value)
    tensors = {"l.0.a": odd, "l.1.a": Tensor(1, delta=1.0), "l.2.e.0": odd, "l.2.e.1": odd}
    grid = grid_of(tensors, "test")
    assert grid is not None
    task = made.task("t", 0.1, 0.2, 0.3).model_copy(
        update={"merged": Interval(value=value, low=value, high=value)}
    )
    first, *others = made.table().rows
    assert first.comparison is not None
    row = replace(first, comparison=replace(first.comparison, kl_mean=value), score=value)
    for drawn in (
        *(figures.heatmap(grid, measure) for measure in measures_of(grid)),
        figures.scores([task]),
        figures.formats([row, *others]),
        figures.suspects(bisection("a", share=value)),
    ):
        assert ElementTree.fromstring(drawn).tag == "svg"
