"""How many elements of a merge are the exact sum rounded once: of remerge's, and PEFT's two ways.

    python benchmarks/exactness.py [BASE ADAPTER]

The exact result of an element is `W + s * B @ A` of the stored values, summed in float64. It is
rounded once if it lies no further away than half a unit in the last place of the output's dtype, as
wide as that is there. Only tensors that the adapter changes count; plain LoRA on linear layers.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import remerge

# float64 to bfloat16 by way of float32 misses the nearest by less than 2^-16 of a unit.
ROUNDED_ONCE = 0.5 + 2**-16


def main() -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    named = sys.argv[1:] or ["examples/base", "examples/adapters/sort"]
    base, adapter = map(Path, named)
    exact = dict(exact_results(base, adapter))
    with tempfile.TemporaryDirectory() as scratch:
        ways = {"remerge merge": Path(scratch) / "remerge"}
        remerge.merge(str(base), str(adapter), str(ways["remerge merge"]))
        for name, safe in (("", False), ("safe_merge=True", True)):
            out = ways[f"PEFT merge_and_unload({name})"] = Path(scratch) / f"peft{safe}"
            model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
            model = PeftModel.from_pretrained(model, str(adapter))
            model.merge_and_unload(safe_merge=safe).save_pretrained(out)
        print(f"{'':40}rounded once")
        for name, place in ways.items():
            found = list(errors(exact, place))
            right = sum(int((error <= ROUNDED_ONCE).sum()) for error in found)
            print(f"{name:40}{100 * right / sum(error.numel() for error in found):11.5f}%")
    print(f"{sum(v.numel() for v in exact.values()):,} elements of {len(exact)} tensors")


def exact_results(base: Path, adapter: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names of changed tensors, each with its exact result in float64."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert not (settings["use_dora"] or settings["use_rslora"] or settings["rank_pattern"])
    scale = settings["lora_alpha"] / settings["r"]
    factors = dict(tensors(adapter))
    for name, weight in tensors(base):
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in factors:
            a, b = (factors[f"{prefix}.lora_{x}.weight"].double() for x in "AB")
            yield name, weight.double() + scale * (b @ a)


def errors(exact: dict[str, torch.Tensor], place: Path) -> Iterator[torch.Tensor]:
    """Of each changed tensor the distances from the exact result, in units in the last place."""
    for name, value in tensors(place):
        if name in exact:
            # Of the binade in which the exact result lies.
            _, exponent = torch.frexp(exact[name])
            unit = torch.ldexp(
                torch.tensor(torch.finfo(value.dtype).eps, dtype=torch.float64), exponent - 1
            )
            yield (value.double() - exact[name]).abs() / unit


def tensors(place: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(place.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no dictionary
                yield name, opened.get_tensor(name)


if __name__ == "__main__":
    main()
