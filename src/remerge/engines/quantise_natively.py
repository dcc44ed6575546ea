"""Run in gptqmodel's environment: a merged checkpoint in GPTQ's own layout."""

# gptqmodel has no types, and lies in an environment of its own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# On two processors it counts one worker, and then asks for two.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

from remerge.engines.agreement import check, read_reference
from remerge.engines.calibrated import ALLOWED, NativeOptions
from remerge.engines.calibration import notes_of, samples
from remerge.engines.calling import Teller, answer
from remerge.engines.forecasting import Tokens, forecast, said
from remerge.engines.loading import load, logits_of, told, write_beside
from remerge.errors import Unsupported
from remerge.merging.budget import peak_memory
from remerge.outputs.side_files import is_tokenizer_file

_QUANTISED = "quantize_config.json"
# What it writes about its run: times, which are never the same.
_LOG = "quant_log.csv"


class _Layers:
    """Tells of every layer that is done."""

    def __init__(self, tell: Teller, layers: int, total: int) -> None:
        self._tell, self._layers, self._total = tell, layers, total

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        done = self._total * (layer_idx + 1) // self._layers
        self._tell(min(done, self._total), self._total, f"layer {layer_idx + 1} of {self._layers}")


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Write the quantised checkpoint into ``target``; gives how far it is from the merge."""
    options = NativeOptions.model_validate(request["recipe"]["form"])
    source, target = Path(request["directory"]), Path(request["target"])
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    whole = load(source, dtype="auto")
    config = whole.config
    del whole
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    tokens = samples(options, request["files"].get("calibration"), source, longest)

    def trial(small: Any, known: Tokens) -> float:
        with tempfile.TemporaryDirectory(dir=source.parent) as place:
            small.save_pretrained(place)
            for file in source.iterdir():
                if is_tokenizer_file(file.name):
                    shutil.copy(file, place)
            began = time.perf_counter()
            quantise(Path(place), known, options, None)
            return time.perf_counter() - began

    tell.note(forecast(config, tokens, trial))
    started = time.perf_counter()
    layers = _Layers(tell, text.num_hidden_layers, total)
    model = quantise(source, tokens, options, layers)
    tell.note(f"Quantised in {said(time.perf_counter() - started)}.")
    model.save(str(target))
    del model
    (target / _LOG).unlink(missing_ok=True)
    write_beside(source, target, "quantization_config")
    tell(total, total, "comparing logits")
    reference = read_reference(request["reference"])
    again = GPTQModel.load(str(target), device="cpu", backend=BACKEND.TORCH)
    found = logits_of(again.model, reference["tokens"])
    agreed = check(reference, found, ALLOWED, "gptqmodel")
    return {
        "notes": [*notes_of(options, tokens), agreed.note("gptqmodel")],
        "measured": agreed.document(),
        "versions": {name: version(name) for name in ("gptqmodel", "transformers", "torch")},
        "peak_memory": peak_memory(),
    }


def quantise(directory: Path, tokens: Tokens, options: NativeOptions, layers: Any) -> Any:
    """The quantised model of a checkpoint."""
    rows = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in tokens]
    config = QuantizeConfig(
        bits=options.bits,
        group_size=options.group_size,
        sym=True,
        desc_act=False,
        # It would name a folder of this machine in the output.
        offload_to_disk=False,
    )
    try:
        model = GPTQModel.load(str(directory), config, device="cpu")
        model.layer_callback = layers
        model.quantize(rows, batch_size=1, calibration_data_min_length=1, calibration_sort=None)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a model of any kind may raise
        raise Unsupported(
            f"gptqmodel cannot quantise this model: {told(error, directory)}.",
            hint="Use --to gptq, which is llm-compressor's.",
        ) from error
    return model


if __name__ == "__main__":
    answer(work)
