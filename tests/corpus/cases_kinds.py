"""Kinds of LoRA adapters, mostly on small Llamas and their like."""

from __future__ import annotations

from typing import Any

import peft
import torch
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

from tests.corpus import edits
from tests.corpus.case import Case

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
CAUSAL = {"task_type": "CAUSAL_LM"}


def kind(name: str, lora: dict[str, Any], arch: str = "llama", **fields: Any) -> Case:
    lora = {"target_modules": LINEAR, **CAUSAL, **lora}
    return Case(f"{name}-{arch}", arch, lora, category=fields.pop("category", "kinds"), **fields)


SCALING = [
    kind("plain", {}, fast=True, side_files=True),
    kind("plain", {}, "qwen2", dtype="float16"),
    kind("plain", {}, "mistral", dtype="float32", fast=True),
    kind("rslora", {"use_rslora": True, "r": 6}, fast=True),
    kind("rslora", {"use_rslora": True, "r": 3}, "qwen3", dtype="float32"),
    kind("alpha_zero", {"lora_alpha": 0}, no_change=True, fast=True),
    kind(
        "untrained",
        {},
        no_change=True,
        edit_adapter=edits.scale("lora_B", 0),
        edit_is_the_adapter=True,
    ),
    kind(
        "untrained_dora",
        {"use_dora": True},
        dtype="float32",
        edit_adapter=edits.scale("lora_B", 0),
        edit_is_the_adapter=True,
    ),
    kind(
        "rows_without_delta",
        {},
        edit_adapter=edits.zero_rows("lora_B", 8),
        edit_is_the_adapter=True,
        edit_base=edits.negative_zeros("proj"),
        fast=True,
        notes="-0.0 keeps its sign where nothing is added",
    ),
    kind("alpha_negative", {"lora_alpha": -5}),
    kind("alpha_float", {"lora_alpha": 7.3}, dtype="float32"),
    kind("alpha_float_rslora", {"lora_alpha": 7.3, "use_rslora": True, "r": 5}),
    kind("rank_one", {"r": 1, "lora_alpha": 1}, dtype="float16"),
    kind("rank_above_width", {"r": 40, "lora_alpha": 3}),
    kind("rank_pattern", {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7}}, fast=True),
    kind(
        "alpha_pattern",
        {"alpha_pattern": {"v_proj": 1, r"layers\.0\..*o_proj": 32}, "use_rslora": True},
    ),
    kind(
        "patterns_both",
        {"rank_pattern": {"k_proj": 3}, "alpha_pattern": {"k_proj": 5, "up_proj": 0}},
        "qwen3",
        dtype="float16",
    ),
    kind(
        "patterns_anchored",
        {
            "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2, "^q_proj": 8},
            "alpha_pattern": {"proj": 64, "gate_proj|up_proj": 3},
        },
    ),
    kind(
        "patterns_overlapping",
        {"alpha_pattern": {"layers.0.self_attn.q_proj": 16, "q_proj": 2}},
        notes="PEFT writes the patterns sorted, so a reload may meet them in another order",
    ),
]

SELECTION = [
    kind("regex", {"target_modules": r".*\.layers\.1\..*(q_proj|down_proj)"}, fast=True),
    kind("all_linear", {"target_modules": "all-linear"}, "qwen2"),
    kind("layers_to_transform", {"layers_to_transform": [0, 3]}, "llama_deep"),
    kind("layers_to_transform_int", {"layers_to_transform": 2}, "llama_deep", dtype="float32"),
    kind(
        "layers_pattern",
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        "llama_deep",
    ),
    kind("exclude_modules", {"exclude_modules": ["layers.0.self_attn.q_proj", "k_proj"]}),
    kind("exclude_regex", {"exclude_modules": r".*layers\.0.*"}, dtype="float16"),
    kind("default_targets", {"target_modules": None}),
    kind("full_names", {"target_modules": ["model.layers.0.self_attn.q_proj", "lm_head"]}),
    kind("lm_head", {"target_modules": ["lm_head", "q_proj"]}, fast=True),
    kind("square", {}, "llama_square", dtype="float32"),
]

DORA = [
    kind("dora", {"use_dora": True}, fast=True),
    kind("dora", {"use_dora": True}, "qwen2", dtype="float32", fast=True),
    kind("dora", {"use_dora": True, "use_rslora": True}, "gemma2", dtype="float16"),
    kind("dora_head", {"use_dora": True, "target_modules": ["lm_head", "v_proj"]}),
    kind("dora_embedding", {"use_dora": True, "target_modules": ["embed_tokens"]}, fast=True),
    kind(
        "dora_embedding",
        {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
        "qwen3",
        dtype="float32",
    ),
    kind("dora_patterns", {"use_dora": True, "rank_pattern": {"q_proj": 2}}, "mistral"),
    kind("dora_alpha_zero", {"use_dora": True, "lora_alpha": 0}, dtype="float32"),
    kind("dora", {"use_dora": True, "target_modules": ["c_attn", "c_proj", "c_fc"]}, "gpt2"),
    kind(
        "dora",
        {"use_dora": True, "target_modules": ["qkv_proj", "gate_up_proj"]},
        "phi3",
        dtype="float32",
    ),
]

BIASES = [
    kind("lora_bias", {"lora_bias": True}, "llama_bias", fast=True),
    kind("lora_bias", {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}, "qwen2"),
    kind(
        "lora_bias_rslora",
        {"lora_bias": True, "use_rslora": True},
        "llama_bias",
        dtype="float32",
    ),
    kind("lora_bias", {"lora_bias": True, "target_modules": ["c_attn", "c_fc"]}, "gpt2"),
    kind("bias_all", {"bias": "all"}, "llama_bias", fast=True),
    kind("bias_all", {"bias": "all", "target_modules": ["c_attn"]}, "gpt2", dtype="float16"),
    kind("bias_all", {"bias": "all", "target_modules": ["q_proj", "v_proj"]}, "opt"),
    kind("bias_lora_only", {"bias": "lora_only"}, "llama_bias"),
    kind(
        "bias_lora_only",
        {"bias": "lora_only", "target_modules": ["q_proj", "fc1"]},
        "opt",
        dtype="float32",
        fast=True,
    ),
    kind(
        "bias_all_and_lora_bias",
        {"bias": "all", "lora_bias": True, "target_modules": ["query_key_value"]},
        "gpt_neox",
    ),
]

MODULES = [
    kind("save_head", {"modules_to_save": ["lm_head"]}, fast=True),
    kind("save_embed", {"modules_to_save": ["embed_tokens"]}, dtype="float16"),
    kind("save_both", {"modules_to_save": ["embed_tokens", "lm_head"]}, "qwen2"),
    kind("save_norms", {"modules_to_save": ["input_layernorm", "norm"]}, dtype="float32"),
    kind("save_layer", {"modules_to_save": ["mlp"], "target_modules": ATTENTION}),
    kind("save_beats_target", {"modules_to_save": ["v_proj"]}, "mistral"),
    kind(
        "save_norms",
        {"modules_to_save": ["ln_f"], "target_modules": ["c_attn"], "bias": "all"},
        "gpt2",
    ),
    kind(
        "save_bf16_adapter",
        {"modules_to_save": ["lm_head"]},
        dtype="float16",
        adapter_dtype="bfloat16",
    ),
]

STORED = [
    kind("adapter_fp16", {}, adapter_dtype="float16", fast=True),
    kind("adapter_bf16", {}, "qwen2", dtype="float32", adapter_dtype="bfloat16"),
    kind("adapter_bf16_dora", {"use_dora": True}, adapter_dtype="bfloat16"),
    kind("name_in_keys", {}, edit_adapter=edits.rename_keys((r"\.(lora_[AB])\.", r".\1.default.")),
         fast=True),
    kind(
        "name_in_keys_embedding",
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        edit_adapter=edits.rename_keys(
            (r"\.(lora_[AB])\.", r".\1.default."),
            (r"\.(lora_embedding_[AB]|lora_magnitude_vector)$", r".\1.default"),
        ),
    ),
    kind("subfolder", {}, adapter_name="style", adapter_suffix="/style", fast=True),
    kind("subfolder_named", {"use_dora": True}, adapter_name="style", adapter_suffix=":style"),
    kind("bin", {}, edit_adapter=edits.to_bin, fast=True),
    kind("bin_fp16", {"bias": "all"}, "llama_bias", edit_adapter=edits.to_bin,
         adapter_dtype="float16"),
    kind("old_config", {}, edit_adapter=edits.drop_config(
        "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias",
        "trainable_token_indices", "target_parameters", "peft_version", "exclude_modules",
        "ensure_weight_tying", "eva_config", "corda_config", "qalora_group_size", "use_qalora",
    )),
    kind("unknown_config_key", {}, edit_adapter=edits.set_config(some_future_note=None)),
    kind("tokenizer_in_adapter", {}, side_files=True, tokenizer_in_adapter=True, fast=True),
    kind("sharded", {}, "llama_deep", max_shard_size="20KB", side_files=True, fast=True),
    kind("sharded_dora_save", {"use_dora": True, "modules_to_save": ["lm_head", "embed_tokens"]},
         "qwen2", max_shard_size="10KB"),
    kind("sharded", {"target_modules": "all-linear"}, "gemma3", max_shard_size="20KB"),
    kind("mixed_dtypes", {"target_modules": ATTENTION},
         edit_base=edits.cast_base(r"norm", torch.float32),
         notes="the norms are float32 on disk and stay so, whatever dtype PEFT loads"),
    kind("extra_base_tensor", {}, edit_base=edits.add_to_base("mtp.head.weight", 4, 32),
         kept=("mtp.head.weight",), fast=True),
    kind("extra_integer_tensor", {}, dtype="float16",
         edit_base=edits.add_to_base("steps", 3, dtype=torch.int64), kept=("steps",)),
    kind("side_file_bin", {}, edit_base=edits.write_file("training_args.bin", b"not a weight"),
         notes="a .bin file that is no weight of the base"),
    kind("base_bin", {}, edit_base=edits.base_to_bin),
]  # fmt: skip

FAN_IN = [
    kind("conv1d", {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True},
         "gpt2", fast=True),
    kind("conv1d_flag_false", {"target_modules": ["c_attn", "c_proj"]}, "gpt2", dtype="float32"),
    kind("conv1d_square_flag_false", {"target_modules": [r"attn.c_proj"]}, "gpt2",
         notes="32 x 32: the shapes do not say which way round it lies"),
    kind("linear_flag_true", {"fan_in_fan_out": True}, "llama_square"),
    kind("linear_flag_true_dora", {"fan_in_fan_out": True, "use_dora": True}, "llama_square",
         dtype="float32"),
]  # fmt: skip

INITS = [
    kind("gaussian", {"init_lora_weights": "gaussian"}),
    kind("orthogonal", {"init_lora_weights": "orthogonal"}, dtype="float32"),
    kind("no_init", {"init_lora_weights": False}),
    kind("eva", {"init_lora_weights": "eva", "eva_config": peft.EvaConfig()}),
    kind("pissa", {"init_lora_weights": "pissa"}, decomposition=True, fast=True),
    kind("pissa", {"init_lora_weights": "pissa", "use_rslora": True, "r": 5}, "qwen2",
         dtype="float32", decomposition=True),
    kind("pissa_patterns", {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}},
         dtype="float16", decomposition=True),
    kind("olora", {"init_lora_weights": "olora"}, decomposition=True, fast=True),
    kind("olora", {"init_lora_weights": "olora", "r": 3}, "mistral", dtype="float32",
         decomposition=True),
    kind("lora_ga", {}, edit_adapter=edits.set_config(
        init_lora_weights="lora_ga",
        lora_ga_config={"direction": "ArB2r", "scale": "stable", "stable_gamma": 16}),
        notes="PEFT merges W + D; training ran on W - s B0 A0, so a warning is due"),
    kind("mica", {"init_lora_weights": "mica"}, one_unit_is_right=True, fast=True),
    kind("mica_embedding", {"init_lora_weights": "mica", "target_modules": ["embed_tokens"]},
         one_unit_is_right=True),
    kind("kasa", {"kasa_config": KasaConfig()}, one_unit_is_right=True, decomposition=True,
         fast=True),
    kind("kasa", {"kasa_config": KasaConfig(), "r": 3}, "qwen2", dtype="float32",
         one_unit_is_right=True, decomposition=True),
    kind("velora", {"velora_config": VeloraConfig(num_groups=4)}),
    kind("monteclora", {"monteclora_config": MontecloraConfig(num_samples=2)}),
    kind("bdlora", {"use_bdlora": BdLoraConfig(
        target_modules_bd_a=["o_proj", "down_proj"],
        target_modules_bd_b=["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], nblocks=2)},
        one_unit_is_right=True, fast=True),
    kind("bdlora_mixed", {"use_bdlora": BdLoraConfig(
        target_modules_bd_a=["down_proj"], nblocks=4, match_strict=False)}, "qwen3",
        dtype="float32", one_unit_is_right=True),
]  # fmt: skip

#: A few of the other families; tests/adapters/tuners has them all.
FAMILIES = [
    kind(
        "ia3",
        {},
        peft_config=lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL
        ),
    ),
    kind("loha", {}, peft_config=lambda: peft.LoHaConfig(target_modules=LINEAR, **CAUSAL)),
    kind("lokr", {}, peft_config=lambda: peft.LoKrConfig(target_modules=LINEAR, **CAUSAL)),
]

CASES = [*SCALING, *SELECTION, *DORA, *BIASES, *MODULES, *STORED, *FAN_IN, *INITS, *FAMILIES]
