"""Block FP8 against transformers' own quantiser and dequantiser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from remerge.errors import BadInput
from tests.sources.codecs import checks


def config(block: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": block, **more},
    }


def quantised(
    weight: torch.Tensor, block: list[int] | None, scale_fmt: str = "float"
) -> tuple[torch.Tensor, torch.Tensor]:
    settings = SimpleNamespace(weight_block_size=block, scale_fmt=scale_fmt)
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=settings))
    found = quantizer.convert({"a.weight": weight})
    return found["a.weight"], found["a.weight_scale_inv"]


def dequantised(
    codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    return Fp8Dequantize(None)._dequantize_one(codes, scales, output_dtype=dtype)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(shape, generator=generator) * 3
    return torch.randn(shape, generator=generator) * spread.exp2()


CASES = {
    "blocks": ((24, 32), [8, 16], "float"),
    "wide blocks": ((6, 8), [6, 8], "float"),
    "experts": ((3, 16, 8), [8, 4], "float"),
    "one block for a matrix": ((12, 10), None, "float"),
    "one block for an expert": ((3, 12, 10), None, "float"),
    "powers of two": ((24, 32), [8, 16], "ue8m0"),
    "rows of 32": ((6, 64), [1, 32], "ue8m0"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    shape, block, fmt = CASES[case]
    codes, scales = quantised(random(*shape), block, fmt)
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales, "a.bias": torch.zeros(3)}
    codecs, reader = checks.stored(tmp_path, tensors, config(block, scale_fmt=fmt))
    assert list(codecs) == ["a.weight"]
    assert checks.same(checks.whole(codecs["a.weight"], reader), dequantised(codes, scales))
    checks.check_ranges(codecs["a.weight"], reader)


@pytest.mark.parametrize("case", CASES)
def test_a_changed_tensor_is_written_as_transformers_writes_it(case: str, tmp_path: Path) -> None:
    shape, block, fmt = CASES[case]
    codes, scales = quantised(random(*shape), block, fmt)
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    codecs, _ = checks.stored(tmp_path, tensors, config(block, scale_fmt=fmt))
    merged = random(*shape, seed=1)
    merged[..., : shape[-1] // 2] = 0.0
    wanted_codes, wanted_scales = quantised(merged, block, fmt)
    found = checks.encoded(codecs["a.weight"], merged)
    assert checks.same(found["codes"], wanted_codes)
    assert checks.same(found["scales"], wanted_scales)


@pytest.mark.parametrize("case", CASES)
def test_values_that_were_decoded_are_written_to_the_same_values(case: str, tmp_path: Path) -> None:
    shape, block, fmt = CASES[case]
    codes, scales = quantised(random(*shape), block, fmt)
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    stated = config(block, scale_fmt=fmt) | {"dtype": "float32"}
    codecs, reader = checks.stored(tmp_path, tensors, stated)
    decoded = checks.whole(codecs["a.weight"], reader)
    found = checks.encoded(codecs["a.weight"], decoded)
    again = dequantised(found["codes"], found["scales"], torch.float32)
    torch.testing.assert_close(again, decoded, rtol=2e-7, atol=0)


@pytest.mark.parametrize("shape", [(20, 40), (7, 33), (3, 5), (16, 17)])
def test_ragged_blocks(shape: tuple[int, int], tmp_path: Path) -> None:
    high, wide = -(-shape[0] // 8), -(-shape[1] // 16)
    codes = random(*shape).to(torch.float8_e4m3fn)
    scales = random(high, wide).abs()
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    codecs, reader = checks.stored(tmp_path, tensors, config([8, 16]))
    oracle = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=(8, 16), dtype=torch.bfloat16)
    wanted = oracle._create_dequantized_weight(codes, scales)
    assert checks.same(checks.whole(codecs["a.weight"], reader), wanted)
    checks.check_ranges(codecs["a.weight"], reader)
    merged = random(*shape, seed=2)
    padded = torch.nn.functional.pad(merged, (0, wide * 16 - shape[1], 0, high * 8 - shape[0]))
    wanted_codes, wanted_scales = quantised(padded, [8, 16])
    found = checks.encoded(codecs["a.weight"], merged)
    assert checks.same(found["codes"], wanted_codes[: shape[0], : shape[1]])
    assert checks.same(found["scales"], wanted_scales)


def test_ragged_blocks_of_experts_start_anew_with_each(tmp_path: Path) -> None:
    merged = random(3, 5, 7)
    tensors = {
        "a.weight": merged.to(torch.float8_e4m3fn),
        "a.weight_scale_inv": torch.rand(3, 2, 2),
    }
    codecs, reader = checks.stored(tmp_path, tensors, config([4, 4]))
    oracle = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=(4, 4), dtype=torch.bfloat16)
    experts = zip(tensors["a.weight"], tensors["a.weight_scale_inv"], strict=True)
    wanted = torch.stack([oracle._create_dequantized_weight(*expert) for expert in experts])
    assert checks.same(checks.whole(codecs["a.weight"], reader), wanted)
    checks.check_ranges(codecs["a.weight"], reader)
    found = checks.encoded(codecs["a.weight"], merged)
    for at, expert in enumerate(merged):
        codes, scales = quantised(torch.nn.functional.pad(expert, (0, 1, 0, 3)), [4, 4])
        assert checks.same(found["codes"][at], codes[:5, :7])
        assert checks.same(found["scales"][at], scales)


@pytest.mark.parametrize(
    "scales",
    [
        torch.tensor(0.25),
        torch.tensor([0.37]),
        torch.rand(3),
        torch.rand(3, 1, 1),
        torch.rand(3, 4, 1),
        torch.rand(3, 4, 2).to(torch.bfloat16),
        torch.randint(100, 140, (3, 4, 2), dtype=torch.uint8),
        torch.randint(100, 140, (3, 4, 2), dtype=torch.uint8).view(torch.float8_e8m0fnu),
    ],
    ids=lambda scales: f"{list(scales.shape)}-{scales.dtype}",
)
@pytest.mark.parametrize("name", ["a.weight_scale_inv", "a.weight_scale", "a.scale"])
def test_other_scales(scales: torch.Tensor, name: str, tmp_path: Path) -> None:
    codes = random(3, 4, 8).to(torch.float8_e4m3fn)
    tensors = {"a.weight": codes, name: scales, "a.input_scale": torch.ones(1)}
    codecs, reader = checks.stored(tmp_path, tensors, config())
    codec = codecs["a.weight"]
    assert set(codec.parts) == {"codes", "scales", "input_scale"}
    assert checks.same(checks.whole(codec, reader), dequantised(codes, scales))
    checks.check_ranges(codec, reader)
    found = checks.encoded(codec, random(3, 4, 8, seed=3))
    assert found["scales"].dtype == scales.dtype
    again = dequantised(found["codes"], found["scales"], torch.float32)
    torch.testing.assert_close(again, random(3, 4, 8, seed=3), rtol=0.07, atol=2e-2)


def test_fused_experts_keep_their_name(tmp_path: Path) -> None:
    codes, scales = quantised(random(3, 16, 8), [8, 4])
    name = "layers.0.mlp.experts.gate_up_proj"
    tensors = {name: codes, f"{name}_scale_inv": scales, f"{name}_activation_scale": torch.ones(3)}
    codecs, reader = checks.stored(tmp_path, tensors, config([8, 4]))
    assert set(codecs[name].parts) == {"codes", "scales", "activation_scale"}
    assert checks.same(checks.whole(codecs[name], reader), dequantised(codes, scales))


@pytest.mark.parametrize("stated", ["float32", "float16", "bfloat16", None, 7])
def test_values_have_the_dtype_of_the_model(stated: Any, tmp_path: Path) -> None:
    codes, scales = quantised(random(8, 8), [4, 4])
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    codecs, reader = checks.stored(tmp_path, tensors, config([4, 4]) | {"dtype": stated})
    dtype = getattr(torch, stated) if isinstance(stated, str) else torch.bfloat16
    wanted = dequantised(codes, scales, dtype)
    assert checks.same(checks.whole(codecs["a.weight"], reader), wanted)


def test_float32_scales_that_are_powers_of_two_stay_so(tmp_path: Path) -> None:
    merged = random(24, 32)
    codes, scales = quantised(merged, [8, 16], "ue8m0")
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales.to(torch.float32)}
    codecs, _ = checks.stored(tmp_path, tensors, config([8, 16], scale_fmt="ue8m0"))
    found = checks.encoded(codecs["a.weight"], merged)
    assert checks.same(found["scales"], scales.to(torch.float32))
    assert checks.same(found["codes"], codes)


def test_a_block_of_numbers_too_small_for_a_scale_becomes_zeros(tmp_path: Path) -> None:
    codes, scales = quantised(random(8, 8), [8, 8])
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    codecs, _ = checks.stored(tmp_path, tensors, config([8, 8]))
    merged = torch.full((8, 8), 1e-38)
    merged[0] = 0.0
    found = checks.encoded(codecs["a.weight"], merged)
    assert not dequantised(found["codes"], found["scales"]).any()


F8 = torch.zeros(16, 16).to(torch.float8_e4m3fn)
S = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a.weight": F8}, "a.weight_scale_inv"),
        ({"a.weight_scale_inv": S}, "no codes"),
        ({"a.weight": F8, "a.weight_scale_inv": torch.ones(2, 3)}, r"\[2, 2\]"),
        ({"a.weight": F8[0], "a.weight_scale_inv": S}, "dimensions"),
        ({"a.weight": F8[:0], "a.weight_scale_inv": S}, "dimensions"),
        ({"a.weight": F8, "a.weight_scale_inv": S.to(torch.float16)}, "F16"),
        ({"a.weight": torch.zeros(16, 16), "a.weight_scale_inv": S}, "F32"),
        ({"a.weight": torch.zeros(16, 16).to(torch.float8_e5m2)}, "F8_E5M2"),
        ({"a.weight": torch.zeros(16, 8, dtype=torch.int8), "a.scale": S}, "4-bit"),
        ({"a.weight": F8, "a.weight_scale_inv": S, "a.weight_scale": S}, "a.weight_scale'"),
    ],
)
def test_misfits_are_refused(tensors: dict[str, torch.Tensor], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        checks.stored(tmp_path, tensors, config([8, 8]))


@pytest.mark.parametrize("block", [[8], [0, 8], "8x8", [8, 8.0], [True, 8], 8])
def test_blocks_that_are_none_are_refused(block: Any, tmp_path: Path) -> None:
    tensors = {"a.weight": F8, "a.weight_scale_inv": S}
    with pytest.raises(BadInput, match="weight_block_size"):
        checks.stored(tmp_path, tensors, config(block))


def test_blocks_larger_than_a_matrix_cost_nothing(tmp_path: Path) -> None:
    merged = random(16, 17)
    codes, scales = quantised(merged, [16, 17])
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    codecs, reader = checks.stored(tmp_path, tensors, config([2**70, 2**70]))
    assert checks.same(checks.whole(codecs["a.weight"], reader), dequantised(codes, scales))
    assert checks.same(checks.encoded(codecs["a.weight"], merged)["codes"], codes)


def test_a_scale_grid_on_its_side_is_refused_where_transformers_reads_it_wrongly(
    tmp_path: Path,
) -> None:
    codes = random(16, 32).to(torch.float8_e4m3fn)
    with pytest.raises(BadInput, match="blocks of 8 x 8"):
        tensors = {"a.weight": codes, "a.weight_scale_inv": torch.ones(4, 2)}
        checks.stored(tmp_path, tensors, config([8, 8]))


def test_the_format_is_found_by_name_where_config_is_silent(tmp_path: Path) -> None:
    weight = random(256, 128)
    codes, scales = quantised(weight, [128, 128])
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    codecs, reader = checks.stored(tmp_path, tensors, {})
    assert checks.same(checks.whole(codecs["a.weight"], reader), dequantised(codes, scales))
