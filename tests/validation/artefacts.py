"""Merged checkpoints of the examples, right and broken, made by safetensors and PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.validation import independent

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE = EXAMPLES / "base"
ADAPTERS = EXAMPLES / "adapters"
Tensors = dict[str, torch.Tensor]
ABOUT = ("remerge.json", "provenance.json", "remerge.tests")


def questions(task: str) -> Path:
    return EXAMPLES / "eval" / f"{task}.jsonl"


def by_peft(
    adapter: Path, target: Path, *, safe: bool, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """What most people do: load, merge_and_unload, save_pretrained."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=safe)
    merged.save_pretrained(target)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(target)
    return target


def changed(right: Path, target: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a merged checkpoint with other tensors and no manifest."""
    shutil.copytree(right, target, ignore=shutil.ignore_patterns(*ABOUT))
    for file in sorted(target.glob("*.safetensors")):
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return target


def _with_delta(
    factor: Mapping[str, float] | float,
) -> Callable[[str], Callable[[Tensors], Tensors]]:
    """The base plus so much of the delta, everywhere or in tensors that hold a word."""

    def make(adapter: str) -> Callable[[Tensors], Tensors]:
        base = independent.tensors(BASE)
        exact = independent.exact_merge(BASE, ADAPTERS / adapter)

        def change(found: Tensors) -> Tensors:
            for name in found.keys() & exact.keys():
                wanted = [factor] if isinstance(factor, float) else []
                if not isinstance(factor, float):
                    wanted = [part for word, part in factor.items() if word in name]
                for part in wanted:
                    own = base[name].double()
                    found[name] = (own + part * (exact[name] - own)).to(found[name].dtype)
            return found

        return change

    return make


def _swap(first: str, second: str) -> Callable[[str], Callable[[Tensors], Tensors]]:
    def make(_: str) -> Callable[[Tensors], Tensors]:
        def change(found: Tensors) -> Tensors:
            if first in found:
                found[first], found[second] = found[second], found[first]
            return found

        return change

    return make


def _eight_bits(rounded: Callable[[torch.Tensor], torch.Tensor]):
    def make(_: str) -> Callable[[Tensors], Tensors]:
        def change(found: Tensors) -> Tensors:
            return {
                name: rounded(values.float()).to(values.dtype) if values.ndim == 2 else values
                for name, values in found.items()
            }

        return change

    return make


def _int8(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (values / scale).round().clamp(-127, 127) * scale


_LAYER = "model.layers.1"
BROKEN = {
    "layer dropped": _with_delta({f"{_LAYER}.": 0.0}),
    "one module dropped": _with_delta({f"{_LAYER}.mlp.down_proj": 0.0}),
    "sign flipped": _with_delta(-1.0),
    "sign of a layer flipped": _with_delta({f"{_LAYER}.": -1.0}),
    "scale halved": _with_delta(0.5),
    "scale of a layer halved": _with_delta({f"{_LAYER}.": 0.5}),
    "applied twice": _with_delta(2.0),
    "touched swapped": _swap(
        f"{_LAYER}.self_attn.q_proj.weight", f"{_LAYER}.self_attn.o_proj.weight"
    ),
    "untouched swapped": _swap(
        f"{_LAYER}.input_layernorm.weight", f"{_LAYER}.post_attention_layernorm.weight"
    ),
    "8 bits a tensor": _eight_bits(lambda v: _int8(v, v.abs().max() / 127)),
    "8 bits a row": _eight_bits(lambda v: _int8(v, v.abs().amax(1, keepdim=True) / 127)),
    "fp8": _eight_bits(lambda v: v.to(torch.float8_e4m3fn).float()),
}


def without_manifest(right: Path, target: Path) -> Path:
    shutil.copytree(right, target, ignore=shutil.ignore_patterns(*ABOUT))
    return target


def as_written(document: object, path: Path) -> Path:
    """Lines of JSON."""
    lines = document if isinstance(document, list) else [document]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
