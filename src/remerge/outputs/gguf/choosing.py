"""Which type each tensor gets: what `llama-quantize` decides, from names and shapes alone.

The rules are those of ``llama_tensor_get_type`` (llama-quant.cpp of the llama.cpp that
llama-cpp-python 0.3.36 carries). They count tensors as they pass, so the order matters: by layer,
then by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from remerge.sources.ggml_types import FILE_TYPES, TYPES, FileType, fitting

# Parts of names of small tensors, or of ones that suffer, which are never quantised.
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
# GLM-5's, besides: kept, and never below Q8_0.
_GLM5 = "glm5-next"
_KEPT_GLM5 = (
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
)
_LARGE_GLM5 = ("attn_q_a", "attn_q_b", "nextn.eh_proj")
_KEPT_WHOLE = {"position_embd.weight", "token_types.weight"}
_EMBEDDINGS = {"token_embd.weight", "per_layer_token_embd.weight"}
_OUTPUT = "output.weight"
# In this order: the first part of the name that is found decides.
_ROLES = {
    "attn_qkv.weight": "v",
    "attn_kv_b.weight": "v",
    "attn_v.weight": "v",
    "attn_k.weight": "k",
    "attn_q.weight": "q",
    "attn_output.weight": "o",
    "ffn_up": "up",
    "ffn_gate": "gate",
    "ffn_down": "down",
}
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Model:
    """What the rules ask of a model besides its tensors."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int

    @property
    def shares_heads(self) -> bool:
        """Whether four query heads or more share a value head."""
        return self.kv_heads > 0 and self.heads // self.kv_heads >= 4

    @property
    def is_70b(self) -> bool:
        return self.architecture == "llama" and self.layers == 80 and self.heads != self.kv_heads


@dataclass
class _Passed:
    """How many tensors of each role have passed, and how many there are."""

    values: int
    v: int = 0
    down: int = 0


@dataclass(frozen=True)
class Choice:
    """The decisions for one file; ``overrides`` are regular expressions and types, the first that
    is found in a name decides."""

    model: Model
    file: FileType
    overrides: Sequence[tuple[str, str]] = ()
    imatrix: bool = False
    _patterns: list[tuple[re.Pattern[str], str]] = field(
        default_factory=list[tuple[re.Pattern[str], str]]
    )

    def __post_init__(self) -> None:
        self._patterns.extend((re.compile(pattern), kind) for pattern, kind in self.overrides)

    def types(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
        """The type of every tensor (``shapes``: rows before columns), in the file's order."""
        names = in_order(shapes)
        passed = _Passed(sum(_role(name) == "v" for name in names))
        tied = _OUTPUT not in shapes
        return {name: self._type(name, shapes[name], passed, tied) for name in names}

    def _type(self, name: str, shape: Sequence[int], passed: _Passed, tied: bool) -> str:
        glm5 = self.model.architecture == _GLM5
        kept = glm5 and any(part in name for part in _KEPT_GLM5)
        if kept or not _is_quantised(name, shape):
            return "F32"
        default = self.file.default
        if TYPES[default].block == 1:
            return default
        for pattern, kind in self._patterns:
            if pattern.search(name):
                return fitting(kind, shape[-1])
        return fitting(self._ruled(name, shape[-1], passed, tied), shape[-1])

    def _ruled(self, name: str, columns: int, passed: _Passed, tied: bool) -> str:
        default, role = self.file.default, _role(name)
        if self.model.architecture == _GLM5 and any(part in name for part in _LARGE_GLM5):
            return "Q8_0"
        if name == _OUTPUT or (tied and name in _EMBEDDINGS):
            if self.model.architecture == "falcon" or columns % TYPES[default].block:
                return "Q8_0"
            return "Q8_0" if default == "Q8_0" else "Q6_K"
        if name in _EMBEDDINGS:
            return default
        if role == "v":
            chosen = self._value(passed)
            passed.v += 1
            return chosen
        if role == "k" and self.model.experts == 8:
            return "Q8_0"
        if role == "down":
            chosen = self._down(name, passed)
            passed.down += 1
            return chosen
        return self._attention_output() if role == "o" else default

    def _value(self, passed: _Passed) -> str:
        """Value projections, alone or fused with others: few, and what suffers first."""
        file, chosen = self.file.name, self.file.default
        if file == "Q2_K":
            chosen = "Q4_K" if self.model.shares_heads else "Q3_K"
        elif (file == "IQ3_S" and self.model.shares_heads) or file == "IQ3_M":
            chosen = "Q4_K"
        elif file == "Q3_K_M":
            chosen = "Q5_K" if passed.v < 2 else "Q4_K"
        elif file == "Q3_K_L" or (file in ("IQ4_NL", "IQ4_XS") and self.model.shares_heads):
            chosen = "Q5_K"
        elif file in ("Q4_K_M", "Q5_K_M") and _more(passed.v, passed.values):
            chosen = "Q6_K"
        elif file == "Q4_K_S" and passed.v < 4:
            chosen = "Q5_K"
        if self.model.is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return "Q8_0" if self.model.experts == 8 else chosen

    def _down(self, name: str, passed: _Passed) -> str:
        """The second half of the feed-forward layers: more bits at both ends of the model."""
        file, default, layers = self.file.name, self.file.default, self.model.layers
        falcon = self.model.architecture == "falcon"
        # Experts do not pass layer by layer; their names tell.
        layer = _layer(name) if self.model.experts > 1 else passed.down
        if file == "Q2_K":
            return "Q3_K"
        if file == "Q3_K_M":
            if layer < layers // 16:
                return "Q5_K"
            return "Q4_K" if not falcon or _more(layer, layers) else "Q3_K"
        if file == "IQ3_M":
            early = layer < layers // 8
            more = self.model.experts == 8 and _more(layer, layers)
            return "Q4_K" if early or more else default
        if file == "Q3_K_L":
            return "Q4_K" if falcon else "Q5_K"
        if file == "Q4_K_M" and falcon:
            if layer < layers // 16:
                return "Q6_K"
            return "Q5_K" if _more(layer, layers) else "Q4_K"
        if file in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if _more(layer, layers) else default
        if layer >= layers // 8:
            return default
        if file in ("IQ4_NL", "IQ4_XS") and not self.imatrix:
            return "Q5_K"
        if file == "Q4_K_S" and not falcon:
            return "Q5_K"
        if file in ("Q4_0", "Q5_0") and self.imatrix:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[file]
        return default

    def _attention_output(self) -> str:
        file, default = self.file.name, self.file.default
        if self.model.architecture == "falcon":
            return "Q4_K" if file == "Q3_K_L" else default
        if self.model.experts == 8:
            small = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M")
            return "Q5_K" if file in (*small, "IQ4_XS") else default
        by_file = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
        return by_file.get(file, default)


def choose(
    shapes: Mapping[str, Sequence[int]],
    model: Model,
    file_type: str,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    imatrix: bool = False,
) -> dict[str, str]:
    """The type of every tensor of a file, in the order in which they stand in it."""
    return Choice(model, FILE_TYPES[file_type], overrides, imatrix).types(shapes)


def in_order(names: Mapping[str, Sequence[int]]) -> list[str]:
    """llama.cpp's order of tensors: those of no layer first, then layer by layer, by name."""
    return sorted(names, key=lambda name: (_layer(name), name))


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _role(name: str) -> str | None:
    if name == _OUTPUT or name in _EMBEDDINGS:
        return None
    return next((role for part, role in _ROLES.items() if part in name), None)


def _is_quantised(name: str, shape: Sequence[int]) -> bool:
    # As ggml counts: leading dimensions of 1 are none.
    dimensions = len(shape) - next((i for i, n in enumerate(shape) if n != 1), len(shape) - 1)
    if dimensions < 2 or not name.endswith("weight") or name in _KEPT_WHOLE:
        return False
    return not any(part in name for part in _KEPT)


def _more(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
