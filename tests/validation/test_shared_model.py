"""One model in memory, many sides: each has the logits of a model loaded on its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from peft import PeftModel

import remerge
from remerge.engines.scoring import Item, Side, rows_path
from remerge.merging.recipe import make_recipe
from remerge.outputs.planning import make_plan, open_inputs
from tests.validation import independent

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {"head_dim": 8}
ATTENTION = ["q_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "k_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Kind:
    config: Callable[[], Any]
    adapter: Callable[[], Any]
    #: The vocabulary that the adapter was trained with, where it is another one.
    grown: int | None = None


def lora(**over: Any) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **over})


def config(name: str, **over: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**{**SIZES, **over})


LLAMA = config("LlamaConfig", tie_word_embeddings=False)
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **HEADS}
KINDS = {
    "llama lora": Kind(LLAMA, lora()),
    "llama dora": Kind(LLAMA, lora(use_dora=True)),
    "llama rslora, patterns": Kind(
        LLAMA, lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3})
    ),
    "llama bias": Kind(
        config("LlamaConfig", tie_word_embeddings=False, attention_bias=True), lora(bias="all")
    ),
    "llama head saved": Kind(LLAMA, lora(modules_to_save=["lm_head", "norm"])),
    "llama grown": Kind(LLAMA, lora(modules_to_save=["lm_head", "embed_tokens"]), grown=101),
    "llama embeddings": Kind(LLAMA, lora(target_modules=["q_proj", "embed_tokens", "lm_head"])),
    "llama token rows": Kind(LLAMA, lora(trainable_token_indices=[3, 50, 95])),
    "qwen2": Kind(config("Qwen2Config", tie_word_embeddings=False), lora()),
    "qwen3 tied": Kind(config("Qwen3Config", tie_word_embeddings=True, **HEADS), lora()),
    "qwen3 tied grown": Kind(
        config("Qwen3Config", tie_word_embeddings=True, **HEADS),
        lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        grown=101,
    ),
    "gemma": Kind(config("GemmaConfig", **HEADS), lora(use_dora=True)),
    "phi3 fused": Kind(
        config("Phi3Config", tie_word_embeddings=False),
        lora(target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    ),
    "gpt2 transposed": Kind(
        lambda: transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64
        ),
        lora(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    ),
    "mixtral experts": Kind(
        config("MixtralConfig", num_local_experts=4),
        lora(
            target_modules=ATTENTION,
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    ),
    "qwen3 moe": Kind(
        config("Qwen3MoeConfig", tie_word_embeddings=False, **MOE),
        lora(target_modules=ATTENTION, target_parameters=["mlp.experts.down_proj"]),
    ),
    "ia3": Kind(
        LLAMA,
        lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "lokr": Kind(LLAMA, lambda: peft.LoKrConfig(r=4, alpha=8, target_modules=LINEAR)),
    "loha": Kind(LLAMA, lambda: peft.LoHaConfig(r=4, alpha=8, target_modules=LINEAR)),
    "oft": Kind(LLAMA, lambda: peft.OFTConfig(oft_block_size=4, target_modules=ATTENTION)),
    "boft": Kind(LLAMA, lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"])),
    "hra": Kind(LLAMA, lambda: peft.HRAConfig(r=4, target_modules=["q_proj", "v_proj"])),
}


def randomise(model: Any, strength: float = 0.05) -> None:
    """What PEFT begins with changes nothing."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad or "token_adapter" in name:
                value.add_(torch.randn_like(value), alpha=strength)


def build(kind: Kind, place: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
    """Base and adapter on disk; one tokenizer serves all, of which ids are not asked for."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(kind.config())
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.05)
    model.to(dtype).save_pretrained(place / "base")
    fresh: Any = transformers.AutoModelForCausalLM.from_pretrained(place / "base", dtype=dtype)
    if kind.grown is not None:
        fresh.resize_token_embeddings(kind.grown, mean_resizing=False)
    wrapped = peft.get_peft_model(fresh, kind.adapter())
    randomise(wrapped)
    wrapped.save_pretrained(place / "adapter")
    (place / "adapter" / "README.md").unlink(missing_ok=True)
    return place / "base", place / "adapter"


def on_base(kind: Kind, base: Path, adapter: Path) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if kind.grown is not None:
        model.resize_token_embeddings(kind.grown, mean_resizing=False)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


PROMPTS = {
    number: Item("rows", tuple((7 * number + 5 * place) % 90 + 3 for place in range(4 + number)))
    for number in range(4)
}


def ask(
    base: Path, adapter: Path, artefact: Path, order: list[str], folder: Path
) -> dict[str, Any]:
    """Logits of all prompts, of each side in this order, in one process."""
    from remerge.engines import score_transformers
    from remerge.engines.calling import Teller

    inputs = open_inputs(base, [adapter], progress=False)
    plan = make_plan(inputs, make_recipe(inputs.labels, dtype="float32"), 2**30)
    sides: list[Side] = []
    for number, name in enumerate(order):
        place = folder / str(number)
        place.mkdir(parents=True)
        sides.append(Side(name, PROMPTS, place))
    request = {
        "merge": {
            "base": str(base),
            "original": False,
            "adapters": [str(adapter)],
            "recipe": plan.recipe.model_dump(mode="json"),
        },
        "artefact": str(artefact),
        "adapters": {"": [(str(adapter), 1.0)]},
        "noise": 0.01,
        "ends": [2],
        "texts": [],
        "sides": [side.as_request() for side in sides],
    }
    gradients = torch.is_grad_enabled()
    try:
        told = score_transformers.work(request, Teller(lambda message: None))
    finally:
        torch.set_grad_enabled(gradients)
    assert not told["refused"], told["refused"]
    found: dict[str, Any] = {}
    for number, side in enumerate(sides):
        rows: list[np.ndarray] = []
        for item in PROMPTS.values():
            with np.load(rows_path(side.folder, item)) as file:
                rows.append(file["values"] + file["shift"][:, None])
        found[f"{number}:{order[number]}"] = np.concatenate(rows)
    return found


def alone(model: Any) -> np.ndarray:
    asked = [list(item.ids) for item in PROMPTS.values()]
    return np.concatenate([rows.numpy() for rows in independent.logits(model, asked)])


# One of each way from disk to memory; the others take minutes.
FAST = ("llama dora", "llama grown", "qwen3 tied", "phi3 fused", "qwen3 moe", "ia3")


@pytest.mark.parametrize(
    "name", [k if k in FAST else pytest.param(k, marks=pytest.mark.proof) for k in KINDS]
)
def test_every_side_has_its_own_logits(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    base, adapter = build(kind, tmp_path)
    out = tmp_path / "out"
    remerge.merge(base, adapter, out)
    # An artefact that is right, and one that is another model of the same shape.
    other = tmp_path / "other"
    shutil.copytree(out, other)
    for file in other.glob("*.safetensors"):
        from safetensors.torch import load_file, save_file

        tensors = {key: value * 1.03 for key, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    expected = {
        "base": alone(independent.plain(base)),
        "artefact": alone(independent.plain(out)),
        "adapter:": alone(on_base(kind, base, adapter)),
    }
    order = ["base", "artefact", "adapter:", "noise", "artefact", "merge", "base"]
    found = ask(base, adapter, out, order, tmp_path / "rows")
    for key, rows in found.items():
        side = key.partition(":")[2]
        if side in expected:
            wanted = expected[side]
            width = min(wanted.shape[1], rows.shape[1])
            np.testing.assert_allclose(rows[:, :width], wanted[:, :width], atol=2e-4, err_msg=key)
    merge = found["5:merge"]
    np.testing.assert_allclose(merge, expected["adapter:"], atol=2e-3, err_msg="merge")
    assert np.abs(found["3:noise"] - merge).max() > 1e-4
    second = ask(base, adapter, other, ["merge", "artefact", "base"], tmp_path / "rows2")
    np.testing.assert_allclose(second["1:artefact"], alone(independent.plain(other)), atol=2e-4)
    np.testing.assert_allclose(second["2:base"], expected["base"], atol=2e-4)


def test_an_artefact_of_another_configuration_is_loaded_as_it_is(tmp_path: Path) -> None:
    """The same tensors under another rotary base are another model."""
    kind = KINDS["llama lora"]
    base, adapter = build(kind, tmp_path)
    out = tmp_path / "out"
    remerge.merge(base, adapter, out)
    file = out / "config.json"
    stated = json.loads(file.read_text())
    stated["rope_parameters"] = {"rope_type": "default", "rope_theta": 77.0}
    stated["rope_theta"] = 77.0
    file.write_text(json.dumps(stated))
    found = ask(base, adapter, out, ["base", "artefact", "merge"], tmp_path / "rows")
    np.testing.assert_allclose(found["1:artefact"], alone(independent.plain(out)), atol=2e-4)
    assert np.abs(found["1:artefact"] - found["2:merge"]).max() > 1e-2
