"""Names: adapters and bases of other times, other classes, convolutions and odd modules."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.corpus import edits
from tests.corpus.case import Case, Hand, Tensors

ATTENTION = ["q_proj", "v_proj"]
CAUSAL = {"task_type": "CAUSAL_LM"}
HEAD_CONFIG = ("architectures", "id2label", "label2id", "num_labels", "problem_type")


def by_hand(name: str, arch: str, pattern: str, **fields: Any) -> Case:
    """An adapter that names modules as the hub names the tensors."""
    rename: Callable[[str], str] = fields.pop("rename", lambda key: key)
    return Case(
        f"{name}-{arch}", arch, category="names", expects="by_hand",
        hand=Hand(pattern, rename=rename), **fields,
    )  # fmt: skip


def peft_case(name: str, arch: str, lora: dict[str, Any], **fields: Any) -> Case:
    return Case(f"{name}-{arch}", arch, lora, category="names", **fields)


#: Transformers before 4.52 named the modules as the files still name the tensors.
_TEXT = r"language_model.*(self_attn\.[qv]_proj|down_proj)\."
_TOWERS = _TEXT + r"|vision_tower.*(q_proj|fc1)\.|multi_modal_projector.*linear_1\."
OLD_ADAPTERS = [
    by_hand("old_names", "llava", _TOWERS, fast=True),
    by_hand("old_names", "llava_next", _TOWERS, dtype="float32"),
    by_hand("old_names", "llava_onevision", _TEXT),
    by_hand("old_names", "vipllava", _TEXT),
    by_hand("old_names", "paligemma", _TEXT),
    by_hand("old_names", "gemma3", _TEXT, fast=True),
    by_hand("old_names", "mistral3", _TEXT, dtype="float16"),
    by_hand("old_names", "internvl", _TEXT),
    by_hand("old_names", "mllama", _TEXT),
    by_hand("old_names", "aya_vision", _TEXT),
    by_hand("old_names", "qwen2_vl", r"^model.*([qv]_proj|mlp.*)\.weight|^visual.*(qkv|fc1)\.",
            fast=True, notes="PEFT merges nothing here, with a warning only"),
    by_hand("old_names", "qwen2_5_vl", r"^model.*([qv]_proj)\.|^visual.*(qkv|gate_proj)\."),
    by_hand("old_names", "qwen2_audio", r"language_model.*[qv]_proj\."),
    by_hand("old_names", "gpt_neox", r"embed_out|query_key_value",
            notes="PEFT skips the head without a warning"),
    by_hand("old_names", "vit", r"(query|value|intermediate\.dense)\.", fast=True),
    by_hand("old_names", "deit", r"(query|key|attention\.output\.dense)\."),
    by_hand("old_names", "beit", r"(query|value)\.", dtype="float32"),
    by_hand("old_names", "dinov2", r"(query|value|mlp\.fc1)\."),
    by_hand("old_names", "dinov2_swiglu", r"(query|weights_in|weights_out)\."),
    by_hand("old_names", "swin", r"(query|value)\."),
    by_hand("old_names", "segformer", r"(query|value|dense1)\."),
    by_hand("old_names", "detr", r"(encoder_attn\.out_proj|self_attn\.q_proj|fc1)\."),
]  # fmt: skip


def renamed_base(*pairs: tuple[str, str]) -> Callable[[Any], None]:
    def change(tensors: Tensors) -> Tensors:
        for pattern, by in pairs:
            tensors = {re.sub(pattern, by, key): value for key, value in tensors.items()}
        return tensors

    return edits.on_base(change)


#: Bases whose files name the tensors otherwise than this transformers would save them.
_LLAVA_NEW = renamed_base(
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head", "lm_head"),
    (r"^(vision_tower|multi_modal_projector)", r"model.\1"),
)
OTHER_BASES = [
    peft_case("base_of_hub", "llava", {"target_modules": "all-linear"},
              edit_base=renamed_base((r"^vision_tower\.", "vision_tower.vision_model.")),
              notes="as llava-hf/llava-1.5-7b-hf lies on the hub"),
    peft_case("base_new_names", "llava", {"target_modules": ATTENTION}, edit_base=_LLAVA_NEW),
    peft_case("base_new_names", "gemma3", {"target_modules": "all-linear"},
              edit_base=_LLAVA_NEW),
    peft_case("base_new_names", "qwen2_vl", {"target_modules": [*ATTENTION, "qkv"]},
              edit_base=renamed_base((r"^visual", "model.visual"),
                                     (r"^model\.(?!visual)", "model.language_model."))),
    peft_case("base_without_prefix", "gpt2", {"target_modules": ["c_attn", "c_proj"], **CAUSAL},
              edit_base=renamed_base((r"^transformer\.", "")), renamed=(r"^transformer\.", ""),
              fast=True, notes="as openai-community/gpt2 lies on the hub"),
    peft_case("base_without_prefix", "bloom",
              {"target_modules": ["query_key_value"], **CAUSAL}, dtype="float32",
              edit_base=renamed_base((r"^transformer\.", "")), renamed=(r"^transformer\.", "")),
    peft_case("base_with_buffers", "gpt2", {"target_modules": ["c_attn"], **CAUSAL},
              edit_base=edits.add_to_base("transformer.h.0.attn.masked_bias", 1),
              kept=("transformer.h.0.attn.masked_bias",)),
]  # fmt: skip

#: The adapter was trained on another class than the base was saved from.
CLASSES = [
    peft_case("trained_on_model", "llama", {"target_modules": ATTENTION},
              adapter_class="LlamaModel", load_class="LlamaForCausalLM", renamed=(r"^", "model."),
              kept=("lm_head.weight",), fast=True),
    peft_case("trained_on_model", "gpt2", {"target_modules": ["c_attn"]},
              adapter_class="GPT2Model", load_class="GPT2LMHeadModel",
              renamed=(r"^", "transformer."), dtype="float32"),
    peft_case("trained_on_model", "qwen2_vl", {"target_modules": ATTENTION},
              adapter_class="Qwen2VLModel", load_class="Qwen2VLForConditionalGeneration",
              renamed=(r"^language_model\.", "model."), kept=("lm_head.weight",)),
    peft_case("seq_cls", "llama", {"target_modules": ATTENTION, "task_type": "SEQ_CLS"},
              adapter_class="LlamaForSequenceClassification", optional=("lm_head.weight",),
              config_free=HEAD_CONFIG, fast=True,
              notes="the head is new; the config has to name the class with it"),
    peft_case("seq_cls", "qwen2", {"target_modules": ATTENTION, "task_type": "SEQ_CLS",
              "use_dora": True}, adapter_class="Qwen2ForSequenceClassification",
              optional=("lm_head.weight",), config_free=HEAD_CONFIG),
    peft_case("token_cls", "qwen3", {"target_modules": ATTENTION, "task_type": "TOKEN_CLS"},
              adapter_class="Qwen3ForTokenClassification", optional=("lm_head.weight",),
              config_free=HEAD_CONFIG),
    peft_case("seq_cls", "bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
              adapter_class="BertForSequenceClassification", loose_prefix="bert.",
              config_free=HEAD_CONFIG, fast=True),
    peft_case("token_cls", "xlm_roberta", {"target_modules": ["query"], "task_type": "TOKEN_CLS"},
              adapter_class="XLMRobertaForTokenClassification", loose_prefix="roberta.",
              optional=("pooler.dense.weight", "pooler.dense.bias"), config_free=HEAD_CONFIG),
    peft_case("seq_cls", "bert_cls", {"target_modules": ["query", "value"],
              "task_type": "SEQ_CLS"}),
    peft_case("token_cls", "bert_token", {"target_modules": ["key"], "task_type": "TOKEN_CLS"},
              dtype="float32"),
    peft_case("seq_cls", "roberta_cls", {"target_modules": ["query"], "task_type": "SEQ_CLS",
              "use_dora": True}),
    peft_case("seq_cls", "distilbert", {"target_modules": ["q_lin", "v_lin"],
              "task_type": "SEQ_CLS", "modules_to_save": ["pre_classifier"]}),
    peft_case("seq_cls", "deberta_v2", {"target_modules": ["query_proj", "value_proj"],
              "task_type": "SEQ_CLS"}, dtype="float16"),
    peft_case("feature", "mpnet", {"target_modules": ["q", "k"],
              "task_type": "FEATURE_EXTRACTION"}),
    peft_case("seq2seq", "bart", {"target_modules": ATTENTION, "task_type": "SEQ_2_SEQ_LM",
              "bias": "lora_only"}),
    peft_case("seq2seq", "flan_t5", {"target_modules": ["q", "v", "wi_0"],
              "task_type": "SEQ_2_SEQ_LM", "modules_to_save": ["lm_head"]}, dtype="float32",
              config_free=("tie_word_embeddings",),
              notes="PEFT writes false; T5Config takes false for 'do not scale' unless the file "
              "also has scale_decoder_outputs, and true loads both tensors: either is right"),
    peft_case("classifier_saved", "vit", {"target_modules": ["q_proj", "v_proj"],
              "modules_to_save": ["classifier"]}, fast=True),
    peft_case("classifier_saved", "swin", {"target_modules": "all-linear",
              "modules_to_save": ["classifier"], "use_dora": True}),
]  # fmt: skip

#: Convolutions, attention as one module, fused projections.
ODD_MODULES = [
    peft_case("conv1d", "whisper", {"target_modules": ["conv1", "conv2", "q_proj"]}, fast=True),
    peft_case("conv1d_dora", "whisper", {"target_modules": ["conv1", "fc1"], "use_dora": True},
              dtype="float32"),
    peft_case("conv1d", "wav2vec2", {"target_modules": [r"conv_layers.1.conv", "k_proj"]}),
    peft_case("conv2d", "vit", {"target_modules": ["projection", "q_proj"]}, fast=True),
    peft_case("conv2d_dora", "vit", {"target_modules": ["projection"], "use_dora": True}),
    peft_case("conv2d_rslora", "dinov2", {"target_modules": ["projection"], "use_rslora": True},
              dtype="float16"),
    peft_case("conv2d", "convnext", {"target_modules": ["patch_embeddings", "pwconv1",
              "downsampling_layer.1"]}),
    peft_case("conv2d_1x1", "resnet", {"target_modules": ["convolution"]}, fast=True),
    peft_case("conv2d_1x1_dora", "resnet", {"target_modules": ["convolution"], "use_dora": True},
              dtype="float32"),
    peft_case("conv2d_1x1", "segformer", {"target_modules": ["linear_fuse", "proj", "q_proj"]}),
    peft_case("conv2d_save", "segformer", {"target_modules": ["q_proj"],
              "modules_to_save": ["decode_head"]}),
    peft_case("conv2d", "detr", {"target_modules": ["input_projection", "q_proj"]},
              dtype="float32"),
    peft_case("conv2d_lora_bias", "clip_vision", {"target_modules": ["fc1", "out_proj"],
              "lora_bias": True}),
    peft_case("conv3d", "qwen2_vl", {"target_modules": ["patch_embed.proj", "qkv"]}),
    peft_case("conv3d_dora", "qwen2_5_vl", {"target_modules": ["patch_embed.proj"],
              "use_dora": True}, dtype="float32"),
    peft_case("mha", "siglip_vision", {"target_modules": r".*head\.attention"}, fast=True,
              notes="PEFT adds the delta of out_proj twice, in the forward pass too"),
    peft_case("mha", "siglip", {"target_modules": ["head.attention", "q_proj"]},
              dtype="float32"),
    peft_case("mha_untrained", "siglip_vision", {"target_modules": "all-linear"},
              edit_adapter=edits.scale(r"attention\.out_proj\.lora_B", 0),
              edit_is_the_adapter=True, notes="what all-linear really leaves: torch's attention "
              "never calls its out_proj, so that B stays zero; refusing refuses them all"),
    peft_case("fused_qkv", "phi3", {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj"],
              **CAUSAL}),
    peft_case("fused_qkv", "falcon", {"target_modules": ["query_key_value", "dense_h_to_4h"],
              **CAUSAL}, dtype="float32"),
    peft_case("fused_qkv", "gpt_bigcode", {"target_modules": ["c_attn"], "bias": "all"}),
    peft_case("fused_qkv", "mpt", {"target_modules": ["Wqkv", "up_proj"]}, dtype="float16"),
    peft_case("fused_qkv", "modernbert", {"target_modules": ["Wqkv", "Wi", "Wo"]}),
    peft_case("split_swiglu", "dinov2_swiglu", {"target_modules": ["gate_proj", "down_proj"]},
              notes="the file has gate and up in one tensor, the model has not"),
    peft_case("split_swiglu_dora", "dinov2_swiglu", {"target_modules": ["gate_proj", "up_proj"],
              "use_dora": True}, dtype="float32"),
    peft_case("shared_layers", "albert", {"target_modules": ["query", "ffn"]}),
    peft_case("state_space", "jamba", {"target_modules": ["in_proj", "x_proj", "q_proj"]}),
    peft_case("vision_only", "gemma3", {"target_modules": r".*vision_tower.*(q_proj|fc2)"}),
    peft_case("projector_saved", "llava", {"target_modules": ATTENTION,
              "modules_to_save": ["multi_modal_projector"]}, fast=True),
    peft_case("merger_saved", "qwen2_vl", {"target_modules": ATTENTION,
              "modules_to_save": ["merger"]}),
    peft_case("head_saved", "llava", {"target_modules": ATTENTION,
              "modules_to_save": ["lm_head"], "use_rslora": True}, dtype="float16"),
    peft_case("norms_saved", "qwen2_5_vl", {"target_modules": ["o_proj"], "bias": "all"}),
]  # fmt: skip

CASES = [*OLD_ADAPTERS, *OTHER_BASES, *CLASSES, *ODD_MODULES]
