"""Which tensors a scheme quantises, the plans of their parts, and what config.json says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from remerge.adapters.names import ModelHint, model_names
from remerge.errors import Unsupported, UsageError
from remerge.merging.recipe import Recipe
from remerge.merging.schemes.fp8 import FP8
from remerge.merging.schemes.registry import SCHEMES
from remerge.merging.schemes.scheme import VERSION, WeightScheme
from remerge.merging.tensor_plan import Encoding, TensorPlan
from remerge.sources.codecs.codec import Encodes, Joins
from remerge.sources.documents import as_object
from remerge.sources.dtypes import MERGEABLE, torch_dtype
from remerge.sources.reading import DecodedBase

if TYPE_CHECKING:
    from remerge.adapters.linear_layers import LinearLayer, LinearLayers

# Layers beside each other that vLLM computes as one, in its order: `packed_modules_mapping` of its
# models. It takes all of them quantised or none.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("c_fc_0", "c_fc_1"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
_SHOWN = 3


@dataclass(frozen=True)
class Quantised:
    """The plans of an output's tensors once it is quantised, its ``quantization_config``, and
    sentences for the user."""

    tensors: Mapping[str, TensorPlan]
    stated: Mapping[str, Any]
    notes: tuple[str, ...]


def quantised(
    base: DecodedBase, tensors: Mapping[str, TensorPlan], hint: ModelHint, recipe: Recipe
) -> Quantised:
    """The output with the weights of its linear layers in the recipe's scheme.

    Raises `Unsupported` for a model whose layers are not known or cannot be quantised, `UsageError`
    for a pattern that matches nothing.
    """
    assert recipe.quantize is not None
    scheme = SCHEMES[recipe.quantize]
    names = model_names(base.config, base.tensors, hint)
    # Importing transformers takes seconds.
    from remerge.adapters.linear_layers import linear_layers
    from remerge.adapters.model_names import ModelNames

    if not isinstance(names, ModelNames):
        raise Unsupported(
            f"--to {scheme.name} needs to know which layers of {base.config.get('model_type')!r} "
            "are fully connected, and transformers has no such model.",
            hint="Write 16 bits, and quantise the result with llm-compressor.",
        )
    found = linear_layers(names)
    layers = {name: layer for name, layer in found.layers.items() if name in tensors}
    kept = _kept(layers, tensors, scheme, recipe, base.config)
    chosen = {name: layer for name, layer in layers.items() if name not in kept.reasons}
    if not chosen:
        raise Unsupported(
            f"No layer of the model can be written as {scheme.name}.",
            why=" ".join(kept.notes(scheme)) or "It has no linear layer.",
            hint="Choose another scheme, or write 16 bits.",
        )
    stated = _stated(scheme, found, layers, kept)
    return Quantised(
        dict(_parts(scheme, chosen, tensors)),
        stated,
        tuple(_notes(scheme, found, chosen, kept, {tensors[name].dtype for name in chosen})),
    )


@dataclass
class _Kept:
    """The tensors that stay as they are, each with the reason: ``shape``, ``asked`` or
    ``experts``."""

    reasons: dict[str, str]

    def of(self, reason: str) -> list[str]:
        return [name for name, why in self.reasons.items() if why == reason]

    def notes(self, scheme: WeightScheme) -> Iterator[str]:
        shaped = self.of("shape")
        if shaped:
            rows = f", and layers that engines fuse rows in multiples of {scheme.rows}"
            yield (
                f"{_named(shaped)} stay as they are: {scheme.name} takes columns in multiples of "
                f"{scheme.columns}{rows if scheme.rows > 1 else ''}."
            )
        if self.of("experts"):
            yield (
                f"The experts stay as they are: transformers does not read experts in "
                f"{scheme.name}, vLLM does. --quantize-experts writes them for vLLM."
            )


def _kept(
    layers: Mapping[str, LinearLayer],
    tensors: Mapping[str, TensorPlan],
    scheme: WeightScheme,
    recipe: Recipe,
    config: Mapping[str, Any],
) -> _Kept:
    """Which layers are not quantised: asked for, of a shape that does not fit, or experts that not
    all readers know; and with them what must be treated alike."""
    reasons: dict[str, str] = {}
    asked = _asked(layers, recipe)
    fused = {name: group for group in _groups(layers) for name in group}
    for name, layer in layers.items():
        plan = tensors[name]
        rows, columns = plan.shape
        heights = _stored_together(layer.module, rows, config)
        # vLLM lets the last of fused layers have any number of rows, unless it is an expert's.
        if name in fused and (name != fused[name][-1] or layer.experts is not None):
            heights = (rows,)
        if name in asked or plan.dtype not in MERGEABLE:
            reasons[name] = "asked"
        elif columns % scheme.columns or any(height % scheme.rows for height in heights):
            reasons[name] = "shape"
        elif layer.experts is not None and not (scheme.experts or recipe.quantize_experts):
            reasons[name] = "experts"
    for group in _alike(layers):
        worst = next((reasons[name] for name in group if name in reasons), None)
        if worst is not None:
            reasons |= {name: reasons.get(name, worst) for name in group}
    return _Kept(reasons)


def _stored_together(module: str, rows: int, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The rows of layers that the checkpoint itself stores on top of each other, all but the last
    one's."""
    last = module.rpartition(".")[2]
    if last == "gate_up_proj":
        return (rows // 2,)
    if last in ("qkv_proj", "query_key_value"):
        config = as_object(config.get("text_config")) or config
        heads = int(config.get("num_attention_heads") or 1)
        pairs = int(config.get("num_key_value_heads") or heads)
        one = rows // (heads + 2 * pairs)
        return one * heads, one * pairs
    return ()


def _asked(layers: Mapping[str, LinearLayer], recipe: Recipe) -> set[str]:
    """What the user keeps: by --ignore and --keep-float32."""
    found: set[str] = set()
    for pattern in recipe.ignore:
        matched = {
            name
            for name, layer in layers.items()
            if _matches(layer.module, pattern) or _matches(layer.in_memory, pattern)
        }
        if not matched:
            raise UsageError(
                f"--ignore {pattern!r} matches no linear layer that would be quantised.",
                hint="Give a module's name, or a regular expression: 're:.*down_proj'.",
            )
        found |= matched
    for pattern in recipe.keep_float32:
        found |= {name for name in layers if fnmatchcase(name, pattern)}
    return found


def _matches(module: str, pattern: str) -> bool:
    """`match_name` of compressed_tensors utils/match.py."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern == module


def _groups(layers: Mapping[str, LinearLayer]) -> Iterator[list[str]]:
    """Layers that vLLM computes as one, in its order."""
    by_module = {layer.module: name for name, layer in layers.items()}
    for module in by_module:
        parent, _, last = module.rpartition(".")
        for group in _FUSED:
            if last == group[0]:
                beside = [by_module.get(f"{parent}.{each}") for each in group]
                present = [name for name in beside if name is not None]
                if len(present) > 1:
                    yield present


def _alike(layers: Mapping[str, LinearLayer]) -> Iterator[list[str]]:
    """Layers that are quantised all or not at all: fused ones, and experts of one kind."""
    yield from _groups(layers)
    experts: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer.experts is not None:
            experts.setdefault(_pattern(layer.experts), []).append(name)
    yield from experts.values()


def _pattern(experts: str) -> str:
    """The expression of compressed-tensors for all experts of this kind, in whatever layer, and
    under whatever prefix an engine knows the model."""
    tail = re.split(r"\.\d+\.", f".{experts}")[-1].lstrip(".")
    return rf"re:.*\.{re.escape(tail)}\..*"


def _parts(
    scheme: WeightScheme, chosen: Mapping[str, LinearLayer], tensors: Mapping[str, TensorPlan]
) -> Iterator[tuple[str, TensorPlan]]:
    """Every tensor of the output, quantised ones as their parts."""
    codes = {name: _encoding(scheme, name, tensors[name]) for name in chosen}
    shares: dict[str, tuple[Encoding, ...]] = {}
    for group in _groups(chosen):
        for name in group:
            if isinstance(codes[name].codec, Joins):
                shares[name] = tuple(codes[other] for other in group if other != name)
    for name, plan in tensors.items():
        encoding = codes.get(name)
        if encoding is None:
            yield name, plan
            continue
        encoding = replace(encoding, shares=shares.get(name, ()))
        for role, part in encoding.codec.parts.items():
            yield (
                part.name,
                TensorPlan(
                    part.name, part.dtype, part.shape, None, None, replace(encoding, role=role)
                ),
            )


def _encoding(scheme: WeightScheme, name: str, plan: TensorPlan) -> Encoding:
    rows, columns = plan.shape
    codec = scheme.encoder(name, (rows, columns), plan.dtype)
    assert isinstance(codec, Encodes)
    return Encoding(codec, "codes", plan.change, plan.origin)


def _stated(
    scheme: WeightScheme,
    found: LinearLayers,
    layers: Mapping[str, LinearLayer],
    kept: _Kept,
) -> dict[str, Any]:
    """The ``quantization_config``: module names as the checkpoint and as the model spells them."""
    ignore: dict[str, None] = {}
    patterns = dict.fromkeys(map(_pattern, found.stacked))
    held = False
    for name in kept.reasons:
        layer = layers[name]
        if layer.experts is None:
            ignore |= dict.fromkeys((layer.module, layer.in_memory))
        else:
            patterns[_pattern(layer.experts)] = None
            held = True
    groups = {"group_0": scheme.group(["Linear"])}
    if held and not scheme.float8:
        # transformers unpacks experts by the first group that speaks of them, and takes plain ones
        # for granted under float8 alone. All that this group names is ignored.
        groups["group_1"] = FP8.group(list(patterns))
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": scheme.format,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": list({**ignore, **found.others, "lm_head": None, **patterns}),
    }


def _notes(
    scheme: WeightScheme,
    found: LinearLayers,
    chosen: Mapping[str, LinearLayer],
    kept: _Kept,
    dtypes: set[str],
) -> Iterator[str]:
    yield from kept.notes(scheme)
    if scheme.runs is not None and dtypes != {scheme.runs}:
        yield (
            f"transformers runs {scheme.name} in {_named_dtype(scheme.runs)} alone: write --dtype "
            f"{_named_dtype(scheme.runs)}, or load the model with this dtype."
        )
    if found.stacked:
        yield (
            f"{_named(found.stacked)} hold experts in one tensor, which stay as they are: "
            "transformers does not read such tensors quantised by compressed-tensors."
        )
    if not scheme.experts and any(layer.experts is not None for layer in chosen.values()):
        yield (
            f"The experts are written as {scheme.name} for vLLM: transformers cannot load this "
            "checkpoint, or loads wrong experts."
        )


def _named_dtype(dtype: str) -> str:
    return str(torch_dtype(dtype)).removeprefix("torch.")


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
