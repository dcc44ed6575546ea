"""Engines that cannot run here: a checkpoint against what their loaders read, by their sources and
documentation (docs/check.md names the pages). Nothing is loaded, and nothing is promised of the
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.errors import BadInput
from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.documents import as_object, read_json_object
from remerge.validation.limits import Gate


@dataclass(frozen=True)
class StaticEngine:
    """What a loader reads: the models that it has code for (by ``model_type`` or class), and the
    quantisation methods of config.json."""

    name: str
    known: Callable[[Mapping[str, Any]], str | None]
    models: frozenset[str]
    methods: frozenset[str]
    otherwise: str | None
    notes: tuple[str, ...]


def _model_type(config: Mapping[str, Any]) -> str | None:
    found = config.get("model_type")
    return found if isinstance(found, str) else None


def _class(config: Mapping[str, Any]) -> str | None:
    found = config.get("architectures")
    return str(found[0]) if isinstance(found, list) and found else None  # pyright: ignore[reportUnknownArgumentType]


_TGI = frozenset(
    {
        "baichuan",
        "bloom",
        "cohere",
        "dbrx",
        "deepseek_v2",
        "deepseek_v3",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "granite",
        "idefics",
        "idefics2",
        "idefics3",
        "llama",
        "llama4",
        "llava_next",
        "mamba",
        "mistral",
        "mixtral",
        "mllama",
        "mpt",
        "opt",
        "paligemma",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_5_vl",
        "qwen2_vl",
        "starcoder2",
        "t5",
    }
)
_TENSORRT = frozenset(
    {
        "AfmoeForCausalLM",
        "Cohere2ForCausalLM",
        "DeciLMForCausalLM",
        "DeepseekV32ForCausalLM",
        "DeepseekV3ForCausalLM",
        "DeepseekV4ForCausalLM",
        "Exaone4ForCausalLM",
        "ExaoneMoEForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
        "Gemma4ForConditionalGeneration",
        "Glm4MoeForCausalLM",
        "GlmMoeDsaForCausalLM",
        "GptOssForCausalLM",
        "LagunaForCausalLM",
        "Llama4ForConditionalGeneration",
        "LlamaForCausalLM",
        "Mistral3ForConditionalGeneration",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "MllamaForConditionalGeneration",
        "NemotronForCausalLM",
        "NemotronHForCausalLM",
        "NemotronNASForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3_5MoeForCausalLM",
    }
)

STATIC = {
    engine.name: engine
    for engine in (
        StaticEngine(
            "tgi",
            _model_type,
            _TGI,
            frozenset(
                {"gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "compressed-tensors", "exl2"}
            ),
            "TGI has no code of its own for it and falls back on transformers, where it has it.",
            (
                "TGI is in maintenance: its makers name vLLM, SGLang and llama.cpp in its place.",
                "It runs in float16 unless it is told --dtype bfloat16.",
            ),
        ),
        StaticEngine(
            "tensorrt-llm",
            _class,
            _TENSORRT,
            frozenset({"modelopt", "fp8", "mxfp4", "gptq", "awq"}),
            None,
            (
                "TensorRT-LLM loads Hugging Face checkpoints as they are; there is no engine to "
                "build.",
                "Which quantised formats run depends on the GPU; those of NVIDIA's ModelOpt are "
                "documented.",
            ),
        ),
    )
}


def check_statically(name: str, directory: Path) -> tuple[list[Gate], list[str]]:
    """What an engine's loader would find in a checkpoint directory, and sentences about it."""
    engine, notes = STATIC[name], list(STATIC[name].notes)
    config = read_json_object(directory / "config.json")
    model = engine.known(config)
    known = model in engine.models
    if model is not None and not known and engine.otherwise is not None:
        notes.append(f"{model}: {engine.otherwise}")
    holds = [
        _weights(directory),
        Gate(
            "model",
            model or "not stated",
            "one it has code for" if engine.otherwise is None else "stated",
            known or (model is not None and engine.otherwise is not None),
        ),
        _tokenizer(directory),
        _quantisation(engine, directory, config),
    ]
    rope = _rope(config)
    return ([*holds, rope] if rope is not None else holds), notes


def _weights(directory: Path) -> Gate:
    """Every shard is there, with a sound header, and no tensor is missing from the index."""
    try:
        checkpoint = open_checkpoint(directory)
    except BadInput as error:
        return Gate("weights", error.what, "safetensors, complete", False)
    shards = len(checkpoint.shards)
    return Gate("weights", f"{shards} safetensors files", "safetensors, complete", shards > 0)


def _tokenizer(directory: Path) -> Gate:
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    found = [name for name in files if (directory / name).is_file()]
    return Gate("tokenizer", ", ".join(found) or "none", " or ".join(files), bool(found))


def _quantisation(engine: StaticEngine, directory: Path, config: Mapping[str, Any]) -> Gate:
    stated = as_object(config.get("quantization_config"))
    stated = stated or as_object(config.get("compression_config"))
    method = None if stated is None else str(stated.get("quant_method"))
    if method is None and (directory / "hf_quant_config.json").is_file():
        method = "modelopt"
    return Gate(
        "quantisation",
        method or "none",
        f"none, {', '.join(sorted(engine.methods))}",
        method is None or method in engine.methods,
    )


def _rope(config: Mapping[str, Any]) -> Gate | None:
    """transformers 4, which engines still come with, reads ``rope_theta`` and takes 10000 where
    only ``rope_parameters`` states another base."""
    text = as_object(config.get("text_config")) or config
    newer = as_object(text.get("rope_parameters"))
    base = None if newer is None else newer.get("rope_theta")
    if base is None:
        return None
    older = text.get("rope_theta")
    return Gate(
        "rope_theta",
        "not stated at the top level" if older is None else str(older),
        str(base),
        older == base or (older is None and base == 10000.0),
    )
