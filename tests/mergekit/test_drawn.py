"""Methods without chance once more, on whatever shapes, ranks, weights and parameters are drawn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mergekit.compare import UNWEIGHTED, assert_same
from tests.mergekit.models import Lora, one_matrix, write_models
from tests.mergekit.tool import Mergekit

shares = st.floats(0, 1) | st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.7, 0.9])
# Eighths add up exactly in any order: a sum of weights is zero for both, or for none.
weights = st.integers(-12, 16).map(lambda eighths: eighths / 8)
signs = {"normalize": st.booleans(), "lambda_": st.sampled_from([1.0, 0.4, -1.5])}
PARAMETERS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "sum": {},
    "linear": {},
    "ties": {"density": shares, **signs},
    "dare_linear": signs,
    "dare_ties": signs,
    "della": signs,
    "della_linear": signs,
    "breadcrumbs": {"density": shares, "gamma": shares, **signs},
    "breadcrumbs_ties": {"density": shares, "gamma": shares, **signs},
    "sce": {"select_topk": shares},
    "model_stock": {"filter_wise": st.booleans()},
    "slerp": {"t": st.floats(0, 1)},
    "nuslerp": {"row_wise": st.booleans()},
}
ADDED = frozenset({"dare_linear", "della_linear", "breadcrumbs"})
PER_ADAPTER = frozenset({"density", "gamma"})
# One number to a row or a tensor has no angle but 0 and 180 degrees, where they part by rounding.
ANGLES = frozenset({"slerp", "nuslerp"})


# Faint deltas lose their angle when mergekit subtracts the base, unless that is zero.
FROM_ZERO = frozenset({"model_stock", "nuslerp"})


@st.composite
def merges(draw: st.DrawFn) -> dict[str, Any]:
    method = draw(st.sampled_from(sorted(PARAMETERS)))
    adapters = 2 if method in ANGLES else draw(st.integers(2, 4))
    columns = draw(st.integers(2 if method in ANGLES else 1, 23))
    seeds = draw(st.lists(st.integers(0, 999), min_size=adapters, max_size=adapters, unique=True))
    loras = [
        Lora(
            draw(st.sampled_from([{"q_proj": 1}, {"q_proj": 2}, {"q_proj": 5}])),
            seed,
            alpha=draw(st.sampled_from([1.0, 16.0])),
            rslora=draw(st.booleans()),
            bias=draw(st.booleans()),
            size=draw(st.sampled_from([0.01, 0.1, 1.0])),
            rows_of_zeros=draw(st.booleans()),
        )
        for seed in seeds
    ]
    asked: dict[str, Any] = {"weights": None}
    if method not in UNWEIGHTED:
        asked["weights"] = tuple(draw(weights) for _ in loras)
    if (method == "linear" and not sum(asked["weights"])) or (
        # Nothing of two adapters is nothing here; mergekit takes a half of each.
        method == "nuslerp" and not any(asked["weights"])
    ):
        asked["weights"] = None
    for name, values in PARAMETERS[method].items():
        many = name in PER_ADAPTER and draw(st.booleans())
        asked[name] = tuple(draw(values) for _ in loras) if many else draw(values)
    if asked.get("normalize") and method in ADDED and not sum(asked["weights"]):
        # Refused here; mergekit divides by one, and so normalizes nothing.
        asked["normalize"] = False
    shape = (draw(st.integers(1, 23)), columns)
    return {"method": method, "loras": loras, "shape": shape, "asked": asked}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(merge=merges())
def test_as_mergekit(mergekit: Mergekit, merge: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        models = write_models(
            Path(place),
            merge["loras"],
            shapes=one_matrix(*merge["shape"]),
            size=0.0 if merge["method"] in FROM_ZERO else 0.05,
        )
        # Model Stock divides by 1 + (n - 1) c down to 1e-6, and so multiplies rounding errors.
        relative = 1e-9 if merge["method"] == "model_stock" else 0.0
        asked = merge["asked"] | {"changed": False, "relative": relative}
        assert_same(mergekit, models, merge["method"], **asked)
