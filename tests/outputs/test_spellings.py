"""Configurations in both spellings, held to what transformers reads in them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from remerge.outputs.spellings import both_spellings

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 500000.0},
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3}, "rope_scaling": None},
        {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_both_say_the_same(config: dict[str, Any]):
    found = both_spellings({"model_type": "llama", **config})
    read = AutoConfig.for_model(**found).rope_parameters
    assert read == AutoConfig.for_model("llama", **config).rope_parameters
    # Where transformers 4 looks.
    assert found["rope_theta"] == read["rope_theta"]
    assert (found.get("rope_scaling") or {}).get("factor") == read.get("factor")
    assert found["rope_parameters"]["rope_theta"] == read["rope_theta"]
    assert both_spellings(found) == found


def test_layers_of_two_kinds():
    config = AutoConfig.for_model("gemma3_text").to_dict()
    config["rope_parameters"]["full_attention"]["rope_theta"] = 2e6
    found = both_spellings(config)
    assert found["rope_theta"] == 2e6
    assert found["rope_local_base_freq"] == 10000.0
    assert AutoConfig.for_model(**found).rope_parameters == config["rope_parameters"]


def test_models_inside_models_and_other_dtypes():
    inner = {"model_type": "llama", "rope_theta": 7.0, "torch_dtype": "float16"}
    found = both_spellings({"text_config": inner, "quantization_config": {"dtype": "int4"}})
    assert found["text_config"]["dtype"] == "float16"
    assert found["text_config"]["rope_parameters"]["rope_theta"] == 7.0
    assert found["quantization_config"] == {"dtype": "int4"}


def test_what_is_spelt_otherwise_is_left():
    config = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    assert both_spellings(config) == config
