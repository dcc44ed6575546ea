"""Methods with chance: no mask of ours is one of mergekit's, so that their statistics are compared,
and what is made of the masks: our own masks, applied beforehand, are what mergekit gets to combine.

Shares are held to five standard errors of what is expected, and the seeds are fixed. mergekit drops
and rescales in float32, which is 1e-6 of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.mergekit.compare import assert_close, ours, theirs
from tests.mergekit.models import Lora, Models, Tensors, write_merged, write_models
from tests.mergekit.tool import Mergekit

Q, V = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qv")
BIAS = "model.layers.0.self_attn.q_proj.bias"
# The names of two layers of one shape, and a vector.
SHAPES = {Q: (61, 101), V: (61, 101), BIAS: (61,), V.replace("weight", "bias"): (61,)}
Place = pytest.TempPathFactory
Merge = Callable[..., Tensors]


@pytest.fixture(scope="module")
def apart(tmp_path_factory: Place) -> Models:
    """Two adapters for different layers: every tensor shows the mask of one of them."""
    loras = [Lora({"q_proj": 3}, seed=1, bias=True), Lora({"v_proj": 5}, seed=2, bias=True)]
    return write_models(tmp_path_factory.mktemp("apart"), loras, shapes=SHAPES)


@pytest.fixture(scope="module")
def together(tmp_path_factory: Place) -> Models:
    loras = [
        Lora({"q_proj": 3}, seed=1, bias=True),
        Lora({"q_proj": 5, "v_proj": 2}, seed=2, bias=True),
        Lora({"v_proj": 4, "q_proj": 1}, seed=3, bias=True, alpha=3.0),
    ]
    return write_models(tmp_path_factory.mktemp("together"), loras, shapes=SHAPES)


def by(who: str, mergekit: Mergekit) -> Merge:
    """A merge by one of the two, with ``seed`` for its masks."""

    def merge(models: Models, method: str, *, seed: int, **asked: Any) -> Tensors:
        if who == "remerge":
            return ours(models, method, seed=seed, **asked)
        return theirs(mergekit, models, method, draw=seed, **asked)

    return merge


def factors(models: Models, merged: Tensors, adapter: int) -> Tensors:
    """What every value of an adapter's delta was multiplied with: zero where it was dropped."""
    return {
        name: ((merged[name] - models.tensors[name]) / delta)
        for name, delta in models.deltas[adapter].items()
    }


def kept(of: torch.Tensor) -> torch.Tensor:
    # Dropped values leave the base as it was, but for the rounding of base + 0.
    return of.abs() > 1e-9


def assert_share(kept: torch.Tensor, share: float) -> None:
    n = kept.numel()
    error = math.sqrt(share * (1 - share) / n)
    assert abs(kept.double().mean().item() - share) <= 5 * error


BOTH = pytest.mark.parametrize("who", ["remerge", "mergekit"])


@BOTH
@pytest.mark.parametrize("density", [0.05, 0.5, 0.93, (0.2, 0.7)])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_share_of_dare(
    mergekit: Mergekit, apart: Models, who: str, method: str, density: Any
) -> None:
    for adapter, name in enumerate((Q, V)):
        masks: list[torch.Tensor] = []
        for seed in range(8):
            asked = {"density": density, "rescale": "none"}
            merged = by(who, mergekit)(apart, method, seed=seed, **asked)
            found = factors(apart, merged, adapter)[name]
            masks.append(kept(found))
            assert (found[masks[-1]] - 1).abs().max() < 1e-6
        share = density[adapter] if isinstance(density, tuple) else density
        assert_share(torch.stack(masks), share)


@BOTH
def test_masks_are_independent(
    mergekit: Mergekit, apart: Models, together: Models, who: str
) -> None:
    """Of the layers, of the adapters, of the seeds, of neighbours in a row and in a column."""
    masks: list[torch.Tensor] = []
    asked = {"density": 0.5, "rescale": "none"}
    for seed in (5, 6):
        merged = by(who, mergekit)(apart, "dare_linear", seed=seed, **asked)
        masks += [kept(factors(apart, merged, n)[name]) for n, name in enumerate((Q, V))]
    # Three adapters of one layer, one at a time: a weight of zero changes no mask.
    for adapter in range(3):
        alone = [float(adapter == other) for other in range(3)]
        merged = by(who, mergekit)(together, "dare_linear", seed=7, weights=alone, **asked)
        masks.append(kept(factors(together, merged, adapter)[Q]))
    for index, one in enumerate(masks):
        assert_share(one[:, 1:] == one[:, :-1], 0.5)
        assert_share(one[1:] == one[:-1], 0.5)
        for other in masks[:index]:
            assert_share(one == other, 0.5)


@BOTH
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_rescaled_to_the_norm(mergekit: Mergekit, apart: Models, who: str, method: str) -> None:
    """L1: the values kept are as much as all were. A share of the kept is one for each tensor."""
    asked = {"density": 0.3, "rescale": "l1", "normalize": False}
    asked |= {"epsilon": 0.1} if method.startswith("della") else {}
    merged = by(who, mergekit)(apart, method, seed=3, **asked)
    for adapter, delta in enumerate(apart.deltas):
        for name, found in factors(apart, merged, adapter).items():
            stay = kept(found)
            expected = delta[name].abs().sum() / delta[name][stay].abs().sum()
            assert (found[stay] / expected - 1).abs().max() < 1e-5


def test_rescaled_as_the_papers_say(apart: Models) -> None:
    """DARE by 1 / density, which is its default here; DELLA's default is mergekit's."""
    found = factors(apart, ours(apart, "dare_linear", density=0.2, seed=1), 0)[Q]
    assert (found[kept(found)] - 5).abs().max() < 1e-9
    asked: dict[str, Any] = {"density": 0.4, "epsilon": 0.1, "seed": 1}
    default = ours(apart, "della_linear", **asked)
    assert_close(default, ours(apart, "della_linear", rescale="l1", **asked), 0)
    found = factors(apart, ours(apart, "della_linear", rescale="expected", **asked), 0)[Q]
    stay = kept(found)
    assert (found * chances(apart.deltas[0][Q], 0.4, 0.1) - 1)[stay].abs().max() < 1e-9


@BOTH
@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_mean_over_seeds(mergekit: Mergekit, apart: Models, who: str, method: str) -> None:
    """Every value is what it was, on the average: the deviations are of variance one."""
    asked: dict[str, Any] = {"density": 0.5, "rescale": "l1"}
    if method == "della_linear":
        # As good as DARE, so that one formula has the variance of both.
        asked["epsilon"] = 1e-4
    seeds = 60
    total = torch.zeros(SHAPES[Q], dtype=torch.float64)
    for seed in range(seeds):
        merged = by(who, mergekit)(apart, method, seed=seed, **asked)
        total += factors(apart, merged, 0)[Q]
    # Kept with a chance of a half and doubled: 0 or 2, of variance 1.
    deviations = (total / seeds - 1) * math.sqrt(seeds)
    n = deviations.numel()
    assert abs(deviations.mean()) < 5 / math.sqrt(n)
    assert abs(deviations.square().mean() - 1) < 5 * math.sqrt(2 / n)


def chances(delta: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """To be kept, by DELLA: rising with the rank of the magnitude in its row, a vector being one,
    from density - epsilon to density + epsilon."""
    ranks = delta.abs().argsort(-1).argsort(-1).double()
    return density - epsilon + 2 * epsilon * ranks / (delta.shape[-1] - 1)


@BOTH
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.4), (0.3, 0.15), (0.9, 0.05)])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_by_rank(
    mergekit: Mergekit, apart: Models, who: str, method: str, density: float, epsilon: float
) -> None:
    seeds = 24
    asked = {"density": density, "epsilon": epsilon, "rescale": "none", "normalize": False}
    counts = {name: torch.zeros(SHAPES[name], dtype=torch.float64) for name in (Q, BIAS)}
    for seed in range(seeds):
        merged = by(who, mergekit)(apart, method, seed=seed, **asked)
        for name, found in factors(apart, merged, 0).items():
            counts[name] += kept(found)
    for name, count in counts.items():
        expected = chances(apart.deltas[0][name], density, epsilon).flatten()
        for decile in expected.argsort().tensor_split(10):
            p = expected[decile]
            error = math.sqrt((p * (1 - p)).sum().item() / seeds) / len(p)
            assert abs(count.flatten()[decile].mean() / seeds - p.mean()) <= 5 * error


@pytest.mark.parametrize("rescale", ["none", "l1"])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.4, 1.3), (0.5, 0.0, 0.25)])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("family", ["dare", "della"])
def test_what_is_made_of_the_masks(
    mergekit: Mergekit,
    together: Models,
    tmp_path: Any,
    family: str,
    normalize: bool,
    weights: tuple[float, ...],
    rescale: str,
) -> None:
    """One adapter at a time shows its masked delta; mergekit combines these, dropping nothing."""
    linear, ties = ("dare_linear", "dare_ties") if family == "dare" else ("della_linear", "della")
    asked: dict[str, Any] = {"density": (0.3, 0.6, 0.8), "rescale": rescale, "seed": 11}
    masked: list[Tensors] = []
    for index in range(len(weights)):
        alone = [float(index == other) for other in range(len(weights))]
        merged = ours(together, linear, alone, **asked)
        masked.append({name: merged[name] - together.tensors[name] for name in SHAPES})
        # What was dropped was given back as the base's own bits, and so is zero here.
        assert 0 < masked[-1][Q].count_nonzero() < masked[-1][Q].numel()
    beforehand = write_merged(tmp_path, together.tensors, masked)
    models = replace(together, merged=beforehand)
    for method in (linear, ties):
        combined = {"normalize": normalize, "lambda_": 0.9}
        expected = theirs(mergekit, models, method, weights, density=1.0, **combined)
        assert_close(ours(together, method, weights, **asked, **combined), expected)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_density_zero(mergekit: Mergekit, apart: Models, method: str) -> None:
    asked = {"density": (0.0, 1.0)}
    assert_close(ours(apart, method, **asked), theirs(mergekit, apart, method, **asked))
