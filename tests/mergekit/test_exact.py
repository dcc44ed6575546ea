"""Methods without chance: element by element as mergekit, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.mergekit.compare import assert_close, assert_same, ours, theirs
from tests.mergekit.models import Lora, Models, one_matrix, write_models
from tests.mergekit.tool import Mergekit

WEIGHTS = [
    pytest.param((1.0, 1.0, 1.0), id="ones"),
    pytest.param((0.7, -0.4, 1.3), id="negative"),
    pytest.param((0.5, 0.0, 0.25), id="zero"),
    pytest.param((-0.5, -1.0, -0.25), id="all-negative"),
]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Ranks, scales and targets differ: some tensors are changed by one adapter, some by none."""
    return write_models(
        tmp_path_factory.mktemp("three"),
        [
            Lora({"q_proj": 4, "k_proj": 2, "v_proj": 4, "up_proj": 3}, seed=1),
            Lora({"q_proj": 7, "down_proj": 5, "embed_tokens": 3}, seed=2, rslora=True, size=0.15),
            Lora({"q_proj": 1, "k_proj": 5, "up_proj": 8, "lm_head": 2}, seed=3, alpha=16.0),
        ],
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["sum", "linear"])
def test_weighted(mergekit: Mergekit, three: Models, method: str, weights: Any) -> None:
    assert_same(mergekit, three, method, weights=weights)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.5, 0.99, 1.0, (0.2, 1.0, 0.6)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties(mergekit: Mergekit, three: Models, weights: Any, density: Any) -> None:
    assert_same(mergekit, three, "ties", weights=weights, density=density)


@pytest.mark.parametrize("lambda_", [0.3, 1.0, -2.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties_normalised(
    mergekit: Mergekit, three: Models, weights: Any, normalize: bool, lambda_: float
) -> None:
    asked = {"density": 0.4, "normalize": normalize, "lambda_": lambda_}
    assert_same(mergekit, three, "ties", weights=weights, **asked)
