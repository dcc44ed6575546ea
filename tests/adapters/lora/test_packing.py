"""How experts' factors are packed: PEFT's own merge of the same factors in its own order, and, for
older versions, the line of their lora/layer.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from remerge.adapters.adapter import open_adapter
from remerge.adapters.lora.packing import stating
from remerge.errors import Unsupported

from .models import Mixture
from .oracle import (
    Base,
    ModuleNames,
    Tensors,
    applied,
    assert_same,
    changes_of,
    merged_module,
    trained,
)

RANK, EXPERTS = 2, 3
TARGETS = ["experts.gate_up_proj", "experts.down_proj"]
UNSLOTH = {"auto_mapping": {"base_model_class": "X", "unsloth_fixed": True}}


def _trained(tmp_path: Path) -> tuple[Mixture, Path, Tensors]:
    """A module, an adapter that PEFT wrote for it, and PEFT's merge."""
    torch.manual_seed(0)
    module = Mixture()
    config = LoraConfig(r=RANK, target_modules=[], target_parameters=TARGETS)
    path = tmp_path / "adapter"
    trained(Mixture(), config, path)
    return module, path, merged_module(module, path)


def _edit(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    stated = {n: v for n, v in {**json.loads(file.read_text()), **changes}.items() if v is not ...}
    file.write_text(json.dumps(stated))


def _repack(path: Path) -> None:
    """Columns of every B from rank-major to expert-major."""
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, value in tensors.items():
        if "lora_B" in name:
            split = value.reshape(len(value), RANK, EXPERTS)
            tensors[name] = split.transpose(1, 2).reshape(value.shape).contiguous()
    save_file(tensors, file)


def _base(module: nn.Module, model_type: str | None = None) -> Base:
    values = {n: v.clone() for n, v in module.state_dict().items()}
    return Base(values, {"model_type": model_type})


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        (None, {"lora_B_layout": "grouped_by_expert"}),
        ("llama4", {"lora_B_layout": "grouped_by_expert", "peft_version": ...}),
        (None, {"auto_mapping": {"lora_B_layout": "grouped_by_expert"}}),
        ("qwen3_moe", UNSLOTH),
        ("qwen3_5_moe_text", UNSLOTH),
        (
            None,
            {
                "unsloth_fused_expert_lora": {
                    "parameters": {
                        name: {"lora_B_layout": "grouped_by_expert", "num_experts": EXPERTS}
                        for name in ("gate_up_proj", "down_proj")
                    }
                }
            },
        ),
    ],
)
def test_expert_major_where_the_adapter_says_so(
    tmp_path: Path, model_type: str | None, config: dict[str, Any]
) -> None:
    module, path, wanted = _trained(tmp_path)
    _repack(path)
    _edit(path, **config)
    base = _base(module, model_type)
    assert_same(applied(base, changes_of(base, path, ModuleNames(module)), seed=1), wanted)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("qwen3_moe", {}),
        ("qwen3_moe", {"peft_version": ...}),
        ("llama4", UNSLOTH),
        ("qwen3_moe", {**UNSLOTH, "lora_B_layout": "rank_major"}),
        ("qwen3_moe", {"auto_mapping": {"unsloth_fixed": "yes"}}),
    ],
)
def test_rank_major_everywhere_else(
    tmp_path: Path, model_type: str, config: dict[str, Any]
) -> None:
    module, path, wanted = _trained(tmp_path)
    _edit(path, **config)
    base = _base(module, model_type)
    assert_same(applied(base, changes_of(base, path, ModuleNames(module))), wanted)


def test_one_parameter_each_its_own_way(tmp_path: Path) -> None:
    module, path, wanted = _trained(tmp_path)
    file = path / "adapter_model.safetensors"
    kept = {n: v for n, v in load_file(file).items() if v.shape[0] == _rows(wanted)}
    _repack(path)
    save_file({**load_file(file), **kept}, file)
    layouts = {"gate_up_proj": "rank_major", "down_proj": "grouped_by_expert"}
    parameters = {name: {"lora_B_layout": layout} for name, layout in layouts.items()}
    _edit(path, unsloth_fused_expert_lora={"parameters": parameters})
    base = _base(module)
    assert_same(applied(base, changes_of(base, path, ModuleNames(module))), wanted)


def _rows(wanted: Tensors) -> int:
    return wanted["experts.gate_up_proj"].shape[1]


@pytest.mark.parametrize("asked", ["rank-major", "expert-major"])
def test_what_the_user_says_counts(tmp_path: Path, asked: Any) -> None:
    module, path, wanted = _trained(tmp_path)
    if asked == "expert-major":
        _repack(path)
    other = {"rank-major": "grouped_by_expert", "expert-major": "rank_major"}[asked]
    detail = {"parameters": {"down_proj": {"lora_B_layout": other}}}
    _edit(path, lora_B_layout=other, unsloth_fused_expert_lora=detail)
    _edit(path, **stating(open_adapter(path).config, asked), unsloth_fused_expert_lora=...)
    assert "unsloth_fused_expert_lora" not in stating({"unsloth_fused_expert_lora": {}}, asked)
    base = _base(module)
    assert_same(applied(base, changes_of(base, path, ModuleNames(module))), wanted)


def test_auto_leaves_the_configuration_alone() -> None:
    config = {"lora_B_layout": "rank_major"}
    assert stating(config, "auto") is config


@pytest.mark.parametrize("layout", ["mixed", 3, ["rank_major"]])
def test_a_packing_that_is_not_known(tmp_path: Path, layout: Any) -> None:
    module, path, _ = _trained(tmp_path)
    _edit(path, lora_B_layout=layout)
    with pytest.raises(Unsupported, match="lora_B_layout"):
        changes_of(_base(module), path, ModuleNames(module))


@pytest.mark.parametrize(
    ("model_type", "config", "said"),
    [
        ("qwen3_moe", UNSLOTH, "expert-major, as Unsloth"),
        ("qwen3_moe", {"peft_version": ...}, "names no version of PEFT"),
        ("qwen3_moe", {}, None),
        ("qwen3_moe", {**UNSLOTH, "lora_B_layout": "rank_major"}, None),
    ],
)
def test_what_was_assumed_is_said(
    tmp_path: Path, model_type: str, config: dict[str, Any], said: str | None
) -> None:
    module, path, _ = _trained(tmp_path)
    _edit(path, **config)
    notes = changes_of(_base(module, model_type), path, ModuleNames(module)).notes
    assert (notes == ()) if said is None else any(said in note for note in notes)


# --- axes of older versions ----------------------------------------------------------------------


class Stack(nn.Module):
    def __init__(self, first: int, second: int, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.weight = nn.Parameter(torch.randn(EXPERTS, first, second))


class Holder(nn.Module):
    def __init__(self, *sizes: Any) -> None:
        super().__init__()
        self.experts = Stack(*sizes)


def _old(path: Path, a: int, b: int, version: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """An adapter with A along an axis of length ``a`` and B along one of ``b``."""
    path.mkdir()
    left, right = torch.randn(RANK * EXPERTS, a), torch.randn(b, RANK * EXPERTS)
    names = (f"base_model.model.experts.lora_{side}.weight" for side in "AB")
    save_file(dict(zip(names, (left, right), strict=True)), path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "peft_version": version}
    config["target_parameters"] = ["experts.weight"]
    (path / "adapter_config.json").write_text(json.dumps(config))
    return left.reshape(EXPERTS, RANK, a), right.reshape(b, RANK, EXPERTS)


@pytest.mark.parametrize("sizes", [(5, 7), (6, 6)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", "0.19.1", "0.21.2.dev0@abc"])
def test_axes_by_version(
    tmp_path: Path, version: str, transposed: bool, sizes: tuple[int, int]
) -> None:
    """ParamWrapper.get_delta_weight of each version: unswapped, the first axis is the inputs'."""
    swaps = {"0.18.1": False, "0.19.0": transposed}.get(version, not transposed)
    first, second = sizes
    module = Holder(first, second, transposed)
    a, b = _old(tmp_path / "a", *((second, first) if swaps else sizes), version)
    delta = torch.einsum("o r e, e r i -> e o i" if swaps else "o r e, e r i -> e i o", b, a)
    base = _base(module)
    changes = changes_of(base, tmp_path / "a", ModuleNames(module))
    assert_same(applied(base, changes), {"experts.weight": base.values["experts.weight"] + delta})


def test_shapes_tell_the_axes_where_no_version_does(tmp_path: Path) -> None:
    module = Holder(5, 7, False)
    a, b = _old(tmp_path / "a", 5, 7, None)
    base = _base(module)
    delta = torch.einsum("o r e, e r i -> e i o", b, a)
    ours = applied(base, changes_of(base, tmp_path / "a", ModuleNames(module)))
    assert_same(ours, {"experts.weight": base.values["experts.weight"] + delta})


def test_square_experts_without_a_version_are_named(tmp_path: Path) -> None:
    module = Holder(6, 6, False)
    _old(tmp_path / "a", 6, 6, None)
    notes = changes_of(_base(module), tmp_path / "a", ModuleNames(module)).notes
    assert any("square" in note for note in notes)
