"""Run in remerge's own environment: the merge's logits in float32, which what an engine makes of it
is compared with.

An engine's own transformers would misread a configuration in the same way on both sides.
"""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

from remerge.engines.calling import Teller, answer
from remerge.errors import Unsupported
from remerge.merging.budget import peak_memory

_TEXT = (
    "A lighthouse keeper counts the ships that pass: three on Monday, five on Tuesday, none in the "
    "fog. She writes down their names, where they came from and what they carried, because one day "
    "somebody will ask. def total(ships): return sum(ship.crew for ship in ships) "
)
_LONGEST = 64


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Write ``tokens`` and ``logits`` of the checkpoint in ``directory`` to ``target``."""
    from transformers import AutoModelForCausalLM

    directory = request["directory"]
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    except (ValueError, KeyError, ImportError) as error:
        said = str(error).strip().splitlines()[0]
        raise Unsupported(
            f"transformers does not load the merge as a causal language model: {said}",
            hint="Write a checkpoint instead (leave out --to).",
        ) from error
    text = model.config.get_text_config()
    longest = min(_LONGEST, getattr(text, "max_position_embeddings", None) or _LONGEST)
    tokens = _tokens(directory, int(text.vocab_size))[:longest]
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([tokens]), use_cache=False).logits[0]
    np.savez(request["target"], tokens=np.array(tokens), logits=logits.float().numpy())
    return {"peak_memory": peak_memory()}


def _tokens(directory: str, vocabulary: int) -> list[int]:
    """A fixed text in the model's tokens; without a tokenizer, numbers spread over all of them."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(directory).encode(_TEXT)
    except Exception:  # a tokenizer of any kind may fail in any way, and is not what is compared
        found = []
    known = [token for token in found if token < vocabulary]
    if len(set(known)) > _LONGEST // 8:
        return known
    return [(7919 * position + 13) % vocabulary for position in range(_LONGEST)]


if __name__ == "__main__":
    answer(work)
