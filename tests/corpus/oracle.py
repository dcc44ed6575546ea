"""What has to come out, from PEFT itself.

Two results for each pair. ``peft`` is what a user gets from ``merge_and_unload()`` in the base's
dtype. ``exact`` is the same model, loaded in the base's dtype (so that whatever PEFT does to the
base while loading, such as the residual of PiSSA, happens as in training), then widened to float64
and merged there: PEFT's own formulas without their roundings. ``exact`` rounded once to the dtype
of the base is what remerge has to give.
"""

from __future__ import annotations

import math
import re
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file

from tests.corpus.architectures import ARCHS
from tests.corpus.build import ADAPTER_FILE, DTYPES, hand_targets, load_base, model_class
from tests.corpus.case import Built, Tensors, read_checkpoint


@dataclass(frozen=True)
class Expected:
    #: Merged in float64, not yet rounded.
    exact: Tensors
    #: PEFT's own result in the dtype of the base; None where PEFT cannot merge this adapter.
    peft: Tensors | None
    #: Keys that PEFT did not find in the adapter when loading it.
    missing: tuple[str, ...] = ()
    #: The configuration that PEFT leaves on the model.
    config: dict[str, Any] = field(default_factory=dict[str, Any])


def expected(built: Built) -> Expected:
    if built.case.hand is not None:
        return Expected(merged_by_hand(built), None)
    own, missing, config = merged_by_peft(built, double=False)
    exact, _, _ = merged_by_peft(built, double=True)
    return Expected(exact, own, missing, config)


def round_once(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 -> float32 -> 16 bits, as torch does it on every device."""
    return tensor.to(torch.float32).to(dtype)


# --- PEFT ---------------------------------------------------------------------------------------
def with_adapter(built: Built, dtype: torch.dtype) -> tuple[Any, tuple[str, ...]]:
    """PEFT's model with the adapter on the base, and the keys that it missed."""
    model = load_base(built.case, built.base, dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(
            model, built.oracle_adapter, adapter_name=built.case.adapter_name
        )
    missing = tuple(str(w.message) for w in caught if "missing adapter keys" in str(w.message))
    return wrapped.eval(), missing


def merged_by_peft(
    built: Built, *, double: bool
) -> tuple[Tensors, tuple[str, ...], dict[str, Any]]:
    """Tensors by the base's names, the keys that PEFT missed, and the configuration."""
    case = built.case
    wrapped, missing = with_adapter(built, DTYPES[case.dtype])
    if double:
        wrapped.double()
    merged = wrapped.merge_and_unload()
    with tempfile.TemporaryDirectory() as directory:
        merged.save_pretrained(directory)
        tensors = read_checkpoint(Path(directory))
    if case.renamed is not None:
        tensors = {re.sub(*case.renamed, name): tensor for name, tensor in tensors.items()}
    base = read_checkpoint(built.base)
    for name in case.kept:
        tensors[name] = base[name].double() if double else base[name]
    return tensors, missing, merged.config.to_dict()


# --- by hand ------------------------------------------------------------------------------------
def merged_by_hand(built: Built) -> Tensors:
    """W + s B A in float64 on the tensors of the checkpoint."""
    hand = built.case.hand
    assert hand is not None
    adapter = load_file(built.root / "adapter_as_saved" / ADAPTER_FILE)
    scale = hand.alpha / (math.sqrt(hand.r) if hand.use_rslora else hand.r)
    merged = {name: tensor.double() for name, tensor in read_checkpoint(built.base).items()}
    for name in hand_targets(hand, built.base):
        key = "base_model.model." + hand.rename(name.removesuffix(".weight"))
        a = adapter[f"{key}.lora_A.weight"].double()
        b = adapter[f"{key}.lora_B.weight"].double()
        merged[name] = merged[name] + scale * (b @ a)
    return merged


# --- the forward pass ---------------------------------------------------------------------------
def sample_inputs(built: Built) -> dict[str, torch.Tensor]:
    kind = ARCHS[built.case.arch].inputs
    ids = torch.tensor([[5, 17, 3, 60, 41, 8, 22, 11], [9, 33, 71, 12, 4, 50, 6, 77]])
    if kind == "seq2seq":
        return {"input_ids": ids, "decoder_input_ids": ids.flip(0)}
    if kind == "ids":
        return {"input_ids": ids}
    raise ValueError(f"no forward pass for {built.case.arch}")


@torch.no_grad()
def adapter_logits(built: Built) -> torch.Tensor:
    """Logits of the adapter on the base, in float32."""
    wrapped, _ = with_adapter(built, torch.float32)
    return wrapped(**sample_inputs(built)).logits


@torch.no_grad()
def output_logits(built: Built, output: Path) -> torch.Tensor:
    """Logits of the merged checkpoint, in float32."""
    model = model_class(built.case).from_pretrained(output, dtype=torch.float32).eval()
    return model(**sample_inputs(built)).logits
