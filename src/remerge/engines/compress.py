"""Run in llm-compressor's environment: a merged checkpoint, quantised with what samples show of its
activations, layer by layer.

The work is forecast by doing it to one layer; the result is loaded again and its logits compared
with the merge's.
"""

# llm-compressor has no types, and lies in an environment of its own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import llmcompressor
import torch
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor.pipelines.sequential import pipeline

from remerge.engines.agreement import Values, check, read_reference
from remerge.engines.calibrated import ALLOWED, CompressionOptions
from remerge.engines.calibration import notes_of, samples
from remerge.engines.calling import Teller, answer
from remerge.engines.forecasting import Tokens, forecast, said
from remerge.engines.loading import load, logits_of, told, write_beside
from remerge.engines.survey_compression import IGNORED
from remerge.errors import Unsupported
from remerge.merging.budget import peak_memory


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Write the quantised checkpoint into ``target``; gives how far it is from the merge."""
    options = CompressionOptions.model_validate(request["recipe"]["form"])
    source, target = Path(request["directory"]), Path(request["target"])
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    if not torch.cuda.is_available():
        # It pins memory for a device whether there is one or not.
        IntermediatesCache.pin_memory = lambda *given, **options: None
    total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    model = load(source, dtype="auto")
    text = model.config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    tokens = samples(options, request["files"].get("calibration"), source, longest)

    def trial(small: Any, known: Tokens) -> float:
        began = time.perf_counter()
        quantise(small, known, options)
        return time.perf_counter() - began

    tell.note(forecast(model.config, tokens, trial))
    _report_batches(tell, total)
    started = time.perf_counter()
    quantise(model, tokens, options)
    tell.note(f"Quantised in {said(time.perf_counter() - started)}.")
    model.save_pretrained(target, save_compressed=True)
    del model
    write_beside(source, target, "quantization_config")
    tell(total, total, "comparing logits")
    reference = read_reference(request["reference"])
    agreed = check(reference, _again(target, reference["tokens"]), ALLOWED, "transformers")
    packages = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    return {
        "notes": [*notes_of(options, tokens), agreed.note("transformers")],
        "measured": agreed.document(),
        "versions": {name: version(name) for name in packages},
        "peak_memory": peak_memory(),
    }


def quantise(model: Any, tokens: Tokens, options: CompressionOptions) -> None:
    """Quantise a model in place, one layer after the other, each calibrated on what those before
    it, already quantised, give."""
    rows: Any = [
        {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row)).long()}
        for row in tokens
    ]
    weights = {
        "num_bits": options.bits,
        "type": "int",
        "symmetric": options.symmetric,
        "strategy": "group",
        "group_size": options.group_size,
    }
    common = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": [rf"re:(.*\.)?{name}$" for name in IGNORED],
    }
    modifiers = (
        [GPTQModifier(**common)]
        if options.method == "gptq"
        else [AWQModifier(), QuantizationModifier(**common)]
    )
    try:
        llmcompressor.oneshot(
            model=model,
            recipe=modifiers,
            dataset=torch.utils.data.DataLoader(rows, batch_size=None),
            num_calibration_samples=len(rows),
            pipeline="sequential",
        )
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever tracing a model of any kind may raise
        raise Unsupported(
            f"llm-compressor cannot quantise this model: {told(error)}.",
            hint="Write a checkpoint or a GGUF file instead.",
        ) from error


def _report_batches(tell: Teller, total: int) -> None:
    """Have each batch that passes a layer told, as a share of the bytes."""
    batches = pipeline._get_batches

    def passing_told(cache: Any, count: int, names: Any, what: str, *rest: Any) -> Any:
        # (3/33): Calibrating, and then Propagating: the two passes of a layer.
        part, _, passing = what.partition(": ")
        number, _, of = part.strip("()").partition("/")
        before = int(number) - 1 + (0.5 if passing == "Propagating" else 0.0)
        for found in batches(cache, count, names, what, *rest):
            share = (before + 0.5 * found[0] / count) / int(of)
            tell(int(total * share), total, f"layer {number} of {of}")
            yield found

    pipeline._get_batches = passing_told


def _again(target: Path, tokens: Values) -> Values:
    return logits_of(load(target, dtype=torch.float32), tokens)


if __name__ == "__main__":
    answer(work)
