"""Conflicts between adapters: every figure against dense matrices, and what must not change it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remerge.adapters.deltas import (
    Added,
    Change,
    Changes,
    Delta,
    Factor,
    LowRank,
    Replaced,
    ReplacedRows,
    Rounded,
)
from remerge.adapters.lora.dora import Dora
from remerge.artefacts.conflict_report import ConflictReport, PairConflict, report_of
from remerge.merging.conflicts import Measured, measure
from remerge.merging.meetings import Figures, figures

SHAPE = (53, 37)


def factor(values: torch.Tensor) -> Factor:
    return Factor((values.shape[0], values.shape[1]), lambda: values)


def random(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def product(
    shape: tuple[int, int], rank: int, seed: int, scale: float = 1.0, row: int = 0, col: int = 0
) -> LowRank:
    left, right = random(shape[0], rank, seed), random(rank, shape[1], seed + 1000)
    return LowRank(factor(left), factor(right), scale, row, col)


def dense(step: LowRank, shape: tuple[int, int]) -> np.ndarray:
    """The product where it lies in a tensor."""
    values = np.zeros(shape)
    block = step.scale * (step.left.read() @ step.right.read()).numpy()
    values[step.row : step.row + block.shape[0], step.col : step.col + block.shape[1]] = block
    return values


def adapter(steps: Mapping[str, Sequence[Delta]], shape: tuple[int, int] = SHAPE) -> Changes:
    tensors = {
        name: Change(name, shape, "F32", shape, tuple(found)) for name, found in steps.items()
    }
    return Changes(tensors=tensors, config={}, notes=(), counts={})


def no_copy(change: Change, step: Replaced) -> bool:
    return False


def measured(*adapters: Changes, threads: int = 2) -> Measured:
    return measure(adapters, no_copy, threads)


def overall(*adapters: Changes) -> Figures:
    (pair,) = measured(*adapters).pairs
    return figures(pair.modules, pair.norms)


def report(*adapters: Changes) -> ConflictReport:
    return report_of(measured(*adapters))


def only(*adapters: Changes) -> PairConflict:
    return report(*adapters).pairs[0]


def expected(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The figures of two matrices, straight from their definitions."""

    def basis(matrix: np.ndarray) -> np.ndarray:
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return left[:, values > 1e-10 * values[0]]

    def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.linalg.svd(basis(first).T @ basis(second), compute_uv=False)

    def alike(first: np.ndarray, second: np.ndarray) -> float:
        return float((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))

    inputs, outputs = angles(one.T, other.T), angles(one, other)
    weight = np.abs(one * other)
    cosine = alike(one, other)
    shared = math.sqrt(alike(one.T @ one, other.T @ other) * alike(one @ one.T, other @ other.T))
    return {
        "cosine": cosine,
        "shared": shared,
        "conflict": shared * (1 - cosine) / 2,
        "input_overlap": float((inputs**2).mean()),
        "output_overlap": float((outputs**2).mean()),
        "largest_input_cosine": float(inputs[0]),
        "largest_output_cosine": float(outputs[0]),
        "sign_conflicts": float((one * other < 0).mean()),
        "sign_conflicts_weighted": float(weight[one * other < 0].sum() / weight.sum()),
        "norm_ratio": float(np.linalg.norm(one) / np.linalg.norm(other)),
    }


def check(found: Figures, wanted: Mapping[str, float]) -> None:
    for name, value in wanted.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9, rel=1e-9), name


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 41),
    columns=st.integers(1, 31),
    ranks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scales=st.tuples(st.sampled_from([1e-3, 1.0, -2.5]), st.sampled_from([0.5, 7.0])),
    seed=st.integers(0, 99),
)
def test_figures_are_those_of_the_dense_deltas(
    rows: int,
    columns: int,
    ranks: tuple[int, int],
    scales: tuple[float, float],
    seed: int,
) -> None:
    shape = rows, columns
    one, other = (
        product(shape, rank, seed + 7 * k, scale)
        for k, (rank, scale) in enumerate(zip(ranks, scales, strict=True))
    )
    found = overall(adapter({"w": [one]}, shape), adapter({"w": [other]}, shape))
    check(found, expected(dense(one, shape), dense(other, shape)))


def test_deltas_that_partly_agree() -> None:
    """Figures far from those of random deltas: a common part, another of the one alone, one more
    in which they are opposed."""
    common, alone, opposed = (product(SHAPE, rank, seed) for seed, rank in ((1, 3), (2, 2), (3, 1)))
    against = LowRank(opposed.left, opposed.right, -0.5)
    one, other = [common, alone, opposed], [common, against]
    found = overall(adapter({"w": one}), adapter({"w": other}))
    wanted = expected(*(sum(dense(s, SHAPE) for s in steps) for steps in (one, other)))
    assert 0.2 < wanted["shared"] < 0.9
    check(found, wanted)


def test_rank_deficient_factors_have_the_space_that_they_span() -> None:
    step = product(SHAPE, 3, 1)
    left, right = step.left.read(), step.right.read()
    doubled = LowRank(factor(torch.cat((left, left), 1)), factor(torch.cat((right, right))), 1.0)
    other = product(SHAPE, 5, 2)
    found = overall(adapter({"w": [doubled]}), adapter({"w": [other]}))
    check(found, expected(2 * dense(step, SHAPE), dense(other, SHAPE)))


def test_opposite_equal_and_orthogonal_deltas() -> None:
    step = product(SHAPE, 4, 1)
    minus = LowRank(step.left, step.right, -3.0)
    found = overall(adapter({"w": [step]}), adapter({"w": [minus]}))
    check(found, {"cosine": -1, "shared": 1, "conflict": 1, "sign_conflicts_weighted": 1})
    assert only(adapter({"w": [step]}), adapter({"w": [minus]})).advice == "keep separate"
    equal = adapter({"w": [step]})
    found = overall(equal, equal)
    check(found, {"cosine": 1, "shared": 1, "conflict": 0, "sign_conflicts": 0, "norm_ratio": 1})
    assert only(equal, equal).advice == "linear"
    # Other rows and other columns of the tensor: nothing in common.
    one, other = product((20, 15), 3, 1), product((20, 15), 3, 2, row=30, col=20)
    pair = only(adapter({"w": [one]}), adapter({"w": [other]}))
    assert (pair.overall.cosine, pair.overall.shared, pair.common) == (0.0, 0.0, 0)
    assert pair.advice == "sum"


def test_inputs_and_outputs_are_told_apart_also_where_a_layer_is_stored_transposed() -> None:
    left, other = random(SHAPE[0], 2, 1), random(SHAPE[0], 2, 2)
    right = random(2, SHAPE[1], 3)
    steps = [LowRank(factor(x), factor(right), 1.0) for x in (left, other)]
    found = overall(*(adapter({"w": [step]}) for step in steps))
    assert found.input_overlap == pytest.approx(1)
    assert found.output_overlap is not None
    assert found.output_overlap < 0.5
    turned = [
        LowRank(factor(right.T.contiguous()), factor(x.T.contiguous()), 1.0, turned=True)
        for x in (left, other)
    ]
    shape = SHAPE[1], SHAPE[0]
    again = overall(*(adapter({"w": [step]}, shape) for step in turned))
    assert again.input_overlap == pytest.approx(1)
    assert again.output_overlap == pytest.approx(found.output_overlap)


def test_scale_does_not_count_and_the_order_only_for_the_ratio() -> None:
    steps = {name: product(SHAPE, 3, seed) for seed, name in enumerate("ab")}
    more = {name: product(SHAPE, 5, seed + 50) for seed, name in enumerate("abc")}
    one, other = (
        adapter({n: [s] for n, s in steps.items()}),
        adapter({n: [s] for n, s in more.items()}),
    )
    large = adapter({n: [LowRank(s.left, s.right, 1e4 * s.scale)] for n, s in steps.items()})
    first, scaled, swapped = overall(one, other), overall(large, other), overall(other, one)
    for name, value in vars(first).items():
        if name != "norm_ratio":
            assert getattr(scaled, name) == pytest.approx(value, rel=1e-9), name
            assert getattr(swapped, name) == pytest.approx(value, rel=1e-9), name
    assert scaled.norm_ratio == pytest.approx(1e4 * (first.norm_ratio or 0))
    assert swapped.norm_ratio == pytest.approx(1 / (first.norm_ratio or 1))


def test_modules_count_by_their_size_and_those_of_one_alone_as_zero() -> None:
    one = {"a": product(SHAPE, 3, 1, 2.0), "b": product(SHAPE, 2, 2), "c": product(SHAPE, 4, 3)}
    other = {"b": product(SHAPE, 5, 4), "c": product(SHAPE, 3, 5, 0.1), "d": product(SHAPE, 1, 6)}
    found = overall(*(adapter({n: [s] for n, s in each.items()}) for each in (one, other)))
    flat = [
        np.concatenate(
            [dense(each[n], SHAPE).ravel() if n in each else np.zeros(53 * 37) for n in "abcd"]
        )
        for each in (one, other)
    ]
    sizes = [float(np.linalg.norm(values)) for values in flat]
    each = {n: expected(dense(one[n], SHAPE), dense(other[n], SHAPE)) for n in "bc"}
    weights = {
        n: float(np.linalg.norm(dense(one[n], SHAPE)) * np.linalg.norm(dense(other[n], SHAPE)))
        for n in "bc"
    }
    shared = sum(weights[n] * each[n]["shared"] for n in "bc") / (sizes[0] * sizes[1])
    overlap = sum(weights[n] * each[n]["input_overlap"] for n in "bc") / sum(weights.values())
    check(
        found,
        {
            "cosine": float(flat[0] @ flat[1]) / (sizes[0] * sizes[1]),
            "norm_ratio": sizes[0] / sizes[1],
            "shared": shared,
            "input_overlap": overlap,
        },
    )


def test_random_directions_share_what_chance_says() -> None:
    shape = (200, 120)
    pairs = [
        overall(
            adapter({"w": [product(shape, 4, s)]}, shape),
            adapter({"w": [product(shape, 9, s + 5)]}, shape),
        )
        for s in range(20)
    ]
    shared = np.mean([pair.shared for pair in pairs])
    chance = np.mean([pair.shared_by_chance for pair in pairs])
    assert shared == pytest.approx(chance, rel=0.05)


def test_parts_of_a_fused_tensor_are_modules_of_their_own() -> None:
    shape = (60, 20)
    q, k = product((30, 20), 2, 1), product((30, 20), 3, 2, row=30)
    other_k, whole = product((30, 20), 4, 3, row=30), product(shape, 2, 4)
    pair = only(adapter({"qkv": [q, k]}, shape), adapter({"qkv": [other_k]}, shape))
    assert [module.name for module in pair.modules] == ["qkv[30:60]"]
    found = overall(adapter({"qkv": [q, k]}, shape), adapter({"qkv": [whole]}, shape))
    check(found, expected(dense(q, shape) + dense(k, shape), dense(whole, shape)))


def test_long_factors_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from remerge.merging.methods import blocks

    one, other = (adapter({"w": [product(SHAPE, r, r)]}) for r in (3, 6))
    before = overall(one, other)
    monkeypatch.setattr(blocks, "_ELEMENTS", 100)
    after = overall(one, other)
    for name, value in vars(before).items():
        assert getattr(after, name) == pytest.approx(value, rel=1e-9), name


def test_large_deltas_are_sampled_evenly() -> None:
    shape = (701, 1003)
    one, other = product(shape, 3, 1), product(shape, 3, 2)
    mixed = LowRank(
        factor(one.left.read() + 0.5 * other.left.read()), factor(one.right.read()), 1.0
    )
    found = overall(adapter({"w": [one]}, shape), adapter({"w": [mixed]}, shape))
    values = dense(one, shape) * dense(mixed, shape)
    against = values < 0
    weighted = float(np.abs(values)[against].sum() / np.abs(values).sum())
    assert found.sign_conflicts == pytest.approx(float(against.mean()), abs=0.02)
    assert found.sign_conflicts_weighted == pytest.approx(weighted, abs=0.02)


def test_of_dora_the_product_counts() -> None:
    step, other = product(SHAPE, 3, 1), product(SHAPE, 2, 2)
    dora = Dora(step, factor(torch.ones(SHAPE[0], 1)), False, SHAPE)
    found = measured(adapter({"w": [dora]}), adapter({"w": [other]}))
    check(
        figures(found.pairs[0].modules, found.pairs[0].norms),
        expected(dense(step, SHAPE), dense(other, SHAPE)),
    )
    assert any("DoRA" in note for note in report_of(found).notes)


def test_deltas_without_factors_are_sampled_and_those_on_the_base_left_out() -> None:
    bias = [Added(factor(random(53, 1, seed)), 0.5) for seed in (1, 2)]
    found = overall(*(adapter({"b": [step]}, (53, 1)) for step in bias))
    one, other = (step.values.read().numpy() for step in bias)
    wanted = expected(one, other)
    check(found, {n: wanted[n] for n in ("cosine", "norm_ratio", "sign_conflicts_weighted")})
    step = product(SHAPE, 3, 1)
    mixed = adapter({"w": [step, Added(factor(random(53, 37, 3)), 1.0)]})
    plain = adapter({"w": [product(SHAPE, 2, 2)]})
    wanted = expected(
        dense(step, SHAPE) + random(53, 37, 3).numpy(), dense(product(SHAPE, 2, 2), SHAPE)
    )
    check(overall(mixed, plain), {"cosine": wanted["cosine"], "norm_ratio": wanted["norm_ratio"]})
    rounded = adapter({"w": [Rounded(torch.bfloat16), step]})
    found_report = report(rounded, plain)
    assert found_report.not_comparable == {"w": (1,)}
    assert any("Not compared: w" in note for note in found_report.notes)


def test_an_adapter_of_zero_changes_nothing() -> None:
    step = product(SHAPE, 3, 1)
    zero = adapter(
        {"w": [LowRank(factor(torch.zeros(53, 3, dtype=torch.float64)), step.right, 1.0)]}
    )
    pair = only(zero, adapter({"w": [step]}))
    assert (pair.overall.cosine, pair.overall.shared, pair.advice) == (None, None, "sum")


def test_tensors_that_both_replace_are_named() -> None:
    values = random(53, 37, 1)
    head = [adapter({"h": [Replaced(factor(v))]}) for v in (values, values + 1.0, values)]
    found = report(*head)
    assert {p.adapters: p.replaced for p in found.pairs} == {
        (1, 2): ("h",),
        (1, 3): (),
        (2, 3): ("h",),
    }
    assert found.advice == "keep separate"
    assert "--prefer" in found.reasons[0]
    # Where the one is the base's own, nobody has to choose.
    assert not report_of(measure(head, lambda change, step: True, 1)).pairs[0].replaced
    plain = only(head[0], adapter({"w": [product(SHAPE, 2, 1)]}))
    assert plain.advice == "sum"
    assert "replaces h whole" in plain.reasons[-1]
    rows = [
        adapter({"e": [ReplacedRows(factor(random(2, 37, s)), at)]})
        for s, at in ((1, (3, 5)), (2, (5, 9)), (3, (1, 2)))
    ]
    found = report(*rows)
    assert {p.adapters for p in found.pairs if p.replaced} == {(1, 2)}


def test_the_worst_pair_comes_first_and_decides() -> None:
    shape = (300, 200)
    step, free = product(shape, 4, 1), product(shape, 4, 2)
    bent = LowRank(factor(step.left.read() + 0.8 * random(300, 4, 9)), step.right, 1.0)
    found = report(*(adapter({"w": [s]}, shape) for s in (free, step, bent)))
    assert found.pairs[0].adapters == (2, 3)
    assert [pair.advice for pair in found.pairs] == ["keep separate", "sum", "sum"]
    assert found.advice == "keep separate"
    assert len(found.shortened().pairs[0].modules) <= 5


def test_threads_change_no_figure_and_figures_have_four_digits() -> None:
    adapters = [
        adapter({f"w{k}": [product(SHAPE, rank, 10 * rank + k)] for k in range(9)})
        for rank in (2, 3, 5)
    ]
    one, many = (report_of(measured(*adapters, threads=n)) for n in (1, 5))
    assert one == many
    for value in one.pairs[0].overall.model_dump().values():
        assert value == float(f"{value:.4g}")
