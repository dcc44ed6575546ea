"""Deriving again from a manifest: every kind of output, inputs anywhere, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import remerge
from remerge.artefacts.any_manifest import DerivedManifest, manifest_from, read_any_manifest
from remerge.artefacts.extraction_manifest import ExtractionManifest
from remerge.artefacts.making_again import derive_digests, make_again
from remerge.artefacts.rederiving import Derivation, Sources, check_now, open_again
from remerge.errors import BadInput, IntegrityError, NotReproduced, Unsupported, UsageError
from remerge.merging import preparations
from remerge.sources.references import Reference
from tests import tiny
from tests.merging import quantised
from tests.outputs.test_combined_adapter import made

CPU = torch.device("cpu")
ABOUT = ("provenance.json", "remerge.json", "README.md")


def _plain(place: Path) -> None:
    tiny.write_base(place / "base")
    tiny.write_adapter(place / "adapter")
    (place / "base/tokenizer.json").write_text('{"version": "1.0"}')
    (place / "base/modeling_own.py").write_text("x = 1\n")


def _several(place: Path) -> None:
    _plain(place)
    tiny.write_adapter(place / "other/deep", seed=5)


def _pissa(place: Path) -> None:
    _plain(place)
    config = json.loads((place / "adapter/adapter_config.json").read_text())
    config["init_lora_weights"] = "pissa"
    (place / "adapter/adapter_config.json").write_text(json.dumps(config))


def _nf4(place: Path) -> None:
    quantised.write_plain(place / "plain")
    quantised.write_adapter(place / "plain", place / "adapter")
    quantised.quantise(place / "plain", place / "base", load_in_4bit=True)


def _pair(place: Path) -> None:
    base, adapters = made(place, "llama")
    base.rename(place / "base")
    for number, adapter in enumerate(adapters):
        adapter.rename(place / ("adapter" if number == 0 else f"other{number}"))
    (place / "adapter/tokenizer.json").write_text("{}")


Case = tuple[Callable[[Path], None], list[str], Callable[..., Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "one": (_plain, ["adapter"], remerge.merge, {}),
    "code": (_plain, ["adapter"], remerge.merge, {"copy_code": True, "dtype": "float32"}),
    "shards": (_plain, ["adapter"], remerge.merge, {"max_shard_size": "2MB"}),
    "several": (
        _several,
        ["adapter", "other/deep"],
        remerge.merge,
        {"method": "dare_ties", "weights": [0.5, 0.7]},
    ),
    "same stack": (_pissa, ["adapter"], remerge.merge, {}),
    "dequantised": (_nf4, ["adapter"], remerge.merge, {}),
    "requantised": (_nf4, ["adapter"], remerge.merge, {"requantize": "same"}),
    "original": (_nf4, ["adapter"], remerge.merge, {"base_precision": "original=plain"}),
    "fp8": (_nf4, ["adapter"], remerge.merge, {"to": "fp8"}),
    "svd": (
        _pair,
        ["adapter", "other1"],
        remerge.combine,
        {"method": "svd", "parameters": {"svd_rank": 2}},
    ),
    "adapter": (_pair, ["adapter", "other1"], remerge.combine, {"weights": [0.5, 2.0]}),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By case: a folder with the inputs, moved to strange names, and ``out``; read only."""
    done: dict[str, Path] = {}

    def output(name: str) -> Path:
        if name not in done:
            place = tmp_path_factory.mktemp("case")
            write, adapters, make, options = CASES[name]
            write(place)
            if "base_precision" in options:
                options = {**options, "base_precision": f"original={place / 'plain'}"}
            make(place / "base", [place / a for a in adapters], place / "out", threads=3, **options)
            (place / "store").mkdir()
            real = "plain" if "base_precision" in options else "base"
            (place / real).rename(place / "store/aa")
            for number, adapter in enumerate(adapters):
                (place / adapter).rename(place / f"store/{number}")
            done[name] = place
        return done[name]

    return output


def sources(place: Path, count: int) -> Sources:
    """Where a store would have put the inputs: under names that say nothing."""
    adapters = [Reference(place / f"store/{number}") for number in range(count)]
    return Sources(Reference(place / "store/aa"), adapters)


def opened(place: Path, **options: Any) -> Derivation:
    manifest = read_any_manifest(place / "out/remerge.json")
    assert not isinstance(manifest, ExtractionManifest)
    where = sources(place, len(manifest.adapters))
    return open_again(manifest, where, max_memory=2**30, **options)


def silent(done: int, total: int, tensor: str) -> None:
    pass


def digests(derivation: Derivation, threads: int = 1) -> dict[str, str]:
    return derive_digests(derivation, device=CPU, threads=threads, pythons={}, report=silent)


def make(derivation: Derivation, out: Path) -> None:
    make_again(derivation, out, device=CPU, threads=2, pythons={}, report=silent)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_is_derived_from_other_places(
    outputs: Callable[[str], Path], tmp_path: Path, name: str
):
    """On another number of threads, without the names and places of the first time, and from the
    manifest alone."""
    place = outputs(name)
    before = tiny.files_of(place, without=())
    derivation = opened(place)
    check_now(derivation)
    assert digests(derivation) == derivation.recorded
    make(derivation, tmp_path / "new")
    wanted = tiny.files_of(place / "out", without=ABOUT)
    assert tiny.files_of(tmp_path / "new", without=()) == wanted
    assert wanted.keys() == derivation.recorded.keys()
    assert tiny.files_of(place, without=()) == before


@pytest.fixture
def copied(outputs: Callable[[str], Path], tmp_path: Path) -> Path:
    """The plain case, to be changed."""
    shutil.copytree(outputs("one"), tmp_path / "copy")
    return tmp_path / "copy"


def flip(path: Path, at: int = -5) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("aa/model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("aa/config.json", "config.json"),
        ("aa/tokenizer.json", "tokenizer.json"),
        ("aa/1_Pooling/config.json", "1_Pooling/config.json"),
        ("0/adapter_model.safetensors", "adapter_model.safetensors"),
        ("0/adapter_config.json", "adapter_config.json"),
    ],
)
def test_a_changed_input_is_named(copied: Path, tmp_path: Path, file: str, named: str):
    path = copied / "store" / file
    if path.suffix == ".json":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        flip(path)
    with pytest.raises(IntegrityError, match=named):
        check_now(opened(copied))
    with pytest.raises(IntegrityError, match=named):
        digests(opened(copied))
    with pytest.raises(IntegrityError, match=named):
        make(opened(copied), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_remembered_digests_are_not_believed(copied: Path):
    """Size and times as they were: only reading it tells."""
    shard = copied / "store/aa/model-00001-of-00002.safetensors"
    manifest = read_any_manifest(copied / "out/remerge.json")
    from remerge.artefacts import user_index

    user_index.remember_digests({shard: manifest.base.files[0].sha256})
    status = shard.stat()
    with shard.open("r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"\x77")
    import os

    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert user_index.known_digest(shard) == manifest.base.files[0].sha256
    with pytest.raises(IntegrityError, match="model-00001"):
        check_now(opened(copied))


@pytest.mark.parametrize("how", ["cut", "gone", "other sharding", "other shape"])
def test_a_base_that_cannot_be_planned_is_not_the_one(copied: Path, how: str):
    base = copied / "store/aa"
    if how == "cut":
        shard = base / "model-00001-of-00002.safetensors"
        shard.write_bytes(shard.read_bytes()[:-100])
    elif how == "gone":
        (base / "model-00001-of-00002.safetensors").unlink()
    elif how == "other sharding":
        shutil.rmtree(base)
        tiny.write_base(base, shards=1)
    else:
        flip(base / "model-00001-of-00002.safetensors", 60)
    with pytest.raises(IntegrityError, match=r"safetensors is (not the file|missing)"):
        opened(copied)


def edited(place: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = place / "out/remerge.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return place


def test_an_edited_manifest_is_found_out(copied: Path, tmp_path: Path):
    def outputs(document: dict[str, Any]) -> None:
        document["outputs"][-1]["sha256"] = "0" * 64

    shutil.copytree(copied, tmp_path / "one")
    derivation = opened(edited(tmp_path / "one", outputs))
    name = derivation.manifest.outputs[-1].name
    assert digests(derivation)[name] != "0" * 64
    with pytest.raises(NotReproduced, match=name):
        make(derivation, tmp_path / "new")
    assert not (tmp_path / "new").exists()

    def fewer(document: dict[str, Any]) -> None:
        del document["outputs"][-1]

    with pytest.raises(NotReproduced, match="does not name"):
        shutil.copytree(copied, tmp_path / "fewer")
        make(opened(edited(tmp_path / "fewer", fewer)), tmp_path / "new")

    def more(document: dict[str, Any]) -> None:
        document["outputs"].append({"name": "more.bin", "size": 1, "sha256": "1" * 64})

    with pytest.raises(NotReproduced, match=r"names more\.bin, which the merge does not make"):
        shutil.copytree(copied, tmp_path / "more")
        make(opened(edited(tmp_path / "more", more)), tmp_path / "new")

    def key(document: dict[str, Any]) -> None:
        document["merge_key"] = "2" * 64

    shutil.copytree(copied, tmp_path / "two")
    with pytest.raises(IntegrityError, match="merge key of the manifest, 2222"):
        check_now(opened(edited(tmp_path / "two", key)))

    def recipe(document: dict[str, Any]) -> None:
        document["recipe"]["weights"] = [0.5]

    with pytest.raises(NotReproduced, match=r"remerge 0\.1\.0, algorithm 1"):
        opened(edited(copied, recipe))


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../b", "", ".", "..", "a//b", "./a", "a\0b"]
)
@pytest.mark.parametrize("field", ["outputs", "base", "adapters"])
def test_names_outside_of_the_directory_are_refused(
    outputs: Callable[[str], Path], field: str, name: str
):
    document = json.loads((outputs("one") / "out/remerge.json").read_text())
    records = document[field]
    if field != "outputs":
        records = (records[0] if field == "adapters" else records)["files"]
    records[0]["name"] = name
    with pytest.raises(BadInput, match="outside of its directory"):
        manifest_from(json.dumps(document).encode(), "somewhere.json")


@pytest.mark.parametrize("name", ["remerge.json", "provenance.json", "config.json"])
def test_names_that_no_output_has_are_refused(outputs: Callable[[str], Path], name: str):
    """The manifest's own, and one name twice."""
    document = json.loads((outputs("one") / "out/remerge.json").read_text())
    document["outputs"].append({"name": name, "size": 1, "sha256": "1" * 64})
    with pytest.raises(BadInput, match="as none does"):
        manifest_from(json.dumps(document).encode(), "somewhere.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"remerge/1"',
        b"{}",
        b'{"format": 1}',
        b'{"format": []}',
        b'{"format": "remerge/2"}',
        b'{"format": "remerge/1"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:20]),
)
def test_what_is_no_manifest_is_bad_input(content: bytes):
    with pytest.raises(BadInput, match="here"):
        manifest_from(content, "here")


def test_an_extracted_adapter_is_not_derived(inputs: Path, tmp_path: Path):
    manifest = read_any_manifest(_extracted(tmp_path) / "remerge.json")
    assert isinstance(manifest, ExtractionManifest)
    with pytest.raises(Unsupported, match="remerge extract"):
        open_again(manifest, Sources(), max_memory=2**30)


def _extracted(place: Path) -> Path:
    quantised.write_plain(place / "plain")
    quantised.write_adapter(place / "plain", place / "adapter")
    remerge.merge(place / "plain", place / "adapter", place / "merged")
    remerge.extract(place / "plain", place / "merged", place / "found", rank=2)
    return place / "found"


def test_recorded_numbers_stand_in_for_another_stack(
    outputs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A stack whose decomposition rounds otherwise: with the recorded factors the same bytes."""
    place = outputs("same stack")
    kept = place / "out/remerge.preparations"
    ours = preparations.prepare

    def otherwise(*arguments: Any) -> tuple[Mapping[str, torch.Tensor], ...]:
        return tuple(
            {name: values * (1 + 2**-9) for name, values in numbers.items()}
            for numbers in ours(*arguments)
        )

    monkeypatch.setattr("remerge.merging.merged.prepare", otherwise)
    derivation = opened(place)
    differing = digests(derivation)
    assert differing["remerge.preparations"] != derivation.recorded["remerge.preparations"]
    with pytest.raises(NotReproduced, match="numerical stack"):
        make(derivation, tmp_path / "new")
    recorded = opened(place, preparations=kept)
    assert digests(recorded) == recorded.recorded
    make(recorded, tmp_path / "new")
    assert tiny.files_of(tmp_path / "new") == tiny.files_of(place / "out", without=ABOUT)
    # What is not the recorded file decides nothing.
    shutil.copy(kept, tmp_path / "numbers")
    flip(tmp_path / "numbers")
    with pytest.raises(IntegrityError, match="numbers is not the file"):
        opened(place, preparations=tmp_path / "numbers")


def test_names_of_the_manifest_are_kept(outputs: Callable[[str], Path]):
    """A new adapter names its base as it was called then: id and commit though read elsewhere."""
    place = outputs("adapter")
    derivation = opened(place)
    assert isinstance(derivation.manifest, DerivedManifest)
    base = derivation.manifest.base.model_copy(update={"hub_id": "acme/base", "commit": "c" * 40})
    named = open_again(
        derivation.manifest.model_copy(update={"base": base}),
        sources(place, 2),
        max_memory=2**30,
    )
    assert str(named.inputs.base_reference) == f"acme/base@{'c' * 40}"
    changed = {n for n, d in digests(named).items() if d != derivation.recorded[n]}
    # The revision is named in the configuration, and nothing else is.
    assert changed == {"adapter_config.json"}


def test_all_adapters_or_none(outputs: Callable[[str], Path]):
    place = outputs("several")
    manifest = read_any_manifest(place / "out/remerge.json")
    one = replace(sources(place, 2), adapters=[Reference(place / "store/0")])
    with pytest.raises(UsageError, match="in this order: adapter, deep"):
        open_again(manifest, one, max_memory=2**30)
    turned = replace(
        sources(place, 2), adapters=[Reference(place / "store/1"), Reference(place / "store/0")]
    )
    with pytest.raises(IntegrityError, match="adapter"):
        open_again(manifest, turned, max_memory=2**30)


def test_an_unknown_place_names_the_option(outputs: Callable[[str], Path]):
    place = outputs("one")
    manifest = read_any_manifest(place / "out/remerge.json")
    with pytest.raises(BadInput, match=r"base 'base' lies now.*--base PATH"):
        open_again(manifest, Sources(), max_memory=2**30)
    with pytest.raises(BadInput, match=r"adapter 'adapter' lies now.*--adapter PATH"):
        open_again(manifest, Sources(Reference(place / "store/aa")), max_memory=2**30)


def test_a_failure_leaves_nothing(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("remerge.artefacts.making_again.write_sides", fails)
    with pytest.raises(KeyboardInterrupt):
        make(opened(copied), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        make(opened(copied), tmp_path / "mine")
    assert (tmp_path / "mine/own.txt").read_text() == "mine"
