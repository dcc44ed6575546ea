"""Language models."""

from __future__ import annotations

from tests.corpus.architectures import VOCAB, arch, like_llama

# --- dense, in the shape of Llama ---------------------------------------------------------------
like_llama("llama", "LlamaForCausalLM")
like_llama("llama_tied", "LlamaForCausalLM", tie_word_embeddings=True)
like_llama(
    "llama_bias", "LlamaForCausalLM", attention_bias=True, mlp_bias=True, intermediate_size=32
)
like_llama("llama_square", "LlamaForCausalLM", intermediate_size=32, num_key_value_heads=4)
like_llama("llama_deep", "LlamaForCausalLM", num_hidden_layers=4)
like_llama("mistral", "MistralForCausalLM", sliding_window=16)
like_llama("qwen2", "Qwen2ForCausalLM")
like_llama("qwen2_tied", "Qwen2ForCausalLM", tie_word_embeddings=True)
like_llama("qwen3", "Qwen3ForCausalLM")
like_llama("qwen3_tied", "Qwen3ForCausalLM", tie_word_embeddings=True)
like_llama("olmo", "OlmoForCausalLM")
like_llama("olmo2", "Olmo2ForCausalLM")
like_llama("olmo3", "Olmo3ForCausalLM")
like_llama("phi", "PhiForCausalLM")
like_llama("phi3", "Phi3ForCausalLM")
like_llama("gemma", "GemmaForCausalLM", tie_word_embeddings=True)
like_llama("gemma2", "Gemma2ForCausalLM", tie_word_embeddings=True, query_pre_attn_scalar=8)
like_llama("gemma3_text", "Gemma3ForCausalLM", tie_word_embeddings=True, query_pre_attn_scalar=8)
like_llama("starcoder2", "Starcoder2ForCausalLM", tie_word_embeddings=True)
like_llama("stablelm", "StableLmForCausalLM")
like_llama("cohere", "CohereForCausalLM", tie_word_embeddings=True)
like_llama("cohere2", "Cohere2ForCausalLM", tie_word_embeddings=True)
like_llama("granite", "GraniteForCausalLM")
like_llama("nemotron", "NemotronForCausalLM")
like_llama("glm", "GlmForCausalLM")
like_llama("glm4", "Glm4ForCausalLM")
like_llama("ernie4_5", "Ernie4_5ForCausalLM")
like_llama("exaone4", "Exaone4ForCausalLM")
like_llama("smollm3", "SmolLM3ForCausalLM")
like_llama("seed_oss", "SeedOssForCausalLM")
like_llama("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM")
like_llama(
    "recurrent_gemma",
    "RecurrentGemmaForCausalLM",
    tie_word_embeddings=True,
    num_hidden_layers=3,
    lru_width=32,
    attention_window_size=16,
)
like_llama(
    "lfm2",
    "Lfm2ForCausalLM",
    layer_types=["conv", "full_attention"],
    block_auto_adjust_ff_dim=False,
    tie_word_embeddings=True,
)

# --- mixtures of experts ------------------------------------------------------------------------
like_llama("mixtral", "MixtralForCausalLM", num_local_experts=3, num_experts_per_tok=2)
like_llama(
    "mixtral_square",
    "MixtralForCausalLM",
    intermediate_size=32,
    num_local_experts=2,
    num_experts_per_tok=2,
)
like_llama(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=40,
)
like_llama(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
)
like_llama(
    "qwen3_moe_square",
    "Qwen3MoeForCausalLM",
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
)
like_llama(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=24,
    layer_types=["linear_attention", "full_attention"],
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
like_llama("olmoe", "OlmoeForCausalLM", num_experts=3, num_experts_per_tok=2, intermediate_size=24)
like_llama(
    "phimoe", "PhimoeForCausalLM", num_local_experts=3, num_experts_per_tok=2, intermediate_size=24
)
_MLA = {
    "head_dim": None,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
like_llama("deepseek_v2", "DeepseekV2ForCausalLM", **_MLA)
like_llama("deepseek_v3", "DeepseekV3ForCausalLM", **_MLA)
like_llama(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
)
like_llama(
    "dots1",
    "Dots1ForCausalLM",
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
)
like_llama(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    moe_num_experts=4,
    moe_k=2,
    moe_intermediate_size=24,
    moe_num_shared_experts=1,
    moe_layer_start_index=1,
)
like_llama(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    num_experts=3,
    moe_topk=2,
    moe_intermediate_size=48,
)
like_llama(
    "minimax",
    "MiniMaxForCausalLM",
    num_local_experts=3,
    num_experts_per_tok=2,
    layer_types=["linear_attention", "full_attention"],
    block_size=16,
)
like_llama("minimax_m2", "MiniMaxM2ForCausalLM", num_local_experts=3, num_experts_per_tok=2)
like_llama("granitemoe", "GraniteMoeForCausalLM", num_local_experts=3, num_experts_per_tok=2)
like_llama("gpt_oss", "GptOssForCausalLM", num_local_experts=3, num_experts_per_tok=2)
like_llama(
    "gpt_oss_square",
    "GptOssForCausalLM",
    intermediate_size=32,
    num_local_experts=2,
    num_experts_per_tok=2,
)
like_llama(
    "llama4_text",
    "Llama4ForCausalLM",
    intermediate_size=24,
    intermediate_size_mlp=48,
    num_local_experts=3,
    num_experts_per_tok=1,
    moe_layers=[1],
)
like_llama(
    "lfm2_moe",
    "Lfm2MoeForCausalLM",
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    num_dense_layers=1,
    layer_types=["conv", "full_attention"],
    tie_word_embeddings=True,
)
like_llama(
    "jamba",
    "JambaForCausalLM",
    head_dim=None,
    num_experts=2,
    num_experts_per_tok=1,
    expert_layer_period=2,
    expert_layer_offset=1,
    attn_layer_period=2,
    attn_layer_offset=1,
    mamba_d_state=4,
    mamba_dt_rank=4,
    use_mamba_kernels=False,
)
arch(
    "mamba",
    "MambaForCausalLM",
    {"vocab_size": VOCAB, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2,
     "time_step_rank": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
)  # fmt: skip
arch(
    "mamba2",
    "Mamba2ForCausalLM",
    {"vocab_size": VOCAB, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2,
     "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8, "pad_token_id": 0,
     "bos_token_id": 1, "eos_token_id": 2},
)  # fmt: skip
arch(
    "falcon_mamba",
    "FalconMambaForCausalLM",
    {"vocab_size": VOCAB, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2,
     "time_step_rank": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
)  # fmt: skip

# --- older decoders -----------------------------------------------------------------------------
_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
arch("gpt2", "GPT2LMHeadModel", _GPT2)
arch("gpt_bigcode", "GPTBigCodeForCausalLM", {**_GPT2, "multi_query": True})
arch("gptj", "GPTJForCausalLM", {**_GPT2, "rotary_dim": 4})
arch("codegen", "CodeGenForCausalLM", {**_GPT2, "rotary_dim": 4})
arch(
    "gpt_neo",
    "GPTNeoForCausalLM",
    {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
     "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
     "bos_token_id": 1, "eos_token_id": 2},
)  # fmt: skip
like_llama("gpt_neox", "GPTNeoXForCausalLM", num_key_value_heads=None, head_dim=None)
arch(
    "falcon",
    "FalconForCausalLM",
    {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
     "bos_token_id": 1, "eos_token_id": 2, "multi_query": True, "tie_word_embeddings": True},
)  # fmt: skip
arch(
    "bloom",
    "BloomForCausalLM",
    {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4,
     "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
)  # fmt: skip
arch(
    "opt",
    "OPTForCausalLM",
    {"vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
     "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 64,
     "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
)  # fmt: skip
arch(
    "mpt",
    "MptForCausalLM",
    {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2,
     "max_seq_len": 64},
)  # fmt: skip

# --- encoders and encoder-decoders --------------------------------------------------------------
_BERT = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64,
         "type_vocab_size": 2, "pad_token_id": 0}  # fmt: skip
arch("bert", "BertModel", _BERT)
arch("bert_mlm", "BertForMaskedLM", _BERT)
arch("bert_cls", "BertForSequenceClassification", {**_BERT, "num_labels": 3})
arch("bert_token", "BertForTokenClassification", {**_BERT, "num_labels": 5})
arch("roberta", "RobertaForMaskedLM", _BERT)
arch("roberta_cls", "RobertaForSequenceClassification", {**_BERT, "num_labels": 3})
arch("xlm_roberta", "XLMRobertaModel", _BERT)
arch("electra", "ElectraForPreTraining", {**_BERT, "embedding_size": 16})
arch("albert", "AlbertForMaskedLM", {**_BERT, "embedding_size": 16})
arch(
    "deberta_v2",
    "DebertaV2ForSequenceClassification",
    {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "num_labels": 2},
)
arch(
    "distilbert",
    "DistilBertForSequenceClassification",
    {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
     "max_position_embeddings": 64, "num_labels": 2, "pad_token_id": 0},
)  # fmt: skip
arch("mpnet", "MPNetModel", _BERT)
arch(
    "modernbert",
    "ModernBertForMaskedLM",
    {**_BERT, "type_vocab_size": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1,
     "eos_token_id": 2, "tie_word_embeddings": True},
)  # fmt: skip
_T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
       "num_heads": 4, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}  # fmt: skip  # noqa: E501
arch("t5", "T5ForConditionalGeneration", {**_T5, "tie_word_embeddings": True}, "seq2seq")
arch(
    "flan_t5",
    "T5ForConditionalGeneration",
    {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "seq2seq",
)
arch("mt5", "MT5ForConditionalGeneration", {**_T5, "tie_word_embeddings": False}, "seq2seq")
arch(
    "bart",
    "BartForConditionalGeneration",
    {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
     "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
     "decoder_ffn_dim": 48, "max_position_embeddings": 64, "pad_token_id": 0,
     "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    "seq2seq",
)  # fmt: skip
