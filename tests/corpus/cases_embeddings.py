"""Embeddings: adapted, tied, untied, resized, and single rows replaced."""

from __future__ import annotations

from typing import Any

from tests.corpus import edits
from tests.corpus.case import Case

CAUSAL = {"task_type": "CAUSAL_LM"}
ATTENTION = ["q_proj", "v_proj"]
UNTIED = {"tie_word_embeddings": False}


def embed(name: str, arch: str, lora: dict[str, Any], **fields: Any) -> Case:
    return Case(f"{name}-{arch}", arch, {**CAUSAL, **lora}, category="embeddings", **fields)


#: LoRA on an embedding that nothing shares.
PLAIN = [
    embed("embedding", "llama", {"target_modules": ["embed_tokens", *ATTENTION]}, fast=True),
    embed("embedding", "qwen2", {"target_modules": ["embed_tokens"]}, dtype="float32"),
    embed("embedding_rslora", "mistral", {"target_modules": ["embed_tokens"], "use_rslora": True},
          dtype="float16"),
    embed("embedding_and_head", "qwen3", {"target_modules": ["embed_tokens", "lm_head"]},
          fast=True),
    embed("embedding_patterns", "llama",
          {"target_modules": ["embed_tokens", "q_proj"], "rank_pattern": {"embed_tokens": 2},
           "alpha_pattern": {"embed_tokens": 3}}),
    Case("embedding-bert", "bert", {"target_modules": ["word_embeddings", "query"]},
         category="embeddings"),
    Case("embedding_positions-bert", "bert",
         {"target_modules": ["position_embeddings", "token_type_embeddings"]},
         category="embeddings", dtype="float32"),
    embed("embedding", "gpt_neox", {"target_modules": ["embed_in", "query_key_value"]}),
    embed("embedding_head", "gpt_neox", {"target_modules": ["embed_out", "lm_head", "dense"]}),
]  # fmt: skip

#: LoRA on one role of a shared tensor: the forward pass changes one role, but there is one tensor
#: for both, so the merge is PEFT's and the user is told.
TIED = [
    embed("tied_embedding", "llama_tied", {"target_modules": ["embed_tokens", "q_proj"]},
          dtype="float32", fast=True),
    embed("tied_head", "llama_tied", {"target_modules": ["lm_head", "q_proj"]},
          dtype="float32", fast=True),
    embed("tied_both", "qwen2_tied", {"target_modules": ["lm_head", "embed_tokens"]},
          dtype="float32"),
    embed("tied_head_dora", "qwen3_tied", {"target_modules": ["lm_head"], "use_dora": True},
          dtype="float32"),
    embed("tied_embedding", "gemma", {"target_modules": ["embed_tokens"]},
          dtype="float32"),
    embed("tied_embedding", "gemma3_text", {"target_modules": ["embed_tokens", "o_proj"]},
          dtype="float32"),
    embed("tied_embedding", "gpt2", {"target_modules": ["wte"]}, dtype="float32"),
    embed("tied_ensure", "llama_tied",
          {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
          dtype="float32", expects="forward", fast=True,
          notes="PEFT's merge adds the delta twice; both roles get it once, and stay tied"),
    embed("tied_elsewhere", "llama_tied", {"target_modules": ["q_proj", "down_proj"]}),
]  # fmt: skip

#: Whole embeddings or heads replaced.
SAVED = [
    embed("save_head_tied", "llama_tied", {"target_modules": ATTENTION,
          "modules_to_save": ["lm_head"]}, config_changes=UNTIED, fast=True),
    embed("save_embed_tied", "qwen2_tied", {"target_modules": ATTENTION,
          "modules_to_save": ["embed_tokens"]}, config_changes=UNTIED),
    embed("save_both_tied", "qwen3_tied", {"target_modules": ATTENTION,
          "modules_to_save": ["embed_tokens", "lm_head"]}, config_changes=UNTIED,
          dtype="float16"),
    embed("save_embed_ensure_tying", "llama_tied", {"target_modules": ATTENTION,
          "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    embed("save_head", "gemma", {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
          dtype="float32", config_changes=UNTIED),
]  # fmt: skip

#: Rows of an embedding replaced.
ROWS = [
    embed("rows", "llama", {"target_modules": ATTENTION, "trainable_token_indices": [1, 7, 95]},
          fast=True),
    embed("rows", "llama_tied", {"target_modules": ATTENTION,
          "trainable_token_indices": [0, 5, 50]}, fast=True),
    embed("rows_named", "qwen2", {"target_modules": ATTENTION,
          "trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [4, 9]}},
          dtype="float32"),
    embed("rows_named", "qwen2_tied", {"target_modules": ATTENTION,
          "trainable_token_indices": {"embed_tokens": [2, 90]}}, dtype="float16"),
    embed("rows_unsorted", "llama", {"target_modules": ATTENTION,
          "trainable_token_indices": [60, 2, 33]}),
    embed("rows_dora", "qwen3", {"target_modules": ATTENTION, "use_dora": True,
          "trainable_token_indices": [8]}, dtype="float32"),
    embed("rows", "gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": [1, 2]}),
    Case("rows-bert", "bert_mlm", {"target_modules": ["query"],
         "trainable_token_indices": {"word_embeddings": [3, 5]}}, category="embeddings"),
    embed("rows_two_lists_tied", "llama_tied", {"target_modules": ATTENTION,
          "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3, 4]}},
          dtype="float32", expects="forward", config_changes=UNTIED),
]  # fmt: skip

#: A vocabulary that grew (or shrank) before the adapter was made.
RESIZED = [
    embed("resized", "llama", {"target_modules": ATTENTION}, resize=104,
          config_changes={"vocab_size": 104}, fast=True),
    embed("resized", "llama_tied", {"target_modules": ATTENTION}, resize=100,
          config_changes={"vocab_size": 100}, fast=True),
    embed("resized_down", "qwen2", {"target_modules": ATTENTION}, resize=80,
          config_changes={"vocab_size": 80}, dtype="float16"),
    embed("resized_save_both", "qwen3", {"target_modules": ATTENTION,
          "modules_to_save": ["embed_tokens", "lm_head"]}, resize=101,
          config_changes={"vocab_size": 101}),
    embed("resized_lora", "llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
          resize=104, config_changes={"vocab_size": 104}),
    embed("resized_dora", "mistral", {"target_modules": ATTENTION, "use_dora": True}, resize=97,
          config_changes={"vocab_size": 97}, dtype="float32"),
    embed("resized_sharded", "llama_deep", {"target_modules": ATTENTION}, resize=128,
          config_changes={"vocab_size": 128}, max_shard_size="10KB", side_files=True,
          tokenizer_in_adapter=True),
    embed("resized", "gpt2", {"target_modules": ["c_attn"]}, resize=99,
          config_changes={"vocab_size": 99}),
    embed("resized", "t5", {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}, resize=99,
          config_changes={"vocab_size": 99}, dtype="float32"),
    embed("resized_saved", "llava", {"target_modules": ATTENTION,
          "modules_to_save": ["embed_tokens", "lm_head"]}, resize=104,
          config_changes={"text_config.vocab_size": 104},
          notes="without modules_to_save PEFT would lose the new rows of a nested config"),
    embed("resized_rows", "qwen2", {"target_modules": ATTENTION,
          "trainable_token_indices": [96, 97]}, resize=98, config_changes={"vocab_size": 98},
          notes="rows beyond the base's vocabulary"),
]  # fmt: skip

#: The base's embedding comes along in the adapter and overwrites the base's.
ALONG = [
    embed(
        "embedding_saved_along",
        "llama",
        {"target_modules": ["embed_tokens", "q_proj"]},
        edit_adapter=edits.scale(r"base_layer\.weight$", 1.25),
        edit_is_the_adapter=True,
    ),
]

CASES = [*PLAIN, *TIED, *SAVED, *ROWS, *RESIZED, *ALONG]
