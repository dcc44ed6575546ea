"""Run in engines' environments: checkpoints through transformers, and what lies beside weights."""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from remerge.engines.agreement import Values
from remerge.errors import Unsupported
from remerge.outputs.spellings import both_spellings

_LONGEST = 300
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def told(error: BaseException, directory: Path | None = None) -> str:
    """What a library says of its failure, short, in one line, without the folder that is there for
    its sake."""
    text = " ".join(str(error).split()) or type(error).__name__
    if directory is not None:
        text = text.replace(f"{directory}/", "").replace(str(directory), "the model")
    return text[:_LONGEST].removesuffix(".")


def load(directory: Path, *, dtype: Any) -> Any:
    """A checkpoint as a causal language model, whole; raises `Unsupported` where transformers
    knows no such one, or leaves tensors out."""
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, output_loading_info=True
        )
        model, found = loaded
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise Unsupported(
            f"The engine's transformers does not load the model: {told(error, directory)}.",
            hint="Write a checkpoint instead (leave out --to).",
        ) from error
    left = sorted(found["unexpected_keys"]) + sorted(found["missing_keys"])
    if left:
        raise Unsupported(
            f"The engine's transformers leaves out {left[0]} ({len(left)} such tensors).",
            why="The class that it builds is not the whole model.",
            hint="Write a checkpoint instead (leave out --to).",
        )
    return model.eval()


def logits_of(model: Any, tokens: Values) -> Values:
    """Logits in float32 at each of the tokens."""
    with torch.inference_mode():
        found = model(torch.from_numpy(tokens[None].astype(np.int64)), use_cache=False).logits[0]
    return found.float().numpy()


def write_beside(source: Path, target: Path, *keys: str) -> None:
    """Give ``target``, which an engine wrote, the merge's own side files byte for byte, and a
    config.json that is the merge's with the engine's ``keys``.

    An engine's transformers would write them anew, and drop what other versions read.
    """
    written = json.loads((target / "config.json").read_bytes())
    document = json.loads((source / "config.json").read_bytes())
    document |= {key: written[key] for key in keys if key in written}
    text = json.dumps(both_spellings(document), indent=2, ensure_ascii=False) + "\n"
    (target / "config.json").write_text(text)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and name != "config.json" and not name.endswith(_WEIGHTS):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
    for path in target.glob("*.safetensors"):
        # It is written through a temporary file that only its owner may read.
        path.chmod((target / "config.json").stat().st_mode)
