"""Mixtures of experts: adapters on stacked experts, and adapters from before they were stacked."""

from __future__ import annotations

from typing import Any

from tests.corpus import edits
from tests.corpus.case import Case, Hand

CAUSAL = {"task_type": "CAUSAL_LM"}
ATTENTION = ["q_proj", "v_proj"]
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
FF_GATE_UP, FF_DOWN = "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"


def experts(name: str, arch: str, parameters: list[str], **fields: Any) -> Case:
    lora = {
        "target_parameters": parameters,
        "target_modules": fields.pop("modules", []),
        **CAUSAL,
        **fields.pop("lora", {}),
    }
    return Case(
        f"experts_{name}-{arch}", arch, lora, category="moe", one_unit_is_right=True, **fields
    )


#: LoRA on the stacked 3-D parameters; the hub has one matrix an expert for most of them.
STACKED = [
    experts("both", "mixtral", [GATE_UP, DOWN], fast=True),
    experts("up", "mixtral", [GATE_UP], modules=ATTENTION, dtype="float32"),
    experts("down", "mixtral", [DOWN], dtype="float16"),
    experts("both", "mixtral_square", [GATE_UP, DOWN], dtype="float32"),
    experts("both", "qwen3_moe", [GATE_UP, DOWN], modules=ATTENTION, dtype="float32"),
    experts("sorted", "qwen3_moe", [DOWN, GATE_UP], fast=True),
    experts("reversed", "gpt_oss", [GATE_UP, DOWN], edit_is_the_adapter=True,
            edit_adapter=edits.set_config(target_parameters=[GATE_UP, DOWN]),
            notes="the order of the list says nothing: adapters nest in the parameters' order"),
    experts("rslora", "qwen3_moe", [GATE_UP], lora={"use_rslora": True, "r": 3}),
    experts("both", "qwen3_moe_square", [GATE_UP, DOWN]),
    experts("down", "qwen3_moe_square", [DOWN], dtype="float32"),
    experts("both", "qwen2_moe", [GATE_UP, DOWN]),
    experts("up", "qwen3_next", [GATE_UP]),
    experts("both", "olmoe", [GATE_UP, DOWN], dtype="float16"),
    experts("both", "phimoe", [GATE_UP, DOWN]),
    experts("both", "deepseek_v2", [GATE_UP, DOWN], dtype="float32"),
    experts("both", "deepseek_v3", [GATE_UP, DOWN], modules=["o_proj", "kv_b_proj"]),
    experts("both", "glm4_moe", [GATE_UP, DOWN]),
    experts("both", "dots1", [GATE_UP, DOWN], dtype="float32"),
    experts("down", "ernie4_5_moe", [DOWN]),
    experts("both", "hunyuan_v1_moe", [GATE_UP, DOWN]),
    experts("both", "minimax", [GATE_UP, DOWN]),
    experts("both", "minimax_m2", [GATE_UP, DOWN], dtype="float32"),
    experts("both", "jamba", [FF_GATE_UP, FF_DOWN]),
    experts("both", "lfm2_moe", [FF_GATE_UP, FF_DOWN]),
    experts("both", "gpt_oss", [GATE_UP, DOWN], fast=True),
    experts("both", "gpt_oss_square", [GATE_UP, DOWN], dtype="float32"),
    experts("down", "gpt_oss_square", [DOWN]),
    experts("up", "gpt_oss", [GATE_UP], modules=ATTENTION, dtype="float16"),
    experts("both", "llama4_text", [FF_GATE_UP, FF_DOWN], fast=True),
    experts("down", "llama4_text", [FF_DOWN], dtype="float32"),
    experts("both", "granitemoe",
            ["block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"]),
    experts("both", "qwen3_vl_moe", [GATE_UP, DOWN]),
    experts("up", "qwen3_vl_moe", [GATE_UP], dtype="float32"),
    experts("router", "mixtral", ["mlp.gate.weight"], modules=ATTENTION),
    experts("router_and_experts", "qwen3_moe", ["mlp.gate.weight", DOWN]),
    experts("negative_alpha", "mixtral", [DOWN], lora={"lora_alpha": -3.5}, dtype="float32"),
    experts("adapter_bf16", "qwen3_moe", [GATE_UP, DOWN], adapter_dtype="bfloat16"),
    experts("sharded", "qwen3_moe", [GATE_UP, DOWN], max_shard_size="10KB",
            notes="the experts of one layer lie in several files"),
    experts("parameter_2d", "llama", ["q_proj.weight", "mlp.down_proj.weight"]),
]  # fmt: skip


def per_expert(arch: str, pattern: str, **fields: Any) -> Case:
    """Transformers v4 had a module for each expert, named as on the hub."""
    hand_fields = {k: fields.pop(k) for k in ("r", "alpha", "use_rslora") if k in fields}
    name = fields.pop("name", "v4_experts")
    return Case(
        f"{name}-{arch}",
        arch,
        category="moe",
        expects="by_hand",
        hand=Hand(pattern, **hand_fields),
        **fields,
    )


_QWEN = r"(experts\.\d+\.(gate|up|down)_proj|self_attn\.[qv]_proj)\."
_MIXTRAL = r"(experts\.\d+\.w[123]|self_attn\.[qv]_proj)\."
PER_EXPERT = [
    per_expert("mixtral", _MIXTRAL, fast=True),
    per_expert("mixtral", r"experts\.\d+\.w2\.", name="v4_experts_w2", use_rslora=True, r=3),
    per_expert("mixtral", r"experts\.1\.w[13]\.", name="v4_experts_one", dtype="float32",
               notes="only expert 1 was trained"),
    per_expert("mixtral", r"block_sparse_moe\.gate\.|o_proj\.", name="v4_router"),
    per_expert("mixtral", _MIXTRAL, name="v4_experts_sharded", max_shard_size="10KB"),
    per_expert("qwen2_moe", _QWEN, fast=True,
               notes="PEFT merges nothing here, with a warning only"),
    per_expert("qwen2_moe", r"shared_expert\.(gate|up)_proj\.|mlp\.gate\.",
               name="v4_shared_and_router", dtype="float32"),
    per_expert("qwen3_moe", _QWEN, dtype="float32", alpha=5),
    per_expert("qwen3_next", _QWEN),
    per_expert("olmoe", _QWEN, use_rslora=True),
    per_expert("phimoe", _MIXTRAL, notes="PEFT says that the target was not found"),
    per_expert("jamba", r"experts\.\d+\.(gate|up|down)_proj\."),
    per_expert("lfm2_moe", r"experts\.\d+\.w[123]\.", dtype="float16"),
    per_expert("minimax", _MIXTRAL),
    per_expert("deepseek_v2", _QWEN),
    per_expert("deepseek_v3", _QWEN + r"|shared_experts\.down_proj\.", dtype="float16"),
    per_expert("glm4_moe", _QWEN),
    per_expert("dots1", _QWEN),
    per_expert("ernie4_5_moe", _QWEN),
    per_expert("hunyuan_v1_moe", _QWEN, dtype="float32"),
    per_expert("qwen3_moe_square", _QWEN),
]  # fmt: skip

CASES = [*STACKED, *PER_EXPERT]
