"""The command itself: that the driver stands for it, and that recipes mean the same to both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import remerge
from remerge.cli import group
from tests.mergekit.compare import assert_close, theirs
from tests.mergekit.models import Lora, Models, Tensors, write_models
from tests.mergekit.tool import Mergekit, mergekit_yaml
from tests.tiny import read_tensors

Each = dict[str, tuple[float, ...]]
Parameters = dict[str, Any]

WEIGHTS = (0.5, 0.75, -0.25)
# Method, parameters for each model, parameters for all.
RECIPES: list[tuple[str, Each, Parameters]] = [
    ("ties", {"weight": WEIGHTS, "density": (0.3, 0.5, 1.0)}, {"normalize": False, "lambda": 0.7}),
    ("breadcrumbs", {"weight": WEIGHTS, "density": (0.9, 0.5, 0.3), "gamma": (0.1, 0.02, 0.0)}, {}),
    ("task_arithmetic", {"weight": WEIGHTS}, {}),
    ("linear", {"weight": WEIGHTS}, {}),
    ("sce", {}, {"select_topk": 0.4}),
    ("model_stock", {}, {"filter_wise": True}),
]
LORAS = [
    Lora({"q_proj": 4, "k_proj": 2, "up_proj": 3}, seed=1),
    Lora({"q_proj": 7, "down_proj": 5, "embed_tokens": 3}, seed=2, rslora=True),
    Lora({"q_proj": 1, "k_proj": 5, "lm_head": 2}, seed=3, alpha=16.0),
]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("three"), LORAS)


def recipe_of(
    models: Sequence[str], base: Path | str, method: str, each: Each, both: Parameters
) -> Parameters:
    recipe: Parameters = {
        "merge_method": method,
        "models": [
            {"model": model, "parameters": {name: values[n] for name, values in each.items()}}
            for n, model in enumerate(models)
        ],
        "parameters": both,
    }
    # With a base_model, the base is one of the models that linear is the mean of.
    return recipe if method == "linear" else recipe | {"base_model": str(base)}


def write(recipe: Parameters, place: Path) -> Path:
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_the_driver_is_the_command(mergekit: Mergekit, three: Models, tmp_path: Path) -> None:
    """Bit for bit: the installed command, its function, and the tensors one by one."""
    merged = [str(path) for path in three.merged]
    method, each, both = RECIPES[0]
    recipe = recipe_of(merged, three.wide, method, each, both) | {"dtype": "float64"}
    path = write(recipe, tmp_path)
    weights, density = each["weight"], each["density"]
    command = mergekit_yaml(path, tmp_path / "command")
    function = mergekit.run(path, tmp_path / "function")
    tensors = theirs(mergekit, three, method, weights, density=density, **both)
    assert command.keys() == function.keys() == tensors.keys() == three.tensors.keys()
    for name, tensor in command.items():
        assert torch.equal(function[name], tensor)
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize(("method", "each", "both"), RECIPES, ids=[r[0] for r in RECIPES])
def test_whole_models(
    mergekit: Mergekit, three: Models, tmp_path: Path, method: str, each: Each, both: Parameters
) -> None:
    """Ours, written to disk, next to mergekit's of the models merged beforehand."""
    merged = [str(path) for path in three.merged]
    recipe = recipe_of(merged, three.wide, method, each, both) | {"dtype": "float64"}
    expected = mergekit.run(write(recipe, tmp_path), tmp_path / "theirs")
    remerge.merge(
        three.base,
        list(three.adapters),
        tmp_path / "ours",
        method=method,
        weights=each.get("weight"),
        parameters={name: values for name, values in each.items() if name != "weight"} | both,
    )
    assert_close(read_tensors(tmp_path / "ours"), expected)


# Each adapter merged by PEFT in float32, the deltas taken back from that and combined in float32:
# a few ulps of a value of the base (4e-9), times weights and divisors.
FLOAT32 = 1e-6
# Values so near to a cut that these roundings carry them over it: of all that a method selects.
CARRIED = 0.002


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("float32"), LORAS, dtype=torch.float32)


def both_read(mergekit: Mergekit, recipe: Parameters, place: Path) -> tuple[Tensors, Tensors]:
    """Ours and theirs of one file."""
    path = write(recipe, place)
    group(["merge", "--recipe", str(path), "-o", str(place / "ours")], standalone_mode=False)
    return read_tensors(place / "ours"), mergekit.run(path, place / "theirs")


def assert_near(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    apart = 0
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.float32
        apart += int(((found[name] - tensor).abs() > FLOAT32).sum())
    assert apart <= CARRIED * sum(tensor.numel() for tensor in expected.values())


LORA_RECIPES = [
    *RECIPES,
    ("task_arithmetic", {"weight": WEIGHTS}, {"normalize": True, "lambda": 0.5}),
    ("ties", {"weight": WEIGHTS}, {"density": 0.6, "int8_mask": True}),
    ("dare_ties", {"weight": WEIGHTS}, {}),
    ("dare_linear", {}, {"weight": 0.4, "rescale": False}),
    ("della", {"weight": WEIGHTS, "density": (1.0, 1.0, 1.0)}, {}),
    ("della_linear", {"weight": WEIGHTS}, {"density": 1, "epsilon": 0.1}),
    ("breadcrumbs_ties", {"weight": WEIGHTS}, {"density": 0.5, "gamma": 0.05, "lambda": 2}),
    ("model_stock", {}, {}),
]


@pytest.mark.parametrize(
    ("method", "each", "both"),
    LORA_RECIPES,
    ids=[f"{n}-{r[0]}" for n, r in enumerate(LORA_RECIPES)],
)
def test_adapters(
    mergekit: Mergekit, float32: Models, tmp_path: Path, method: str, each: Each, both: Parameters
) -> None:
    """``model: base+lora``, which mergekit lets PEFT merge: the same file for both."""
    models = [f"{float32.base}+{adapter}" for adapter in float32.adapters]
    recipe = recipe_of(models, float32.base, method, each, both) | {"dtype": "float32"}
    assert_near(*both_read(mergekit, recipe, tmp_path))


@pytest.mark.parametrize(
    "both",
    [{}, {"nuslerp_flatten": False}, {"nuslerp_row_wise": True}],
    ids=["default", "rows", "flattened"],
)
def test_nuslerp_of_adapters(
    mergekit: Mergekit, float32: Models, tmp_path: Path, both: Parameters
) -> None:
    models = [f"{float32.base}+{adapter}" for adapter in float32.adapters[:2]]
    each = {"weight": (0.3, 0.9)}
    recipe = recipe_of(models, float32.base, "nuslerp", each, both) | {"dtype": "float32"}
    assert_near(*both_read(mergekit, recipe, tmp_path))


@pytest.mark.parametrize("start", [0, 1])
def test_slerp_of_adapters(mergekit: Mergekit, float32: Models, tmp_path: Path, start: int) -> None:
    """From the one that base_model names to the other, wherever it is listed."""
    models = [f"{float32.base}+{adapter}" for adapter in float32.adapters[:2]]
    recipe = recipe_of(models, models[start], "slerp", {}, {"t": 0.3}) | {"dtype": "float32"}
    assert_near(*both_read(mergekit, recipe, tmp_path))


@pytest.mark.parametrize("method", ["linear", "ties", "model_stock"])
@pytest.mark.parametrize("first", [True, False])
def test_the_base_among_the_models(
    mergekit: Mergekit, float32: Models, tmp_path: Path, method: str, first: bool
) -> None:
    """It counts for the mean of models, and not for what combines changes to it."""
    models = [f"{float32.base}+{adapter}" for adapter in float32.adapters]
    models.insert(0 if first else 2, str(float32.base))
    each = {} if method == "model_stock" else {"weight": (0.5, 0.25, 1.0, 0.75)}
    recipe = recipe_of(models, float32.base, method, each, {}) | {"dtype": "float32"}
    assert_near(*both_read(mergekit, recipe, tmp_path))


def test_the_base_in_the_mean(mergekit: Mergekit, float32: Models, tmp_path: Path) -> None:
    """A base_model is one of linear's models, listed or not, with the weight of all."""
    models = [f"{float32.base}+{adapter}" for adapter in float32.adapters]
    recipe = recipe_of(models, "", "linear", {}, {"weight": 1.0})
    assert_near(
        *both_read(
            mergekit, recipe | {"base_model": str(float32.base), "dtype": "float32"}, tmp_path
        )
    )


@pytest.mark.parametrize("keys", [{"dtype": "float32", "out_dtype": "bfloat16"}])
def test_dtypes(mergekit: Mergekit, float32: Models, tmp_path: Path, keys: Parameters) -> None:
    """What is written in 16 bits is rounded once by both, from float32 there."""
    models = [f"{float32.base}+{adapter}" for adapter in float32.adapters]
    recipe = recipe_of(models, float32.base, "ties", {"weight": WEIGHTS}, {"density": 0.5}) | keys
    found, expected = both_read(mergekit, recipe, tmp_path)
    apart = 0
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.bfloat16
        apart += int((found[name] != tensor).sum())
    assert apart <= CARRIED * sum(tensor.numel() for tensor in expected.values())
