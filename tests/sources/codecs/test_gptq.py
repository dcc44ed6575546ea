"""GPTQ against what gptqmodel wrote and read, and against a plain reader of the format."""

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
from remerge.sources.codecs import columns
from tests.sources.codecs.checks import check_ranges, same, stored, whole
from tests.sources.codecs.packed import linear, pack

DATA = Path(__file__).parent / "data"


def config(bits: int | None, size: int | None, layout: str = "gptq", **more: Any) -> dict[str, Any]:
    stated = {"quant_method": "gptq", "bits": bits, "group_size": size, "checkpoint_format": layout}
    return {"quantization_config": {k: v for k, v in stated.items() if v is not None} | more}


@pytest.mark.parametrize(
    ("name", "stated", "format"),
    [
        ("gptq_4bit_act_order", config(4, 32), "gptq 4 bit"),
        ("gptq_3bit", config(3, -1), "gptq 3 bit"),
        ("gptq_v2_8bit", config(8, 64, "gptq_v2"), "gptq 8 bit"),
        ("gptq_2bit", config(2, 32), "gptq 2 bit"),
    ],
)
def test_what_gptqmodel_wrote_reads_as_gptqmodel_reads_it(
    tmp_path: Path, name: str, stated: dict[str, Any], format: str
) -> None:
    """Packed by `TorchLinear.pack_block` of gptqmodel 7.7, ``expected`` by `dequantize_weight`."""
    tensors = load_file(DATA / f"{name}.safetensors")
    expected = tensors.pop("expected")
    codecs, reader = stored(tmp_path, tensors, stated)
    assert codecs["x.weight"].format == format
    assert same(whole(codecs["x.weight"], reader), expected)
    check_ranges(codecs["x.weight"], reader, 10)


class Layer:
    """Random parts of a layer, with what they mean."""

    def __init__(
        self,
        shape: tuple[int, int],
        bits: int,
        size: int,
        dtype: torch.dtype = torch.float16,
        less: int = 1,
        ordered: bool = True,
        seed: int = 0,
    ) -> None:
        random = np.random.default_rng(seed)
        outputs, inputs = shape
        size = inputs if size == -1 else size
        group = np.arange(inputs) // size
        if not ordered:
            group = random.permutation(group)
        groups = int(group.max()) + 1
        codes = random.integers(0, 2**bits, (inputs, outputs))
        # Zeros from 1 on, as their writers take one away without a borrow.
        zeros = random.integers(less, 2**bits, (groups, outputs))
        scales = torch.from_numpy(random.standard_normal((groups, outputs))).to(dtype)
        self.values = linear(codes, zeros, scales, group)
        self.parts = {
            "x.qweight": pack(codes, bits),
            "x.qzeros": pack((zeros - less).T, bits).T.contiguous(),
            "x.scales": scales,
            "x.g_idx": torch.from_numpy(group.astype(np.int32)),
        }


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_layers_of_all_kinds(data: st.DataObject, tmp_path: Path) -> None:
    bits = data.draw(st.sampled_from([2, 3, 4, 8]), "bits")
    outputs = data.draw(st.integers(1, 4)) * (32 if bits == 3 else 16)
    shape = (outputs, data.draw(st.integers(1, 6)) * 32)
    size = data.draw(st.sampled_from([-1, 32, 64, 128]), "size")
    layout = data.draw(st.sampled_from(["gptq", "gptq_v2"]), "layout")
    ordered = data.draw(st.booleans(), "ordered")
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16]), "dtype")
    seed = data.draw(st.integers(0, 9), "seed")
    layer = Layer(shape, bits, size, dtype, int(layout == "gptq"), ordered, seed)
    parts = dict(layer.parts)
    if ordered and data.draw(st.booleans(), "no g_idx"):
        del parts["x.g_idx"]
    codecs, reader = stored(tmp_path, parts, config(bits, size, layout))
    assert codecs["x.weight"].shape == shape
    assert same(whole(codecs["x.weight"], reader), layer.values)
    check_ranges(codecs["x.weight"], reader, 5)


def test_inputs_that_do_not_fill_their_last_word(tmp_path: Path) -> None:
    layer = Layer((20, 45), 4, 32)
    codecs, reader = stored(tmp_path, layer.parts, config(4, 32))
    assert same(whole(codecs["x.weight"], reader), layer.values)


def test_a_zero_of_sixteen_carries_into_the_next_as_gptqmodel_carries_it(tmp_path: Path) -> None:
    layer = Layer((8, 32), 4, -1)
    layer.parts["x.qzeros"] = torch.tensor([[0x0000_000F]], dtype=torch.int32)
    codes = pack(np.zeros((32, 8), int), 4)
    layer.parts |= {"x.qweight": codes, "x.scales": torch.ones(1, 8).half()}
    codecs, reader = stored(tmp_path, layer.parts, config(4, -1))
    assert whole(codecs["x.weight"], reader)[:, 0].tolist() == [0, -2, -1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("worth", [0, 2**30])
def test_strided_and_contiguous_reads_agree(
    tmp_path: Path, worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_WORTH_A_READ", worth)
    monkeypatch.setattr(columns, "_BAND_BYTES", 300)
    layer = Layer((64, 96), 4, 32, ordered=False)
    codecs, reader = stored(tmp_path, layer.parts, config(4, 32))
    assert same(whole(codecs["x.weight"], reader), layer.values)
    check_ranges(codecs["x.weight"], reader)


def test_layers_that_differ_in_bits_and_group_size(tmp_path: Path) -> None:
    eight, four = Layer((64, 128), 8, 64), Layer((64, 128), 4, 32)
    parts = {name.replace("x.", "y."): tensor for name, tensor in eight.parts.items()} | four.parts
    stated = config(4, 32, dynamic={"y": {"bits": 8, "group_size": 64}})
    codecs, reader = stored(tmp_path / "stated", parts, stated)
    assert same(whole(codecs["x.weight"], reader), four.values)
    assert same(whole(codecs["y.weight"], reader), eight.values)
    with pytest.raises(BadInput):
        stored(tmp_path / "silent", parts, config(4, 32))


def test_conv1d_layers_read_as_the_unquantised_checkpoint_stores_them(tmp_path: Path) -> None:
    layer = Layer((96, 32), 4, 32)
    parts = {name.replace("x.", "h.0.attn.c_attn."): part for name, part in layer.parts.items()}
    codecs, reader = stored(tmp_path, parts, config(4, 32) | {"model_type": "gpt2"})
    codec = codecs["h.0.attn.c_attn.weight"]
    assert codec.shape == (32, 96)
    assert same(whole(codec, reader), layer.values.T)
    check_ranges(codec, reader)


def test_a_silent_config(tmp_path: Path) -> None:
    layer = Layer((64, 96), 4, 32)
    codecs, reader = stored(tmp_path, layer.parts | {"lm_head.weight": torch.ones(2, 2)}, {})
    assert list(codecs) == ["x.weight"]
    assert same(whole(codecs["x.weight"], reader), layer.values)


@pytest.mark.parametrize("layout", ["marlin", "gptq_p", "bitblas"])
def test_other_formats_are_refused_by_name(tmp_path: Path, layout: str) -> None:
    with pytest.raises(Unsupported, match=layout):
        stored(tmp_path, Layer((64, 96), 4, 32).parts, config(4, 32, layout))


REFUSED: dict[str, dict[str, torch.Tensor | None]] = {
    "no codes": {"x.qweight": None},
    "no zeros": {"x.qzeros": None},
    "no scales": {"x.scales": None},
    "plain beside": {"x.weight": torch.ones(64, 96)},
    "short codes": {"x.qweight": torch.zeros(11, 64, dtype=torch.int32)},
    "narrow codes": {"x.qweight": torch.zeros(12, 63, dtype=torch.int32)},
    "codes of 1 dimension": {"x.qweight": torch.zeros(12, dtype=torch.int32)},
    "no rows": {"x.qweight": torch.zeros(0, 64, dtype=torch.int32)},
    "half codes": {"x.qweight": torch.zeros(12, 64).half()},
    "narrow zeros": {"x.qzeros": torch.zeros(3, 7, dtype=torch.int32)},
    "other groups": {"x.qzeros": torch.zeros(2, 8, dtype=torch.int32)},
    "int scales": {"x.scales": torch.zeros(3, 64, dtype=torch.int32)},
    "narrow scales": {"x.scales": torch.zeros(3, 63)},
    "flat scales": {"x.scales": torch.zeros(192)},
    "short g_idx": {"x.g_idx": torch.zeros(64, dtype=torch.int32)},
    "g_idx of 2 dimensions": {"x.g_idx": torch.zeros(96, 1, dtype=torch.int32)},
    "long g_idx": {"x.g_idx": torch.zeros(96, dtype=torch.int64)},
    "empty g_idx": {"x.g_idx": torch.zeros(0, dtype=torch.int32)},
    "left over": {"y.qzeros": torch.zeros(3, 8, dtype=torch.int32)},
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(tmp_path: Path, case: str) -> None:
    parts = {**Layer((64, 96), 4, 32).parts, **REFUSED[case]}
    with pytest.raises(BadInput):
        stored(tmp_path, {k: v for k, v in parts.items() if v is not None}, config(4, 32))


@pytest.mark.parametrize("bits", [5, 0, -4, "4", True, 4.0, 10**30])
def test_refuses_bits(tmp_path: Path, bits: Any) -> None:
    with pytest.raises(BadInput):
        stored(tmp_path, Layer((64, 96), 4, 32).parts, config(bits, 32))


@pytest.mark.parametrize("size", [0, -2, 20, "32", 10**30])
def test_refuses_a_group_size_without_g_idx(tmp_path: Path, size: Any) -> None:
    parts = Layer((64, 96), 4, 32).parts
    del parts["x.g_idx"]
    with pytest.raises(BadInput):
        stored(tmp_path, parts, config(4, size))


@pytest.mark.parametrize("group", [-1, 3, 2**31 - 1])
def test_refuses_a_group_that_is_not_there(tmp_path: Path, group: int) -> None:
    parts = Layer((64, 96), 4, 32).parts
    parts["x.g_idx"][5] = group
    codecs, reader = stored(tmp_path, parts, config(4, 32))
    with pytest.raises(BadInput, match="g_idx"):
        whole(codecs["x.weight"], reader)
