"""Manifest and provenance of every command: valid by in-toto's own library, the same but for times
and ids, and silent about where and by whom it was made."""

from __future__ import annotations

import getpass
import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import remerge
from remerge.artefacts.engine_manifest import EngineManifest, Origin
from remerge.artefacts.provenance import Making, measured_of, provenance_of, to_text
from remerge.artefacts.records import FileRecord, InputRecord, RunRecord, to_bytes
from remerge.artefacts.test_result import read_test_results, statement, write_test_result
from remerge.errors import UsageError
from remerge.merging.recipe import make_recipe
from tests import tiny
from tests.artefacts import in_toto
from tests.validation.report import made

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECRET = "hf_OnlyForTests0123456789"
# Of two runs no more may differ.
TIMES = {"startedOn", "finishedOn", "invocationId", "seconds", "peakMemoryBytes"}


def merged(place: Path, out: Path, **options: Any) -> None:
    remerge.merge(place / "base", place / "sort", out, **options)


def combined(place: Path, out: Path, **options: Any) -> None:
    remerge.combine(place / "base", [place / "sort", place / "add"], out, **options)


def extracted(place: Path, out: Path, **options: Any) -> None:
    remerge.extract(place / "base", place / "merged", out, rank=2, **options)


def exported(place: Path, out: Path, **options: Any) -> None:
    remerge.export(place / "merged", out, to="fp8", **options)


MAKERS = [merged, combined, extracted, exported]
BUILD_TYPES = {merged: "merge", combined: "combine", extracted: "extract", exported: "merge"}


def inputs_at(place: Path) -> Path:
    """A base, two adapters and a merge of one, at this place."""
    shutil.copytree(EXAMPLES / "base", place / "base")
    for name in ("sort", "add"):
        shutil.copytree(EXAMPLES / "adapters" / name, place / name)
    remerge.merge(place / "base", place / "sort", place / "merged")
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs_at(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("make", MAKERS)
def test_valid_and_bound_to_the_files(
    place: Path, tmp_path: Path, make: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    make(place, out)
    document = in_toto.provenance(out / "provenance.json")
    told = {one["name"]: one["digest"]["sha256"] for one in document["subject"]}
    there = {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("provenance.json", "README.md")
    }
    assert told == there
    definition = document["predicate"]["buildDefinition"]
    assert definition["buildType"] == f"urn:remerge:{BUILD_TYPES[make]}:1"
    manifest = json.loads((out / "remerge.json").read_text())
    asked = definition["externalParameters"]
    assert asked.get("recipe") == manifest.get("recipe")
    assert asked.get("options") == manifest.get("options")
    read = {d["name"]: d["digest"]["sha256"] for d in definition["resolvedDependencies"]}
    for name, digest in read.items():
        role, _, file = name.rpartition("/")
        folder = asked["inputs"][role]
        assert hashlib.sha256((place / folder / file).read_bytes()).hexdigest() == digest
    found = measured_of(out)
    assert found["device"] == "cpu" and found["threads"] > 0
    assert 0 < found["seconds"] < 300 and found["peak_memory_bytes"] > 2**20


def differing(one: Any, other: Any, at: str = "") -> set[str]:
    """Names of the values that differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {name for key in one for name in differing(one[key], other[key], key)}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return {n for a, b in zip(one, other, strict=True) for n in differing(a, b, at)}
    return set() if one == other else {at}


@pytest.mark.parametrize("make", MAKERS)
def test_two_runs_differ_in_times_alone(
    place: Path, tmp_path: Path, make: Callable[..., None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(place, elsewhere)
    make(place, tmp_path / "one", threads=1)
    make(elsewhere, tmp_path / "two", threads=3)
    texts = [(tmp_path / name / "remerge.json").read_bytes() for name in ("one", "two")]
    assert texts[0] == texts[1]
    one, two = (in_toto.statement(tmp_path / n / "provenance.json") for n in ("one", "two"))
    found = differing(one, two)
    assert found <= TIMES | {"threads", "chunkBytes"}
    assert {"invocationId", "threads"} <= found


@pytest.mark.parametrize("make", MAKERS)
def test_no_place_no_person_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., None]
) -> None:
    person = tmp_path / "home" / "zaphod.beeblebrox" / "secret-project"
    person.mkdir(parents=True)
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("USER", "zaphod.beeblebrox")
    monkeypatch.setenv("HOME", str(person.parent))
    inputs_at(person)
    run = person / "wandb/run-20260101_120000-abcd1234/files"
    run.mkdir(parents=True)
    (run / "wandb-metadata.json").write_text('{"username": "zaphod.beeblebrox"}')
    monkeypatch.chdir(person)
    make(Path(), person / "out")
    text = "".join((person / "out" / n).read_text() for n in ("remerge.json", "provenance.json"))
    for telling in (
        "zaphod",
        "secret-project",
        SECRET,
        str(tmp_path),
        socket.gethostname(),
        *([getpass.getuser()] if len(getpass.getuser()) > 4 else []),
        "/tmp",
        "/home",
    ):
        assert telling not in text, telling
    if make in (merged, combined):
        assert "abcd1234" in text


@pytest.mark.parametrize("option", ["base_precision", "recipe"])
def test_what_is_named_by_a_path_is_told_by_its_name(
    place: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes are part of the manifest."""
    out = tmp_path / "out"
    if option == "base_precision":
        original = f"original={place / 'base'}"
        remerge.merge(place / "base", place / "sort", out, base_precision=original)
    else:
        both = [place / "sort", place / "add"]
        remerge.merge(place / "base", both, out, prefer=["*=add"], tokenizer="base")
    assert str(place) not in (out / "remerge.json").read_text()
    assert str(place) not in (out / "provenance.json").read_text()


# --- training runs -------------------------------------------------------------------------------


def run_of(out: Path, number: int = 0) -> Any:
    return json.loads((out / "remerge.json").read_text())["adapters"][number]["run"]


def test_a_run_changes_no_byte_and_no_key(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "in")
    adapter = tmp_path / "in/adapter"
    plain = remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "plain")
    (adapter / "trainer_state.json").write_text('{"global_step": 40, "epoch": 2.0}')
    (tmp_path / "in/wandb/run-20260101_120000-abcd1234").mkdir(parents=True)
    found = remerge.merge(inputs / "base", adapter, tmp_path / "found")
    named = remerge.merge(inputs / "base", adapter, tmp_path / "named", run_id="mlflow:77")
    step = {"step": 40, "epoch": 2.0, "best_metric": None}
    assert run_of(tmp_path / "plain") is None
    assert run_of(tmp_path / "found") == {"source": "wandb", "id": "abcd1234", **step}
    assert run_of(tmp_path / "named") == {"source": "mlflow", "id": "77", **step}
    for result in (found, named):
        assert result.manifest.merge_key == plain.manifest.merge_key
        assert result.manifest.plan_id == plain.manifest.plan_id
    # The card names the run, too.
    without = ("remerge.json", "provenance.json", "README.md")
    assert tiny.files_of(tmp_path / "plain", without=without) == tiny.files_of(
        tmp_path / "named", without=without
    )
    document = in_toto.provenance(tmp_path / "named/provenance.json")
    dependencies = document["predicate"]["buildDefinition"]["resolvedDependencies"]
    runs = {d["name"]: d["annotations"].get("trainingRun") for d in dependencies}
    told = {"source": "mlflow", "id": "77", "step": 40, "epoch": 2.0}
    assert runs["adapter/1/adapter_model.safetensors"] == told
    assert runs["base/config.json"] is None


def test_naming_another_run_needs_overwrite(inputs: Path, tmp_path: Path) -> None:
    places, out = (inputs / "base", inputs / "adapter"), tmp_path / "out"
    remerge.merge(*places, out, run_id="first")
    assert remerge.merge(*places, out, run_id="first").already_there
    # Who names none asks for none.
    assert remerge.merge(*places, out).already_there
    with pytest.raises(UsageError, match="not empty"):
        remerge.merge(*places, out, run_id="second")
    assert run_of(out)["id"] == "first"
    remerge.merge(*places, out, run_id="second", overwrite=True)
    assert run_of(out)["id"] == "second"


def test_runs_of_several_adapters(place: Path, tmp_path: Path) -> None:
    both = [place / "sort", place / "add"]
    page = "https://wandb.ai/zaphod/p/runs/beef1234?nw=zaphod"
    remerge.merge(place / "base", both, tmp_path / "out", run_id=[f"add={page}", "1=x"])
    assert run_of(tmp_path / "out", 0)["id"] == "x"
    assert run_of(tmp_path / "out", 1)["source"] == "wandb"
    assert run_of(tmp_path / "out", 1)["id"] == "beef1234"
    assert "zaphod" not in (tmp_path / "out/remerge.json").read_text()


@pytest.mark.parametrize(
    ("run_id", "said"),
    [
        ("x", "does not say of which adapter"),
        ("none=x", "there is no adapter 'none'"),
        (["1=x", "sort=y"], "two runs of sort"),
        ("1=/home/zaphod/run", "is no id of a run"),
        ("1=", "does not say of which"),
        ("1=zaphod@example.org", "is no id of a run"),
        ("1=a b", "is no id of a run"),
    ],
)
def test_ids_that_are_none(place: Path, tmp_path: Path, run_id: Any, said: str) -> None:
    both = [place / "sort", place / "add"]
    with pytest.raises(UsageError, match=said):
        remerge.merge(place / "base", both, tmp_path / "out", run_id=run_id)
    assert list(tmp_path.iterdir()) == []


def test_undecided_runs_are_said_and_not_recorded(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "in")
    for run_id in ("one11111", "two22222"):
        (tmp_path / f"in/wandb/run-20260101_120000-{run_id}").mkdir(parents=True)
    adapter, out = tmp_path / "in/adapter", tmp_path / "out"
    result = remerge.merge(inputs / "base", adapter, out)
    assert run_of(out) is None
    (note,) = [one for one in result.manifest.notes if "--run-id" in one]
    assert "wandb:one11111, wandb:two22222" in note
    remerge.merge(inputs / "base", adapter, out, run_id="two22222", overwrite=True)
    assert run_of(out)["source"] == "wandb"


# --- the mapping ---------------------------------------------------------------------------------


def test_an_engine_s_file_with_inputs_from_the_hub(tmp_path: Path) -> None:
    commit = "c" * 40
    file = FileRecord(name="model.safetensors", size=8, sha256="1" * 64)
    adapter = FileRecord(name="adapter_model.safetensors", size=4, sha256="2" * 64)
    manifest = EngineManifest(
        merge_key="3" * 64,
        plan_id="4" * 64,
        recipe=make_recipe(["a"], dtype="bfloat16"),
        engine="llama.cpp",
        origin=Origin(base="org/base", base_id="org/base"),
        reproducible="same-stack",
        base=InputRecord(name="org/base", hub_id="org/base", commit=commit, files=(file,)),
        adapters=(
            InputRecord(
                name="org/a",
                hub_id="org/a",
                commit=commit,
                subfolder="check point",
                files=(adapter,),
                run=RunRecord(source="wandb", id="x", step=3),
            ),
        ),
        files={"imatrix": FileRecord(name="i.dat", size=2, sha256="5" * 64)},
        outputs=(FileRecord(name="m.gguf", size=9, sha256="6" * 64),),
        bits_per_weight=4.5,
        notes=(),
        versions={"remerge": "1"},
    )
    content = to_bytes(manifest)
    making = Making("urn:uuid:0", 1e9, 1e9 + 0.25, "cpu", "AVX2", measured={"seconds": 0.25})
    document = provenance_of(content, making, name="m.gguf.remerge.json")
    assert document == provenance_of(content, making, name="m.gguf.remerge.json")
    path = tmp_path / "m.gguf.provenance.json"
    path.write_bytes(to_text(document))
    assert in_toto.provenance(path) == document
    definition = document["predicate"]["buildDefinition"]
    assert definition["buildType"] == "urn:remerge:export:1"
    assert definition["externalParameters"]["inputs"] == {
        "base": f"hf://org/base@{commit}",
        "adapter/1": f"hf://org/a@{commit}/check%20point",
    }
    found = {d["name"]: (d.get("uri"), d["digest"]) for d in definition["resolvedDependencies"]}
    assert found["base"] == (f"hf://org/base@{commit}", {"gitCommit": commit})
    assert found["adapter/1/adapter_model.safetensors"] == (
        f"hf://org/a@{commit}/check%20point/adapter_model.safetensors",
        {"sha256": "2" * 64},
    )
    assert found["imatrix/i.dat"] == (None, {"sha256": "5" * 64})
    assert [one["name"] for one in document["subject"]] == ["m.gguf", "m.gguf.remerge.json"]
    assert document["subject"][1]["digest"]["sha256"] == hashlib.sha256(content).hexdigest()
    (tmp_path / "m.gguf").write_text("")
    assert measured_of(tmp_path / "m.gguf") == {
        "started": "2001-09-09T01:46:40.000Z",
        "device": "cpu",
        "seconds": 0.25,
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"seconds": 3.5, "device": "cpu"}', {"seconds": 3.5, "device": "cpu"}),
        ("[]", {}),
        ("{", {}),
        ('{"predicate": {"runDetails": [], "buildDefinition": 7}}', {}),
        ('{"predicate": {"runDetails": {"byproducts": [3, {"name": "measurements"}]}}}', {}),
    ],
)
def test_measurements_of_older_and_of_broken_files(tmp_path: Path, text: str, found: Any) -> None:
    (tmp_path / "provenance.json").write_text(text)
    assert measured_of(tmp_path) == found


def test_manifests_before_training_runs_are_read(place: Path) -> None:
    record = json.loads((place / "merged/remerge.json").read_text())["adapters"][0]
    del record["run"]
    assert InputRecord.model_validate(record).run is None


def test_a_merge_is_a_base_without_what_is_told_of_it(place: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(place / "merged", base)
    for name in ("remerge.tests/a.json", "x.gguf.remerge.tests/b.json"):
        (base / name).parent.mkdir()
        (base / name).write_text("{}")
    for name in ("x.gguf.remerge.json", "x.gguf.provenance.json", "notes.json"):
        (base / name).write_text("{}")
    (base / "sub").mkdir()
    (base / "sub/provenance.json").write_text("somebody's")
    remerge.merge(base, place / "add", tmp_path / "out")
    carried = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("out/**/*")}
    assert {"notes.json", "sub/provenance.json"} <= carried
    assert not [name for name in carried if "remerge.tests" in name or "gguf" in name]


# --- test results --------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", [3e-5, float("inf"), float("nan")])
def test_results_of_comparisons(place: Path, tmp_path: Path, kl: float) -> None:
    """Also those of a model that is so broken that figures are not finite."""
    file = FileRecord(name="model.safetensors", size=1, sha256="1" * 64)
    logits = made.figures().logits[0].model_copy(update={"kl_mean": kl, "noise_kl": kl})
    figures = made.figures(logits=(logits,))
    path = write_test_result(tmp_path, statement(figures, [file], [file]))
    document = in_toto.test_result(path)
    assert document["predicate"]["failedTests"] == ["score of sort"]
    (read,) = read_test_results(tmp_path)
    assert repr(read.logits[0].kl_mean) == repr(kl) == repr(read.logits[0].noise_kl)
