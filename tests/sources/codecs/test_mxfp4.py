"""MXFP4 experts of gpt-oss against transformers' reader and compressed-tensors' quantiser."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from remerge.errors import BadInput
from remerge.sources.codecs.codec import Rounds
from tests.sources.codecs import checks

NAME = "model.layers.0.mlp.experts.gate_up_proj"
CONFIG: dict[str, Any] = {
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}
SHAPES = [(3, 5, 2), (1, 8, 1), (2, 33, 3), (4, 1, 4)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(shape, generator=generator) * 3
    return torch.randn(shape, generator=generator) * spread.exp2()


def parts(experts: int, output: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (experts, output, groups, 16)
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    scales = torch.randint(0, 255, shape[:3], generator=generator, dtype=torch.uint8)
    return codes, scales


def quantised(merged: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of (experts, input, output) by compressed-tensors."""
    scheme = preset_name_to_scheme("MXFP4A16", ["Linear"])
    weight = merged.transpose(1, 2).flatten(0, 1).to(torch.float32)
    blocks = weight.unflatten(-1, (-1, 32))
    scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights)
    found = MXFP4PackedCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    experts, inputs, outputs = merged.shape
    codes = found["weight_packed"].view(experts, outputs, inputs // 32, 16)
    return codes, found["weight_scale"].view(experts, outputs, inputs // 32)


def stored(
    place: Path, codes: torch.Tensor, scales: torch.Tensor, config: dict[str, Any] = CONFIG
) -> tuple[dict[str, Any], Any]:
    bias = {f"{NAME}_bias": torch.zeros(3, 5)}
    return checks.stored(place, {f"{NAME}_blocks": codes, f"{NAME}_scales": scales} | bias, config)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_transformers(shape: tuple[int, int, int], tmp_path: Path) -> None:
    codes, scales = parts(*shape)
    codecs, reader = stored(tmp_path, codes, scales)
    assert list(codecs) == [NAME]
    decoded = checks.whole(codecs[NAME], reader)
    assert checks.same(decoded, convert_moe_packed_tensors(codes, scales))
    checks.check_ranges(codecs[NAME], reader)


def test_every_scale_and_code(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 16, 1, 16).expand(256, 16, 1, 16)
    scales = torch.arange(256, dtype=torch.uint8).view(256, 1, 1).expand(256, 16, 1)
    codecs, reader = stored(tmp_path, codes, scales)
    wanted = convert_moe_packed_tensors(codes, scales)
    assert checks.same(checks.whole(codecs[NAME], reader), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_have_the_dtype_of_the_model(dtype: str, tmp_path: Path) -> None:
    codes, scales = parts(2, 3, 2)
    scales = scales.clamp(110, 140)
    codecs, reader = stored(tmp_path, codes, scales, CONFIG | {"torch_dtype": dtype})
    wanted = convert_moe_packed_tensors(codes, scales, dtype=getattr(torch, dtype))
    assert checks.same(checks.whole(codecs[NAME], reader), wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_changed_tensor_is_written_as_compressed_tensors_writes_it(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    codecs, _ = stored(tmp_path, *parts(*shape))
    merged = random(*codecs[NAME].shape, seed=1)
    merged[0, :, 0] = 0.0
    wanted_codes, wanted_scales = quantised(merged)
    found = checks.encoded(codecs[NAME], merged)
    assert checks.same(found["scales"], wanted_scales)
    assert checks.same(found["codes"], wanted_codes)
    codec = codecs[NAME]
    assert isinstance(codec, Rounds)
    wanted = convert_moe_packed_tensors(wanted_codes, wanted_scales).flatten()
    rounded = partial(codec.rounded, checks.source(merged), {})
    checks.check_pieces(wanted, rounded, examples=25)


def test_ties_and_edges_are_rounded_as_compressed_tensors_rounds_them(tmp_path: Path) -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 6.99, 0.1, 0.0])
    edges = torch.cat([ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)])
    row = torch.cat([edges[:31], torch.tensor([4.0]), -edges[:31], torch.tensor([6.9])])
    exponents = torch.arange(-140, 122).to(torch.float64).exp2()
    merged = (row.to(torch.float64) * exponents.unsqueeze(1)).to(torch.float32)
    merged = merged.T.contiguous().unsqueeze(0)
    codecs, _ = stored(tmp_path, *parts(1, 262, 2))
    wanted_codes, wanted_scales = quantised(merged)
    found = checks.encoded(codecs[NAME], merged, examples=5)
    assert checks.same(found["scales"], wanted_scales)
    assert checks.same(found["codes"], wanted_codes)


def test_values_that_were_decoded_are_written_to_the_same_values(tmp_path: Path) -> None:
    codes, scales = parts(3, 7, 2)
    # A larger exponent could leave float32's range, a smaller one bfloat16's.
    scales = scales.clamp(5, 250)
    codecs, reader = stored(tmp_path, codes, scales)
    decoded = checks.whole(codecs[NAME], reader)
    found = checks.encoded(codecs[NAME], decoded)
    assert torch.equal(convert_moe_packed_tensors(found["codes"], found["scales"]), decoded)


CODES, SCALES = parts(2, 3, 2)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a_proj_blocks": CODES}, "a_proj_scales"),
        ({"a_proj_scales": SCALES}, "no blocks"),
        ({"a_proj_blocks": CODES, "a_proj_scales": SCALES[:, :2]}, r"\[2, 3, 2\]"),
        ({"a_proj_blocks": CODES[0], "a_proj_scales": SCALES[0]}, "groups"),
        ({"a_proj_blocks": CODES[..., :8], "a_proj_scales": SCALES}, "groups"),
        ({"a_proj_blocks": CODES[:0], "a_proj_scales": SCALES[:0]}, "groups"),
        ({"a_proj_blocks": CODES.view(torch.int8), "a_proj_scales": SCALES}, "I8"),
        ({"a_proj_blocks": CODES, "a_proj_scales": SCALES.to(torch.float32)}, "F32"),
        ({"a_proj_blocks": CODES, "a_proj_scales": SCALES, "a_proj": SCALES}, "unquantised"),
    ],
)
def test_misfits_are_refused(tensors: dict[str, torch.Tensor], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        checks.stored(tmp_path, tensors, CONFIG)


def test_the_format_is_found_by_name_where_config_is_silent(tmp_path: Path) -> None:
    codes, scales = parts(2, 3, 2)
    codecs, reader = stored(tmp_path, codes, scales, {})
    decoded = checks.whole(codecs[NAME], reader)
    assert checks.same(decoded, convert_moe_packed_tensors(codes, scales))
