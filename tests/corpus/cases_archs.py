"""Every architecture once with all its linear layers, in turn with the kinds that fit anywhere."""

from __future__ import annotations

from typing import Any

from tests.corpus import arch_other, arch_text  # noqa: F401  (they fill ARCHS)
from tests.corpus.architectures import ARCHS
from tests.corpus.case import Case

_DTYPES = ("bfloat16", "float32", "bfloat16", "float16")
_KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear", {}),
    ("linear_rslora", {"use_rslora": True, "r": 3}),
    ("linear_dora", {"use_dora": True}),
    ("linear_bias", {"bias": "all"}),
    ("linear", {"r": 6, "lora_alpha": 3.5}),
)
#: Architectures that other cases cover from all sides.
_ELSEWHERE = {
    "llama_tied", "llama_bias", "llama_square", "llama_deep", "qwen2_tied", "qwen3_tied",
    "mixtral_square", "qwen3_moe_square", "gpt_oss_square",
}  # fmt: skip
_FAST = {
    "qwen2_vl", "llava", "gemma3", "phi3", "gpt_neox", "vit", "whisper", "t5", "qwen3_moe",
    "mixtral", "bert_cls", "deepseek_v3",
}  # fmt: skip
#: Where PEFT refuses all-linear, or all-linear with this kind.
_SPEECH = {"target_modules": ["q_proj", "v_proj", "out_proj", "intermediate_dense", "projection"]}
_INSTEAD: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("linear", _SPEECH),
    "hubert": ("linear_dora", {**_SPEECH, "use_dora": True}),
    "wavlm": ("linear_rslora", {**_SPEECH, "use_rslora": True}),
    "mamba": ("linear", {"target_modules": ["in_proj", "x_proj"]}),
    "mamba2": ("linear_dora", {"target_modules": ["in_proj"], "use_dora": True}),
    "falcon_mamba": ("linear", {"target_modules": ["in_proj", "x_proj"]}),
    "mixtral": ("linear", {}),
    "ernie4_5_moe": ("linear_rslora", {"use_rslora": True}),
}


def _cases() -> list[Case]:
    cases: list[Case] = []
    for number, name in enumerate(n for n in ARCHS if n not in _ELSEWHERE):
        kind, lora = _INSTEAD.get(name) or _KINDS[number % len(_KINDS)]
        cases.append(
            Case(
                f"{kind}-{name}",
                name,
                {"target_modules": "all-linear", **lora},
                category="archs",
                dtype=_DTYPES[number % len(_DTYPES)],
                fast=name in _FAST,
            )
        )
    return cases


CASES = _cases()
