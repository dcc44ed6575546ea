"""Vision, speech and multimodal models."""

from __future__ import annotations

from typing import Any

from tests.corpus.architectures import LLAMA_LIKE, SMALL_TEXT, VOCAB, arch

# --- vision -------------------------------------------------------------------------------------
_VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "image_size": 16, "patch_size": 8, "num_channels": 3,
}  # fmt: skip
arch("vit", "ViTForImageClassification", {**_VIT, "num_labels": 3}, "pixels")
arch("deit", "DeiTForImageClassification", {**_VIT, "num_labels": 3}, "pixels")
arch("dinov2", "Dinov2Model", {**_VIT, "mlp_ratio": 2}, "pixels")
arch("dinov2_swiglu", "Dinov2Model", {**_VIT, "mlp_ratio": 2, "use_swiglu_ffn": True}, "pixels")
arch("beit", "BeitForImageClassification", {**_VIT, "num_labels": 3}, "pixels")
arch(
    "swin",
    "SwinForImageClassification",
    {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4],
     "window_size": 2, "num_labels": 3},
    "pixels",
)  # fmt: skip
arch(
    "segformer",
    "SegformerForSemanticSegmentation",
    {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
     "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4],
     "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "num_labels": 3},
    None,
)  # fmt: skip
arch(
    "convnext",
    "ConvNextForImageClassification",
    {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4,
     "image_size": 16, "num_labels": 3},
    "pixels",
)  # fmt: skip
arch(
    "resnet",
    "ResNetForImageClassification",
    {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "bottleneck",
     "num_labels": 3},
    "pixels",
)  # fmt: skip
_CLIP_VISION = {**_VIT, "projection_dim": 16}
_CLIP_TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "projection_dim": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
arch(
    "clip",
    "CLIPModel",
    {"text_config": _CLIP_TEXT, "vision_config": _CLIP_VISION, "projection_dim": 16},
    None,
)
arch("clip_vision", "CLIPVisionModelWithProjection", _CLIP_VISION, "pixels")
arch(
    "siglip",
    "SiglipModel",
    {"text_config": {**_CLIP_TEXT, "projection_size": 32}, "vision_config": _VIT},
    None,
)
arch("siglip_vision", "SiglipVisionModel", _VIT, "pixels")
_RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1],
    "layer_type": "basic", "out_features": ["stage2"],
}  # fmt: skip
arch(
    "detr",
    "DetrForObjectDetection",
    {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False,
     "backbone_config": _RESNET, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
     "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
     "decoder_attention_heads": 4, "num_queries": 4, "num_labels": 3},
    None,
)  # fmt: skip

# --- speech -------------------------------------------------------------------------------------
arch(
    "whisper",
    "WhisperForConditionalGeneration",
    {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
     "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
     "decoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 16,
     "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
     "decoder_start_token_id": 3, "suppress_tokens": None, "begin_suppress_tokens": None},
    None,
)  # fmt: skip
_WAV: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "conv_dim": [16, 16], "conv_stride": [4, 2], "conv_kernel": [8, 4],
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "pad_token_id": 0,
}  # fmt: skip
arch("wav2vec2", "Wav2Vec2ForCTC", _WAV, None)
arch("hubert", "HubertForCTC", _WAV, None)
arch("wavlm", "WavLMForCTC", _WAV, None)

# --- vision and language ------------------------------------------------------------------------
_VISION_CLIP = {"model_type": "clip_vision_model", **_CLIP_VISION}
_VISION_SIGLIP = {"model_type": "siglip_vision_model", **_VIT}
_LLAVA = {
    "text_config": SMALL_TEXT, "vision_config": _VISION_CLIP, "image_token_index": 90,
    "image_token_id": 90, "vision_feature_layer": -1, "tie_word_embeddings": False,
}  # fmt: skip
arch("llava", "LlavaForConditionalGeneration", _LLAVA)
arch(
    "llava_next",
    "LlavaNextForConditionalGeneration",
    {**_LLAVA, "image_grid_pinpoints": [[16, 16]]},
)
arch(
    "llava_onevision",
    "LlavaOnevisionForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "model_type": "qwen2"}, "vision_config": _VISION_SIGLIP,
     "image_token_id": 90, "video_token_id": 91, "image_grid_pinpoints": [[16, 16]],
     "vision_feature_layer": -1, "tie_word_embeddings": False},
)  # fmt: skip
arch(
    "vipllava",
    "VipLlavaForConditionalGeneration",
    {**_LLAVA, "vision_feature_layers": [-1, -2]},
)
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_QWEN_VISION = {
    "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2,
    "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
}  # fmt: skip
arch(
    "qwen2_vl",
    "Qwen2VLForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "rope_parameters": _ROPE}, "vision_config": _QWEN_VISION,
     "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92,
     "vision_end_token_id": 93, "tie_word_embeddings": False},
)  # fmt: skip
arch(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "rope_parameters": _ROPE},
     "vision_config": {**_QWEN_VISION, "out_hidden_size": 32, "intermediate_size": 48,
                       "fullatt_block_indexes": [1]},
     "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92,
     "vision_end_token_id": 93, "tie_word_embeddings": False},
)  # fmt: skip
_QWEN3_VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": 32,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip
arch(
    "qwen3_vl",
    "Qwen3VLForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "rope_parameters": _ROPE}, "vision_config": _QWEN3_VISION,
     "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92,
     "vision_end_token_id": 93, "tie_word_embeddings": False},
)  # fmt: skip
arch(
    "qwen3_vl_moe",
    "Qwen3VLMoeForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "rope_parameters": _ROPE, "num_experts": 3,
                     "num_experts_per_tok": 2, "moe_intermediate_size": 24},
     "vision_config": _QWEN3_VISION,
     "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92,
     "vision_end_token_id": 93, "tie_word_embeddings": False},
)  # fmt: skip
arch(
    "mllama",
    "MllamaForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "num_hidden_layers": 2, "cross_attention_layers": [1],
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
     "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                       "num_global_layers": 1, "attention_heads": 4, "image_size": 16,
                       "patch_size": 8, "num_channels": 3, "max_num_tiles": 2,
                       "vision_output_dim": 64, "intermediate_layers_indices": [0],
                       "supported_aspect_ratios": [[1, 1], [1, 2]]},
     "image_token_index": 90},
)  # fmt: skip
_GEMMA_TEXT = {**LLAMA_LIKE, "tie_word_embeddings": True}
arch(
    "paligemma",
    "PaliGemmaForConditionalGeneration",
    {"text_config": {**_GEMMA_TEXT, "model_type": "gemma"},
     "vision_config": {**_VISION_SIGLIP, "projection_dim": 32, "vision_use_head": False},
     "projection_dim": 32, "image_token_index": 90, "image_token_id": 90},
)  # fmt: skip
arch(
    "gemma3",
    "Gemma3ForConditionalGeneration",
    {"text_config": {**_GEMMA_TEXT, "model_type": "gemma3_text", "query_pre_attn_scalar": 8},
     "vision_config": {**_VISION_SIGLIP, "vision_use_head": False}, "mm_tokens_per_image": 4,
     "image_token_index": 90, "image_token_id": 90, "boi_token_index": 91,
     "eoi_token_index": 92},
)  # fmt: skip
arch(
    "mistral3",
    "Mistral3ForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "model_type": "mistral"},
     "vision_config": {**_VIT, "model_type": "pixtral", "head_dim": 8}, "image_token_index": 90,
     "image_token_id": 90, "vision_feature_layer": -1, "spatial_merge_size": 2,
     "tie_word_embeddings": False},
)  # fmt: skip
arch(
    "internvl",
    "InternVLForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "model_type": "qwen2"},
     "vision_config": {**_VIT, "image_size": [16, 16], "patch_size": [4, 4]},
     "image_token_id": 90, "tie_word_embeddings": False},
)  # fmt: skip
arch(
    "idefics3",
    "Idefics3ForConditionalGeneration",
    {"text_config": SMALL_TEXT, "vision_config": {**_VIT, "model_type": "idefics3_vision"},
     "image_token_id": 90, "scale_factor": 2, "tie_word_embeddings": False},
)  # fmt: skip
arch(
    "smolvlm",
    "SmolVLMForConditionalGeneration",
    {"text_config": SMALL_TEXT, "vision_config": {**_VIT, "model_type": "smolvlm_vision"},
     "image_token_id": 90, "scale_factor": 2, "tie_word_embeddings": False},
)  # fmt: skip
arch(
    "aya_vision",
    "AyaVisionForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "model_type": "cohere2", "tie_word_embeddings": True},
     "vision_config": _VISION_SIGLIP, "image_token_index": 90, "image_token_id": 90,
     "vision_feature_layer": -1, "downsample_factor": 2},
)  # fmt: skip
arch(
    "qwen2_audio",
    "Qwen2AudioForConditionalGeneration",
    {"text_config": {**LLAMA_LIKE, "model_type": "qwen2"},
     "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 1,
                      "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 8,
                      "max_source_positions": 8},
     "audio_token_index": 90, "audio_token_id": 90},
)  # fmt: skip
