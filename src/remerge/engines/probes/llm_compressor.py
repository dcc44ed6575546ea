"""llm-compressor: quantises a checkpoint of one tensor."""

# llm-compressor lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import tempfile
from pathlib import Path

_NAME = "model.layers.0.self_attn.q_proj.weight"


def probe() -> str:
    """One tensor in FP8 by rows: what comes back is near what went in."""
    import torch
    from llmcompressor import model_free_ptq
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    with tempfile.TemporaryDirectory(prefix="remerge-") as place:
        source, target = Path(place, "in"), Path(place, "out")
        source.mkdir()
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        (source / "config.json").write_text(json.dumps(config))
        save_file({_NAME: weight}, source / "model.safetensors")
        model_free_ptq(str(source), str(target), scheme="FP8_DYNAMIC", max_workers=1, device="cpu")
        found = load_file(target / "model.safetensors")
    codes, scales = found[_NAME], found[f"{_NAME}_scale"]
    # Three bits of mantissa: half a step is 1/16 of a value.
    if codes.dtype != torch.float8_e4m3fn or not torch.allclose(
        codes.float() * scales.float(), weight, rtol=0.07, atol=1e-3
    ):
        raise RuntimeError("the tensor that it quantised is not near the one it was given")
    return "quantised a tensor to FP8"
