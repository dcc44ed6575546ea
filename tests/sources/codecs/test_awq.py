"""AWQ against what gptqmodel wrote and read, and against a plain reader of the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from remerge.errors import BadInput, Unsupported
from tests.sources.codecs.checks import check_ranges, same, stored, whole
from tests.sources.codecs.packed import in_order, linear, pack

DATA = Path(__file__).parent / "data"


def config(size: int | None = 32, **more: Any) -> dict[str, Any]:
    stated = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"}
    return {"quantization_config": {k: v for k, v in (stated | more).items() if v is not None}}


def layer(
    shape: tuple[int, int], size: int, dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random parts of a layer, and the values that they mean."""
    random = np.random.default_rng(seed)
    outputs, inputs = shape
    group = np.arange(inputs) // (inputs if size == -1 else size)
    groups = int(group.max()) + 1
    codes = random.integers(0, 16, (inputs, outputs))
    zeros = random.integers(0, 16, (groups, outputs))
    scales = torch.from_numpy(random.standard_normal((groups, outputs))).to(dtype)
    parts = {
        "x.qweight": pack(in_order(codes).T, 4).T.contiguous(),
        "x.qzeros": pack(in_order(zeros).T, 4).T.contiguous(),
        "x.scales": scales,
    }
    return parts, linear(codes, zeros, scales, group)


def test_what_gptqmodel_wrote_reads_as_gptqmodel_reads_it(tmp_path: Path) -> None:
    """Packed by `AwqTorchLinear.pack` of gptqmodel 7.7, ``expected`` by `dequantize_gemm`."""
    tensors = load_file(DATA / "awq_gemm.safetensors")
    expected = tensors.pop("expected")
    codecs, reader = stored(tmp_path, tensors, config())
    assert codecs["x.weight"].format == "awq 4 bit"
    assert same(whole(codecs["x.weight"], reader), expected)
    check_ranges(codecs["x.weight"], reader)


@settings(max_examples=50, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_layers_of_all_kinds(data: st.DataObject, tmp_path: Path) -> None:
    size = data.draw(st.sampled_from([-1, 32, 64]), "size")
    shape = (data.draw(st.integers(1, 9)) * 8, data.draw(st.integers(1, 4)) * max(size, 1))
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16]), "dtype")
    parts, values = layer(shape, size, dtype, data.draw(st.integers(0, 9), "seed"))
    codecs, reader = stored(tmp_path, parts, config(size))
    assert same(whole(codecs["x.weight"], reader), values)
    check_ranges(codecs["x.weight"], reader, 5)


def test_what_is_not_converted_stays(tmp_path: Path) -> None:
    parts, values = layer((16, 64), 32)
    plain = {"x.bias": torch.ones(16), "lm_head.weight": torch.ones(4, 4)}
    codecs, reader = stored(tmp_path, parts | plain, {})
    assert list(codecs) == ["x.weight"]
    assert same(whole(codecs["x.weight"], reader), values)


@pytest.mark.parametrize(
    "more",
    [{"version": "gemv"}, {"version": "GEMV_FAST"}, {"backend": "llm-awq"}, {"bits": 8}],
)
def test_other_layouts_are_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        stored(tmp_path, layer((16, 64), 32)[0], config(**more))


def test_the_older_names_of_the_config(tmp_path: Path) -> None:
    stated = config(None, bits=None, version="GEMM", w_bit=4, q_group_size=32)
    assert list(stored(tmp_path, layer((16, 64), 32)[0], stated)[0]) == ["x.weight"]


def test_scaled_activations_are_refused(tmp_path: Path) -> None:
    parts = layer((16, 64), 32)[0] | {"h.0.mlp.act.scales": torch.ones(16).half()}
    with pytest.raises(Unsupported, match=r"act\.scales"):
        stored(tmp_path, parts, config())


@pytest.mark.parametrize(
    "changed",
    [
        {"x.qweight": None},
        {"x.qzeros": None},
        {"x.scales": None},
        {"x.weight": torch.ones(16, 64)},
        {"x.qweight": torch.zeros(64, 3, dtype=torch.int32)},
        {"x.qweight": torch.zeros(63, 2, dtype=torch.int32)},
        {"x.qweight": torch.zeros(0, 2, dtype=torch.int32)},
        {"x.qweight": torch.zeros(64, 2, dtype=torch.int16)},
        {"x.qzeros": torch.zeros(4, 2, dtype=torch.int32)},
        {"x.qzeros": torch.zeros(2, dtype=torch.int32)},
        {"x.scales": torch.zeros(2, 15).half()},
        {"x.scales": torch.zeros(2, 16, dtype=torch.int32)},
        {"y.qzeros": torch.zeros(2, 2, dtype=torch.int32)},
    ],
)
def test_refuses(tmp_path: Path, changed: dict[str, torch.Tensor | None]) -> None:
    parts = {**layer((16, 64), 32)[0], **changed}
    with pytest.raises(BadInput):
        stored(tmp_path, {k: v for k, v in parts.items() if v is not None}, config())


@pytest.mark.parametrize("size", [0, 16, 33, -2, "32", 10**30])
def test_refuses_a_group_size(tmp_path: Path, size: Any) -> None:
    with pytest.raises(BadInput):
        stored(tmp_path, layer((16, 64), 32)[0], config(size))
