"""Methods, weights and parameters as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from remerge.errors import UsageError
from remerge.merging.asked import find_adapter, parameters_of, read_prefer
from remerge.merging.methods.registry import METHODS
from remerge.merging.recipe import Recipe, make_recipe

TWO = ("a", "b")


def recipe(method: str, adapters: tuple[str, ...] = TWO, **asked: Any) -> Recipe:
    weights, to = asked.pop("weights", None), asked.pop("to", "safetensors")
    return make_recipe(adapters, method=method, weights=weights, parameters=asked, to=to)


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_written_out(method: str):
    """What a manifest holds says everything, and reads as the same."""
    found = recipe(method)
    assert found.parameters.keys() == parameters_of(method).keys()
    assert found.weights == (1.0, 1.0)
    again = Recipe.model_validate_json(found.model_dump_json())
    assert again == found
    assert recipe(method, **found.parameters) == found


def test_one_number_for_all_or_one_for_each():
    for density in (0.5, [0.5], (0.5, 0.5), ["0.5", 0.5]):
        assert recipe("ties", density=density).parameters["density"] == [0.5, 0.5]
    assert recipe("ties", density=[None, 0.25]).parameters["density"] == [1.0, 0.25]
    assert recipe("ties", density=None).parameters["density"] == [1.0, 1.0]
    assert recipe("sum", weights=0.5).weights == (0.5, 0.5)
    assert recipe("sum", weights=[-1, None]).weights == (-1.0, 1.0)
    assert recipe("task_arithmetic").method == "sum"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "tie"}, "There is no method 'tie'. Did you mean ties?"),
        ({"method": "task_arithmetics"}, "Did you mean task_arithmetic?"),
        ({"method": "sum", "density": 0.5}, "--method sum has no --density. It takes none."),
        ({"method": "ties", "t": 1}, "--method ties has no --t. It takes --density, --scope"),
        ({"method": "ties", "density": [1, 1, 1]}, "--density gives 3 numbers for 2 adapters."),
        ({"method": "ties", "density": []}, "--density gives 0 numbers for 2 adapters."),
        ({"method": "ties", "density": 1.5}, "--density"),
        ({"method": "ties", "density": -0.1}, "--density"),
        ({"method": "ties", "density": "x"}, "--density 'x' is no number"),
        ({"method": "ties", "density": True}, "--density True is no number"),
        ({"method": "ties", "density": [0.5, float("nan")]}, "is not finite"),
        ({"method": "ties", "lambda": True}, "--lambda True is no number"),
        ({"method": "ties", "lambda": "x"}, "--lambda"),
        ({"method": "ties", "lambda": float("nan")}, "--lambda nan is not finite"),
        ({"method": "slerp", "t": float("-inf")}, "--t -inf is not finite"),
        ({"method": "slerp", "t": 3}, "--t: must be less than or equal to 1."),
        ({"method": "sum", "weights": [1, 10**400]}, "--weights is too large a number"),
        ({"method": "ties", "svd_rank": True, "to": "adapter"}, "--svd-rank True is no rank"),
        ({"method": "ties", "scope": "layer"}, "--scope"),
        ({"method": "sum", "weights": [1, 2, 3]}, "--weights gives 3 numbers for 2 adapters"),
        ({"method": "sum", "weights": float("inf")}, "--weights inf is not finite"),
        ({"method": "sum", "weights": [True, 1]}, "--weights True,1 is no number"),
        ({"method": "ties", "density": [1, 1], "adapters": ("a",)}, "2 numbers for 1 adapter."),
        ({"method": "slerp", "adapters": ("a",)}, "combines exactly 2 adapters, not 1"),
        ({"method": "slerp", "adapters": ("a", "b", "c")}, "combines exactly 2 adapters, not 3"),
        ({"method": "model_stock", "adapters": ("a",)}, "combines at least 2 adapters, not 1"),
        ({"method": "slerp", "weights": [1, 0.5]}, "--weights"),
    ],
)
def test_what_makes_no_sense(asked: dict[str, Any], said: str):
    with pytest.raises(UsageError) as refused:
        recipe(**asked)
    assert said in str(refused.value)


def test_adapters_by_name_or_number():
    labels = ("sort", "a#2", "a#3", "7", "2")
    assert find_adapter("sort", labels, "--prefer") == 1
    assert find_adapter("a#3", labels, "--prefer") == 3
    # A number is a place before it is a name.
    assert find_adapter("2", labels, "--prefer") == 2
    assert find_adapter("7", labels, "--prefer") == 4
    for wrong in ("a", "0", "6", "-1", "", "²"):
        with pytest.raises(UsageError, match="Give a number from 1 to 5, or one of sort"):
            find_adapter(wrong, labels, "--prefer")
    found = read_prefer(["x=y=sort", "*.weight=3", "7"], labels)
    assert found == (("x=y", 1), ("*.weight", 3), ("*", 4))


def test_a_size_without_end():
    for size in (10**4000, "1e400", "-1", "0"):
        with pytest.raises(UsageError, match="--max-shard-size"):
            make_recipe(TWO, max_shard_size=size)
