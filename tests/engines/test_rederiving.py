"""What llama.cpp wrote, derived again from a manifest; `make engine-test` makes the environment."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import remerge
from remerge.artefacts.any_manifest import read_any_manifest
from remerge.artefacts.making_again import derive_digests, make_again
from remerge.artefacts.rederiving import Derivation, Sources, open_again
from remerge.errors import BadInput, IntegrityError, NotReproduced
from remerge.sources.references import Reference
from tests import tiny
from tests.engines import llama_models

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("rederiving"),
]

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(
    os.environ.get("REMERGE_TEST_LLAMA", ROOT / ".engines/remerge/engines/llama.cpp/bin/python")
)
PYTHONS = {"llama.cpp": str(ENGINE)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs, and their inputs in places that say nothing: a directory, a file, and the export of
    a merged checkpoint, which then lost its manifest."""
    place = tmp_path_factory.mktemp("gguf")
    base, adapter = llama_models.write("llama", place, ENGINE)
    remerge.export(base, place / "d", adapters=adapter, to="gguf:Q8_0", engine_python=PYTHONS)
    out = place / "f.gguf"
    remerge.export(base, out, adapters=adapter, to="gguf:Q4_0", engine_python=PYTHONS)
    remerge.merge(base, adapter, place / "merged")
    remerge.export(place / "merged", place / "e.gguf", to="gguf:F16", engine_python=PYTHONS)
    (place / "store").mkdir()
    (place / "merged").rename(place / "store/mm")
    for name in ("remerge.json", "provenance.json"):
        (place / "store/mm" / name).unlink(missing_ok=True)
    base.rename(place / "store/aa")
    adapter.rename(place / "store/bb")
    return place


def opened(place: Path, manifest: Path) -> Derivation:
    sources = Sources(Reference(place / "store/aa"), [Reference(place / "store/bb")])
    if manifest.name.startswith("e."):
        sources = Sources(Reference(place / "store/mm"), [])
    return open_again(read_any_manifest(manifest), sources, max_memory=2**30)


def silent(done: int, total: int, tensor: str) -> None:
    pass


@pytest.mark.parametrize("name", ["d/remerge.json", "f.gguf.remerge.json", "e.gguf.remerge.json"])
def test_derived_from_other_places(place: Path, tmp_path: Path, name: str):
    derivation = opened(place, place / name)
    found = derive_digests(derivation, device=CPU, threads=1, pythons=PYTHONS, report=silent)
    assert found == derivation.recorded
    make_again(derivation, tmp_path / "new", device=CPU, threads=1, pythons=PYTHONS, report=silent)
    folder = (place / name).parent
    assert tiny.files_of(tmp_path / "new", without=()) == {
        record.name: (folder / record.name).read_bytes() for record in derivation.manifest.outputs
    }


def test_the_command(place: Path, tmp_path: Path):
    def reproduce(source: Path, out: Path | None = None) -> Any:
        return remerge.reproduce(
            source,
            out,
            base=place / "store/aa",
            adapter=place / "store/bb",
            engine_python=PYTHONS,
            overwrite=False,
        )

    assert reproduce(place / "f.gguf").files == 1
    # A laptop has the file under another name, its manifest beside it.
    shutil.copy(place / "f.gguf", tmp_path / "g.gguf")
    shutil.copy(place / "f.gguf.remerge.json", tmp_path / "g.gguf.remerge.json")
    assert reproduce(tmp_path / "g.gguf").files == 1
    with pytest.raises(remerge.UsageError, match=r"Give -o .*f\.gguf\."):
        reproduce(tmp_path / "g.gguf", tmp_path / "h.gguf")
    reproduce(tmp_path / "g.gguf.remerge.json", tmp_path / "f.gguf")
    for name in ("f.gguf", "f.gguf.remerge.json"):
        assert (tmp_path / name).read_bytes() == (place / name).read_bytes()
    reproduce(place / "d/remerge.json", tmp_path / "d")
    assert tiny.files_of(tmp_path / "d") == tiny.files_of(place / "d")
    assert reproduce(place / "d/d-Q8_0.gguf").files == 2
    with (tmp_path / "g.gguf").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x55")
    with pytest.raises(IntegrityError, match=r"g\.gguf is not the file"):
        reproduce(tmp_path / "g.gguf")
    document = json.loads((tmp_path / "f.gguf.remerge.json").read_text())
    document["outputs"][0]["sha256"] = "3" * 64
    (tmp_path / "edited.json").write_text(json.dumps(document))
    with pytest.raises(NotReproduced, match=r"f\.gguf, derived again"):
        reproduce(tmp_path / "edited.json")


def test_a_changed_tokenizer_is_another_input(place: Path, tmp_path: Path):
    shutil.copytree(place / "store", tmp_path / "store")
    path = tmp_path / "store/aa/tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    derivation = opened(tmp_path, place / "f.gguf.remerge.json")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        derive_digests(derivation, device=CPU, threads=1, pythons=PYTHONS, report=silent)


def test_another_engine_is_said(place: Path, tmp_path: Path):
    document = json.loads((place / "f.gguf.remerge.json").read_text())
    document["versions"]["llama.cpp"] = "llama-cpp-python==0.1.0"
    document["merge_key"] = "4" * 64
    (tmp_path / "old.json").write_text(json.dumps(document))
    derivation = opened(place, tmp_path / "old.json")
    with pytest.raises(NotReproduced, match=r"llama-cpp-python==0\.1\.0.*here is"):
        derive_digests(derivation, device=CPU, threads=1, pythons=PYTHONS, report=silent)


def test_an_input_file_is_found_by_its_option(place: Path, tmp_path: Path):
    """The file besides base and adapters that a manifest names."""
    document = json.loads((place / "f.gguf.remerge.json").read_text())
    import hashlib

    digest = hashlib.sha256(b"matrix").hexdigest()
    document["files"] = {"imatrix": {"name": "matrix.gguf", "size": 6, "sha256": digest}}
    (tmp_path / "with.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match=r"matrix\.gguf of --imatrix.*--file imatrix=PATH"):
        opened(place, tmp_path / "with.json")
    (tmp_path / "other.gguf").write_bytes(b"Matrix")
    files = {"imatrix": tmp_path / "other.gguf"}
    manifest = read_any_manifest(tmp_path / "with.json")
    base, adapters = Reference(place / "store/aa"), [Reference(place / "store/bb")]
    with pytest.raises(IntegrityError, match=r"other\.gguf of --imatrix"):
        open_again(manifest, Sources(base, adapters, files), max_memory=2**30)
    (tmp_path / "other.gguf").write_bytes(b"matrix")
    found = open_again(manifest, Sources(base, adapters, files), max_memory=2**30)
    assert found.asked is not None
    assert found.asked.files == files
