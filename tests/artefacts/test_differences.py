"""What differs between two artefacts, on disk and in a store, held to safetensors' own reading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file, save_file

import remerge
from remerge.artefacts.differences import Differences
from remerge.errors import BadInput
from tests import tiny

SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Path:
    """``out`` by one adapter, ``other`` by another one of the same name; read only."""
    place = tmp_path_factory.mktemp("made")
    tiny.write_adapter(place / "again" / "adapter", seed=9)
    tiny.write_adapter(place / "second", seed=10)
    remerge.merge(inputs / "base", inputs / "adapter", place / "out")
    remerge.merge(inputs / "base", place / "again" / "adapter", place / "other")
    return place


def diff(a: Path | str, b: Path | str, store: remerge.Store | None = None) -> Differences:
    found = (store or remerge.Store()).diff(a, b)
    json.dumps(found.document())
    return found


def rows(found: Differences) -> dict[tuple[str, str], tuple[object, object]]:
    return {(row.part, row.what): (row.a, row.b) for row in found.rows}


def test_nothing_differs(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made / "out", tmp_path / "copy"))
    for pair in ((made / "out", copy), (copy, made / "out"), (copy, copy)):
        found = diff(*pair)
        assert found.same
        assert found.tensors is not None
        assert found.tensors.same == found.tensors.compared == len(tiny.SHAPES | tiny.PLAIN)


def test_another_adapter(made: Path) -> None:
    found = diff(made / "out", made / "other")
    assert {part for part, _ in rows(found)} <= {"adapters", "delta"}
    assert ("adapters", "adapter: adapter_model.safetensors") in rows(found)
    assert found.tensors is not None
    ours, theirs = tiny.read_tensors(made / "out"), tiny.read_tensors(made / "other")
    expected = {
        name: int((ours[name].view(torch.int16) != theirs[name].view(torch.int16)).sum())
        for name in ours
    }
    told = {one.name: one.differing for one in found.tensors.changed}
    assert told == {name: count for name, count in expected.items() if count}
    assert {one.of for one in found.tensors.changed} == {ours[name].numel() for name in told}
    assert set(found.changed) <= {*SHARDS}


def test_recipe_weights_and_order(made: Path, inputs: Path, tmp_path: Path) -> None:
    adapters = [inputs / "adapter", made / "second"]
    remerge.merge(inputs / "base", adapters, tmp_path / "a", weights=[0.5, 0.5])
    remerge.merge(inputs / "base", adapters[::-1], tmp_path / "b", weights=[0.25, 0.5])
    told = rows(diff(tmp_path / "a", tmp_path / "b"))
    assert told["adapters", "order"] == (["adapter", "second"], ["second", "adapter"])
    assert told["adapters", "second: weight"] == (0.5, 0.25)
    assert ("adapters", "adapter: weight") not in told
    remerge.merge(inputs / "base", adapters, tmp_path / "c", method="ties", dtype="float16")
    told = rows(diff(tmp_path / "a", tmp_path / "c"))
    assert told["recipe", "method"] == ("sum", "ties")
    assert told["recipe", "dtype"] == ("keep", "F16")
    assert any(part == "recipe" and what.startswith("parameters.") for part, what in told)
    told = rows(diff(made / "out", tmp_path / "a"))
    assert told["adapters", "added"] == (None, "second")
    assert told["adapters", "adapter: weight"] == (1.0, 0.5)
    told = rows(diff(tmp_path / "a", made / "out"))
    assert told["adapters", "removed"] == ("second", None)


def test_another_base_and_another_dtype(made: Path, inputs: Path, tmp_path: Path) -> None:
    tiny.write_base(tmp_path / "base", torch.float32)
    remerge.merge(tmp_path / "base", inputs / "adapter", tmp_path / "wide")
    found = diff(made / "out", tmp_path / "wide")
    assert ("base", SHARDS[0]) in rows(found)
    assert ("base", "name") not in rows(found)
    assert found.tensors is not None
    assert len(found.tensors.changed) == found.tensors.compared
    assert all("BF16" in one.a and "F32" in one.b for one in found.tensors.changed)


def test_other_shards_of_the_same_tensors(made: Path, inputs: Path, tmp_path: Path) -> None:
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "s", max_shard_size="1MB")
    found = diff(made / "out", tmp_path / "s")
    assert found.tensors is not None
    assert found.tensors.same == found.tensors.compared == len(tiny.SHAPES | tiny.PLAIN)
    assert not found.same
    assert rows(found)["recipe", "max_shard_size"] == (None, 1_000_000)
    assert found.removed


def test_tensors_that_only_one_side_has(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made / "out", tmp_path / "copy"))
    tensors = load_file(copy / SHARDS[0])
    first = min(tensors)
    tensors["new"] = tensors.pop(first)
    tensors["model.norm.weight" if "model.norm.weight" in tensors else "x"] = torch.zeros(3)
    save_file(tensors, copy / SHARDS[0], metadata={"format": "pt"})
    found = diff(made / "out", copy)
    assert found.tensors is not None
    assert first in found.tensors.removed
    assert "new" in found.tensors.added
    assert SHARDS[0] in found.changed
    assert "changed since it was made" in found.notes[-1]


def test_one_bit_in_a_large_tensor(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made / "out", tmp_path / "copy"))
    content = bytearray((copy / SHARDS[1]).read_bytes())
    content[-1] ^= 1
    (copy / SHARDS[1]).write_bytes(content)
    found = diff(made / "out", copy)
    assert found.tensors is not None
    (one,) = found.tensors.changed
    assert one.differing == 1
    assert found.changed == (SHARDS[1],)


def test_only_the_header_differs(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made / "out", tmp_path / "copy"))
    save_file(load_file(copy / SHARDS[0]), copy / SHARDS[0], metadata={"format": "np"})
    found = diff(made / "out", copy)
    assert found.tensors is not None
    assert not found.tensors.changed
    assert found.changed == (SHARDS[0],)
    assert not found.same


def test_ranges_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remerge.artefacts.tensor_differences._RANGE", 4096)
    values = torch.arange(50_001, dtype=torch.float32)
    for name, changes in (("a", ()), ("b", (0, 1023, 1024, 50_000))):
        copy = values.clone()
        copy[list(changes)] += 1
        (tmp_path / name).mkdir()
        save_file({"t": copy}, tmp_path / name / "model.safetensors")
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.tensors is not None
    assert [(one.differing, one.of) for one in found.tensors.changed] == [(4, 50_001)]


def test_adapters_and_bases(made: Path, inputs: Path) -> None:
    found = diff(inputs / "adapter", made / "second")
    assert found.tensors is not None
    assert len(found.tensors.changed) == 2 * len(tiny.SHAPES)
    assert not found.rows
    found = diff(inputs / "base", made / "out")
    assert ("kind", "kind") in rows(found)
    assert found.tensors is not None
    assert {one.name for one in found.tensors.changed} == set(tiny.SHAPES)


def test_configurations_key_by_key(inputs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(inputs / "adapter", tmp_path / "adapter"))
    config = json.loads((copy / "adapter_config.json").read_bytes())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "r": 8, "lora_alpha": None}))
    told = rows(diff(inputs / "adapter", copy))
    assert told["adapter_config.json", "r"] == (4, 8)
    assert told["adapter_config.json", "lora_alpha"] == (6.0, None)


# --- GGUF ----------------------------------------------------------------------------------------


def write_gguf(path: Path, first: int, *, name: str = "a", kind: str = "F32") -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.name", name)
    writer.add_array("tokens", [f"{first}{n}" for n in range(100)])
    blocks = np.zeros((2, 34), dtype=np.uint8)
    blocks[0, 5] = first
    writer.add_tensor("blocks", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    values = np.ones((2, 2), dtype=np.float32 if kind == "F32" else np.float16)
    writer.add_tensor("values", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_files(tmp_path: Path, made: Path) -> None:
    a = write_gguf(tmp_path / "a.gguf", 0)
    b = write_gguf(tmp_path / "b.gguf", 1, name="b", kind="F16")
    found = diff(a, b)
    assert found.tensors is not None
    changed = {one.name: one for one in found.tensors.changed}
    assert (changed["blocks"].differing, changed["blocks"].of) == (1, 2)
    assert (changed["values"].a, changed["values"].b) == ("F32 [2, 2]", "F16 [2, 2]")
    assert rows(found)["metadata", "general.name"] == ("a", "b")
    assert ("metadata", "tokens") in rows(found)
    copy = Path(shutil.copy(a, tmp_path / "copy.gguf"))
    assert diff(a, copy).same
    found = diff(a, made / "out")
    assert found.tensors is None
    assert "different formats" in " ".join(found.notes)


def test_a_block_across_two_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remerge.artefacts.tensor_differences._RANGE", 4096)
    for name, changes in (("a", ()), ("b", (4090, 4100, 9000))):
        blocks = np.zeros(1000 * 34, dtype=np.uint8)
        blocks[list(changes)] = 1
        writer = GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_tensor("t", blocks.reshape(10, -1), raw_dtype=GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    found = diff(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert found.tensors is not None
    # Bytes 4090 and 4100 are of one block, the 120th.
    assert [(one.differing, one.of) for one in found.tensors.changed] == [(2, 1000)]


# --- a store -------------------------------------------------------------------------------------


def test_artefacts_of_a_store(made: Path, tmp_path: Path) -> None:
    store = remerge.Store(tmp_path / "store")
    store.add(made / "out", name="first")
    store.add(made / "other", name="second")
    by_name, by_path = diff("first", "second", store), diff(made / "out", made / "other")
    assert by_name.rows == by_path.rows
    assert by_name.tensors == by_path.tensors
    assert diff("first", made / "out", store).same
    with pytest.raises(BadInput, match="no artefact"):
        diff("first", "third", store)
    with pytest.raises(BadInput, match="nothing at"):
        diff("first", tmp_path / "nothing", store)
    with pytest.raises(BadInput, match="no store"):
        diff("first", "second")


def test_bytes_that_were_collected(made: Path, tmp_path: Path) -> None:
    store = remerge.Store(tmp_path / "store")
    store.add(made / "out", name="first")
    store.add(made / "other", name="second")
    for path in sorted((tmp_path / "store" / "blobs" / "derived").rglob("*")):
        if path.is_file():
            path.unlink()
    found = diff("first", "second", store)
    assert found.tensors is None
    assert "Tensors were not compared: first has no" in found.notes[0]
    assert ("adapters", "adapter: adapter_model.safetensors") in rows(found)


def test_damaged_files_are_refused(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made / "out", tmp_path / "copy"))
    (copy / SHARDS[0]).write_bytes(b"short")
    with pytest.raises(BadInput, match="not a valid safetensors"):
        diff(made / "out", copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no model"):
        diff(tmp_path / "empty", copy)
