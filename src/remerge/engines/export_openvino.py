"""Run in OpenVINO's environment: a merged checkpoint as an OpenVINO model, whose logits are held to
the merge's before anything is published."""

# OpenVINO's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import nncf
import numpy as np
import openvino
import torch
from optimum.exporters.openvino import main_export
from optimum.intel.openvino.configuration import OVConfig

from remerge.engines.agreement import check, read_reference
from remerge.engines.calling import Teller, answer
from remerge.engines.loading import told, write_beside
from remerge.engines.openvino_form import ALLOWED, OpenvinoOptions
from remerge.errors import NotReproduced, Unsupported
from remerge.merging.budget import peak_memory

_MODEL = "openvino_model.xml"
_GROUP = 128
_MODES: Mapping[str, Mapping[str, Any]] = {
    "int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
    "int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": _GROUP, "ratio": 1.0},
}


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Write the model's files into ``target``; gives how far its logits are from the merge's."""
    source, target = Path(request["directory"]), Path(request["target"])
    precision = OpenvinoOptions.model_validate(request["recipe"]["form"]).precision
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    tell(0, total, "exporting the graph")
    export(source, target, precision)
    tell(total // 2, total, "comparing logits")
    reference = read_reference(request["reference"])
    found = logits(target, reference["tokens"])
    agreed = check(reference, found, ALLOWED[precision], "OpenVINO")
    write_beside(source, target)
    tell(total, total, "done")
    packages = ("openvino", "optimum-intel", "nncf", "transformers")
    return {
        "notes": [agreed.note("OpenVINO")],
        "measured": agreed.document(),
        "versions": {name: version(name) for name in packages},
        "peak_memory": peak_memory(),
    }


def export(source: Path, target: Path, precision: str) -> None:
    """Have optimum-intel trace the model, and nncf compress its weights."""
    stored = "fp16" if precision == "fp16" else "fp32"
    try:
        main_export(
            str(source),
            target,
            task="text-generation-with-past",
            library_name="transformers",
            local_files_only=True,
            ov_config=OVConfig(dtype=stored),
            stateful=True,
            convert_tokenizer=True,
        )
        if precision in _MODES:
            model = openvino.Core().read_model(target / _MODEL)
            with tempfile.TemporaryDirectory(dir=source.parent) as place:
                compressed = Path(place) / _MODEL
                openvino.save_model(nncf.compress_weights(model, **_MODES[precision]), compressed)
                del model
                for file in Path(place).iterdir():
                    file.replace(target / file.name)
    except OSError:
        raise
    except Exception as error:  # whatever an exporter of many models may raise
        raise Unsupported(
            f"optimum-intel cannot export this model: {told(error, source)}.",
            hint="Write a checkpoint or a GGUF file instead.",
        ) from error


def logits(target: Path, tokens: np.ndarray) -> np.ndarray:
    """The model's logits at each of the tokens, computed in float32."""
    count = len(tokens)
    known = {
        "input_ids": tokens[None].astype(np.int64),
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    try:
        core = openvino.Core()
        # What a processor would rather compute in is another question.
        model = core.compile_model(target / _MODEL, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        asked = model.create_infer_request()
        asked.infer({put.any_name: known[put.any_name] for put in model.inputs})
        return np.array(asked.get_tensor("logits").data[0], np.float32)
    except (RuntimeError, KeyError) as error:
        raise NotReproduced(
            f"OpenVINO cannot run what was exported: {told(error, target)}.",
            hint="Write a checkpoint or a GGUF file instead.",
        ) from error


if __name__ == "__main__":
    answer(work)
