"""Run in onnxruntime-genai's environment: a merged checkpoint as an ONNX model, whose logits are
compared with the merge's before anything is published."""

# onnxruntime's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import onnxruntime_genai
import onnxruntime_genai.models
import torch
from builders.base import Model
from onnxruntime_genai.models import builder

from remerge.engines.agreement import check, read_reference
from remerge.engines.calling import Teller, answer
from remerge.engines.loading import told
from remerge.engines.onnx import ALLOWED, OnnxOptions
from remerge.errors import NotReproduced, Unsupported
from remerge.merging.budget import peak_memory
from remerge.outputs.side_files import is_tokenizer_file

_EXECUTION_PROVIDER = "cpu"


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Write the model's files into ``target``; gives how far its logits are from the merge's."""
    source, target = Path(request["directory"]), Path(request["target"])
    precision = OnnxOptions.model_validate(request["recipe"]["form"]).precision
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    tell(0, total, "building the graph")
    build(source, target, precision)
    tell(total // 2, total, "comparing logits")
    reference = read_reference(request["reference"])
    found = logits(target, reference["tokens"])
    agreed = check(reference, found, ALLOWED[precision], "ONNX Runtime")
    notes = [agreed.note("ONNX Runtime"), *carry_tokenizer(source, target)]
    tell(total, total, "done")
    packages = ("onnxruntime-genai", "onnxruntime", "transformers")
    return {
        "notes": notes,
        "measured": agreed.document(),
        "versions": {name: version(name) for name in packages},
        "peak_memory": peak_memory(),
    }


def build(source: Path, target: Path, precision: str) -> None:
    """Have the builder write graph, weights, generation settings and tokenizer."""
    # It takes any linear layer as wide as the vocabulary for the head, and then builds two.
    Model.has_lm_head = lambda self, module: module is self.weights.get_output_embeddings()
    with tempfile.TemporaryDirectory(dir=source.parent) as cache:
        places = (None, str(source), str(target), precision, _EXECUTION_PROVIDER, cache)
        try:
            options = builder.parse_extra_options(*places, ["hf_token=false"])
            builder.create_model(*places, **options)
        except OSError:
            raise
        except Exception as error:  # whatever a builder of many models may raise
            raise Unsupported(
                f"onnxruntime-genai's builder refuses this model: {told(error, source)}.",
                hint="Write a checkpoint or a GGUF file instead.",
            ) from error


def logits(target: Path, tokens: np.ndarray) -> np.ndarray:
    """The model's logits at each of the tokens, as a program that uses it gets them."""
    try:
        model = onnxruntime_genai.Model(str(target))
        generator = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
        generator.append_tokens(tokens[None].astype(np.int32))
        return np.array(generator.get_output("logits")[0], np.float32)
    except Exception as error:  # onnxruntime's own errors, which share no class
        raise NotReproduced(
            f"onnxruntime-genai cannot run what its builder wrote: {told(error, target)}.",
            hint="Write a checkpoint or a GGUF file instead.",
        ) from error


def carry_tokenizer(source: Path, target: Path) -> list[str]:
    """Put the merge's own tokenizer files in the place of those that were written anew, where
    onnxruntime-genai reads them; sentences about it."""
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    carried = {name: (source / name).read_bytes() for name in names if is_tokenizer_file(name)}
    written = {name: (target / name).read_bytes() for name in carried if (target / name).is_file()}
    _write(target, carried)
    if _reads_tokenizer(target):
        return []
    for name in carried.keys() - written.keys():
        (target / name).unlink()
    _write(target, written)
    return [
        "The tokenizer's files are as transformers wrote them: onnxruntime-genai does not read "
        "those of the merge."
    ]


def _reads_tokenizer(target: Path) -> bool:
    try:
        model = onnxruntime_genai.Model(str(target))
        return len(onnxruntime_genai.Tokenizer(model).encode("one two")) > 0
    except Exception:  # onnxruntime's own errors, which share no class
        return False


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)


if __name__ == "__main__":
    answer(work)
