"""Recipe files: what each grammar means, and that nothing in them is overlooked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import remerge
from remerge.cli.gate_options import GATE
from remerge.cli.merge import command
from remerge.cli.methods import PARAMETERS
from remerge.errors import Unsupported, UsageError
from remerge.merging.asked import ALL_PARAMETERS
from remerge.merging.recipes.grammar import RecipeFile
from remerge.merging.recipes.own import KEYS
from tests import tiny


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own: paths in recipes are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str | dict[str, Any], name: str = "recipe.yaml") -> RecipeFile:
    path = Path(name)
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return remerge.read_recipe(path)


def refused(text: str | dict[str, Any], kind: type[Exception] = UsageError) -> str:
    with pytest.raises(kind) as raised:
        read(text)
    assert type(raised.value) is kind
    return str(raised.value)


# --- YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: a\nbase: b\n", "line 2 cannot be read: base is there twice"),
        ("adapters: [{path: a, weight: 1, weight: 2}]", "weight is there twice"),
        ("base: &x a\noutput: *x\n", "line 2 cannot be read: an alias"),
        ("<<: {base: a}\nbase: b", "line 1 cannot be read: a key that is no plain text"),
        ("base: !!python/object/apply:os.system [ls]", "line 1 cannot be read"),
        ("- a\n- b\n", "does not hold keys"),
        ("", "does not hold keys"),
        ("base: a\n---\nbase: b\n", "cannot be read"),
        ("1: a", "1 is not known"),
        ("[a]: b", "a key that is no plain text"),
        ("base: [", "cannot be read"),
        ("a: " + "[" * 5000, "cannot be read|nested too deeply"),
        ("base: \x00", "cannot be read"),
        ("base: " + "9" * 5000, "cannot be read"),
        ("base: 2024-99-99", "cannot be read"),
        ("# " + "x" * 2**20, "no recipe"),
        ("base: no", "base False is no text"),
        ("base: 1", "base 1 is no text"),
        ("base: [a]", "base is no text"),
        ("base: ' '", "is no text"),
    ],
)
def test_yaml_is_read_strictly(text: str, said: str):
    assert re.search(said, refused(text))


def test_a_file_that_cannot_be_read():
    for path in ("none.yaml", "/", "nul\0"):
        with pytest.raises(UsageError, match="cannot be read"):
            remerge.read_recipe(path)
    Path("latin.yaml").write_bytes(b"base: \xe9\n")
    with pytest.raises(UsageError, match="cannot be read"):
        remerge.read_recipe("latin.yaml")


def test_what_is_null_is_not_said():
    assert read("base: a\nadapters: null\nmethod: ~\n") == RecipeFile(base="a")


# --- remerge's own -------------------------------------------------------------------------------


def test_own_keys_are_the_options_of_the_command():
    """An option that decides bytes can be written down, and nothing else can."""
    options = {parameter.name.rstrip("_") for parameter in command.params if parameter.name}
    resources = {"recipe", "retention", "overwrite", "dry_run", "device", "threads", "max_memory"}
    resources |= {"as_json", "quiet", "verbose", "inputs", "engine_python", "prove", "run_id"}
    # What a gate asks is below its own key.
    resources |= set(GATE)
    assert options - resources - set(PARAMETERS) == KEYS - set(ALL_PARAMETERS) - {
        "base",
        "adapters",
        "parameters",
    }


def test_own():
    found = read(
        {
            "base": "base",
            "adapters": ["a", {"path": "b", "weight": 0.4, "density": 0.3}, {"adapter": "c"}],
            "method": "ties",
            "density": 0.5,
            "parameters": {"majority-sign-method": "frequency", "lambda": 2},
            "prefer": "b",
            "keep-float32": ["x.*", "y"],
            "base_precision": "original=org/name",
            "max-shard-size": "5GB",
            "copy_code": True,
            "output": "out",
        }
    )
    assert (found.base, found.adapters, found.output) == ("base", ("a", "b", "c"), "out")
    assert found.options == {
        "method": "ties",
        "prefer": ("b",),
        "keep_float32": ("x.*", "y"),
        "base_precision": "original=org/name",
        "max_shard_size": "5GB",
        "copy_code": True,
        "weights": [None, 0.4, None],
        "parameters": {
            "majority_sign_method": "frequency",
            "lambda": 2,
            "density": [0.5, 0.3, 0.5],
        },
    }


def test_own_with_lists_instead():
    found = read({"adapters": "a", "weights": [2], "parameters": {"density": [0.5]}})
    assert found.adapters == ("a",)
    assert found.options == {"weights": [2], "parameters": {"density": [0.5]}}
    assert read({"method": "ties"}).options == {"method": "ties"}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"adapter": "a", "base": "b"}, "adapter is not known. Did you mean adapters?"),
        ({"adapters": [{"path": "a", "wieght": 1}]}, "Did you mean weight?"),
        ({"adapters": [{"weight": 1}]}, "needs one path"),
        ({"adapters": [{"path": "a", "adapter": "b"}]}, "needs one path"),
        ({"adapters": [1]}, "adapters[1] is no list of keys"),
        ({"adapters": {"a": 1}}, "adapters is no list"),
        ({"base": "b", "parameters": {"densty": 1}}, "parameters: densty is not known"),
        ({"base": "b", "parameters": {"density": 1}, "density": 1}, "there twice"),
        ({"base": "b", "keep-float32": "x", "keep_float32": "x"}, "there twice"),
        ({"adapters": [{"path": "a", "density": 1}], "density": [1]}, "for single ones"),
        ({"adapters": [{"path": "a", "weight": 1}], "weights": [1]}, "for single ones"),
        ({"base": "b", "max_memory": "1GiB"}, "--max-memory"),
        ({"base": "b", "overwrite": True}, "--overwrite"),
        ({"base": "b", "copy_code": "yes"}, "neither true nor false"),
        ({"base": "b", "prefer": [1]}, "no list of texts"),
        ({"base": "b", "method": 1}, "method 1 is no text"),
    ],
)
def test_own_refuses(recipe: dict[str, Any], said: str):
    assert said in refused(recipe)


def test_paths_beside_the_recipe(place: Path):
    """A path is the working directory's, else the recipe's."""
    there = place / "recipes"
    for name in ("a", "b", "org/name", "many"):
        (there / name).mkdir(parents=True)
    (place / "b").mkdir()
    text = {"base": "org/name", "adapters": ["a", "b", "c/d", "many:x", str(there / "a")]}
    found = read(text, "recipes/r.yaml")
    assert found.base == "recipes/org/name"
    assert found.adapters == ("recipes/a", "b", "c/d", "recipes/many:x", str(there / "a"))
    found = read({"base": "b", "base_precision": "original=org/name"}, "recipes/r.yaml")
    assert found.options["base_precision"] == "original=recipes/org/name"


# --- mergekit ------------------------------------------------------------------------------------


def mergekit(method: str, *models: Any, **others: Any) -> dict[str, Any]:
    entries = [
        {"model": model} if isinstance(model, str) else {"model": model[0], "parameters": model[1]}
        for model in models
    ]
    return {"merge_method": method, "models": entries, **others}


def test_mergekit():
    found = read(
        mergekit(
            "ties",
            ("org/base@v1", {"weight": 9.0}),
            ("org/base@v1+org/a@main", {"weight": 0.5, "density": 0.4}),
            ("org/base@v1+b", {"weight": "1e-1"}),
            base_model="org/base@v1",
            parameters={"density": 0.9, "normalize": False, "lambda": 1.5, "int8_mask": True},
            dtype="float32",
            out_dtype="bfloat16",
            tokenizer_source="org/base@v1+b",
        )
    )
    assert (found.base, found.adapters, found.output) == ("org/base@v1", ("org/a@main", "b"), None)
    assert found.options == {
        "method": "ties",
        "weights": [0.5, 0.1],
        "parameters": {"density": [0.4, 0.9], "normalize": False, "lambda": 1.5},
        "dtype": "bfloat16",
        "tokenizer": "2",
    }
    assert found.notes == ("Without effect: int8_mask.",)


@pytest.mark.parametrize(
    ("method", "parameters", "options"),
    [
        ("task_arithmetic", {}, {"method": "sum", "weights": [0.5, 1.5]}),
        ("task_arithmetic", {"lambda": 0.5}, {"method": "sum", "weights": [0.25, 0.75]}),
        ("task_arithmetic", {"normalize": True}, {"method": "sum", "weights": [0.25, 0.75]}),
        (
            "dare_ties",
            {"density": 0.5},
            {
                "method": "dare_ties",
                "weights": [0.5, 1.5],
                "parameters": {
                    "density": [0.5, 0.5],
                    "normalize": False,
                    "rescale": "l1",
                    "lambda": 1.0,
                },
            },
        ),
        (
            "della",
            {"rescale": False, "epsilon": 0.1},
            {
                "method": "della",
                "weights": [0.5, 1.5],
                "parameters": {
                    "epsilon": [0.1, 0.1],
                    "normalize": True,
                    "rescale": "none",
                    "lambda": 1.0,
                },
            },
        ),
        (
            "nuslerp",
            {"nuslerp_flatten": False},
            {"method": "nuslerp", "weights": [0.5, 1.5], "parameters": {"row_wise": True}},
        ),
        ("sce", {"select_topk": 0.3}, {"method": "sce", "parameters": {"select_topk": 0.3}}),
        ("model_stock", {}, {"method": "model_stock", "parameters": {"filter_wise": False}}),
    ],
)
def test_methods_of_mergekit(method: str, parameters: Any, options: Any):
    models = [("b+x", {"weight": 0.5}), ("b+y", {"weight": 1.5})]
    found = read(mergekit(method, "b", *models, base_model="b", parameters=parameters))
    assert found.options == options


@pytest.mark.parametrize(
    ("models", "parameters", "base_model", "options"),
    [
        ([("b+x", 1.0), ("b+y", 3.0)], {}, None, {"method": "linear", "weights": [1.0, 3.0]}),
        # A plain base among the models, or named beside them, is one of those that are averaged.
        ([("b+x", 1.0), ("b", 3.0)], {}, None, {"method": "sum", "weights": [0.25]}),
        ([("b+x", 1.0)], {"weight": 3.0}, "b", {"method": "sum", "weights": [0.25]}),
        (
            [("b+x", 0.4), ("b", 0.6)],
            {"normalize": False},
            "b",
            {"method": "sum", "weights": [0.4]},
        ),
    ],
)
def test_linear_of_mergekit(models: Any, parameters: Any, base_model: Any, options: Any):
    entries = [(model, {"weight": weight}) for model, weight in models]
    others = {} if base_model is None else {"base_model": base_model}
    found = read(mergekit("linear", *entries, parameters=parameters, **others))
    assert found.options == options


def test_slerp_of_mergekit():
    for models in (["b+x", "b+y"], ["b+y", "b+x"], ["b+y"]):
        found = read(mergekit("slerp", *models, base_model="b+x", parameters={"t": 0.3}))
        assert (found.base, found.adapters) == ("b", ("x", "y"))
        assert found.options == {"method": "slerp", "parameters": {"t": 0.3}}


def test_values_that_are_the_same_for_all_layers():
    for value in (
        [0.5],
        [0.5, 0.5],
        {"value": 0.5},
        [{"value": 0.5}],
        [{"filter": "*", "value": 0.5}],
    ):
        found = read(mergekit("task_arithmetic", ("b+x", {"weight": value}), base_model="b"))
        assert found.options["weights"] == [0.5]


ONE = [("b+x", {"weight": 1.0})]
FILTERED = [{"filter": "mlp", "value": 1}, {"value": 0.5}]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"merge_method": "passthrough", "slices": []}, "slices takes layers"),
        ({"merge_method": "ties", "modules": {}}, "modules takes layers"),
        (mergekit("karcher", "b+x"), "no merge_method karcher"),
        (mergekit("ties", ("b+x", {"weight": [0, 1]}), base_model="b"), "differs from layer"),
        (
            mergekit(
                "ties",
                *ONE,
                base_model="b",
                parameters={"density": FILTERED},
            ),
            "density differs from layer",
        ),
        (mergekit("ties", ("c", {}), base_model="b"), "remerge extract b c"),
        (mergekit("ties", ("c+x", {}), base_model="b"), "another model than b"),
        (mergekit("linear", "b+x", "c+y"), "another model than b"),
        (mergekit("ties", *ONE, base_model="b+z"), "adapter itself"),
        (mergekit("ties", *ONE, base_model="b", chat_template="auto"), "chat_template"),
        (mergekit("ties", *ONE, base_model="b", tokenizer_source="union"), "union"),
        (mergekit("ties", *ONE, base_model="b", tokenizer={}), "union"),
        (mergekit("ties", *ONE, base_model="b", tokenizer={"tokens": {}}), "new vocabulary"),
        (mergekit("ties", *ONE, base_model="b", parameters={"rescale": True}), "rescale"),
        (mergekit("nuslerp", ("b+x", {"weight": 1}), ("b+y", {"weight": 1})), "whole weights"),
        (
            mergekit(
                "nuslerp",
                *ONE,
                ("b+y", {"weight": 1}),
                base_model="b",
                parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True},
            ),
            "turns columns",
        ),
        (
            mergekit("linear", *ONE, ("b+y", {"weight": 1}), parameters={"normalize": False}),
            "scale the base",
        ),
    ],
)
def test_mergekit_cannot(recipe: dict[str, Any], said: str):
    assert said in refused(recipe, Unsupported)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (mergekit("ties", "b+x", base_model="b"), "x has no weight"),
        (mergekit("linear", *ONE, base_model="b"), "base_model has no weight"),
        (mergekit("slerp", "b+y", base_model="b+x"), "needs the parameter t"),
        (mergekit("ties", "b", base_model="b"), "no model has an adapter"),
        (mergekit("ties", base_model="b"), "no model has an adapter"),
        (mergekit("linear"), "models is empty"),
        (mergekit("ties", "b+x+y", base_model="b"), "base+adapter"),
        (mergekit("ties", "+x", base_model="b"), "base+adapter"),
        (mergekit("ties", *ONE, base_model="b", tokenizer_source="c"), "none of the models"),
        (mergekit("ties", *ONE, base_model="b", parameters={"lamda": 1}), "Did you mean lambda"),
        (mergekit("ties", ("b+x", {"wait": 1}), base_model="b"), "models[1]: parameters: wait"),
        (mergekit("ties", ("b+x", {"weight": "x"}), base_model="b"), "weight 'x' is no number"),
        (mergekit("ties", ("b+x", {"weight": True}), base_model="b"), "weight True is no number"),
        (mergekit("ties", *ONE, base_modell="b"), "Did you mean base_model"),
        (
            mergekit("task_arithmetic", *ONE, base_model="b", parameters={"lambda": "x"}),
            "lambda 'x' is no number",
        ),
        (
            mergekit("task_arithmetic", *ONE, base_model="b", parameters={"normalize": "false"}),
            "normalize 'false' is neither",
        ),
        (mergekit("linear", *ONE, parameters={"normalize": "no"}), "normalize 'no' is neither"),
        ({"merge_method": "ties", "models": "b"}, "models 'b' is no list"),
        ({"merge_method": "ties", "models": [{}]}, "names no model"),
    ],
)
def test_mergekit_is_wrong(recipe: dict[str, Any], said: str):
    assert said in refused(recipe)


# --- LLaMA-Factory and axolotl -------------------------------------------------------------------

LLAMA_FACTORY = """
### model
model_name_or_path: org/base
adapter_name_or_path: saves/a, saves/b
template: llama3
finetuning_type: lora
trust_remote_code: true

### export
export_dir: models/out
export_size: 2
export_device: cpu
export_legacy_format: false
"""


def test_llama_factory():
    found = read(LLAMA_FACTORY)
    assert (found.base, found.output) == ("org/base", "models/out")
    assert found.adapters == ("saves/a", "saves/b")
    assert found.options == {"method": "sequential", "max_shard_size": "2GB"}
    assert "sequential" in found.notes[0]
    assert len(found.notes) == 1
    one = read(LLAMA_FACTORY.replace(", saves/b", ""))
    assert (one.adapters, one.options) == (("saves/a",), {"max_shard_size": "2GB"})


def test_llama_factory_in_training(place: Path):
    (place / "here").mkdir()
    found = read(
        {
            "model_name_or_path": "org/base",
            "model_revision": "v2",
            "adapter_name_or_path": ["here", "org/a"],
            "adapter_folder": "last",
            "infer_dtype": "float16",
            "learning_rate": 1e-4,
            "output_dir": "x",
        }
    )
    assert found.base == "org/base@v2"
    assert found.adapters == ("here:last", "org/a@v2:last")
    assert found.options == {"method": "sequential", "dtype": "float16"}
    assert "learning_rate, output_dir" in found.notes[1]
    assert "dtype" not in read({"model_name_or_path": "b", "infer_dtype": "auto"}).options


def test_axolotl():
    text = {
        "base_model": "org/base",
        "revision_of_model": "v3",
        "lora_model_dir": "trained",
        "output_dir": "runs/x",
        "adapter": "lora",
        "load_in_8bit": False,
        "merge_method": "memory_efficient",
        "datasets": [{"path": "d"}],
    }
    found = read(text)
    assert (found.base, found.adapters) == ("org/base@v3", ("trained",))
    assert found.output == "runs/x/merged"
    assert found.options == {}
    assert found.notes == ("Not needed to merge: datasets.",)
    # Where training put the adapter, nothing else is written.
    del text["lora_model_dir"]
    assert (read(text).adapters, read(text).output) == (("runs/x",), None)
    for qlora in ({"adapter": "qlora"}, {"load_in_4bit": True}):
        found = read(text | qlora)
        assert found.options == {"simulate": "nf4"}
        assert "--simulate none" in found.notes[0]
        assert read(text | qlora | {"merge_method": "legacy"}).options == {}


@pytest.mark.parametrize(
    ("recipe", "kind", "said"),
    [
        ({"model_name_or_path": "b", "finetuning_type": "full"}, Unsupported, "whole model"),
        ({"model_name_or_path": "b", "export_quantization_bit": 4}, Unsupported, "GPTQ"),
        ({"model_name_or_path": "b", "adapter_name_or_pth": "a"}, UsageError, "Did you mean"),
        ({"base_model": "b", "lora_model_dirs": "a"}, UsageError, "Did you mean lora_model_dir"),
        ({"base_model": "b", "adapter": "mixlora"}, Unsupported, "mixlora"),
        ({"base_model": "b", "base": "b"}, UsageError, "mixes the keys of remerge and axolotl"),
        ({"models": [], "export_dir": "b"}, UsageError, "mixes the keys of mergekit and LLaMA"),
        ({"models": [], "lora_model_dir": "b"}, UsageError, "mixes the keys"),
        ({"base": "b", "models": []}, UsageError, "mixes the keys"),
    ],
)
def test_other_tools_refuse(recipe: dict[str, Any], kind: Any, said: str):
    assert said in refused(recipe, kind)


# --- what counts more ----------------------------------------------------------------------------


def test_what_is_given_besides_counts_more():
    written = RecipeFile(
        "b", ("x", "y"), "o", {"method": "ties", "weights": [1, 2], "parameters": {"density": 0.5}}
    )
    found = written.overridden(None, (), None, parameters={})
    assert found == written
    found = written.overridden("c", ("z",), "p", weights=(3.0,), parameters={"lambda": 2.0})
    assert (found.base, found.adapters, found.output) == ("c", ("z",), "p")
    assert found.options == {
        "method": "ties",
        "weights": (3.0,),
        "parameters": {"density": 0.5, "lambda": 2.0},
    }
    found = written.overridden(None, (), None, method="sum", parameters={})
    assert found.options["parameters"] == {}
    assert found.notes == ("--method sum has no density: left out.",)


def test_the_same_bytes_by_file_or_by_options(inputs: Path, place: Path):
    tiny.write_adapter(place / "a", seed=5)
    base, first = inputs / "base", inputs / "adapter"
    Path("r.json").write_text(
        json.dumps(
            {
                "base": str(base),
                "adapters": [{"path": str(first), "density": 0.25}, "a"],
                "weights": [1, 0.5],
                "method": "ties",
                "dtype": "float32",
            }
        )
    )
    asked = remerge.read_recipe("r.json")
    remerge.merge(asked.base, asked.adapters, "one", **asked.options)
    remerge.merge(
        base,
        [first, "a"],
        "two",
        method="ties",
        weights=[1.0, 0.5],
        parameters={"density": [0.25, 1.0]},
        dtype="float32",
    )
    assert tiny.files_of(Path("one")) == tiny.files_of(Path("two"))
