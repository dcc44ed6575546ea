"""OpenVINO models against transformers: OpenVINO gives the logits of the merge."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import remerge
from remerge.artefacts.making_by_engine import EngineResult
from tests.engines import llama_models
from tests.engines.places import needs, python_of

pytestmark = needs("openvino")
PYTHON = python_of("openvino")
EXAMPLES = llama_models.EXAMPLES
TOKENS = [(911 * position + 7) % 500 for position in range(48)]
# optimum-intel's own class, and not the way in which the export is checked.
_RUN = """
import json, sys, numpy as np, torch
from optimum.intel import OVModelForCausalLM
model = OVModelForCausalLM.from_pretrained(
    sys.argv[1], ov_config={"INFERENCE_PRECISION_HINT": "f32"})
np.save(sys.argv[2], model(torch.tensor([json.loads(sys.argv[3])])).logits[0].numpy())
"""


@pytest.mark.parametrize(
    ("name", "to", "allowed"),
    [
        ("examples", "openvino:fp32", 1e-3),
        ("qwen3-tied", "openvino", 1e-2),
        ("examples", "openvino:int8", 1.0),
    ],
)
def test_logits_are_those_of_the_merge(tmp_path: Path, name: str, to: str, allowed: float):
    base, adapter = EXAMPLES / "base", EXAMPLES / "adapters" / "sort"
    if name != "examples":
        base, adapter = llama_models.write(name, tmp_path, None)
    out = tmp_path / "out"
    pythons = {"openvino": str(PYTHON)}
    result = remerge.export(base, out, adapters=adapter, to=to, engine_python=pythons)
    assert isinstance(result, EngineResult)
    remerge.merge(base, adapter, tmp_path / "merged", dtype="float32")
    words = [PYTHON, "-c", _RUN, out, tmp_path / "logits.npy", json.dumps(TOKENS)]
    done = subprocess.run(list(map(str, words)), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.inference_mode():
        expected = loaded(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() < allowed
    # Both spellings, and the tokenizer as it was.
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    own = (base / "tokenizer_config.json").read_bytes()
    assert (out / "tokenizer_config.json").read_bytes() == own
