"""What must not merge: exit code 3 and nothing written."""

from __future__ import annotations

from typing import Any

import peft

from tests.corpus import edits
from tests.corpus.case import Case, Edit

LINEAR = ["q_proj", "v_proj", "down_proj"]
BASE = "base_model.model.model.layers"


def refused(name: str, edit: Edit | None = None, arch: str = "llama", **fields: Any) -> Case:
    lora = {"target_modules": LINEAR, "task_type": "CAUSAL_LM", **fields.pop("lora", {})}
    return Case(
        f"refused_{name}-{arch}",
        arch,
        lora,
        category="refused",
        expects="refused",
        edit_adapter=edit,
        **fields,
    )


def tuner(name: str, config: Any, **fields: Any) -> Case:
    return refused(name, peft_config=config, **fields)


#: Kinds that no merge can do, or not this step.
KINDS = [
    refused("alora", lora={"alora_invocation_tokens": [5, 6]}),
    refused("arrow", edits.set_config(
        arrow_config={"top_k": 2, "router_temperature": 1.0, "use_gks": False, "g": 1.0})),
    refused("qalora", edits.set_config(use_qalora=True, qalora_group_size=16)),
    refused("xlora", edits.set_config(peft_type="XLORA", adapters={"0": "a", "1": "b"})),
    refused("layer_replication", lora={"layer_replication": [[0, 2], [1, 2]]}),
    refused("corda", edits.set_config(init_lora_weights="corda", corda_config={})),
    refused("loftq", edits.set_config(init_lora_weights="loftq",
                                      loftq_config={"loftq_bits": 4, "loftq_iter": 1})),
    refused("pissa_niter", edits.set_config(init_lora_weights="pissa_niter_4")),
    refused("unknown_init", edits.set_config(init_lora_weights="next_years_idea")),
    refused("unknown_type", edits.set_config(peft_type="NEXT_YEARS_IDEA")),
    refused("no_type", edits.drop_config("peft_type")),
    refused("grouped_conv", arch="wav2vec2", lora={
        "target_modules": [r"pos_conv_embed.conv"], "task_type": None}),
    refused("grouped_conv", arch="convnext", fast=True, lora={
        "target_modules": ["dwconv", "depthwise_conv"], "task_type": None, "r": 16}),
    tuner("prompt_tuning", lambda: peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4), fast=True),
    tuner("prefix_tuning", lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4)),
]  # fmt: skip

#: Adapters that are broken, or belong to another base.
BROKEN = [
    refused("lora_b_lost", edits.drop_keys(r"layers\.1.*q_proj\.lora_B"), fast=True),
    refused("lora_a_lost", edits.drop_keys(r"layers\.0.*v_proj\.lora_A")),
    refused("magnitude_lost", edits.drop_keys(r"layers\.0.*magnitude"), lora={"use_dora": True}),
    refused("dora_flag_lost", edits.set_config(use_dora=False), lora={"use_dora": True}),
    refused("magnitude_never_there", edits.set_config(use_dora=True)),
    refused("unknown_key", edits.add_key(f"{BASE}.0.self_attn.q_proj.lora_C.weight", 4, 4)),
    refused("unknown_module", edits.all_of(
        edits.add_key(f"{BASE}.0.self_attn.z_proj.lora_A.weight", 4, 32),
        edits.add_key(f"{BASE}.0.self_attn.z_proj.lora_B.weight", 32, 4))),
    refused("more_layers", edits.rename_keys((r"layers\.1\.", "layers.7.")), fast=True),
    refused("other_prefix", edits.rename_keys((r"model\.layers", "decoder.blocks"))),
    refused("shape_a", edits.narrow(r"q_proj\.lora_A", 1), fast=True),
    refused("shape_b", edits.narrow(r"down_proj\.lora_B", 0)),
    refused("rank_of_config", edits.narrow(r"v_proj\.lora_A", 0)),
    refused("other_rank", edits.set_config(r=8)),
    refused("nan", edits.fill(r"lora_B", float("nan")), fast=True),
    refused("infinite", edits.fill(r"lora_A", float("inf"))),
    refused("overflow", edits.scale(r"lora_[AB]", 1e6), dtype="float16",
            notes="the merged weights do not fit into float16"),
    refused("saved_shape", edits.narrow(r"lm_head", 1), lora={"modules_to_save": ["lm_head"]}),
    refused("saved_nan", edits.fill(r"lm_head", float("nan")),
            lora={"modules_to_save": ["lm_head"]}),
    refused("rows_beyond", edits.set_config(trainable_token_indices=[1, 2000]),
            lora={"trainable_token_indices": [1, 2]}),
    refused("bias_without_base", lora={"lora_bias": True},
            notes="the base has no bias to take it; PEFT raises"),
    refused("truncated", edits.truncate),
    refused("pickle_with_code", edits.write_pickle_bomb),
    refused("no_weights", lambda directory: (directory / "adapter_model.safetensors").unlink()),
    refused("no_config", lambda directory: (directory / "adapter_config.json").unlink()),
    refused("config_not_json",
            edits.write_file("adapter_config.json", b"{'r': 4}")),
    refused("empty", edits.drop_keys(r".")),
    refused("experts_shape", edits.narrow(r"lora_B", 0), arch="qwen3_moe", lora={
        "target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
]  # fmt: skip


CASES = [*KINDS, *BROKEN]
