"""Names against transformers for every model type whose default configuration can be shrunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from tests.adapters.rebuilt import counted, differing, save

HEADS = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForPreTraining",
    "AutoModelForSeq2SeqLM",
    "AutoModel",
    "AutoModelForImageClassification",
)
SMALL = {
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"], 2),
    **dict.fromkeys(["num_encoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "first_k_dense_replace"], 1),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embed_dim", "dim"], 32),
    **dict.fromkeys(["out_hidden_size", "decoder_hidden_size"], 32),
    **dict.fromkeys(["intermediate_size", "d_ff", "mlp_dim", "ffn_hidden_size"], 48),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 48),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["moe_num_experts", "qk_rope_head_dim", "ssm_state_size"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_experts_per_tok", "moe_k"], 2),
    **dict.fromkeys(["linear_num_value_heads", "linear_num_key_heads"], 2),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts"], 1),
    **dict.fromkeys(["head_dim", "qk_nope_head_dim", "v_head_dim", "d_kv", "patch_size"], 8),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "num_mel_bins"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "image_size", "projection_dim"], 16),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 24),
    "vocab_size": 96,
    "decoder_vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_nextn_predict_layers": 0,
}
LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")
# What constructors raise for sizes that do not go together.
UNFIT = (ArithmeticError, AttributeError, ImportError, KeyError, IndexError, RuntimeError)
UNFIT += (AssertionError, TypeError, ValueError, StrictDataclassError)


def shrink(config: PreTrainedConfig) -> None:
    for key, value in SMALL.items():
        if type(getattr(config, key, None)) is int:
            setattr(config, key, value)
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            shrink(value)
        elif key in LAYER_LISTS and isinstance(value, list):
            setattr(config, key, [value[0], value[-1]])


def head(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    for auto in HEADS:
        mapping: Any = getattr(transformers, auto)._model_mapping
        if config_class in mapping:
            found = mapping[config_class]
            found = found[0] if isinstance(found, list | tuple) else found
            if found.config_class is config_class:
                return found
    return None


@pytest.mark.slow
@pytest.mark.parametrize("model_type", list(CONFIG_MAPPING))
def test_every_parameter_is_found(model_type: str, tmp_path: Path) -> None:
    config_class = CONFIG_MAPPING[model_type]
    try:
        model_class = head(config_class)
        if model_class is None:
            pytest.skip("no model of its own")
        config = config_class()
        shrink(config)
        config = config_class.from_dict(config.to_dict())
        with no_init_weights(), torch.device("meta"):
            size = sum(parameter.numel() for parameter in model_class(config).parameters())
        if size >= 2**24:
            pytest.skip("not tiny enough")
        model = counted(model_class(config))
    except UNFIT as error:
        pytest.skip(f"not built: {error}")
    saved = save(model, tmp_path)
    assert differing(saved.names(), model, saved) == []
