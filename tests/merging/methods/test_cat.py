"""`cat` against dense sums, and what every method on factors refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import remerge
from remerge.errors import Unsupported
from remerge.merging.methods.cat import CAT
from tests.merging.methods.factor_cases import (
    LAYERS,
    close,
    joint_of,
    low_rank,
    merged_deltas,
    random_factors,
    total,
    write_adapter,
    write_base,
)

Q, K, V = LAYERS


def test_sum_of_mixed_ranks_and_targets(tmp_path: Path) -> None:
    adapters = [
        random_factors(1, {Q: 4, K: 2, V: 7}),
        random_factors(2, 3, {Q: LAYERS[Q]}),
        random_factors(3, 5, {V: LAYERS[V]}),
    ]
    scales, weights = [0.5, 2.0, 1.0], [0.7, -0.3, 0.0]
    found = merged_deltas(tmp_path, adapters, scales, "cat", weights)
    for name in LAYERS:
        wanted = sum(
            (
                w * s * own[name][0] @ own[name][1]
                for own, s, w in zip(adapters, scales, weights, strict=True)
                if name in own
            ),
            np.zeros(LAYERS[name]),
        )
        close(found[name], wanted, 1e-13)


@pytest.mark.parametrize("method", ["cat", "svd", "tsv", "core_space", "knots", "peft_linear"])
def test_dora_has_no_factors(tmp_path: Path, method: str) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "a", random_factors(1, 4), 1.0)
    write_adapter(tmp_path / "b", random_factors(2, 4), 1.0, use_dora=True)
    weights = tmp_path / "b" / "adapter_model.safetensors"
    tensors = load_file(weights)
    for name, (rows, _) in LAYERS.items():
        tensors[f"base_model.model.{name}.lora_magnitude_vector"] = torch.ones(rows)
    save_file(tensors, weights)
    with pytest.raises(Unsupported) as told:
        remerge.plan(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], method=method)
    assert "adapter 2" in str(told.value)
    assert "k_proj" in str(told.value)
    assert "--method sum" in str(told.value.hint)


def test_places_that_overlap_are_one() -> None:
    rng = np.random.default_rng(5)
    fused = rng.standard_normal((10, 2)), rng.standard_normal((2, 6))
    parts = [(rng.standard_normal((4, 3)), rng.standard_normal((3, 6))) for _ in range(2)]
    steps = [
        [low_rank(*fused, 0.5)],
        [low_rank(*parts[0], 2.0), low_rank(*parts[1], 2.0, row=4)],
    ]
    wanted = 3 * 0.5 * fused[0] @ fused[1]
    wanted[:4] -= 2.0 * parts[0][0] @ parts[0][1]
    wanted[4:8] -= 2.0 * parts[1][0] @ parts[1][1]
    close(total(CAT, joint_of(steps, [3.0, -1.0], (10, 6))), wanted, 1e-14)
