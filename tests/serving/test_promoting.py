"""A name is moved to what was shown to deserve it: one broken artefact for each step, refused there
and nowhere else, on the trained examples."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import remerge
from remerge.serving.promoting import Step
from tests.artefacts.store.oracle import log, see, sound

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE = EXAMPLES / "base"
QUESTIONS = EXAMPLES / "eval"


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMERGE_STORE", str(tmp_path / "store"))


@pytest.fixture
def store(tmp_path: Path) -> remerge.Store:
    """One with ``old``, which ``production`` names."""
    made = remerge.Store()
    remerge.merge(BASE, EXAMPLES / "adapters/dates", tmp_path / "old")
    made.add(tmp_path / "old", name="old")
    made.tag("old", "production")
    return made


def merged(place: Path, *adapters: str, **options: Any) -> Path:
    remerge.merge(BASE, [EXAMPLES / "adapters" / name for name in adapters], place, **options)
    return place


def refused(target: str, step: str, **options: Any) -> remerge.RemergeError:
    """The error of a promotion that is refused at this very step, and nothing else is changed."""
    root = remerge.Store().root
    before, lines = see(root), log(root)
    steps: list[Step] = []
    with pytest.raises(remerge.RemergeError) as caught:
        remerge.promote(target, told=steps.append, **options)
    states = {one.name: one.state for one in steps}
    names = list(states)
    assert names == ["verify", "compare", "check", "move"]
    at = names.index(step)
    assert states[step] == "failed", states
    assert set(list(states.values())[:at]) <= {"passed", "reused", "skipped"}
    assert set(list(states.values())[at + 1 :]) <= {"not run"}
    assert f"Refused at step {at + 1} of 4" in str(caught.value)
    assert str(root) not in caught.value.what or step == "verify"
    assert caught.value.hint
    assert see(root) == before and log(root) == lines
    assert not list((root / "staging").iterdir())
    return caught.value


def rewritten(place: Path) -> Path:
    """Make the manifest say what the files are, as somebody would who wants them accepted."""
    manifest = json.loads((place / "remerge.json").read_bytes())
    for record in manifest["outputs"]:
        content = (place / record["name"]).read_bytes()
        record |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (place / "remerge.json").write_text(json.dumps(manifest, indent=2))
    return place


def test_what_is_right_is_promoted(store: remerge.Store, tmp_path: Path) -> None:
    added = store.add(merged(tmp_path / "new", "sort"), name="new")
    before = store.show("production").id
    gate = {"evaluations": [str(QUESTIONS / "sort.jsonl")], "limit": 40}
    steps: list[Step] = []
    done = remerge.promote("new", gate=gate, told=steps.append)
    assert (done.id, done.was, done.moved) == (added.id, before, True)
    assert [step.state for step in steps] == ["passed"] * 4
    assert store.show("production").id == added.id
    seen = sound(store.root)
    line = log(store.root)[-1]
    assert (line["action"], line["artefact"], line["was"]) == ("promote", added.id, before)
    scores = line["steps"]["compare"]["scores"]["sort"]
    assert scores["questions"] == 40 and scores["merged"] == scores["adapter"] > 0.8
    # What was shown can be read again: the reports are in the store by their digests.
    assert {line["steps"][step]["report"] for step in ("compare", "check")} <= seen.canonical
    assert line["steps"]["check"]["engine"] == "transformers"
    assert [one.verdict for one in store.show("new").evaluations] == ["passed"]
    # Derived again once: a collection need not prove it.
    assert store.show("new").state.proof is not None
    # The same again changes nothing.
    again = remerge.promote("new", gate=gate)
    assert again.already and not again.moved and log(store.root)[-1] == line
    # The comparison counts for another name, unless more is asked.
    steps.clear()
    remerge.promote("new", "staging", gate=gate, told=steps.append)
    assert [step.state for step in steps] == ["passed", "reused", "passed", "passed"]
    assert steps[1].summary.startswith("compared on 20")
    assert log(store.root)[-1]["steps"]["compare"]["report"] == line["steps"]["compare"]["report"]


@pytest.mark.parametrize("which", ["weights", "side file", "manifest", "record"])
def test_one_byte_changed(store: remerge.Store, tmp_path: Path, which: str) -> None:
    added = store.add(merged(tmp_path / "new", "sort"), name="new")
    files = see(store.root).files(added.id)
    name = {"weights": "model-00001-of-00002.safetensors", "side file": "tokenizer.json"}
    sha256 = files[name.get(which, "remerge.json")]
    path = next((store.root / "blobs").rglob(sha256))
    if which == "record":
        path = next((store.root / "records").rglob(f"{added.id}.json"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    assert refused("new", "verify").exit_code == 4


def test_a_manifest_that_is_not_of_these_weights(store: remerge.Store, tmp_path: Path) -> None:
    """Altered and consistently told again: only deriving it shows that."""
    place = merged(tmp_path / "new", "sort")
    file = place / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name][0, 0] += torch.tensor(0.5, dtype=tensors[name].dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    store.add(rewritten(place), name="new")
    error = refused("new", "verify")
    assert error.exit_code == 5 and "derivi" in str(error)


def test_a_manifest_that_names_more(store: remerge.Store, tmp_path: Path) -> None:
    place = merged(tmp_path / "new", "sort")
    (place / "extra.bin").write_bytes(b"x")
    manifest = json.loads((place / "remerge.json").read_bytes())
    manifest["outputs"].append({"name": "extra.bin", "size": 0, "sha256": ""})
    (place / "remerge.json").write_text(json.dumps(manifest))
    store.add(rewritten(place), name="new")
    assert "extra.bin" in str(refused("new", "verify"))


def test_inputs_that_are_nowhere(
    store: remerge.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(merged(tmp_path / "new", "sort"), name="new")
    # Another user, to whom nobody told where the base lies.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nobody"))
    error = refused("new", "verify")
    assert error.exit_code == 3 and "base" in error.what


def test_a_merge_that_does_not_do_what_its_adapters_do(
    store: remerge.Store, tmp_path: Path
) -> None:
    """Every byte is right, and the recipe is wrong: only the comparison sees that."""
    store.add(merged(tmp_path / "new", "agree", "contradict"), name="new")
    files = [str(QUESTIONS / f"{name}.jsonl") for name in ("agree", "contradict")]
    error = refused("new", "compare", gate={"evaluations": files, "limit": 60})
    assert error.exit_code == 5 and "score of" in error.what
    assert "remerge compare" in (error.hint or "")


def test_a_format_that_its_engine_does_not_read(store: remerge.Store, tmp_path: Path) -> None:
    """What transformers runs well another engine may not load."""
    store.add(merged(tmp_path / "new", "sort", to="fp8"), name="new")
    error = refused("new", "check", engine="tensorrt-llm")
    assert error.exit_code == 5 and "tensorrt-llm" in str(error)
    assert refused("new", "check", engine="llama.cpp").exit_code == 2


def test_a_name_that_was_moved_meanwhile(store: remerge.Store, tmp_path: Path) -> None:
    store.add(merged(tmp_path / "new", "sort"), name="new")
    third = store.add(merged(tmp_path / "third", "add"), name="third").id
    lines: list[int] = []

    def told(step: Step) -> None:
        if step.name == "check":
            store.tag("third", "production", move=True)
            lines.append(len(log(store.root)))

    with pytest.raises(remerge.Locked, match=r"Refused at step 4 of 4.*changed meanwhile"):
        remerge.promote("new", skip=["compare", "check"], reason="test", told=told)
    assert store.show("production").id == third
    assert [len(log(store.root))] == lines

    def the_same(step: Step) -> None:
        if step.name == "check":
            store.tag("new", "production", move=True)

    done = remerge.promote("new", skip=["compare", "check"], reason="test", told=the_same)
    assert done.already and not done.moved
    assert log(store.root)[-1]["action"] == "move"


def test_what_is_left_out_is_recorded(store: remerge.Store, tmp_path: Path) -> None:
    store.add(merged(tmp_path / "new", "sort"), name="new")
    for skip, reason in ((["compare"], ""), (["verify"], "why"), (["nothing"], "why")):
        with pytest.raises(remerge.UsageError):
            remerge.promote("new", skip=skip, reason=reason)
    steps: list[Step] = []
    remerge.promote("new", skip=["compare", "check"], reason="tested by hand", told=steps.append)
    assert [step.state for step in steps] == ["passed", "skipped", "skipped", "passed"]
    line = log(store.root)[-1]
    assert line["skipped"] == {"compare": "tested by hand", "check": "tested by hand"}
    assert line["steps"]["compare"] == {"state": "skipped", "reason": "tested by hand"}


def test_what_was_collected_comes_back(store: remerge.Store, tmp_path: Path) -> None:
    store.add(merged(tmp_path / "new", "sort"), name="new")
    whole = see(store.root).derived
    store.gc()
    shutil.rmtree(tmp_path / "new")
    done = remerge.promote("new", skip=["compare", "check"], reason="test")
    assert done.moved and "collected" in done.steps[0].summary
    assert store.show("production").status == "here"
    seen = sound(store.root)
    assert seen.derived and seen.derived < whole and store.verify().damage == ()


def test_sources_are_promoted_as_far_as_that_goes(store: remerge.Store) -> None:
    store.add(EXAMPLES / "adapters/sort", name="sort")
    steps: list[Step] = []
    done = remerge.promote("sort", "adapter-in-use", told=steps.append)
    assert done.moved
    assert [step.state for step in steps] == ["passed", "skipped", "skipped", "passed"]
    assert "does not apply to an adapter" in steps[1].summary
    store.add(BASE, name="the-base")
    steps.clear()
    remerge.promote("the-base", "base-in-use", told=steps.append)
    assert [step.state for step in steps] == ["passed", "skipped", "passed", "passed"]


@pytest.mark.slow
def test_inputs_come_from_the_store(store: remerge.Store, tmp_path: Path) -> None:
    """The adapter that was merged, though another one lies there now."""
    adapter = shutil.copytree(EXAMPLES / "adapters/sort", tmp_path / "adapter")
    remerge.merge(BASE, adapter, tmp_path / "new")
    store.add(tmp_path / "new", name="new")
    shutil.rmtree(adapter)
    shutil.copytree(EXAMPLES / "adapters/add", adapter)
    done = remerge.promote("new", gate={"limit": 4})
    assert [step.state for step in done.steps] == ["passed"] * 4


def test_a_dry_run_does_nothing(store: remerge.Store, tmp_path: Path) -> None:
    store.add(merged(tmp_path / "new", "sort"), name="new")
    before, lines = see(store.root), log(store.root)
    done = remerge.promote("new", dry_run=True)
    assert done.dry_run and not done.moved
    assert [step.state for step in done.steps] == ["not run"] * 4
    assert (see(store.root), log(store.root)) == (before, lines)
    with pytest.raises(remerge.UsageError, match="no max_klm"):
        remerge.promote("new", gate={"max_klm": 1}, dry_run=True)


def test_what_is_no_artefact(store: remerge.Store, tmp_path: Path) -> None:
    with pytest.raises(remerge.UsageError, match=r"is a path.*remerge store add"):
        remerge.promote(str(merged(tmp_path / "new", "sort")))
    with pytest.raises(remerge.BadInput):
        remerge.promote("nothing")
    with pytest.raises(remerge.UsageError):
        remerge.promote("old", "../x")
    with pytest.raises(remerge.UsageError, match="capitals"):
        remerge.promote("old", "Production")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A merge with one comparison recorded, on the first 30 questions."""
    place = tmp_path_factory.mktemp("compared")
    merged(place / "new", "sort")
    gate = {"evaluations": [str(QUESTIONS / "sort.jsonl")], "limit": 30, "max_kl": 0.01}
    assert remerge.compare(None, [], place / "new", gate=gate).passed
    yield place / "new"


@pytest.mark.parametrize(
    ("gate", "taken"),
    [
        ({"limit": 30, "max_kl": 0.01}, True),
        ({"limit": 20, "max_kl": 0.02}, True),
        ({"limit": 20, "max_kl": 1e-3, "min_agreement": 0.9}, True),
        # More questions, other questions, a limit that it did not hold to, one of another scorer.
        ({"limit": 31, "max_kl": 0.01}, False),
        ({"max_kl": 0.01}, False),
        ({"limit": 30}, False),
        ({"limit": 30, "max_kl": 1e-9}, False),
        ({"limit": 30, "max_kl": 0.01, "scorer": "contains"}, False),
        ({"limit": 30, "max_kl": 0.01, "prompts": "other"}, False),
        ({"limit": 30, "max_kl": 0.01, "evaluations": ["sort=add.jsonl"]}, False),
    ],
)
def test_a_recorded_comparison(
    compared: Path, gate: dict[str, Any], taken: bool, tmp_path: Path
) -> None:
    from remerge.artefacts.store.layout import open_store
    from remerge.artefacts.store.records import read_record, read_state
    from remerge.serving.earlier_comparison import earlier_comparison
    from remerge.validation.comparison_asked import Asked

    id = remerge.Store().add(compared, name="new").id
    (tmp_path / "other").write_text("a\n")
    given = dict(gate)
    files = given.get("evaluations", ["sort=sort.jsonl"])
    given["evaluations"] = [f.replace("=", f"={QUESTIONS}/") for f in files]
    if "prompts" in given:
        given["prompts"] = str(tmp_path / "other")
    opened = open_store()
    record, state = read_record(opened, id), read_state(opened, id)
    asked = Asked(None, [], compared, gate=given)

    def found(**other: Any) -> bool:
        arguments = {"record": record, "asked": asked, "form": "bfloat16", **other}
        engine = arguments.pop("engine", "transformers")
        return (
            earlier_comparison(
                opened,
                arguments["record"],
                state,
                arguments["asked"],
                arguments["form"],
                engine,
            )
            is not None
        )

    assert found() == taken
    assert not found(engine="vllm") and not found(form="int4")
    other = record.files[0].model_copy(update={"sha256": "0" * 64})
    assert not found(record=record.model_copy(update={"files": (other, *record.files[1:])}))


@pytest.mark.parametrize(
    "edit",
    [
        {"command": "remerge compare 'new --max-kl 0.01"},
        {"command": "remerge compare new --max-kl 0.01 --limit many"},
        {"command": "remerge compare new --max-kl 0.01 --limit"},
        {"merged": 0.1},
        {"p_value": 1.0, "lost": 12},
    ],
    ids=["quoted", "many", "none", "score", "lost"],
)
def test_a_recorded_comparison_that_somebody_edited(
    compared: Path, tmp_path: Path, edit: dict[str, Any]
) -> None:
    """What does not add up counts for nothing, and is no fault of remerge's."""
    from remerge.artefacts.store.layout import open_store
    from remerge.artefacts.store.records import read_record, read_state
    from remerge.serving.earlier_comparison import earlier_comparison
    from remerge.validation.comparison_asked import Asked

    place = tmp_path / "edited"
    shutil.copytree(compared, place)
    gate = {"evaluations": [f"sort={QUESTIONS}/sort.jsonl"], "limit": 30, "max_kl": 0.01}
    (file,) = (place / "remerge.tests").iterdir()
    document = json.loads(file.read_bytes())
    figures = document["predicate"]["figures"]
    (task,) = figures["tasks"]
    for name, value in edit.items():
        if name == "merged":
            task["merged"]["value"] = value
        else:
            (figures if name == "command" else task)[name] = value
    file.write_text(json.dumps(document))
    id = remerge.Store().add(place, name="edited").id
    opened = open_store()
    record, state = read_record(opened, id), read_state(opened, id)
    asked = Asked(None, (), place, gate=gate)
    assert not earlier_comparison(opened, record, state, asked, "bfloat16", "transformers")


def test_what_to_do_next(store: remerge.Store, tmp_path: Path) -> None:
    """What was asked wrongly is not looked for in the artefact, and a base whose other files are
    not those of the merge is brought by adding it."""
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    remerge.merge(base, EXAMPLES / "adapters" / "sort", tmp_path / "new")
    store.add(tmp_path / "new", name="new")
    kept = tmp_path / "kept"
    base.rename(kept)
    error = refused("new", "verify")
    assert "remerge store add PATH" in str(error)
    store.add(kept, name="the-base")
    with pytest.raises(remerge.UsageError) as caught:
        remerge.promote("new", gate={"max_kl": -1})
    assert caught.value.hint == "Nothing was moved."


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"gate": {"evaluations": ["nowhere.jsonl"]}}, "step 2 of 4"),
        ({"gate": {"max_kl": -1}}, "step 2 of 4"),
        ({"engine": "nothing"}, "step 3 of 4"),
    ],
)
def test_what_is_asked_wrongly_is_said_before_anything_runs(
    store: remerge.Store, tmp_path: Path, options: dict[str, Any], step: str
) -> None:
    store.add(merged(tmp_path / "new", "sort"), name="new")
    steps: list[Step] = []
    with pytest.raises(remerge.UsageError, match=step):
        remerge.promote("new", told=steps.append, **options)
    assert not steps
