"""Adapters as torchtune writes them. The oracle is the matrix that torchtune trained: its weight
is Hugging Face's with rows rearranged by hf_to_tune (torchtune/models/convert_weights.py), so the
merge must be: rearrange the base, add the change, rearrange back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from remerge.adapters.adapter import open_adapter
from remerge.errors import BadInput, Unsupported

from .place import (
    HEAD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Tensors,
    check_merge,
    llama_modules,
    plan,
    rand,
    write_adapter,
    write_llama,
)

RANK, ALPHA = 3, 8
CONFIG = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], "peft_type": "LORA"}
NAMES = {
    "self_attn.o_proj": "attn.output_proj",
    "self_attn": "attn",
    "mlp.gate_proj": "mlp.w1",
    "mlp.down_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w3",
    "model.layers": "layers",
    "lm_head": "output",
}


def _tune(module: str) -> str:
    for ours, theirs in NAMES.items():
        module = module.replace(ours, theirs)
    return module


def _to_tune(weight: torch.Tensor, heads: int, head: int) -> torch.Tensor:
    """hf_to_tune's _permute: halves of a head become neighbouring pairs."""
    rest = weight.shape[1:]
    return weight.view(heads, 2, head // 2, *rest).transpose(1, 2).reshape(weight.shape)


def _to_hf(weight: torch.Tensor, heads: int, head: int) -> torch.Tensor:
    """The inverse, found without its formula: rows of a table of row numbers."""
    rows = torch.arange(weight.shape[0])
    return weight[torch.argsort(_to_tune(rows[:, None], heads, head)[:, 0])]


def _rearranged(module: str, weight: torch.Tensor, turn: Any, head: int) -> torch.Tensor:
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(module.rpartition(".")[2])
    return weight if heads is None else turn(weight, heads, head)


def _factors(modules: dict[str, tuple[int, int]]) -> Tensors:
    tensors: Tensors = {}
    for seed, (module, (rows, cols)) in enumerate(modules.items()):
        tensors[f"{_tune(module)}.lora_a.weight"] = rand(RANK, cols, seed=seed)
        tensors[f"{_tune(module)}.lora_b.weight"] = rand(rows, RANK, seed=seed)
    return tensors


def _adapted() -> dict[str, tuple[int, int]]:
    return {n: s for n, s in llama_modules().items() if "embed" not in n}


def _expected(weights: Tensors, tensors: Tensors, head: int = HEAD, turned: bool = True) -> Tensors:
    changed: Tensors = {}
    for module in _adapted():
        a = tensors[f"{_tune(module)}.lora_a.weight"].double()
        b = tensors[f"{_tune(module)}.lora_b.weight"].double()
        weight = weights[f"{module}.weight"].double()
        tuned = _rearranged(module, weight, _to_tune, head) if turned else weight
        tuned = tuned + (ALPHA / RANK) * (b @ a)
        magnitude = tensors.get(f"{_tune(module)}.magnitude")
        if magnitude is not None:
            tuned = (magnitude.double() / torch.linalg.norm(tuned, dim=1))[:, None] * tuned
        back = _rearranged(module, tuned, _to_hf, head) if turned else tuned
        changed[f"{module}.weight"] = back
    return changed


@pytest.mark.parametrize("file", ["adapter_model.pt", "adapter_0.pt", "adapter_3.safetensors"])
def test_rows_are_put_back_where_the_base_has_them(tmp_path: Path, file: str) -> None:
    base = write_llama(tmp_path / "base")
    tensors = _factors(_adapted())
    adapter = write_adapter(tmp_path / "adapter", file, tensors, CONFIG)
    check_merge(base, adapter, _expected(load_file(base / "model.safetensors"), tensors))


def test_magnitudes_are_put_back_with_their_rows(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    tensors = _factors(_adapted())
    for seed, (module, (rows, _)) in enumerate(_adapted().items()):
        tensors[f"{_tune(module)}.magnitude"] = rand(rows, seed=seed).abs()
    adapter = write_adapter(tmp_path / "adapter", "adapter_model.pt", tensors, CONFIG)
    check_merge(base, adapter, _expected(load_file(base / "model.safetensors"), tensors))


def test_qwen2_has_its_rows_in_order_already(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    tensors = _factors(_adapted())
    adapter = write_adapter(tmp_path / "adapter", "adapter_model.pt", tensors, CONFIG)
    weights = load_file(base / "model.safetensors")
    check_merge(base, adapter, _expected(weights, tensors, turned=False))


def test_what_torchtune_trained_counts_where_peft_s_file_stands_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    write_adapter(path, "adapter_model.safetensors", {"base_model.model.x": rand(2)})
    write_adapter(path, "adapter_model.pt", _factors(_adapted()), CONFIG)
    opened = open_adapter(path)
    assert opened.trainer == "torchtune"
    assert opened.files == ("adapter_config.json", "adapter_model.pt")


def test_peft_s_format_from_torchtune_needs_nothing(tmp_path: Path) -> None:
    """tune_to_peft_adapter_weights, without the rows' order (v_proj has none)."""
    base = write_llama(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    module = "model.layers.0.self_attn.v_proj"
    a, b = rand(RANK, HIDDEN), rand(KV_HEADS * HEAD, RANK)
    tensors = {
        f"base_model.model.{module}.lora_A.weight": a,
        f"base_model.model.{module}.lora_B.weight": b,
    }
    config = {**CONFIG, "base_model_name_or_path": "meta-llama/Llama-3.2-1B"}
    adapter = write_adapter(tmp_path / "adapter", "adapter_model.safetensors", tensors, config)
    assert open_adapter(adapter).trainer == "PEFT"
    changed = weights[f"{module}.weight"].double() + ALPHA / RANK * b.double() @ a.double()
    check_merge(base, adapter, {f"{module}.weight": changed})


def test_heads_of_a_stated_width(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", head_dim=HEAD, hidden_size=HIDDEN)
    tensors = _factors(_adapted())
    adapter = write_adapter(tmp_path / "adapter", "adapter_model.pt", tensors, CONFIG)
    check_merge(base, adapter, _expected(load_file(base / "model.safetensors"), tensors))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "phi3"}, "phi3"),
        ({"model_type": None}, "None"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"num_attention_heads": 2}, "where the base has"),
        ({"num_key_value_heads": 3}, "where the base has"),
        ({"head_dim": 3}, "where the base has"),
        ({"head_dim": 0}, "head_dim"),
    ],
)
def test_a_base_that_does_not_say_how(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    base = write_llama(tmp_path / "base", **{"head_dim": HEAD, **config})
    tensors = _factors(_adapted())
    adapter = write_adapter(tmp_path / "adapter", "adapter_model.pt", tensors, CONFIG)
    with pytest.raises(BadInput, match=said):
        plan(base, adapter)


def test_odd_inputs_are_refused(tmp_path: Path) -> None:
    tensors = _factors(_adapted())
    several = write_adapter(tmp_path / "several", "adapter_0.pt", tensors, CONFIG)
    write_adapter(several, "adapter_1.pt", tensors)
    with pytest.raises(BadInput, match="2 epochs"):
        open_adapter(several)
    unknown = {"tok_embeddings.lora_a.weight": rand(2, 2)}
    with pytest.raises(Unsupported, match="tok_embeddings"):
        open_adapter(write_adapter(tmp_path / "u", "adapter_model.pt", unknown, CONFIG))
    for key in ("r", "lora_alpha"):
        config = {**CONFIG, key: None}
        with pytest.raises(BadInput, match=key):
            open_adapter(write_adapter(tmp_path / key, "adapter_model.pt", tensors, config))
    (tmp_path / "r" / "adapter_model.pt").write_bytes(b"\x80\x04}q\x00.")
    with pytest.raises(BadInput):
        open_adapter(tmp_path / "r")
