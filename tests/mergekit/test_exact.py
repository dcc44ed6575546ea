"""Methods without chance: every element as mergekit has it, in float64.

A cut between kept and dropped values is between values that are equal as float32 in about one merge
of a million, so that no element is excepted.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import remerge
from tests.mergekit.compare import assert_close, assert_same, ours, theirs
from tests.mergekit.models import Lora, Models, one_matrix, write_models
from tests.mergekit.tool import Mergekit

WEIGHTS = [
    pytest.param((1.0, 1.0, 1.0), id="ones"),
    pytest.param((0.7, -0.4, 1.3), id="negative"),
    pytest.param((0.5, 0.0, 0.25), id="zero"),
    pytest.param((-0.5, -1.0, -0.25), id="all-negative"),
]
THREE = [
    Lora({"q_proj": 4, "k_proj": 2, "v_proj": 4, "up_proj": 3}, seed=1, rows_of_zeros=True),
    Lora({"q_proj": 7, "down_proj": 5, "embed_tokens": 3}, seed=2, rslora=True, size=0.15),
    Lora({"q_proj": 1, "k_proj": 5, "up_proj": 8, "lm_head": 2}, seed=3, alpha=16.0),
]
Place = pytest.TempPathFactory


@pytest.fixture(scope="module")
def three(tmp_path_factory: Place) -> Models:
    """Ranks, scales and targets differ: tensors are changed by three adapters, two, one or none."""
    return write_models(tmp_path_factory.mktemp("three"), THREE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: Place) -> Models:
    return write_models(tmp_path_factory.mktemp("two"), THREE[:2])


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: Place) -> Models:
    """A matrix of 100 values and a bias of 10, for counts at the edge of the next integer."""
    loras = [Lora({"q_proj": 1 + n}, seed=n, bias=True) for n in range(3)]
    return write_models(tmp_path_factory.mktemp("hundred"), loras, shapes=one_matrix(10, 10))


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: Place) -> Models:
    """Deltas a million times apart, with rows that only the small ones change."""
    loras = [
        Lora({"q_proj": 2, "v_proj": 3}, seed, size=size, rows_of_zeros=seed == 0)
        for seed, size in enumerate((0.3, 3e-4, 2e-4))
    ]
    return write_models(tmp_path_factory.mktemp("unequal"), loras)


@pytest.fixture(scope="module")
def faint(tmp_path_factory: Place) -> Models:
    """Deltas of about 1e-9, below what mergekit takes for nothing in norms and variances."""
    loras = [Lora({"q_proj": 2, "v_proj": 3}, n, size=2e-5) for n in range(2)]
    return write_models(tmp_path_factory.mktemp("faint"), loras)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["sum", "linear"])
def test_weighted(mergekit: Mergekit, three: Models, method: str, weights: Any) -> None:
    assert_same(mergekit, three, method, weights=weights)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.99, 1.0, (0.2, 1.0, 0.6), (0.0, 1.0, 0.5)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties(mergekit: Mergekit, three: Models, weights: Any, density: Any) -> None:
    assert_same(mergekit, three, "ties", weights=weights, density=density)


@pytest.mark.parametrize("lambda_", [0.3, -2.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties_normalised(
    mergekit: Mergekit, three: Models, weights: Any, normalize: bool, lambda_: float
) -> None:
    asked = {"density": 0.4, "normalize": normalize, "lambda_": lambda_}
    assert_same(mergekit, three, "ties", weights=weights, **asked)


def test_opposite_deltas(mergekit: Mergekit, tmp_path: Any) -> None:
    """One adapter twice, with opposite weights: the sum of signs is nought everywhere."""
    models = write_models(tmp_path, [Lora({"q_proj": 3}, seed=1), Lora({"q_proj": 3}, seed=1)])
    for method in ("ties", "dare_ties", "breadcrumbs_ties", "della"):
        assert_same(mergekit, models, method, weights=(0.5, -0.5))


CANCELLING = (0.1, 0.2, -0.3)  # 5.6e-17, when they are added up


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs_ties"])
def test_weights_that_cancel_out(mergekit: Mergekit, three: Models, method: str) -> None:
    """Nothing is divided by what rounding leaves: mergekit does so only by an exact zero, as that
    of 2 + 4 - 6, and then not at all."""
    found = ours(three, method, CANCELLING, normalize=True)
    # Twenty times the weights, and exact; no two or one of them add up to 1.
    mean = theirs(mergekit, three, method, (2.0, 4.0, -6.0), normalize=True)
    total = theirs(mergekit, three, method, (2.0, 4.0, -6.0), normalize=False)
    for name, tensor in found.items():
        # A mean is the same of all multiples; a sum is twenty times ours.
        cancel, base = mean[name] == total[name], three.tensors[name]
        expected = torch.where(cancel, base + (total[name] - base) / 20, mean[name])
        assert (tensor - expected).abs().max() < 1e-12


@pytest.mark.parametrize("method", ["linear", "dare_linear", "della_linear", "breadcrumbs"])
def test_no_mean_of_weights_that_cancel_out(three: Models, method: str) -> None:
    asked = {} if method == "linear" else {"normalize": True}
    with pytest.raises(remerge.UsageError, match="zero"):
        ours(three, method, CANCELLING, **asked)


@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_nothing_dropped(
    mergekit: Mergekit, three: Models, method: str, weights: Any, normalize: bool | None
) -> None:
    """At density 1, their defaults of ``normalize`` included, which are not all the same."""
    asked: dict[str, Any] = {} if normalize is None else {"normalize": normalize}
    assert_same(mergekit, three, method, weights=weights, density=1.0, lambda_=0.8, **asked)


@pytest.mark.parametrize(
    ("density", "gamma"),
    [
        (0.9, 0.01),
        (0.5, 0.1),
        (0.1, 0.0),
        # Not so much to drop at the top that fewer stay than asked for.
        (0.95, 0.2),
        (1.0, 0.1),
        ((0.3, 0.8, 0.0), (0.2, 0.05, 0.01)),
    ],
)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(
    mergekit: Mergekit, three: Models, method: str, weights: Any, density: Any, gamma: Any
) -> None:
    assert_same(mergekit, three, method, weights=weights, density=density, gamma=gamma)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_by_default(mergekit: Mergekit, three: Models, method: str) -> None:
    asked = {"density": 0.6, "normalize": True, "lambda_": 1.5}
    assert_same(mergekit, three, method, weights=(1.0, 0.5, -0.2), **asked)
    assert_same(mergekit, three, method)


# density * 100 is 28.999999999999996, 56.99999999999999, 1.0, and of ten values one at least.
@pytest.mark.parametrize("share", [0.29, 0.57, 0.01, 0.001])
def test_counts(mergekit: Mergekit, hundred: Models, share: float) -> None:
    assert_same(mergekit, hundred, "ties", density=share)
    assert_same(mergekit, hundred, "sce", select_topk=share, changed=share > 0.001)
    for gamma in (0.01, share):
        for method in ("breadcrumbs", "breadcrumbs_ties"):
            asked = {"density": share, "gamma": gamma}
            assert_same(mergekit, hundred, method, changed=share > 0.001, **asked)


@pytest.mark.parametrize("select_topk", [0.1, 0.37, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("kind", ["three", "hundred", "unequal", "faint"])
def test_sce(
    mergekit: Mergekit, kind: str, select_topk: float, request: pytest.FixtureRequest
) -> None:
    assert_same(mergekit, request.getfixturevalue(kind), "sce", select_topk=select_topk)


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("kind", ["two", "three", "hundred", "faint"])
def test_model_stock(
    mergekit: Mergekit, kind: str, filter_wise: bool, request: pytest.FixtureRequest
) -> None:
    models: Models = request.getfixturevalue(kind)
    # Of deltas of 1e-9 the cosine is all but nothing: what they change is within the tolerance.
    changed = kind != "faint"
    assert_same(mergekit, models, "model_stock", filter_wise=filter_wise, changed=changed)


def test_model_stock_of_unequal_deltas(mergekit: Mergekit, unequal: Models) -> None:
    """The angle of a delta of 1e-7 is what mergekit loses most of, when it subtracts the base."""
    for filter_wise in (False, True):
        asked = {"filter_wise": filter_wise}
        expected = theirs(mergekit, unequal, "model_stock", **asked)
        assert_close(ours(unequal, "model_stock", **asked), expected, 1e-10)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("size", [0.05, 0.0001, 0.5, 5.0])
def test_slerp(mergekit: Mergekit, tmp_path: Any, size: float, t: float) -> None:
    """Deltas as large as the base, far larger, smaller, and far smaller: there it is linear."""
    models = write_models(tmp_path, THREE[:2], size=size)
    assert_same(mergekit, models, "slerp", t=t)


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0), (0.0, 1.0), (-0.5, 1.5), (1.0, -1.0)])
def test_nuslerp(mergekit: Mergekit, two: Models, weights: Any, row_wise: bool) -> None:
    assert_same(mergekit, two, "nuslerp", weights=weights, row_wise=row_wise)


@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_of_next_to_nothing(mergekit: Mergekit, faint: Models, row_wise: bool) -> None:
    assert_same(mergekit, faint, "nuslerp", row_wise=row_wise)


ALL: dict[str, dict[str, Any]] = {
    "sum": {"weights": (0.5, 0.7, -0.2)},
    "linear": {"weights": (0.5, 0.7, -0.2)},
    "ties": {"weights": (0.5, 0.7, -0.2), "density": 0.4},
    "dare_ties": {"weights": (0.5, 0.7, -0.2)},
    "della": {"weights": (0.5, 0.7, -0.2)},
    "breadcrumbs": {"weights": (0.5, 0.7, -0.2), "density": 0.5, "gamma": 0.1},
    "breadcrumbs_ties": {"weights": (0.5, 0.7, -0.2), "density": 0.5, "gamma": 0.1},
    "sce": {"select_topk": 0.4},
    "model_stock": {"filter_wise": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ALL)
def test_rounded_once(mergekit: Mergekit, tmp_path: Any, method: str, dtype: torch.dtype) -> None:
    """A base of fewer bits: mergekit's float64 answer, rounded at the end."""
    models = write_models(tmp_path, THREE, dtype=dtype)
    found = ours(models, method, **ALL[method])
    for name, tensor in theirs(mergekit, models, method, **ALL[method]).items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor.float().to(dtype)), name


@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (7, 1), (3, 1), (211, 3), (3, 211)])
@pytest.mark.parametrize("method", ALL)
def test_narrow_matrices(
    mergekit: Mergekit, tmp_path: Any, method: str, rows: int, columns: int
) -> None:
    loras = [Lora({"q_proj": rank}, seed=rank, bias=True) for rank in (1, 2, 5)]
    models = write_models(tmp_path, loras, shapes=one_matrix(rows, columns))
    assert_same(mergekit, models, method, **ALL[method])


@pytest.mark.parametrize("rows", [1, 7])
def test_nuslerp_of_single_values(mergekit: Mergekit, tmp_path: Any, rows: int) -> None:
    """The rows of a column have one value each; a vector is one row."""
    loras = [Lora({"q_proj": rank}, seed=rank, bias=True) for rank in (1, 5)]
    models = write_models(tmp_path, loras, shapes=one_matrix(rows, 1))
    assert_same(mergekit, models, "nuslerp", weights=(0.3, 0.9), row_wise=True)


def test_the_comparison_can_fail(mergekit: Mergekit, three: Models) -> None:
    """Another density, one element at the cut: it must be seen."""
    found = ours(three, "ties", density=0.4)
    with pytest.raises(AssertionError):
        assert_close(found, theirs(mergekit, three, "ties", density=0.401))
