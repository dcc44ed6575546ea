"""What does not fit, or cannot be merged, is refused by name and with its likely cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from remerge.adapters.families import DoesNotFit
from remerge.errors import BadInput, Unsupported

from .models import Everything, Mixture
from .oracle import Base, ModuleNames, changes_of

P = "base_model.model."
GOOD = {f"{P}linear.lora_A.weight": (4, 12), f"{P}linear.lora_B.weight": (20, 4)}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 4,
    "target_modules": ["linear"],
}


def write(tmp: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> Path:
    save_file({k: torch.zeros(s) for k, s in shapes.items()}, tmp / "adapter_model.safetensors")
    (tmp / "adapter_config.json").write_text(json.dumps(config))
    return tmp


def read(tmp: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> None:
    module = config.pop("module", None) or Everything()
    base = Base(module.state_dict(), {"architectures": ["Everything"], "vocab_size": 30})
    changes_of(base, write(tmp, shapes, CONFIG | config), ModuleNames(module))


def test_the_good_one_passes(tmp_path: Path) -> None:
    read(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("shapes", "config", "message"),
    [
        ({f"{P}linear.lora_B.weight": None}, {}, "lora_B is missing"),
        ({f"{P}linear.lora_A.weight": None}, {}, "lora_A is missing"),
        ({f"{P}linear.lora_A.weight": (4, 13)}, {}, r"\(20, 13\).*\(20, 12\).*not the base"),
        ({f"{P}linear.lora_A.weight": (3, 12)}, {}, r"\(3, 12\).*\(20, 4\).*rank 4"),
        ({}, {"r": 8}, "gives it rank 8"),
        ({}, {"rank_pattern": {"lin.*": 2}}, "gives it rank 2"),
        ({f"{P}linear.lora_C.weight": (1,)}, {}, "no parameter linear.lora_C.weight"),
        ({f"{P}linear.lora_diag": (4,)}, {}, "does not explain it"),
        ({f"{P}linear.lora_magnitude_vector": (20,)}, {}, "does not explain it"),
        ({}, {"use_dora": True}, "lora_magnitude_vector is missing"),
        ({f"{P}linear.lora_magnitude_vector": (12,)}, {"use_dora": True}, "20 outputs"),
        ({f"{P}linear.lora_B.bias": (20,)}, {}, "lora_bias is false"),
        ({}, {"lora_bias": True}, "lora_B.bias is missing"),
        ({f"{P}nowhere.lora_A.weight": (4, 4)}, {}, "no module nowhere"),
        ({f"{P}embedding.lora_A.weight": (4, 30)}, {}, "an? Embedding"),
        ({f"{P}conv1.lora_embedding_A": (4, 30)}, {}, "a Conv1d"),
        ({f"{P}linear.base_layer.lora_A.weight": (4, 12)}, {}, "wrapped twice"),
        ({f"{P}linear.lora_A.default.weight": (4, 12)}, {}, "second tensor for the same place"),
        ({f"{P}linear.lora_A.weight": (0,)}, {}, "empty.*ZeRO-3"),
        ({f"{P}norm.weight": (13,)}, {}, r"\(13,\).*\(12,\)"),
        ({f"{P}norm.scale": (12,)}, {}, "no parameter norm.scale"),
        ({f"{P}linear.weight": (20, 12)}, {"modules_to_save": ["linear"]}, "whole and in part"),
        ({f"{P}embedding.token_adapter.trainable_tokens_delta": (2, 12)}, {}, "which rows"),
        (
            {f"{P}embedding.token_adapter.trainable_tokens_delta": (2, 12)},
            {"trainable_token_indices": [1, 30]},
            "row 30 of an embedding with 30",
        ),
        (
            {f"{P}embedding.token_adapter.trainable_tokens_delta": (2, 12)},
            {"trainable_token_indices": {"embedding": [1, 1]}},
            "a row twice",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:25],
)
def test_misfits(
    shapes: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tensors = {key: shape for key, shape in (GOOD | shapes).items() if shape is not None}
    with pytest.raises(DoesNotFit, match=f"(?s){message}") as caught:
        read(tmp_path, tensors, **config)
    assert caught.value.misfits
    assert caught.value.hint


def test_misfits_are_all_listed_but_few_are_shown(tmp_path: Path) -> None:
    shapes = {f"{P}m{i}.lora_{x}.weight": (4, 4) for i in range(9) for x in "AB"}
    with pytest.raises(DoesNotFit, match=r"and 5 more.*another prefix") as caught:
        read(tmp_path, shapes)
    assert len(caught.value.misfits) == 9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 0}, "r is '0'"),
        ({"r": "4"}, "r is '4'"),
        ({"r": True}, "r is 'True'"),
        ({"r": 4.0}, "r is '4.0'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is 'nan'"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": None}, "lora_alpha is 'None'"),
        ({"rank_pattern": ["a"]}, "rank_pattern is"),
        ({"rank_pattern": {"a": -1}}, "rank_pattern.a is '-1'"),
        ({"alpha_pattern": {"a": "x"}}, "alpha_pattern.a is 'x'"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
        ({"rank_pattern": {"(a+)+b": 4}}, "forever"),
        ({"alpha_pattern": {"a" * 3000: 4}}, "forever"),
        ({"use_dora": "yes"}, "use_dora is 'yes'"),
        ({"modules_to_save": "head"}, "modules_to_save is 'head'"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices"),
        ({"peft_type": None}, "names no peft_type"),
    ],
    ids=str,
)
def test_hostile_configurations(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        read(tmp_path, GOOD, **config)


@pytest.mark.parametrize(
    "config",
    [
        {"alora_invocation_tokens": [1]},
        {"arrow_config": {}} | {"arrow_config": {"top_k": 1}},
        {"use_qalora": True},
        {"layer_replication": [[0, 1]]},
        {"megatron_config": {"a": 1}},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "something_new"},
        {"kasa_config": {}, "use_dora": True},
        {"peft_type": "XLORA"},
        {"peft_type": "PREFIX_TUNING"},
        {"peft_type": "WHO"},
    ],
    ids=str,
)
def test_unsupported_kinds_are_named_with_a_way_out(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        read(tmp_path, GOOD, **config)
    assert caught.value.why
    assert caught.value.hint or config.get("peft_type") == "WHO" or "kasa_config" in config


def test_grouped_convolution(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv1d(8, 8, 3, groups=2))
    shapes = {f"{P}0.lora_A.weight": (4, 8, 3), f"{P}0.lora_B.weight": (8, 2, 1)}
    with pytest.raises(Unsupported, match="2 groups"):
        read(tmp_path, shapes, module=module)


def test_experts_that_the_configuration_does_not_name(tmp_path: Path) -> None:
    shapes = {f"{P}experts.lora_A.weight": (12, 8), f"{P}experts.lora_B.weight": (16, 12)}
    with pytest.raises(DoesNotFit, match="target_parameters names none"):
        read(tmp_path, shapes, module=Mixture())
    with pytest.raises(DoesNotFit, match=r"wants lora_A \(12, 8\), lora_B \(8, 12\)"):
        read(tmp_path, shapes, module=Mixture(), target_parameters=["experts.down_proj"])


def test_codes_of_a_quantised_base(tmp_path: Path) -> None:
    module = Everything()
    values = module.state_dict() | {"linear.weight": torch.zeros(20, 12, dtype=torch.int8)}
    with pytest.raises(Unsupported, match="as I8"):
        changes_of(Base(values), write(tmp_path, GOOD, CONFIG), ModuleNames(module))


def test_whole_parameters_without_a_word_in_the_configuration_are_noted(tmp_path: Path) -> None:
    module = Everything()
    folder = write(tmp_path, GOOD | {f"{P}norm.weight": (12,)}, CONFIG)
    changes = changes_of(Base(module.state_dict()), folder, ModuleNames(module))
    assert changes.tensors["norm.weight"].reads_base is False
    assert any("norm.weight" in note for note in changes.notes)


def test_lora_ga_says_what_it_cannot_know(tmp_path: Path) -> None:
    module = Everything()
    folder = write(tmp_path, GOOD, CONFIG | {"init_lora_weights": "lora_ga"})
    changes = changes_of(Base(module.state_dict()), folder, ModuleNames(module))
    assert any("LoRA-GA" in note for note in changes.notes)


def test_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tensor that a merge could use"):
        read(tmp_path, {})
