"""Names of LoRA's tensors: which layer they belong to and what part of it they are."""

from __future__ import annotations

import re

_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector|diag|velora_embed"
    r"|monteclora_sampler)(?:\.(?P<rest>.+))?"
)

# Parts of a layer that only training uses (PEFT lora/velora.py, lora/monteclora.py).
TRAINING_ONLY = ("velora_embed", "monteclora_sampler")


def layer_key(path: str) -> tuple[str, str] | None:
    """The layer and the part of a tensor; None where it is no tensor of a LoRA layer."""
    found = _LORA.fullmatch(path)
    if found is None:
        return None
    part = _part(found["part"], found["rest"])
    return None if part is None else (found["module"], part)


def _part(part: str, rest: str | None) -> str | None:
    """The part's name without the adapter's name; None where the key has no known ending."""
    pieces = rest.split(".") if rest else []
    if part in TRAINING_ONLY:
        return f"{part}.{pieces[-1]}" if pieces else part
    if part in ("A", "B"):
        if not 1 <= len(pieces) <= 2 or pieces[-1] not in ("weight", "bias"):
            return None
        return part if pieces[-1] == "weight" else f"{part}.bias"
    if part == "magnitude_vector" and pieces and pieces[-1] == "weight":
        pieces = pieces[:-1]
    return part if len(pieces) <= 1 else None
