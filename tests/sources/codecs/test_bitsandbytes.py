"""bitsandbytes against bitsandbytes: values, codes and absmax to the bit, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from remerge.errors import BadInput, Unsupported
from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.codecs.codec import Encodes
from remerge.sources.codecs.formats import find_codecs
from remerge.sources.reading import Reader
from tests.sources.codecs.checks import check_ranges, encoded, same, source, stored, whole

# The library compiles its fallback for odd widths, which takes seconds and changes no bit.
torch._dynamo.config.disable = True

CONFIG: dict[str, Any] = {"quantization_config": {"quant_method": "bitsandbytes"}}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def four_bit(
    weight: torch.Tensor,
    kind: str,
    blocksize: int,
    nested: bool,
    storage: torch.dtype = torch.uint8,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What bitsandbytes saves of a weight, and what it reads back."""
    codes, state = bnb.quantize_4bit(
        weight,
        blocksize=blocksize,
        quant_type=kind,
        compress_statistics=nested,
        quant_storage=storage,
    )
    parts = {f"x.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    width = weight.shape[-1]
    if (width % blocksize and width % 2 == 0) or len(codes) == 1:
        # The AVX-512 kernel takes a wrong absmax for blocks that straddle rows, but not in one row;
        # and one lone code is taken for the transposed form.
        state.shape = torch.Size([weight.numel()])
    values = bnb.dequantize_4bit(codes, state).reshape(weight.shape)
    if kind == "fp4":
        # Code 8 is -0.0 in some kernels of the library and 0.0 in others, as in its table.
        values[values == 0] = 0.0
    return {"x.weight": codes, **parts}, values


def as_default(values: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_blockwise` of bitsandbytes by its default kernel, which the one for CPUs hides."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    quantize = torch.ops.bitsandbytes.quantize_blockwise.default
    return quantize.redispatch(keys, values, code, 256)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_4bit_decodes_to_what_bitsandbytes_decodes(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3), "shape")
    blocksize = data.draw(st.sampled_from([32, 64, 128, 512, 4096]), "blocksize")
    kind = data.draw(st.sampled_from(["nf4", "fp4"]), "kind")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    torch.manual_seed(data.draw(st.integers(0, 9), "seed"))
    weight = torch.randn(shape).to(dtype)
    tensors, values = four_bit(weight, kind, blocksize, data.draw(st.booleans(), "nested"))
    codecs, reader = stored(tmp_path, tensors, CONFIG)
    assert list(codecs) == ["x.weight"]
    assert codecs["x.weight"].format == f"bitsandbytes {kind}"
    assert same(whole(codecs["x.weight"], reader), values)
    check_ranges(codecs["x.weight"], reader, 5)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(256, 320), (7, 13), (33, 100), (1, 9), (130, 514)])
def test_4bit_ranges_and_long_tensors(tmp_path: Path, shape: tuple[int, int], nested: bool) -> None:
    torch.manual_seed(0)
    tensors, values = four_bit(torch.randn(shape).bfloat16(), "nf4", 64, nested)
    codecs, reader = stored(tmp_path, tensors, CONFIG)
    assert same(whole(codecs["x.weight"], reader), values)
    check_ranges(codecs["x.weight"], reader)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32, torch.float16, torch.int8])
def test_packed_bytes_stored_as_another_dtype(tmp_path: Path, storage: torch.dtype) -> None:
    weight = torch.randn(24, 100).bfloat16()
    tensors, values = four_bit(weight, "nf4", 64, True, storage)
    codecs, reader = stored(tmp_path, tensors, CONFIG)
    codec = codecs["x.weight"]
    assert same(whole(codec, reader), values)
    check_ranges(codec, reader)
    assert isinstance(codec, Encodes)
    count = tensors["x.weight"].numel()
    codes = codec.encode("codes", source(weight), {}, 0, count)
    assert same(codes, tensors["x.weight"].flatten())
    assert same(codec.encode("codes", source(weight), {}, 5, 9), codes[5:14])


def pieces(codec: Encodes, role: str, merged: torch.Tensor, count: int) -> torch.Tensor:
    """A part encoded in three pieces that fall across blocks."""
    cuts = [0, count // 3, count // 3 + count // 5, count]
    values = source(merged)
    return torch.cat([codec.encode(role, values, {}, a, b - a) for a, b in pairwise(cuts)])


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_4bit_encodes_as_bitsandbytes_encodes(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(st.lists(st.integers(1, 60), min_size=2, max_size=2), "shape")
    blocksize = data.draw(st.sampled_from([32, 64, 256, 4096]), "blocksize")
    kind = data.draw(st.sampled_from(["nf4", "fp4"]), "kind")
    torch.manual_seed(data.draw(st.integers(0, 9), "seed"))
    merged = torch.randn(shape)
    if data.draw(st.booleans(), "zeros"):
        merged[-1] = 0
        merged.flatten()[: shape[0] * shape[1] // 2] = 0
    base, _ = four_bit(torch.randn(shape).bfloat16(), kind, blocksize, False)
    wanted, _ = four_bit(merged, kind, blocksize, False)
    codecs, _ = stored(tmp_path, base, CONFIG)
    codec = codecs["x.weight"]
    assert isinstance(codec, Encodes)
    assert codec.rewritten == {"codes", "absmax"}
    for role, name in (("codes", "x.weight"), ("absmax", "x.weight.absmax")):
        got = pieces(codec, role, merged, wanted[name].numel())
        assert same(got, wanted[name].flatten()), role


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4bit_encodes_as_bitsandbytes_next_to_the_bounds_between_codes(
    tmp_path: Path, kind: str
) -> None:
    """A whole block and a short one, in which the library scales differently, for many scales."""
    table = bnb.get_4bit_type(kind, device="cpu").sort().values
    bounds = (table[:-1] + table[1:]) / 2
    torch.manual_seed(3)
    for absmax in (torch.rand(40) + 0.01).tolist():
        near = bounds * absmax
        near = torch.cat([near.nextafter(torch.tensor(float(way))) for way in (-9, 9)] + [near])
        merged = torch.zeros(1, 128 + 64)
        merged[0, : len(near)] = merged[0, 128 : 128 + len(near)] = near
        merged[0, 60] = merged[0, 188] = absmax
        base, _ = four_bit(merged, kind, 128, False)
        codec = stored(tmp_path, base, CONFIG)[0]["x.weight"]
        assert isinstance(codec, Encodes)
        assert same(codec.encode("codes", source(merged), {}, 0, 96), base["x.weight"].flatten())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(128, 257), (300, 512), (7, 13), (64, 64)])
def test_double_quantised_absmax_is_what_bitsandbytes_makes_of_it(
    tmp_path: Path, kind: str, shape: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    base, _ = four_bit(torch.randn(shape).bfloat16(), kind, 64, True)
    merged = torch.randn(shape) * torch.rand(shape[0], 1)
    codecs, _ = stored(tmp_path, base, CONFIG)
    codec = codecs["x.weight"]
    assert isinstance(codec, Encodes)
    assert codec.rewritten == {"codes", "absmax", "nested_absmax"}
    state = json.loads(bytes(base[f"x.weight.quant_state.bitsandbytes__{kind}"].tolist()))
    plain, _ = four_bit(merged, kind, 64, False)
    centred = plain["x.weight.absmax"] - torch.tensor(state["nested_offset"])
    coded, nested = as_default(centred, base["x.weight.nested_quant_map"])
    assert same(pieces(codec, "absmax", merged, coded.numel()), coded)
    assert same(pieces(codec, "nested_absmax", merged, nested.numel()), nested)
    packed = plain["x.weight"].flatten()
    assert same(pieces(codec, "codes", merged, packed.numel()), packed)
    # The kernel for CPUs looks codes up in a table of 2^16 values.
    near, wanted = bnb.quantize_blockwise(
        centred, code=base["x.weight.nested_quant_map"], blocksize=256
    )
    assert same(nested, wanted.absmax)
    assert (near.int() - coded.int()).abs().max() <= 2
    assert (near != coded).float().mean() < 0.02


def test_equal_absmax_throughout_is_coded_as_bitsandbytes_codes_it(tmp_path: Path) -> None:
    weight = torch.ones(64, 64)
    base, _ = four_bit(weight, "nf4", 64, True)
    codecs, reader = stored(tmp_path, base, CONFIG)
    codec = codecs["x.weight"]
    assert isinstance(codec, Encodes)
    coded, _ = as_default(torch.zeros(64), base["x.weight.nested_quant_map"])
    assert same(codec.encode("absmax", source(weight), {}, 0, 64), coded)
    assert torch.equal(whole(codec, reader), weight)


def test_pieces_longer_than_what_is_quantised_at_once(tmp_path: Path) -> None:
    torch.manual_seed(2)
    merged = torch.randn(1031, 1100)
    base, _ = four_bit(merged, "nf4", 4096, False)
    codecs, _ = stored(tmp_path, base, CONFIG)
    codec = codecs["x.weight"]
    assert isinstance(codec, Encodes)
    first, count = 1001, merged.numel() // 2 - 1001
    got = codec.encode("codes", source(merged), {}, first, count)
    assert same(got, base["x.weight"].flatten()[first:])


def int8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    codes, scales, _ = bnb.int8_vectorwise_quant(weight)
    return {"x.weight": codes, "x.SCB": scales, "x.weight_format": torch.tensor(0).byte()}


@pytest.mark.parametrize("stated", [None, "bfloat16", "float16", "float32"])
def test_int8_decodes_to_the_dtype_that_the_model_runs_in(
    tmp_path: Path, stated: str | None
) -> None:
    tensors = int8(torch.randn(37, 53))
    codecs, reader = stored(tmp_path, tensors, CONFIG | ({"dtype": stated} if stated else {}))
    values = bnb.int8_vectorwise_dequant(tensors["x.weight"], tensors["x.SCB"])
    dtype = getattr(torch, stated or "float16")
    assert same(whole(codecs["x.weight"], reader), values.to(dtype))
    check_ranges(codecs["x.weight"], reader)


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(rows=st.integers(1, 40), width=st.integers(1, 70), seed=st.integers(0, 9))
def test_int8_encodes_as_bitsandbytes_encodes(
    rows: int, width: int, seed: int, tmp_path: Path
) -> None:
    torch.manual_seed(seed)
    merged = torch.randn(rows, width)
    merged[rows // 2] = 0
    codecs, _ = stored(tmp_path, int8(torch.randn(rows, width)), CONFIG)
    codec = codecs["x.weight"]
    assert isinstance(codec, Encodes)
    wanted = int8(merged)
    wanted["x.weight"][rows // 2] = 0
    assert same(pieces(codec, "codes", merged, rows * width), wanted["x.weight"].flatten())
    assert same(pieces(codec, "scales", merged, rows), wanted["x.SCB"])


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("rows", [48, 96])
def test_conv1d_layers_read_as_the_unquantised_checkpoint_stores_them(
    tmp_path: Path, kind: str, rows: int
) -> None:
    weight = torch.randn(rows, 48)
    if kind == "int8":
        tensors = int8(weight)
        values = bnb.int8_vectorwise_dequant(tensors["x.weight"], tensors["x.SCB"]).half()
    else:
        tensors, values = four_bit(weight, "nf4", 64, False)
    named = {name.replace("x.", "h.0.attn.c_proj.", 1): t for name, t in tensors.items()}
    other = {name.replace("x.", "score.", 1): t for name, t in tensors.items()}
    codecs, reader = stored(tmp_path, named | other, CONFIG | {"model_type": "gpt2"})
    assert same(whole(codecs["h.0.attn.c_proj.weight"], reader), values.T)
    assert same(whole(codecs["score.weight"], reader), values)
    check_ranges(codecs["h.0.attn.c_proj.weight"], reader)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_conv1d_layers_are_written_as_the_library_writes_their_transpose(
    tmp_path: Path, kind: str
) -> None:
    def parts(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        found = int8(weight) if kind == "int8" else four_bit(weight, "nf4", 64, False)[0]
        return {name.replace("x.", "h.0.attn.c_proj.", 1): t for name, t in found.items()}

    codecs, _ = stored(tmp_path, parts(torch.randn(72, 48)), CONFIG | {"model_type": "gpt2"})
    codec, merged = codecs["h.0.attn.c_proj.weight"], torch.randn(48, 72)
    found, wanted = encoded(codec, merged), parts(merged.T.contiguous())
    for role, tensor in found.items():
        assert same(tensor, wanted[codec.parts[role].name])


@pytest.mark.parametrize("eight", [False, True])
def test_a_checkpoint_of_transformers_reads_like_its_original(tmp_path: Path, eight: bool) -> None:
    """GPT-2 has Conv1D layers, which transformers quantises turned round."""
    small = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=50, n_positions=8)
    GPT2LMHeadModel(small).half().save_pretrained(tmp_path / "plain")
    how = BitsAndBytesConfig(
        load_in_8bit=eight,
        load_in_4bit=not eight,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    model = GPT2LMHeadModel.from_pretrained(
        tmp_path / "plain", quantization_config=how, dtype=torch.float16
    )
    model.save_pretrained(tmp_path / "quantised")
    base = open_checkpoint(tmp_path / "quantised")
    reader = Reader(base)
    codecs = find_codecs(base.config, base.tensors, reader.stored)
    assert len(codecs) == 4
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    for name, codec in codecs.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        values = whole(codec, reader)
        assert same(values, dequantize_module_weight(module).detach().half().T)
        error = (values - plain[name]).abs().max() / plain[name].abs().max()
        assert error < (0.01 if eight else 0.2)


def state_of(**changed: Any) -> torch.Tensor:
    """The JSON of a double-quantised NF4 tensor of shape (8, 64), changed."""
    found = {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "bfloat16",
        "shape": [8, 64],
        "nested_blocksize": 256,
        "nested_dtype": "float32",
        "nested_offset": 0.5,
    }
    return torch.tensor(list(json.dumps(found | changed).encode()), dtype=torch.uint8)


STATE = "x.weight.quant_state.bitsandbytes__nf4"
REFUSED: dict[str, dict[str, torch.Tensor | None]] = {
    "no codes": {"x.weight": None},
    "no absmax": {"x.weight.absmax": None},
    "no map": {"x.weight.quant_map": None},
    "no nested absmax": {"x.weight.nested_absmax": None},
    "no state": {STATE: None},
    "short codes": {"x.weight": torch.zeros(255, 1, dtype=torch.uint8)},
    "codes of another dtype": {"x.weight": torch.zeros(32, 1, dtype=torch.int64)},
    "transposed codes": {"x.weight": torch.zeros(1, 256, dtype=torch.uint8)},
    "short absmax": {"x.weight.absmax": torch.zeros(7, dtype=torch.uint8)},
    "absmax not nested": {"x.weight.absmax": torch.zeros(8)},
    "another map": {"x.weight.quant_map": torch.linspace(-1, 1, 16)},
    "nested map that falls": {"x.weight.nested_quant_map": torch.linspace(1, -1, 256)},
    "nested map with nan": {"x.weight.nested_quant_map": torch.full((256,), torch.nan)},
    "no JSON": {STATE: torch.tensor([200, 1, 2], dtype=torch.uint8)},
    "deep JSON": {STATE: torch.tensor(list(b"[" * 4000), dtype=torch.uint8)},
    "empty JSON": {STATE: torch.zeros(0, dtype=torch.uint8)},
    "a list": {STATE: torch.tensor(list(b"[]"), dtype=torch.uint8)},
    "long JSON": {STATE: torch.full((5000,), 32, dtype=torch.uint8)},
    "a name twice": {STATE: torch.tensor(list(b'{"shape": [1], "shape": [2]}'), dtype=torch.uint8)},
    "another type": {STATE: state_of(quant_type="fp4")},
    "another shape": {STATE: state_of(shape=[8, 65])},
    "negative shape": {STATE: state_of(shape=[-8, -64])},
    "empty shape": {STATE: state_of(shape=[0, 64])},
    "endless shape": {STATE: state_of(shape=[10**30])},
    "no shape": {STATE: state_of(shape=None)},
    "true in shape": {STATE: state_of(shape=[True, 512])},
    "odd blocksize": {STATE: state_of(blocksize=63)},
    "no blocksize": {STATE: state_of(blocksize=None)},
    "text blocksize": {STATE: state_of(blocksize="64")},
    "float64": {STATE: state_of(dtype="float64")},
    "a list as dtype": {STATE: state_of(dtype=[])},
    "half nested": {STATE: state_of(nested_dtype="float16")},
    "nested blocksize": {STATE: state_of(nested_blocksize=0)},
    "offset nan": {STATE: state_of(nested_offset=float("nan"))},
    "offset huge": {STATE: state_of(nested_offset=1e39)},
    "offset endless": {STATE: state_of(nested_offset=10**400)},
    "offset text": {STATE: state_of(nested_offset="0.5")},
    "another kind": {"x.weight.quant_state.bitsandbytes__af4": state_of(quant_type="af4")},
}


@pytest.mark.parametrize("case", REFUSED)
def test_4bit_refuses(tmp_path: Path, case: str) -> None:
    tensors, _ = four_bit(torch.randn(8, 64).bfloat16(), "nf4", 64, True)
    stored(tmp_path / "right", tensors | {STATE: state_of()}, CONFIG)
    changed = {**tensors, STATE: state_of(), **REFUSED[case]}
    with pytest.raises(BadInput):
        stored(tmp_path / "wrong", {k: v for k, v in changed.items() if v is not None}, CONFIG)


@pytest.mark.parametrize(
    "changed",
    [
        {"x.weight": None},
        {"x.SCB": None},
        {"x.SCB": torch.ones(7)},
        {"x.SCB": torch.ones(8).half()},
        {"x.weight": torch.ones(8, 8).half()},
        {"x.weight": torch.ones(8, dtype=torch.int8)},
        {"x.weight_format": torch.tensor(2).byte()},
        {"x.weight_format": torch.ones(2).byte()},
        {"y.weight": torch.ones(8, 8, dtype=torch.int8)},
    ],
)
def test_int8_refuses(tmp_path: Path, changed: dict[str, torch.Tensor | None]) -> None:
    parts = {**int8(torch.randn(8, 8)), **changed}
    with pytest.raises(BadInput):
        stored(tmp_path, {k: v for k, v in parts.items() if v is not None}, CONFIG)


@pytest.mark.parametrize("dtype", ["float64", "auto", 5])
def test_int8_refuses_a_model_dtype_that_no_model_runs_in(tmp_path: Path, dtype: object) -> None:
    with pytest.raises(Unsupported):
        stored(tmp_path, int8(torch.randn(8, 8)), CONFIG | {"dtype": dtype})


def test_what_is_not_quantised_stays(tmp_path: Path) -> None:
    tensors, _ = four_bit(torch.randn(8, 64).bfloat16(), "nf4", 64, True)
    plain = {"lm_head.weight": torch.randn(4, 4), "norm.weight": torch.randn(4)}
    assert list(stored(tmp_path, tensors | plain, CONFIG)[0]) == ["x.weight"]
