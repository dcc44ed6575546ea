"""compressed-tensors bases against the library's own compressors and quantisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from remerge.errors import BadInput, Unsupported
from remerge.sources.codecs.codec import Encodes
from tests.sources.codecs import checks

NAME = "model.layers.0.mlp.up_proj"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(shape, generator=generator) * 2
    return torch.randn(shape, generator=generator) * spread.exp2() + 0.3


def scheme_of(inputs: dict[str, Any] | None = None, **weights: Any) -> QuantizationScheme:
    activations = QuantizationArgs(**inputs) if inputs else None
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**weights), input_activations=activations
    )


def blocks_of(weight: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """The values (..., n) that share each scale, in the scales' shape."""
    if args.strategy == "tensor":
        return weight.reshape(1, -1)
    if args.strategy == "channel":
        return weight.unsqueeze(-2)
    if args.strategy == "block":
        high, wide = args.block_structure
        rows, columns = weight.shape
        padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
        tiles = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high))
        return tiles.transpose(1, 2).flatten(2)
    return weight.unflatten(-1, (-1, args.group_size))


def quantised(
    weight: torch.Tensor,
    scheme: QuantizationScheme,
    dtype: torch.dtype | None = None,
    global_scale: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """A float32 weight as the library stores it, with scales of ``dtype``."""
    args = scheme.weights
    found = blocks_of(weight, args)
    low, high = found.amin(-1), found.amax(-1)
    if args.strategy == "tensor_group" and global_scale is None:
        global_scale = generate_gparam(weight.amin(), weight.amax())
    scale, zeros = calculate_qparams(low, high, args, global_scale)
    state = {"weight": weight, "weight_scale": scale.to(dtype or torch.float32)}
    state["weight_zero_point"] = zeros
    if global_scale is not None:
        state["weight_global_scale"] = global_scale
    return compressor(scheme).compress(state, scheme)


def compressor(scheme: QuantizationScheme) -> type[BaseCompressor]:
    scheme.format = scheme.format or infer_module_format(torch.nn.Linear, scheme)
    return BaseCompressor.get_value_from_registry(CompressionFormat(scheme.format).value)


def config_of(*schemes: QuantizationScheme, **more: Any) -> dict[str, Any]:
    groups = {f"group_{n}": scheme for n, scheme in enumerate(schemes)}
    found = QuantizationConfig(
        config_groups=groups, format=schemes[0].format or "dense", quantization_status="compressed"
    )
    return {"dtype": "bfloat16", "quantization_config": found.model_dump(mode="json") | more}


def named(state: dict[str, torch.Tensor], module: str = NAME) -> dict[str, torch.Tensor]:
    return {f"{module}.{part}": tensor for part, tensor in state.items()}


def roles(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "codes" if part in ("weight", "weight_packed") else part: tensor
        for part, tensor in state.items()
    }


def opened(place: Path, state: dict[str, torch.Tensor], scheme: QuantizationScheme):
    codecs, reader = checks.stored(place, named(state), config_of(scheme))
    assert list(codecs) == [f"{NAME}.weight"]
    return codecs[f"{NAME}.weight"], reader


INT8 = {"inputs": {"num_bits": 8, "strategy": "token", "dynamic": True}}
FP8 = {"inputs": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}}

SCHEMES: dict[str, tuple[QuantizationScheme, tuple[int, ...]]] = {
    f"preset {name}": (preset_name_to_scheme(name, ["Linear"]), (6, 256))
    for name in PRESET_SCHEMES
    if name not in ("UNQUANTIZED", "INT8") and not name.endswith(("A4", "A8"))
} | {
    "int4 group asym": (scheme_of(num_bits=4, group_size=8, symmetric=False), (37, 24)),
    "int4 channel": (scheme_of(num_bits=4, strategy="channel"), (5, 13)),
    "int4 channel asym": (scheme_of(num_bits=4, strategy="channel", symmetric=False), (70, 13)),
    "int4 tensor": (scheme_of(num_bits=4, strategy="tensor"), (5, 13)),
    "int4 tensor asym": (scheme_of(num_bits=4, strategy="tensor", symmetric=False), (5, 13)),
    "int3 group asym": (scheme_of(num_bits=3, group_size=16, symmetric=False), (35, 48)),
    "int5 channel": (scheme_of(num_bits=5, strategy="channel"), (3, 39)),
    "int7 group asym": (scheme_of(num_bits=7, group_size=4, symmetric=False), (33, 8)),
    "int1 group": (scheme_of(num_bits=1, group_size=4), (3, 8)),
    "packed int8 group": (scheme_of(num_bits=8, group_size=4), (3, 12)),
    "packed int8 asym": (scheme_of(num_bits=8, strategy="channel", symmetric=False), (9, 11)),
    "packed int4 experts": (scheme_of(num_bits=4, group_size=4), (3, 5, 12)),
    "packed int4 experts asym": (
        scheme_of(num_bits=4, group_size=4, symmetric=False),
        (3, 37, 12),
    ),
    "int8 experts of a row": (scheme_of(**INT8, num_bits=8, strategy="channel"), (4, 1, 7)),
    "float8 in one block": (
        scheme_of(**FP8, num_bits=8, type="float", strategy="block", block_structure=[16, 32]),
        (10, 21),
    ),
    "int8 channel": (scheme_of(**INT8, num_bits=8, strategy="channel"), (7, 11)),
    "int8 channel asym": (
        scheme_of(**INT8, num_bits=8, strategy="channel", symmetric=False),
        (7, 11),
    ),
    "int8 tensor": (scheme_of(**INT8, num_bits=8, strategy="tensor"), (7, 11)),
    "int8 tensor asym": (scheme_of(**INT8, num_bits=8, strategy="tensor", symmetric=False), (7, 5)),
    "int8 group": (scheme_of(**INT8, num_bits=8, group_size=4), (7, 12)),
    "int8 group asym": (scheme_of(**INT8, num_bits=8, group_size=4, symmetric=False), (7, 12)),
    "int4 in bytes": (scheme_of(**INT8, num_bits=4, strategy="channel"), (7, 12)),
    "int8 experts": (scheme_of(**INT8, num_bits=8, strategy="channel"), (3, 5, 7)),
    "float8 tensor": (scheme_of(**FP8, num_bits=8, type="float", strategy="tensor"), (7, 11)),
    "float8 channel": (scheme_of(**FP8, num_bits=8, type="float", strategy="channel"), (7, 11)),
    "float8 group": (scheme_of(**FP8, num_bits=8, type="float", group_size=4), (7, 12)),
    "float8 block": (
        scheme_of(**FP8, num_bits=8, type="float", strategy="block", block_structure=[4, 8]),
        (10, 21),
    ),
    "naive float8": (scheme_of(num_bits=8, type="float", strategy="channel"), (7, 11)),
}
SCHEMES["int4 in bytes"][0].format = CompressionFormat.int_quantized
# What is stored as 32-bit words cannot be written.
WRITTEN = [
    case
    for case, (scheme, _) in SCHEMES.items()
    if "pack_quantized" not in compressor(scheme).__module__
]


@pytest.mark.parametrize("case", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_values_are_those_of_the_library(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    scheme, shape = SCHEMES[case]
    state = quantised(random(*shape), scheme, dtype)
    wanted = compressor(scheme).decompress(state, scheme)["weight"]
    codec, reader = opened(tmp_path, state, scheme)
    assert set(codec.parts) == set(roles(state))
    assert checks.same(checks.whole(codec, reader), wanted)
    checks.check_ranges(codec, reader, examples=12)


@pytest.mark.parametrize("case", WRITTEN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_changed_tensor_is_written_as_the_library_writes_it(
    case: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    scheme, shape = SCHEMES[case]
    codec, _ = opened(tmp_path, quantised(random(*shape), scheme, dtype), scheme)
    merged = random(*shape, seed=1)
    merged[..., 0, :] = 0.0
    merged[..., -1, :] = merged[..., -1, :].abs()
    found = checks.encoded(codec, merged, examples=6)
    wanted = quantised(merged, scheme, dtype, found.get("weight_global_scale"))
    for role, tensor in roles(wanted).items():
        assert checks.same(found[role], tensor), role


@pytest.mark.parametrize("case", WRITTEN)
def test_values_that_were_decoded_are_written_to_the_same_values(case: str, tmp_path: Path) -> None:
    scheme, shape = SCHEMES[case]
    codec, reader = opened(tmp_path, quantised(random(*shape), scheme), scheme)
    decoded = checks.whole(codec, reader)
    found = checks.encoded(codec, decoded, examples=1)
    state = {role: part for role, part in found.items() if role != "codes"}
    packed = "weight_packed" if found["codes"].dtype == torch.uint8 else "weight"
    again = compressor(scheme).decompress(state | {packed: found["codes"]}, scheme)["weight"]
    # Integers' scale is half a step off the largest code, so that scales drift by 1 in 255.
    loose = 0.01 if scheme.weights.type == "int" and scheme.weights.num_bits == 8 else 2**-7
    loose = 0.2 if scheme.weights.num_bits == 4 and scheme.weights.type == "int" else loose
    torch.testing.assert_close(again, decoded, rtol=loose, atol=loose * float(decoded.abs().max()))


@pytest.mark.parametrize("case", ["int4 group asym", "int4 channel", "preset W4A16"])
def test_words_are_read_only(case: str, tmp_path: Path) -> None:
    scheme, shape = SCHEMES[case]
    codec, _ = opened(tmp_path, quantised(random(*shape), scheme), scheme)
    assert not isinstance(codec, Encodes)


def test_columns_in_the_order_of_activations(tmp_path: Path) -> None:
    scheme = scheme_of(num_bits=4, group_size=8, symmetric=False)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    # The library lays groups out in order; g_idx says which group each stored column is of.
    in_order = quantised(random(40, 24), scheme, torch.bfloat16)
    decompressed = compressor(scheme).decompress(in_order, scheme)["weight"]
    groups = (torch.arange(24) // 8)[order]
    codes = unpack_from_int32(in_order["weight_packed"], 4, torch.Size([40, 24]))
    state = in_order | {
        "weight_packed": pack_to_int32(codes[:, order].contiguous(), 4),
        "weight_g_idx": groups.to(torch.int32),
    }
    codec, reader = opened(tmp_path / "good", state, scheme)
    assert checks.same(checks.whole(codec, reader), decompressed[:, order])
    checks.check_ranges(codec, reader)
    for bad in (groups.clamp(max=1), groups + 1, groups - 1, groups[:-1]):
        with pytest.raises(BadInput, match="g_idx"):
            opened(tmp_path / "bad", state | {"weight_g_idx": bad.to(torch.int32)}, scheme)


@pytest.mark.parametrize("case", ["int8 channel", "int4 channel"])
def test_zero_points_of_symmetric_weights_count_where_they_were_kept(
    case: str, tmp_path: Path
) -> None:
    scheme, shape = SCHEMES[case]
    state = quantised(random(*shape), scheme)
    state["weight_zero_point"] = torch.randint(-5, 5, (shape[0], 1), dtype=torch.int8)
    codec, reader = opened(tmp_path, state, scheme)
    wanted = compressor(scheme).decompress(state, scheme)["weight"]
    assert checks.same(checks.whole(codec, reader), wanted)
    if isinstance(codec, Encodes):
        assert not checks.encoded(codec, random(*shape))["weight_zero_point"].any()


def test_a_global_scale_is_kept_while_it_covers_the_tensor(tmp_path: Path) -> None:
    scheme, shape = SCHEMES["preset NVFP4A16"]
    weight = random(*shape)
    state = quantised(weight, scheme)
    codec, _ = opened(tmp_path, state, scheme)
    kept = checks.encoded(codec, weight * 0.5, examples=1)["weight_global_scale"]
    assert checks.same(kept, state["weight_global_scale"])
    grown = weight * 1.5
    found = checks.encoded(codec, grown, examples=1)["weight_global_scale"]
    assert checks.same(found, generate_gparam(grown.amin(), grown.amax()))


def test_a_global_scale_without_dimensions_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    scheme, shape = SCHEMES["preset NVFP4A16"]
    state = quantised(random(*shape), scheme)
    state["weight_global_scale"] = state["weight_global_scale"].squeeze()
    wanted = compressor(scheme).decompress(state, scheme)["weight"]
    codec, reader = opened(tmp_path, state, scheme)
    assert checks.same(checks.whole(codec, reader), wanted)


def test_every_scale_of_the_mx_formats(tmp_path: Path) -> None:
    for name in ("MXFP4A16", "MXFP8A16"):
        scheme = preset_name_to_scheme(name, ["Linear"])
        state = quantised(random(255, 32), scheme)
        state["weight_scale"] = torch.arange(255, dtype=torch.uint8).view(255, 1)
        wanted = compressor(scheme).decompress(state, scheme)["weight"]
        codec, reader = opened(tmp_path / name, state, scheme)
        assert checks.same(checks.whole(codec, reader), wanted)


def test_a_whole_model_with_several_groups(tmp_path: Path) -> None:
    mlp, _ = SCHEMES["int4 group asym"]
    attention, _ = SCHEMES["float8 channel"]
    mlp = mlp.model_copy(update={"targets": ["re:.*mlp.*"]})
    attention = attention.model_copy(update={"targets": ["Linear"]})
    heads = [f"model.layers.0.self_attn.{p}_proj" for p in "qkv"]
    states = {NAME: quantised(random(8, 16), mlp, torch.bfloat16)}
    states |= {head: quantised(random(8, 16), attention, torch.bfloat16) for head in heads}
    tensors = {k: t for module, state in states.items() for k, t in named(state, module).items()}
    beside = {
        f"{heads[0]}.input_scale": torch.ones(1),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
        "model.layers.0.self_attn.v_scale": torch.ones(1),
    }
    plain = {"model.norm.weight": torch.ones(16), "lm_head.weight": torch.ones(4, 16)}
    config = config_of(mlp, attention, format="mixed-precision")
    codecs, reader = checks.stored(tmp_path, tensors | beside | plain, config)
    assert set(codecs) == {f"{module}.weight" for module in states}
    for module, state in states.items():
        scheme = mlp if module == NAME else attention
        wanted = compressor(scheme).decompress(state, scheme)["weight"]
        assert checks.same(checks.whole(codecs[f"{module}.weight"], reader), wanted)
    used = {part.name for codec in codecs.values() for part in codec.parts.values()}
    assert used == set(tensors) | set(beside)
    assert "k_scale" in codecs[f"{heads[1]}.weight"].parts


def packed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    scheme, shape = SCHEMES["int4 group asym"]
    state = quantised(random(*shape), scheme) | changes
    return {part: tensor for part, tensor in state.items() if tensor is not None}


PACKED_MISFITS: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "no scale": ({"weight_scale": None}, "weight_scale"),
    "no zero point": ({"weight_zero_point": None}, "weight_zero_point"),
    "no shape": ({"weight_shape": None}, "weight_shape"),
    "no codes": ({"weight_packed": None}, "no codes"),
    "codes twice": ({"weight": torch.ones(2, 2)}, "also holds"),
    "scales of another shape": ({"weight_scale": torch.ones(37, 4)}, r"\[37, 3\]"),
    "scales on their side": ({"weight_scale": torch.ones(3, 37)}, r"\[37, 3\]"),
    "integer scales": ({"weight_scale": torch.ones(37, 3, dtype=torch.int32)}, "I32"),
    "flat codes": ({"weight_packed": torch.ones(9, dtype=torch.int32)}, "dimensions"),
    "empty codes": ({"weight_packed": torch.ones(0, 3, dtype=torch.int32)}, "dimensions"),
    "codes of 64 bits": ({"weight_packed": torch.ones(37, 3, dtype=torch.int64)}, "I64"),
    "codes of bytes": ({"weight_packed": torch.ones(37, 3, dtype=torch.uint8)}, "config.json"),
    "absurd shape": ({"weight_shape": torch.tensor([37, 2**62])}, "37, 576"),
    "negative shape": ({"weight_shape": torch.tensor([37, -24])}, "shape"),
    "shape of three": ({"weight_shape": torch.tensor([1, 37, 24])}, "2 elements"),
    "unpacked zero points": ({"weight_zero_point": torch.ones(37, 3, dtype=torch.int8)}, "I8"),
    "few zero points": ({"weight_zero_point": torch.ones(4, 3, dtype=torch.int32)}, r"\[5, 3\]"),
}


@pytest.mark.parametrize("case", PACKED_MISFITS)
def test_misfits_of_words_are_refused(case: str, tmp_path: Path) -> None:
    changes, words = PACKED_MISFITS[case]
    with pytest.raises(BadInput, match=words):
        opened(tmp_path, packed(**changes), SCHEMES["int4 group asym"][0])


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("float8 block", {"weight_scale": torch.ones(3, 2)}, r"\[3, 3\]"),
        ("float8 tensor", {"weight_scale": torch.ones(2)}, "1 elements"),
        ("float8 channel", {"weight_scale": torch.ones(7)}, r"\[7, 1\]"),
        ("float8 channel", {"weight_scale": None}, "weight_scale"),
        ("float8 channel", {"weight_scale": torch.ones(7, 1, dtype=torch.uint8)}, "exponents"),
        ("float8 channel", {"weight": torch.ones(7, 11)}, "before it was compressed"),
        ("float8 channel", {"weight": torch.ones(7, 11, dtype=torch.int8)}, "config.json"),
        ("int8 group asym", {"weight_zero_point": None}, "weight_zero_point"),
        ("int8 group asym", {"weight_zero_point": torch.ones(7, dtype=torch.int8)}, r"\[7, 3\]"),
        ("preset NVFP4", {"weight_global_scale": None}, "weight_global_scale"),
        ("preset NVFP4", {"weight_global_scale": torch.zeros(1)}, "divided"),
        ("preset NVFP4", {"weight_global_scale": torch.full((1,), torch.nan)}, "divided"),
        ("preset NVFP4", {"weight_global_scale": torch.ones(2)}, "1 elements"),
        ("preset NVFP4", {"weight_scale": torch.ones(6, 16, dtype=torch.uint8)}, "groups of 32"),
        ("preset MXFP4", {"weight_global_scale": torch.ones(1)}, "no global scale"),
        ("preset MXFP8", {"weight_scale": torch.ones(6, 7, dtype=torch.uint8)}, r"\[6, 8\]"),
    ],
)
def test_misfits_are_refused(
    case: str, changes: dict[str, torch.Tensor | None], words: str, tmp_path: Path
) -> None:
    scheme, shape = SCHEMES[case]
    state = quantised(random(*shape), scheme) | changes
    state = {part: tensor for part, tensor in state.items() if tensor is not None}
    with pytest.raises(BadInput, match=words):
        opened(tmp_path, state, scheme)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"strategy": "token"}, "token"),
        ({"strategy": "nonsense"}, "nonsense"),
        ({"num_bits": 16}, "16 bits"),
        ({"num_bits": 0}, "num_bits"),
        ({"num_bits": "4"}, "num_bits"),
        ({"type": "complex"}, "complex"),
        ({"symmetric": "no"}, "symmetric"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": None}, "group_size"),
        ({"group_size": 7}, "multiple of 7"),
        ({"group_size": 10**30}, "columns"),
        ({"num_bits": 8}, "8 bit"),
        ({"strategy": "block", "block_structure": "8x"}, "block_structure"),
        ({"strategy": "block", "block_structure": [0, 8]}, "block_structure"),
        ({"type": "float"}, "float"),
    ],
)
def test_schemes_that_cannot_be_are_refused(
    weights: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = config_of(SCHEMES["int4 group asym"][0])
    config["quantization_config"]["config_groups"]["group_0"]["weights"].update(weights)
    with pytest.raises(BadInput, match=words):
        checks.stored(tmp_path, named(packed()), config)


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, Unsupported, "sparse-24-bitmask"),
        ({"format": "marlin-24"}, Unsupported, "marlin-24"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, Unsupported, "rotated"),
        ({"config_groups": {"W4A16": ["Linear"]}}, Unsupported, "preset"),
        ({"config_groups": {}}, BadInput, "No config group"),
        ({"config_groups": None}, BadInput, "No config group"),
    ],
)
def test_other_kinds_of_bases_are_refused(
    more: dict[str, Any], kind: type[BadInput], words: str, tmp_path: Path
) -> None:
    config = config_of(SCHEMES["int4 group asym"][0], **more)
    with pytest.raises(kind, match=words):
        checks.stored(tmp_path, named(packed()), config)


@pytest.mark.parametrize("place", ["group", "config"])
def test_a_format_that_the_codes_are_not_in_is_refused(place: str, tmp_path: Path) -> None:
    config = config_of(SCHEMES["int4 group asym"][0])
    stated = config["quantization_config"]
    stated["config_groups"]["group_0"]["format"] = "int-quantized" if place == "group" else None
    stated["format"] = "int-quantized" if place == "config" else "pack-quantized"
    with pytest.raises(BadInput, match="int-quantized"):
        checks.stored(tmp_path, named(packed()), config)


@pytest.mark.parametrize("target", ["re:(", "re:(a+)+", "re:" + "a" * 3000, 7])
def test_targets_that_cannot_be_matched_are_refused(target: Any, tmp_path: Path) -> None:
    config = config_of(SCHEMES["int4 group asym"][0])
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = [target]
    with pytest.raises(BadInput, match="target"):
        checks.stored(tmp_path, named(packed()), config)


def test_modules_that_no_group_speaks_of(tmp_path: Path) -> None:
    four, _ = SCHEMES["int4 group asym"]
    eight, _ = SCHEMES["packed int8 group"]
    four = four.model_copy(update={"targets": ["re:.*attn.*"]})
    eight = eight.model_copy(update={"targets": ["lm_head"]})
    with pytest.raises(BadInput, match=NAME):
        checks.stored(tmp_path, named(packed()), config_of(four, eight))
    # With one group only, a module under another name can be no other's.
    codecs, _ = checks.stored(tmp_path, named(packed()), config_of(four))
    assert list(codecs) == [f"{NAME}.weight"]


def test_of_several_expressions_the_first_by_name_counts_as_in_the_library(tmp_path: Path) -> None:
    four, shape = SCHEMES["int4 channel"]
    eight, _ = SCHEMES["packed int8 asym"]
    four = four.model_copy(update={"targets": ["Linear", "re:.*up_proj"]})
    eight = eight.model_copy(update={"targets": ["re:.*mlp.*"]})
    state = quantised(random(*shape), eight)
    codecs, reader = checks.stored(tmp_path, named(state), config_of(four, eight))
    wanted = compressor(eight).decompress(state, eight)["weight"]
    assert checks.same(checks.whole(codecs[f"{NAME}.weight"], reader), wanted)
    # The module's own name goes before both, and an expression matches from the start only.
    for ours, theirs in ((NAME, "re:.*mlp.*"), ("re:model.*up_proj", "re:mlp")):
        eight = eight.model_copy(update={"targets": [ours]})
        four = four.model_copy(update={"targets": [theirs]})
        codecs, reader = checks.stored(tmp_path, named(state), config_of(four, eight))
        assert checks.same(checks.whole(codecs[f"{NAME}.weight"], reader), wanted)


def test_a_group_may_have_any_name(tmp_path: Path) -> None:
    config = config_of(SCHEMES["int4 group asym"][0])
    groups = config["quantization_config"]["config_groups"]
    groups["{0.x} {"] = groups.pop("group_0")
    codecs, _ = checks.stored(tmp_path, named(packed()), config)
    assert list(codecs) == [f"{NAME}.weight"]


def test_embeddings_beside_linear_layers(tmp_path: Path) -> None:
    four, shape = SCHEMES["int4 channel"]
    eight, _ = SCHEMES["packed int8 asym"]
    eight = eight.model_copy(update={"targets": ["Embedding"]})
    state = quantised(random(*shape), eight)
    tensors = named(quantised(random(*shape), four)) | named(state, "model.embed_tokens")
    codecs, reader = checks.stored(tmp_path, tensors, config_of(eight, four))
    wanted = compressor(eight).decompress(state, eight)["weight"]
    assert checks.same(checks.whole(codecs["model.embed_tokens.weight"], reader), wanted)
