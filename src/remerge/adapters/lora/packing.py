"""How the factors of a stack of experts lie in their two matrices; their shapes do not say.

Columns of B (out, r * E). PEFT has read them with the expert fastest, ``reshape(out, r, E)``, in
every version that knows target_parameters (0.17 to 0.21; lora/layer.py, ParamWrapper): rank-major.
Unsloth trained the families below with the expert slowest, ``reshape(out, E, r)``, until
unsloth_zoo 2026.9.6 (unsloth-zoo#1269), and PEFT's own merge scrambles such an adapter. Since then
it states ``lora_B_layout`` in adapter_config.json (unsloth-zoo#1232); before, an adapter of its
is known by ``unsloth_fixed`` alone.

Axes of A and B. For a stack (E, m, n) PEFT to 0.18 always took m for the inputs, so that A is
(r * E, m); 0.19.0 did so but for classes that store (E, in, out), and took n there; since 0.19.1
it is n but for those classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from remerge.errors import Unsupported
from remerge.sources.documents import as_object

ExpertPacking = Literal["auto", "rank-major", "expert-major"]

_MARKER, _DETAIL = "lora_B_layout", "unsloth_fused_expert_lora"
_EXPERT_MAJOR = {"rank_major": False, "grouped_by_expert": True}
_STATED = {"rank-major": "rank_major", "expert-major": "grouped_by_expert"}
# Model types whose experts Unsloth trained expert-major (unsloth_zoo/temporary_patches/
# moe_utils.py); all others it left to PEFT.
_UNSLOTH_EXPERT_MAJOR = frozenset(
    {
        "deepseek_v3",
        "ernie4_5_moe",
        "ernie4_5_vl_moe",
        "gemma4",
        "glm4_moe",
        "glm4_moe_lite",
        "gpt_oss",
        "lfm2_moe",
        "mixtral",
        "qwen3_5_moe",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_vl_moe",
    }
)
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?")


def stating(config: Mapping[str, Any], asked: ExpertPacking) -> Mapping[str, Any]:
    """The adapter's configuration as it would be if it stated the packing that the user asks for;
    itself for ``auto``."""
    if asked == "auto":
        return config
    others = {name: value for name, value in config.items() if name != _DETAIL}
    return {**others, _MARKER: _STATED[asked]}


def is_expert_major(config: Mapping[str, Any], model_type: object, parameter: str) -> bool:
    """Whether the columns of B for one parameter's experts lie expert by expert.

    Raises `Unsupported` for a stated packing of another name.
    """
    stated = _stated(config, parameter)
    if stated is None:
        return _is_old_unsloth(config, model_type)
    if not isinstance(stated, str) or stated not in _EXPERT_MAJOR:
        raise Unsupported(
            f"adapter_config.json: {_MARKER} of {parameter} is {str(stated)[:40]!r}.",
            why="Known are " + " and ".join(sorted(_EXPERT_MAJOR)) + ".",
            hint="Say which it is with --expert-packing rank-major or expert-major.",
        )
    return _EXPERT_MAJOR[stated]


def inputs_first(config: Mapping[str, Any], transposed: bool) -> bool:
    """Whether the first axis of each matrix in a stack (E, m, n) was the inputs', along which A
    runs, by the version of PEFT that wrote the adapter; ``transposed`` says that the class stores
    (E, in, out)."""
    version = _version(config)
    if version is None or version >= (0, 19, 1):
        return transposed
    return not transposed if version >= (0, 19, 0) else True


def packing_notes(
    config: Mapping[str, Any], model_type: object, parameters: list[str], square: list[str]
) -> list[str]:
    """What had to be assumed: ``parameters`` are stacks that were trained with a rank above 1,
    ``square`` those whose shape leaves the axes of A and B open."""
    notes: list[str] = []
    guessed = [name for name in parameters if _stated(config, name) is None]
    if guessed and _is_old_unsloth(config, model_type):
        notes.append(
            "The adapter is Unsloth's and does not state how the experts' factors are packed; they "
            "were read expert-major, as Unsloth trained this family before unsloth_zoo 2026.9.6. "
            "If it was trained with UNSLOTH_MOE_LORA_MERGED=1, merge with --expert-packing "
            "rank-major."
        )
    elif guessed and _version(config) is None:
        notes.append(
            "The adapter's configuration names no version of PEFT, so how its experts' factors are "
            "packed was assumed to be PEFT's way, rank-major (--expert-packing)."
        )
    if square and _version(config) is None:
        notes.append(
            f"{', '.join(square[:3])}: the experts' matrices are square and no version of PEFT is "
            "named; the adapter was read as PEFT 0.19.1 and later write it. Versions before 0.19.1 "
            "meant the transpose."
        )
    return notes


def _is_old_unsloth(config: Mapping[str, Any], model_type: object) -> bool:
    mapping = as_object(config.get("auto_mapping")) or {}
    family = str(model_type).removesuffix("_text")
    return mapping.get("unsloth_fixed") is True and family in _UNSLOTH_EXPERT_MAJOR


def _stated(config: Mapping[str, Any], parameter: str) -> object:
    """The packing that Unsloth states for a parameter, at the top or within auto_mapping."""
    for source in (config, as_object(config.get("auto_mapping")) or {}):
        detail = as_object((as_object(source.get(_DETAIL)) or {}).get("parameters")) or {}
        own = as_object(detail.get(parameter.rpartition(".")[2])) or {}
        stated = own.get(_MARKER, source.get(_MARKER))
        if stated is not None:
            return stated
    return None


def _version(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    found = _VERSION.match(str(config.get("peft_version") or ""))
    return None if found is None else (int(found[1]), int(found[2]), int(found[3] or 0))
