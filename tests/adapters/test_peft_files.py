"""PEFT's format as other trainers write it. Each file is what the trainer leaves behind; the oracle
is W + alpha / r * B @ A in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from remerge.adapters.adapter import open_adapter
from remerge.errors import BadInput
from tests.adapters.converters.place import (
    HIDDEN,
    Tensors,
    check_merge,
    rand,
    write_adapter,
    write_llama,
)

RANK, ALPHA = 4, 6
MODULE = "model.layers.0.self_attn.q_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "org/base",
    "peft_version": "0.21.2",
}
UNSLOTH: dict[str, Any] = {
    "auto_mapping": {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
        "unsloth_fixed": True,
    },
    "target_modules": r"(?:.*?(?:self_attn|attention).*?(?:q_proj|v_proj).*?)|(?:\bx\b)",
    "base_model_name_or_path": "unsloth/llama-bnb-4bit",
    "alora_invocation_tokens": None,
    "qalora_group_size": 16,
    "runtime_config": {"ephemeral_gpu_offload": False},
}


def _check(tmp_path: Path, tensors: Tensors, a: str, b: str, **config: Any) -> Path:
    base = write_llama(tmp_path / "base")
    adapter = write_adapter(
        tmp_path / "adapter", "adapter_model.safetensors", tensors, {**CONFIG, **config}
    )
    weight = load_file(base / "model.safetensors")[f"{MODULE}.weight"].double()
    change = ALPHA / RANK * tensors[b].double() @ tensors[a].double()
    check_merge(base, adapter, {f"{MODULE}.weight": weight + change})
    return adapter


@pytest.mark.parametrize(
    ("prefix", "ending"),
    [
        ("base_model.model.", ".weight"),
        # torch.save of a PeftModel's own state dict: the adapter's name stays in.
        ("base_model.model.", ".default.weight"),
        # torch.compile, FSDP and activation checkpointing wrap modules (axolotl, TRL).
        ("base_model.model._orig_mod.", ".weight"),
        ("base_model.model._fsdp_wrapped_module.", ".default.weight"),
    ],
)
def test_names_as_trainers_leave_them(tmp_path: Path, prefix: str, ending: str) -> None:
    a, b = (f"{prefix}{MODULE}.lora_{side}{ending}" for side in "AB")
    _check(tmp_path, {a: rand(RANK, HIDDEN), b: rand(HIDDEN, RANK)}, a, b)


def _pair() -> tuple[Tensors, str, str]:
    a, b = (f"base_model.model.{MODULE}.lora_{side}.weight" for side in "AB")
    return {a: rand(RANK, HIDDEN), b: rand(HIDDEN, RANK)}, a, b


def test_unsloth_s_fields_change_nothing(tmp_path: Path) -> None:
    _check(tmp_path, *_pair(), **UNSLOTH)


def test_ms_swift_s_side_file_changes_nothing(tmp_path: Path) -> None:
    adapter = _check(tmp_path, *_pair())
    (adapter / "additional_config.json").write_text('{"lora_dtype": null, "lorap_lr_ratio": null}')
    assert open_adapter(adapter).files == ("adapter_config.json", "adapter_model.safetensors")


def test_the_value_head_in_a_file_of_its_own_is_named(tmp_path: Path) -> None:
    adapter = _check(tmp_path, *_pair())
    save_file({"v_head.summary.weight": rand(1, HIDDEN)}, adapter / "value_head.safetensors")
    assert "value_head.safetensors" in open_adapter(adapter).notes[0]


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_a_value_head_among_the_factors_is_left_out_and_named(tmp_path: Path, prefix: str) -> None:
    tensors, a, b = _pair()
    tensors |= {f"{prefix}v_head.summary.weight": rand(1, HIDDEN)}
    adapter = _check(tmp_path, tensors, a, b)
    assert f"{prefix}v_head.summary.weight" in open_adapter(adapter).notes[0]
    assert set(open_adapter(adapter).tensors) == {a, b}


def test_several_files_of_weights_are_no_one_adapter(tmp_path: Path) -> None:
    for name in ("ink", "oil"):
        write_adapter(tmp_path / "loras", f"{name}.safetensors", {"x": rand(2, 2)})
    with pytest.raises(BadInput, match=r"2 files of weights: ink.safetensors, oil.safetensors"):
        open_adapter(tmp_path / "loras")
