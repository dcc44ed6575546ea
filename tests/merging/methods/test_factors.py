"""What all methods on factors share: the same bytes whatever the resources, refusals, places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import remerge
from remerge.adapters.deltas import Factor, LowRank, ReplacedRows
from remerge.errors import Unsupported, UsageError
from remerge.merging.methods.blocks import Block, blocks_of
from remerge.merging.methods.cat import CAT
from remerge.merging.methods.svd import SVD
from tests import tiny
from tests.merging.methods.factor_cases import (
    close,
    joint_of,
    low_rank,
    random_factors,
    svd,
    total,
    write_adapter,
    write_base,
)

FACTOR_METHODS = {
    "svd": {"svd_rank": 2},
    "tsv": {},
    "core_space": {"within": "ties", "density": 0.5},
    "knots": {"density": 0.3},
    "peft_ties": {"density": 0.5},
    "peft_dare_ties_svd": {"density": 0.5, "svd_rank": 3},
}


@pytest.mark.parametrize("method", FACTOR_METHODS)
def test_resources_change_no_byte(tmp_path: Path, method: str) -> None:
    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "a", seed=2)
    tiny.write_adapter(tmp_path / "b", seed=3)
    made: list[dict[str, bytes]] = []
    for number, (threads, memory) in enumerate([(1, "2GiB"), (3, "600MiB")]):
        out = tmp_path / f"out{number}"
        remerge.merge(
            tmp_path / "base",
            [tmp_path / "a", tmp_path / "b"],
            out,
            threads=threads,
            max_memory=memory,
            method=method,
            parameters=FACTOR_METHODS[method],
        )
        made.append(tiny.files_of(out))
    assert made[0] == made[1]
    base = tiny.read_tensors(tmp_path / "base")
    merged = tiny.read_tensors(tmp_path / "out0")
    assert all(not merged[name].equal(base[name]) for name in tiny.SHAPES)
    # Recorded decompositions and all.
    remerge.verify(tmp_path / "out0")


@pytest.mark.parametrize("method", FACTOR_METHODS)
def test_the_plan_says_what_rests_on_lapack(tmp_path: Path, method: str) -> None:
    write_base(tmp_path / "base")
    for number in range(2):
        write_adapter(tmp_path / str(number), random_factors(number, 4), 1.0)
    plan = remerge.plan(
        tmp_path / "base",
        [tmp_path / "0", tmp_path / "1"],
        method=method,
        parameters=FACTOR_METHODS[method],
    )
    assert plan.reproducible == ("everywhere" if method == "peft_ties" else "same-stack")


@pytest.mark.parametrize("method", FACTOR_METHODS)
def test_zero_deltas_leave_the_bytes(tmp_path: Path, method: str) -> None:
    tiny.write_base(tmp_path / "base")
    for name in ("a", "b"):
        tiny.write_adapter(tmp_path / name, zero=True)
    remerge.merge(
        tmp_path / "base",
        [tmp_path / "a", tmp_path / "b"],
        tmp_path / "out",
        method=method,
        parameters=FACTOR_METHODS[method],
    )
    for file in sorted((tmp_path / "base").glob("*.safetensors")):
        base, merged = load_file(file), load_file(tmp_path / "out" / file.name)
        for name, values in base.items():
            assert values.view(torch.int16).equal(merged[name].view(torch.int16))


def test_biases_are_added_by_weight(tmp_path: Path) -> None:
    """lora_bias goes with `cat`, and PEFT's variants, which drop it, say so."""
    (name,) = layer = {"model.layers.0.self_attn.q_proj": (13, 11)}
    base = write_base(tmp_path / "base", layer)
    base[f"{name}.bias"] = torch.zeros(13, dtype=torch.float64)
    save_file(base, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    biases: list[torch.Tensor] = []
    for number in range(2):
        place = tmp_path / str(number)
        write_adapter(place, random_factors(number, 3, layer), 0.5, lora_bias=True)
        tensors = load_file(place / "adapter_model.safetensors")
        biases.append(torch.randn(13, dtype=torch.float64))
        tensors[f"base_model.model.{name}.lora_B.bias"] = biases[-1]
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    paths: list[str | Path] = [tmp_path / "0", tmp_path / "1"]
    for method in ("cat", "svd", "knots"):
        with remerge.open_merged(
            tmp_path / "base", paths, method=method, weights=[2.0, -1.0]
        ) as merged:
            wanted = 0.5 * (2.0 * biases[0] - biases[1])
            close(merged[f"{name}.bias"][...].numpy(), wanted.numpy(), 1e-14)
    with pytest.raises(Unsupported, match="drops"):
        remerge.plan(tmp_path / "base", paths, method="peft_linear")


def test_places_in_a_tensor() -> None:
    """Experts one under the other are blocks of their own; what overlaps is one block."""
    rng = np.random.default_rng(1)

    def step(rows: int, columns: int, row: int, col: int) -> LowRank:
        left, right = rng.standard_normal((rows, 2)), rng.standard_normal((2, columns))
        return low_rank(left, right, 1.0, row, col)

    experts = [[step(5, 6, 5 * e, 0) for e in range(7)] for _ in range(3)]
    blocks, _ = blocks_of(joint_of(experts, [1.0] * 3, (35, 6)), "cat")
    assert [(b.row, b.height, len(b.parts)) for b in blocks] == [(5 * e, 5, 3) for e in range(7)]
    assert [part.adapter for part in blocks[0].parts] == [0, 1, 2]

    # Two places of the first adapter meet the same one of the second; the third stands apart.
    mixed = [
        [step(4, 3, 0, 2), step(4, 3, 4, 5)],
        [step(4, 4, 2, 3)],
        [step(2, 6, 20, 2), step(3, 2, 21, 6)],
    ]
    joint = joint_of(mixed, [1.0, 2.0, 3.0], (30, 9))
    blocks, _ = blocks_of(joint, "cat")
    places = [(b.row, b.col, b.height, b.width, len(b.parts)) for b in blocks]
    assert places == [(0, 2, 8, 6, 3), (20, 2, 4, 6, 2)]
    assert [block.largest for block in blocks] == [4, 4]
    dense = np.zeros((30, 9))
    for own, weight in zip(mixed, [1.0, 2.0, 3.0], strict=True):
        for part in own:
            product = (part.left.read() @ part.right.read()).numpy()
            rows, columns = product.shape
            dense[part.row : part.row + rows, part.col : part.col + columns] += weight * product
    for block in blocks:
        left = block.left(range(block.height), lambda f: f.read()) * block.scales()
        right = block.right(range(block.width), lambda f: f.read())
        found = (left @ right.T).numpy()
        here = dense[block.row : block.row + block.height, block.col : block.col + block.width]
        close(found, here, 1e-14)
    close(total(CAT, joint), dense, 1e-14)
    # As much of every block as any method that decomposes it sees.
    close(total(SVD, joint, svd_rank=3), nearest_by_block(dense, blocks, 3), 1e-12)


def nearest_by_block(dense: np.ndarray, blocks: Sequence[Block], rank: int) -> np.ndarray:
    found = np.zeros_like(dense)
    for block in blocks:
        here = slice(block.row, block.row + block.height), slice(block.col, block.col + block.width)
        left, values, right = svd(dense[here])
        found[here] = left[:, :rank] * values[:rank] @ right[:rank]
    return found


def test_bad_parameters_are_usage_errors(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    paths: list[str | Path] = []
    for number in range(2):
        paths.append(tmp_path / str(number))
        write_adapter(tmp_path / str(number), random_factors(number, 4), 1.0)
    for method, parameters, told in [
        ("svd", {"svd_rank": 0}, "--svd-rank"),
        ("core_space", {"within": "dare"}, "--within"),
        ("knots", {"within": "tsv"}, "--within"),
        ("knots", {"density": 1.5}, "--density"),
        ("peft_ties", {"density": -0.1}, "--density"),
        ("peft_dare_linear", {"density": 0.0}, "--density"),
        ("peft_dare_ties_svd", {"density": (0.5, 0.0)}, "--density"),
        ("peft_linear", {"density": 0.5}, "--density"),
        ("cat", {"svd_rank": 3}, "--svd-rank"),
    ]:
        with pytest.raises(UsageError, match=told):
            remerge.plan(tmp_path / "base", paths, method=method, parameters=parameters)


def test_rows_of_one_adapter_and_factors_of_another() -> None:
    """Rows that are replaced alone are no delta; with a delta beside them they are refused."""
    rng = np.random.default_rng(1)
    step = low_rank(rng.standard_normal((6, 2)), rng.standard_normal((2, 5)))
    rows = Factor((1, 5), lambda: torch.ones(1, 5, dtype=torch.float64))
    joint = joint_of([[step], []], [1.0, 1.0], (6, 5))
    replaced = replace(joint.terms[1], rows=frozenset({3}))
    alone = replace(
        joint, terms=(joint.terms[0], replaced), replacements=(ReplacedRows(rows, (3,)),)
    )
    found = total(CAT, alone)
    close(found[3], 1.0 + (step.left.read() @ step.right.read())[3].numpy(), 1e-14)
    both = replace(joint, terms=(replace(joint.terms[0], rows=frozenset({3})), replaced))
    with pytest.raises(Unsupported, match="adapter 1 changes w in another way: replaces rows"):
        total(CAT, both)
