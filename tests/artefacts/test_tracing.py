"""Back from files found anywhere: moved, renamed, damaged, mixed, alone; with a store or not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import remerge
from remerge.artefacts.evaluations import statement_from
from remerge.artefacts.manifest import FileRecord
from remerge.artefacts.test_result import (
    Figures,
    GateResult,
    Interval,
    TaskResult,
    statement,
    write_test_result,
)
from remerge.artefacts.traced import Trace
from remerge.cli import group
from remerge.errors import BadInput
from tests import tiny

SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Path:
    """``out`` and ``other``, two merges of one base; read only."""
    place = tmp_path_factory.mktemp("made")
    tiny.write_adapter(place / "second", seed=9)
    remerge.merge(inputs / "base", inputs / "adapter", place / "out")
    remerge.merge(inputs / "base", place / "second", place / "other")
    return place


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the merge, as it might lie on a server."""
    return Path(shutil.copytree(made / "out", tmp_path / "served"))


@pytest.fixture
def store(made: Path, tmp_path: Path, inputs: Path) -> remerge.Store:
    found = remerge.Store(tmp_path / "store")
    found.add(inputs / "adapter", name="lora")
    found.add(made / "out", name="first")
    found.add(made / "other", name="second")
    return found


def trace(what: Path | str, store: remerge.Store | None = None) -> Trace:
    return (store or remerge.Store()).trace(what)


def key_of(place: Path) -> str:
    return json.loads((place / "remerge.json").read_bytes())["merge_key"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_directory_is_proven_by_its_manifest(out: Path, inputs: Path) -> None:
    found = trace(out)
    assert (found.kind, found.known_by, found.strength) == ("checkpoint", "manifest", "proven")
    assert found.intact
    (origin,) = found.origins
    assert origin.told is not None
    assert origin.told.merge_key == key_of(out)
    assert origin.told.base.name == "base"
    assert [one.name for one in origin.told.adapters] == ["adapter"]
    weights = digest(inputs / "adapter" / "adapter_model.safetensors")
    assert weights in origin.told.adapters[0].digests
    assert found.files is not None
    assert {name: digest(out / name) for name in SHARDS}.items() <= found.files.items()


def test_no_store_is_made(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMERGE_STORE", str(tmp_path / "none"))
    trace(out)
    with pytest.raises(BadInput, match="no store"):
        trace("a-name")
    assert not (tmp_path / "none").exists()
    with pytest.raises(BadInput, match="There is no store"):
        trace(out, remerge.Store(tmp_path / "none"))


Change = Callable[[Path, Path], object]
DIFFERENT: dict[str, tuple[Change, str, str]] = {
    "a shard changed": (
        lambda out, other: damage(out / SHARDS[0]),
        f"{SHARDS[0]} is not as it was made",
        "partly proven",
    ),
    "a shard of another model": (
        lambda out, other: shutil.copy(other / SHARDS[1], out),
        f"{SHARDS[1]} is not as it was made",
        "partly proven",
    ),
    "a shard missing": (
        lambda out, other: (out / SHARDS[1]).unlink(),
        f"{SHARDS[1]} is missing",
        "partly proven",
    ),
    "weights too much": (
        lambda out, other: shutil.copy(other / SHARDS[1], out / "model.safetensors"),
        "model.safetensors is a file of weights that was not made with the others",
        "partly proven",
    ),
    "a shard renamed": (
        lambda out, other: (out / SHARDS[1]).rename(out / "b.safetensors"),
        f"{SHARDS[1]} is called b.safetensors now",
        "partly proven",
    ),
    "shards swapped": (
        lambda out, other: (
            (out / SHARDS[0]).rename(out / "x"),
            (out / SHARDS[1]).rename(out / SHARDS[0]),
            (out / "x").rename(out / SHARDS[1]),
        ),
        f"It is {SHARDS[1]}.",
        "partly proven",
    ),
    "a configuration edited": (
        lambda out, other: (out / "config.json").write_text("{}"),
        "config.json is not as it was made",
        "partly proven",
    ),
    "everything changed": (
        lambda out, other: [damage(out / name) for name in SHARDS],
        "is not as it was made",
        "claimed",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_is_not_as_the_manifest_has_it_is_named(case: str, made: Path, out: Path) -> None:
    change, said, strength = DIFFERENT[case]
    change(out, made / "other")
    found = trace(out)
    assert not found.intact
    assert said in " ".join(found.differs)
    assert found.strength == strength
    assert found.origins[0].told is not None
    assert found.origins[0].told.merge_key == key_of(made / "out")


def test_a_shard_of_another_model_is_known_to_the_store(
    made: Path, out: Path, store: remerge.Store
) -> None:
    shutil.copy(made / "other" / SHARDS[1], out)
    (said,) = trace(out, store).differs
    assert said.endswith(f"It is {SHARDS[1]} of second.")


def test_a_file_of_a_directory(out: Path) -> None:
    found = trace(out / SHARDS[1])
    assert (found.known_by, found.strength) == ("manifest", "proven")
    (out / SHARDS[1]).rename(out / "other.safetensors")
    found = trace(out / "other.safetensors")
    assert found.strength == "proven"
    assert f"as {SHARDS[1]}: the file was renamed" in found.how[0]
    assert trace(out / "1_Pooling" / "config.json").strength == "proven"


def test_a_changed_file_of_a_directory(out: Path) -> None:
    damage(out / SHARDS[0])
    found = trace(out / SHARDS[0])
    assert (found.known_by, found.strength) == ("manifest", "claimed")
    assert not found.intact


def test_a_link_leads_to_the_manifest(out: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "w.safetensors").symlink_to(out / SHARDS[0])
    assert trace(tmp_path / "links" / "w.safetensors").strength == "proven"
    (tmp_path / "directory").symlink_to(out)
    assert trace(tmp_path / "directory").strength == "proven"


def test_a_file_alone_is_known_by_the_store(
    made: Path, tmp_path: Path, store: remerge.Store
) -> None:
    changed = next(n for n in SHARDS if digest(made / "out" / n) != digest(made / "other" / n))
    alone = Path(shutil.copy(made / "out" / changed, tmp_path / "alone.safetensors"))
    found = trace(alone, store)
    assert (found.known_by, found.strength) == ("store", "proven")
    assert found.origins[0].names == ("first",)
    with pytest.raises(BadInput) as refused:
        trace(alone)
    assert "No store was asked" in str(refused.value)


def test_a_directory_without_manifest_is_known_by_the_store(
    made: Path, out: Path, store: remerge.Store
) -> None:
    for name in ("remerge.json", "provenance.json"):
        (out / name).unlink()
    found = trace(out, store)
    assert (found.known_by, found.strength, found.intact) == ("store", "proven", True)
    assert [origin.names for origin in found.origins] == [("first",)]
    shutil.copy(made / "other" / SHARDS[1], out)
    found = trace(out, store)
    assert found.strength == "partly proven"
    assert not found.intact
    found = trace(Path(shutil.copytree(made / "out", out / "sub")), store)
    assert found.known_by == "manifest"
    assert found.origins[0].names == ("first",)


def test_a_digest_a_key_and_a_name(made: Path, store: remerge.Store, inputs: Path) -> None:
    by_name = trace("first", store)
    assert by_name.origins[0].told is not None
    assert by_name.origins[0].told.merge_key == key_of(made / "out")
    assert trace(key_of(made / "out"), store).origins[0].names == ("first",)
    assert trace(by_name.origins[0].artefact or "", store).origins[0].names == ("first",)
    shard = digest(made / "other" / SHARDS[0])
    assert trace(f"sha256:{shard}", store).origins[0].names == ("second",)
    weights = digest(inputs / "adapter" / "adapter_model.safetensors")
    (origin,) = trace(weights, store).origins
    assert origin.kind == "adapter"
    for unknown in ("0" * 64, "no-such-name", "f" * 12):
        with pytest.raises(BadInput):
            trace(unknown, store)


def test_a_manifest_alone(out: Path, tmp_path: Path, store: remerge.Store) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(out / "remerge.json", alone)
    found = trace(alone / "remerge.json")
    assert (found.known_by, found.strength) == ("manifest", "claimed")
    assert trace(alone / "remerge.json", store).strength == "proven"
    for name in ("remerge.json", "provenance.json"):
        assert trace(out / name).strength == "proven"
    shutil.copy(out / "provenance.json", alone / "elsewhere.json")
    assert "came with it" in trace(alone / "elsewhere.json", store).how[0]
    (alone / "remerge.json").write_text('{"format": "other"}')
    with pytest.raises(BadInput, match="no manifest"):
        trace(alone / "remerge.json")


def test_a_manifest_that_provenance_does_not_name(out: Path) -> None:
    told = (out / "remerge.json").read_bytes()
    subject = [{"name": "remerge.json", "digest": {"sha256": hashlib.sha256(told).hexdigest()}}]
    metadata = {"startedOn": "2026-01-01T00:00:00Z", "finishedOn": "2026-01-01T00:00:01Z"}
    run = {"builder": {"id": "urn:remerge:builder"}, "metadata": metadata}
    document = {"subject": subject, "predicate": {"runDetails": run}}
    (out / "provenance.json").write_text(json.dumps(document))
    found = trace(out)
    assert found.intact
    assert found.origins[0].made is not None
    assert found.origins[0].made.started == "2026-01-01T00:00:00Z"
    (out / "remerge.json").write_bytes(told.replace(b'"name": "base"', b'"name": "evil"'))
    assert "is not the one that provenance.json names" in " ".join(trace(out).differs)


def test_a_manifest_of_a_newer_remerge_is_read(out: Path) -> None:
    document = json.loads((out / "remerge.json").read_bytes())
    document |= {"format": "remerge/2", "new": 1}
    document["base"]["new"] = {"a": 1}
    document["adapters"][0]["run"] = {"source": "wandb", "id": "abc", "step": 7}
    (out / "remerge.json").write_text(json.dumps(document))
    (out / "provenance.json").unlink()
    (origin,) = trace(out).origins
    assert origin.told is not None
    assert origin.told.adapters[0].run == {"source": "wandb", "id": "abc", "step": 7}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b'{"format": "remerge/1"}'])
def test_a_broken_manifest_is_none(out: Path, store: remerge.Store, content: bytes) -> None:
    (out / "remerge.json").write_bytes(content)
    assert trace(out, store).known_by == "store"
    assert trace(out).known_by == "configuration"


def test_names_that_lead_out_are_not_followed(out: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    document = json.loads((out / "remerge.json").read_bytes())
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        document["outputs"].append({"name": name, "size": 6, "sha256": "0" * 64})
    (out / "remerge.json").write_text(json.dumps(document))
    found = trace(out)
    assert found.files is not None
    assert not any("secret" in name for name in found.files)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, ...]] = []
    for key, one in inner:
        found.append((*at, key))
        found += leaves(one, (*at, key)) if isinstance(one, dict | list) else []
    return found


odd = st.sampled_from(
    [None, 0, -1, 2**70, 1e308, True, "", "\0", "../x", "/etc/passwd", "a" * 300, "\x1b[2J", [], {}]
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_odd_manifest_is_an_answer_or_refused(made: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in (*SHARDS, "config.json"):
            (place / name).symlink_to(made / "out" / name)
        document = json.loads((made / "out" / "remerge.json").read_bytes())
        where = data.draw(st.sampled_from(leaves(document)))
        inner = document
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = data.draw(odd)
        (place / "remerge.json").write_text(json.dumps(document))
        for what in (place, place / SHARDS[0], place / "remerge.json"):
            with contextlib.suppress(BadInput):
                json.dumps(trace(what).document())
        done = CliRunner().invoke(group, ["store", "trace", folder], standalone_mode=False)
        assert done.exception is None or isinstance(done.exception, BadInput)
        assert "\x1b" not in done.stdout
        with contextlib.suppress(BadInput):
            json.dumps(remerge.Store().diff(place, made / "out").document())


# --- what files say ------------------------------------------------------------------------------


def write_gguf(path: Path, key: str | None, *, value: float = 1.0) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "Base")
    writer.add_base_model_repo_url(0, "https://huggingface.co/org/base")
    if key is not None:
        writer.add_array("remerge.adapters", ["sort"])
        writer.add_string("remerge.merge_key", key)
    writer.add_tensor("t", np.full((2, 32), value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf_with_manifest(path: Path, like: Path) -> Path:
    """A GGUF file with the manifest that an engine's output has."""
    write_gguf(path, "ab" * 32)
    base = json.loads((like / "remerge.json").read_bytes())
    kept = ("plan_id", "base", "adapters", "recipe", "notes", "versions")
    recipe = {**base["recipe"], "format": "gguf", "form": {"file_type": "F32"}}
    output = {"name": path.name, "size": path.stat().st_size, "sha256": digest(path)}
    document = {
        **{name: base[name] for name in kept},
        "format": "remerge-engine/1",
        "merge_key": "ab" * 32,
        "recipe": recipe,
        "engine": "llama.cpp",
        "origin": {"base": "base", "adapters": ["adapter"]},
        "reproducible": "same-stack",
        "outputs": [output],
        "tensors": [{"name": "t", "shape": [2, 32], "type": "F32"}],
        "bits_per_weight": 32.0,
    }
    path.with_name(f"{path.name}.remerge.json").write_text(json.dumps(document))
    return path


def test_a_gguf_file_with_its_manifest(made: Path, tmp_path: Path) -> None:
    path = write_gguf_with_manifest(tmp_path / "model.gguf", made / "out")
    for what in (path, tmp_path / "model.gguf.remerge.json", tmp_path):
        found = trace(what)
        assert (found.kind, found.known_by, found.strength) == ("gguf", "manifest", "proven")
    path.rename(tmp_path / "renamed.gguf")
    assert trace(tmp_path / "renamed.gguf").strength == "proven"
    assert trace(tmp_path / "model.gguf.remerge.json").strength == "claimed"


def test_a_gguf_file_on_a_laptop(made: Path, tmp_path: Path) -> None:
    path = write_gguf_with_manifest(tmp_path / "model.gguf", made / "out")
    store = remerge.Store(tmp_path / "store")
    store.add(path, name="model-gguf")
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    copy = Path(shutil.copy(path, laptop / "x.gguf"))
    found = trace(copy)
    assert (found.known_by, found.strength, found.origins) == ("metadata", "claimed", ())
    assert found.claims is not None
    assert found.claims.merge_key == "ab" * 32
    assert found.claims.base == ("org/base",)
    assert found.claims.adapters == ("sort",)
    assert trace(copy, store).strength == "proven"
    # Its metadata edited, or its weights: the key is what it was, the bytes are not.
    write_gguf(copy, "ab" * 32, value=2.0)
    found = trace(copy, store)
    assert (found.known_by, found.strength) == ("metadata", "claimed")
    assert found.origins[0].names == ("model-gguf",)
    assert "not, byte for byte, what model-gguf is" in found.differs[0]


def test_gguf_files_of_several_origins(made: Path, tmp_path: Path) -> None:
    write_gguf_with_manifest(tmp_path / "a.gguf", made / "out")
    write_gguf(tmp_path / "b.gguf", None)
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    found = trace(tmp_path)
    assert [part.strength for part in found.parts] == ["proven", "claimed", "claimed"]
    assert not found.intact
    assert "was not made by remerge" in found.parts[1].how[1]


def test_a_gguf_file_beside_a_checkpoint(made: Path, out: Path) -> None:
    write_gguf_with_manifest(out / "model.gguf", made / "out")
    found = trace(out)
    assert found.intact
    assert found.strength == "proven"
    assert [part.kind for part in found.parts] == ["gguf"]
    (out / "model.gguf.remerge.json").unlink()
    assert "model.gguf is a file of weights" in trace(out).differs[0]


def test_a_plain_base_and_a_plain_adapter(inputs: Path, tmp_path: Path) -> None:
    found = trace(inputs / "base")
    assert (found.kind, found.known_by, found.strength) == (
        "checkpoint",
        "configuration",
        "claimed",
    )
    assert "not made by remerge" in " ".join(found.how)
    assert found.claims is not None
    assert found.claims.facts["model type"] == "llama"
    found = trace(inputs / "adapter")
    assert found.kind == "adapter"
    assert found.claims is not None
    assert found.claims.base == ("base",)
    found = trace(inputs / "adapter" / "adapter_model.safetensors")
    assert found.kind == "adapter's weights"
    snapshot = tmp_path / "models--org--base" / "snapshots" / ("a" * 40)
    shutil.copytree(inputs / "base", snapshot)
    found = trace(snapshot)
    assert found.claims is not None
    assert found.claims.facts["repository"] == "org/base"
    assert found.claims.facts["commit"] == "a" * 40


def test_a_model_card_is_a_claim(made: Path, out: Path, store: remerge.Store) -> None:
    for name in ("remerge.json", "provenance.json"):
        (out / name).unlink()
    for name in SHARDS:
        damage(out / name)
    card = f"---\nbase_model: [org/base, org/lora]\n---\n| merge key | `{key_of(made / 'out')}` |\n"
    (out / "README.md").write_text(card)
    found = trace(out, store)
    assert (found.known_by, found.strength) == ("metadata", "claimed")
    assert found.origins[0].names == ("first",)
    assert not found.intact
    found = trace(out)
    assert found.claims is not None
    assert found.claims.base == ("org/base", "org/lora")


@pytest.mark.parametrize(
    "card",
    [
        "---\n" + "a: " * 10_000 + "\n---\n",
        "---\nbase_model: {a: [b]}\n---\n",
        "---\nbase_model: !!python/object/apply:os.system ['false']\n---\n",
        "---\n- &a [x]\n- [*a, *a]\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "\xff\xfe",
    ],
)
def test_a_hostile_card_says_nothing(inputs: Path, tmp_path: Path, card: str) -> None:
    base = Path(shutil.copytree(inputs / "base", tmp_path / "base"))
    (base / "README.md").write_text(card, encoding="utf-8")
    found = trace(base)
    assert found.claims is not None
    assert found.claims.base == ()


def test_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    (tmp_path / "w.safetensors").write_bytes(b"short")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    for name in ("notes.txt", "empty", "w.safetensors", "fifo", "nowhere", "nothing"):
        with pytest.raises(BadInput):
            trace(tmp_path / name)


# --- what is around an artefact ------------------------------------------------------------------


def figures(started: str = "2026-01-01T00:00:00Z") -> Figures:
    interval = Interval(value=0.5, low=0.25, high=0.75)
    task = TaskResult(
        name="sort", scorer="exact", questions=4, base=None, adapter=interval, merged=interval,
        delta=Interval(value=0.0, low=-0.1, high=0.1), lost=0, won=0, p_value=1.0,
    )  # fmt: skip
    return Figures(
        started=started, seconds=1.0, verdict="passed", reference="peft", engine="transformers",
        format="BF16", device="cpu", dtype="float32", nbytes=1, command="remerge compare",
        gates=(GateResult(name="scores", measured="0", limit="0", passed=True),), tasks=(task,),
    )  # fmt: skip


def judged(out: Path) -> list[FileRecord]:
    return [FileRecord(name=n, size=1, sha256=digest(out / n)) for n in SHARDS]


def test_evaluations_beside_and_in_the_store(out: Path, tmp_path: Path) -> None:
    write_test_result(out, statement(figures(), judged(out), []))
    (found,) = trace(out).origins[0].evaluations
    assert (found.verdict, found.date) == ("passed", "2026-01-01T00:00:00Z")
    assert found.scores[0].merged == 0.5
    assert (found.scores[0].low, found.scores[0].high) == (0.25, 0.75)
    assert found.these_bytes
    store = remerge.Store(tmp_path / "store")
    store.add(out, name="judged")
    assert len(trace("judged", store).origins[0].evaluations) == 1
    assert len(trace(out, store).origins[0].evaluations) == 1
    damage(out / SHARDS[0])
    assert trace(out).origins[0].evaluations[0].these_bytes is False
    (out / "remerge.tests" / "x.json").write_text("{}")
    assert len(trace(out).origins[0].evaluations) == 1


def test_a_statement_is_read_from_its_bytes(out: Path) -> None:
    path = write_test_result(out, statement(figures(), judged(out), []))
    assert statement_from(path.read_bytes(), "it").predicate.figures == figures()
    with pytest.raises(BadInput, match="it is not a valid"):
        statement_from(b"{}", "it")


def test_a_base_that_was_merged_is_followed(made: Path, out: Path, tmp_path: Path) -> None:
    target = tmp_path / "twice"
    remerge.merge(out, made / "second", target)
    (origin,) = trace(target).origins
    assert [told.merge_key for told in origin.before] == [key_of(out)]
    store = remerge.Store(tmp_path / "store")
    store.add(out, name="once")
    store.add(target, name="twice")
    shutil.rmtree(out)
    (origin,) = trace(target, store).origins
    assert [told.merge_key for told in origin.before] == [key_of(made / "out")]
    assert [one.name for one in origin.before[0].adapters] == ["adapter"]


def test_the_answer_is_json(out: Path, store: remerge.Store, inputs: Path) -> None:
    for what in (out, out / SHARDS[0], "first", inputs / "base"):
        found = trace(what, store)
        assert json.loads(json.dumps(found.document()))["strength"] == found.strength
    assert replace(found, differs=("x",)).document()["differs"] == ["x"]
