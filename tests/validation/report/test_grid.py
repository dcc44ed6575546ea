"""Tensors by name and figure -> the grid that is drawn."""

from __future__ import annotations

import math

import pytest

from remerge.artefacts.conflict_report import (
    ConflictFigures,
    ConflictReport,
    ModuleConflict,
    PairConflict,
)
from remerge.validation.report.grid import Tensor, grid_of, meetings_of, of_comparison, together
from remerge.validation.report.measures import UNKNOWN, measures_of
from remerge.validation.report.naming import place_of
from tests.validation.report import made


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 3, "self_attn.q_proj"),
        ("model.layers.12.self_attn.q_proj.bias", 12, "self_attn.q_proj.bias"),
        ("model.layers.0.mlp.experts.7.down_proj.weight", 0, "mlp.experts.*.down_proj"),
        (
            "model.layers.5.block_sparse_moe.experts.11.w2.weight",
            5,
            "block_sparse_moe.experts.*.w2",
        ),
        ("model.layers.5.mlp.experts.gate_up_proj", 5, "mlp.experts.gate_up_proj"),
        ("transformer.h.1.attn.c_attn.weight", 1, "attn.c_attn"),
        ("blk.2.ffn_down.weight", 2, "ffn_down"),
        ("model.embed_tokens.weight", None, "model.embed_tokens"),
        ("lm_head.weight", None, "lm_head"),
        ("weight", None, "weight"),
        ("visual.merger.mlp.0.weight", 0, "weight"),
        # Hostile: no number that int() takes, and one that it refuses to.
        ("layers.²³.x.weight", None, "layers.²³.x"),
        (f"layers.{'9' * 5000}.x", None, f"layers.{'9' * 5000}.x"),
        ("", None, ""),
    ],
)
def test_names(name: str, layer: int | None, module: str):
    found = place_of(name)
    assert (found.layer, found.module) == (layer, module)


def test_towers_have_rows_of_their_own():
    names = [
        "model.vision_tower.layers.0.q_proj.weight",
        "model.language_model.layers.0.q_proj.weight",
        "model.language_model.layers.1.q_proj.weight",
        "model.norm.weight",
    ]
    grid = grid_of({name: Tensor(1, delta=1.0) for name in names}, "test")
    assert grid is not None
    assert grid.rows == (
        "vision_tower.layers: q_proj",
        "language_model.layers: q_proj",
        "model.norm",
    )
    assert grid.columns == (None, 0, 1)
    assert {(c.row, c.column): c.tensors[0] for c in grid.cells} == {
        (0, 1): names[0],
        (1, 1): names[1],
        (1, 2): names[2],
        (2, 0): names[3],
    }


def test_experts_are_one_cell():
    tensors = {
        f"model.layers.0.mlp.experts.{i}.up.weight": Tensor(
            10, base=3.0, delta=float(i + 1), kept=1.0 if i else 0.0, noise=0.1, excess=1.0 + i
        )
        for i in range(4)
    }
    grid = grid_of(tensors, "test")
    assert grid is not None and len(grid.cells) == 1
    found = grid.cells[0].figures
    assert found.elements == 40
    assert found.delta == pytest.approx(math.sqrt(1 + 4 + 9 + 16))
    assert found.base == pytest.approx(6.0)
    assert found.kept == pytest.approx(29 / 30)
    assert found.noise == pytest.approx(0.1)
    assert found.excess == 4.0
    assert [name.split(".")[5] for name in grid.failing] == ["0", "2", "3"]


def test_parts_without_norms_count_alike():
    assert together([Tensor(1, kept=1.0), Tensor(1, kept=0.0)]).kept == 0.5
    assert together([Tensor(1), Tensor(1)]) == Tensor(2)


@pytest.mark.parametrize(
    ("kept", "excess", "fails"),
    [
        (1.0, 1.0, False),
        (0.95, 1.9, False),
        (None, None, False),
        (0.0, 1.0, True),
        (0.5, 1.0, True),
        (-1.0, 1.0, True),
        (2.0, 1.0, True),
        (1.0, 2.5, True),
        (None, 3.0, True),
        (math.nan, 1.0, True),
        (1.0, math.inf, True),
    ],
)
def test_what_fails(kept: float | None, excess: float | None, fails: bool):
    assert Tensor(1, kept=kept, excess=excess).fails == fails


def test_what_no_delta_touches_is_drawn_only_where_it_fails():
    found = made.weights(
        {
            "model.layers.0.a.weight": made.tensor(),
            "model.layers.0.b.weight": made.tensor(touched=False, delta_norm=None, kept=None),
            "model.layers.0.c.weight": made.tensor(
                touched=False, delta_norm=None, kept=None, excess=40.0
            ),
        }
    )
    grid = grid_of(of_comparison(found), "test")
    assert grid is not None
    assert grid.rows == ("a", "c") and grid.unchanged == 1
    assert grid.failing == ("model.layers.0.c.weight",)


def test_nothing_to_draw():
    assert grid_of({}, "test") is None


def _conflict(name: str, value: float) -> ModuleConflict:
    figures = dict.fromkeys(ConflictFigures.model_fields)
    return ModuleConflict(name=name, weight=1.0, **{**figures, "conflict": value, "cosine": -0.5})


def test_the_worst_pair_of_every_module():
    none = ConflictFigures(**dict.fromkeys(ConflictFigures.model_fields))
    pairs = tuple(
        PairConflict(
            adapters=adapters,
            advice="ties",
            reasons=(),
            overall=none,
            common=2,
            modules=modules,
            replaced=(),
        )
        for adapters, modules in (
            ((1, 2), (_conflict("l.0.q.weight", 0.2), _conflict("l.0.qkv.weight[0:64]", 0.1))),
            ((1, 3), (_conflict("l.0.q.weight", 0.3), _conflict("l.0.qkv.weight[64:96]", 0.4))),
        )
    )
    report = ConflictReport(advice="ties", reasons=(), pairs=pairs, not_comparable={}, notes=())
    tensors = {name: Tensor(1, delta=1.0) for name in ("l.0.q.weight", "l.0.qkv.weight", "l.0.o")}
    grid = grid_of(tensors, "test", meetings_of(report, ("a", "b", "c")), worst_conflicts_only=True)
    assert grid is not None
    told = [(cell.meeting.pair, cell.meeting.conflict) for cell in grid.cells if cell.meeting]
    assert told == [("a + c", 0.3), ("a + c", 0.4)]
    by_key = {measure.key: measure for measure in measures_of(grid)}
    assert by_key.keys() == {"delta", "conflict"}
    assert by_key["conflict"].colours[2] == UNKNOWN
    assert "Only the worst modules" in by_key["conflict"].about


def test_every_figure_lies_in_the_band_of_its_colour():
    grid = grid_of(of_comparison(made.of_layers(32, 7)), "test")
    assert grid is not None
    measures = {measure.key: measure for measure in measures_of(grid)}
    assert measures.keys() == {"delta", "relative", "kept"}
    for cell, colour in zip(grid.cells, measures["delta"].colours, strict=True):
        (band,) = [band for band in measures["delta"].bands if band.colour == colour]
        low, high = map(float, band.words.split(" to "))
        # Ends are rounded to two digits; the least and the largest are never left out.
        assert low * 0.94 <= cell.figures.delta <= high * 1.06
    kept = dict(zip((c.tensors[0] for c in grid.cells), measures["kept"].colours, strict=True))
    assert kept["model.layers.16.block3.part_3.weight"] == "var(--d1)"
    assert kept["model.embed_tokens.weight"] == "var(--d4)"


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [0.0, 1e-9, 1e9], [2.0, 2.0001]])
def test_bands_of_odd_values(values: list[float]):
    tensors = {f"l.{i}.a": Tensor(1, delta=v, kept=1.0) for i, v in enumerate(values)}
    grid = grid_of(tensors, "test")
    assert grid is not None
    measure = measures_of(grid)[0]
    assert set(measure.colours) <= {band.colour for band in measure.bands}
