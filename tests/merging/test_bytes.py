"""The bytes of a merge: what they are, and what they do not depend on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import remerge
from remerge.merging import budget
from tests import tiny


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shards", [1, 2])
def test_equals_plain_torch(tmp_path: Path, dtype: torch.dtype, shards: int):
    tiny.write_base(tmp_path / "base", dtype, shards=shards)
    tiny.write_adapter(tmp_path / "adapter")
    remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    wanted = tiny.expected(tmp_path / "base", tmp_path / "adapter")
    found = tiny.read_tensors(tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 5}, {"max_memory": "512MiB"}])
def test_resources_change_no_byte(inputs: Path, tmp_path: Path, options: dict[str, object]):
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "one")
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "two", **options)  # type: ignore[arg-type]
    assert tiny.files_of(tmp_path / "one") == tiny.files_of(tmp_path / "two")


@pytest.mark.parametrize("tile", [1, 1000, 5000])
def test_tiles_change_no_byte(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: int
):
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "one")
    monkeypatch.setattr("remerge.merging.kernel.TILE_ELEMENTS", max(tile, 64))
    chunk = 2**20
    monkeypatch.setattr(budget, "_CHUNK", chunk)
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "two", threads=2)
    assert tiny.files_of(tmp_path / "one") == tiny.files_of(tmp_path / "two")


def test_a_zero_adapter_changes_no_byte(tmp_path: Path):
    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "adapter", zero=True)
    remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    for shard in (tmp_path / "base").glob("*.safetensors"):
        assert (tmp_path / "out" / shard.name).read_bytes() == shard.read_bytes()


def test_base_bits_stay_where_nothing_is_added(tmp_path: Path):
    """-0.0, NaN payloads and infinities of the base survive a delta of zero."""
    from safetensors.torch import load_file, save_file

    tiny.write_base(tmp_path / "base", shards=1)
    tiny.write_adapter(tmp_path / "adapter", zero=True)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    bits = tensors["model.layers.0.self_attn.q_proj.weight"].view(torch.int16)
    bits[5, :4] = torch.tensor([0x7FC1, 0x7F80, -0x80, -32768], dtype=torch.int16)
    save_file(tensors, file, metadata={"format": "pt"})
    remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("named", "dtype"), [("float32", torch.float32), ("fp16", torch.float16)])
def test_dtype_rounds_once(inputs: Path, tmp_path: Path, named: str, dtype: torch.dtype):
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out", dtype=named)
    tensors = tiny.read_tensors(inputs / "base")
    factors = tiny.read_tensors(inputs / "adapter")
    found = tiny.read_tensors(tmp_path / "out")
    for name in tiny.SHAPES:
        key = "base_model.model." + name.removesuffix(".weight")
        a, b = (factors[f"{key}.lora_{x}.weight"].double() for x in "AB")
        wide = tensors[name].double() + (tiny.ALPHA / tiny.RANK) * (b @ a)
        assert torch.equal(found[name], wide.float().to(dtype)), name
    for name in tiny.PLAIN:
        assert torch.equal(found[name], tensors[name].to(dtype))


def test_new_shards_hold_the_same_tensors(inputs: Path, tmp_path: Path):
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "one")
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "two", max_shard_size="2MB")
    one, two = tiny.read_tensors(tmp_path / "one"), tiny.read_tensors(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 2
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    remerge.verify(tmp_path / "two")


def test_an_overflow_is_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    tiny.write_base(tmp_path / "base", torch.float16)
    tiny.write_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][7] = 1e6
    save_file(tensors, file)
    with pytest.raises(remerge.BadInput, match=r"layers\.0\.self_attn\.q_proj.* row 7, column"):
        remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_bytes(inputs: Path, tmp_path: Path):
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "one")
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "two", device="cuda")
    assert tiny.files_of(tmp_path / "one") == tiny.files_of(tmp_path / "two")


def test_rows_read_alone_equal_the_file(inputs: Path, tmp_path: Path):
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out")
    whole = tiny.read_tensors(tmp_path / "out")
    with remerge.open_merged(inputs / "base", inputs / "adapter") as merged:
        assert set(merged) == set(whole)
        for name, tensor in whole.items():
            lazy = merged[name]
            assert lazy.shape == tensor.shape and lazy.dtype == tensor.dtype
            assert torch.equal(lazy[...], tensor)
            assert torch.equal(lazy[1:3], tensor[1:3])
            assert torch.equal(lazy[-1], tensor[-1])
            if tensor.ndim == 2:
                assert torch.equal(lazy[1:3, 5:9], tensor[1:3, 5:9])


def test_the_merge_key_names_every_input(inputs: Path, tmp_path: Path):
    """Equal headers are not enough: another weight, adapter or side file is another merge."""
    from remerge.artefacts.digests import input_digests
    from remerge.merging.plan import merge_key

    def key() -> str:
        plan = remerge.plan(tmp_path / "base", tmp_path / "adapter")
        return merge_key(plan, input_digests(plan))

    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "adapter")
    seen = {key()}
    (tmp_path / "base/generation_config.json").write_text('{"eos_token_id": 3}')
    seen.add(key())
    for file in ("base/model-00001-of-00002.safetensors", "adapter/adapter_model.safetensors"):
        data = bytearray((tmp_path / file).read_bytes())
        data[-1] ^= 1
        (tmp_path / file).write_bytes(data)
        seen.add(key())
    assert len(seen) == 4
