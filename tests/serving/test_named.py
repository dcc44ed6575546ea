"""What a user writes to be served: parts, paths, names of the store."""

from __future__ import annotations

from pathlib import Path

import pytest

import remerge
from remerge.artefacts.store.rebuilding import Means
from remerge.errors import BadInput, UsageError
from remerge.serving.named import find, split
from tests.serving.fake_llama import write_gguf
from tests.tiny import files_of, write_adapter, write_base


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("REMERGE_STORE", str(tmp_path / "store"))


def found(text: str, role: str = "base") -> Path:
    return find(text, role, Means(), store=None, progress=False).path  # pyright: ignore[reportArgumentType]


def test_parts():
    for name in ("a+b", "c", "d+e+f"):
        Path(name).mkdir()
    assert split("a+b") == ["a+b"]
    assert split("a+b+c") == ["a+b", "c"]
    assert split("c+a+b") == ["c", "a+b"]
    assert split("c+d+e+f+org/name@v1") == ["c", "d+e+f", "org/name@v1"]
    assert split("d+e") == ["d", "e"]
    for text in ("c+", "+c", "c++d", ""):
        with pytest.raises(UsageError, match="empty part"):
            split(text)


def test_paths_come_first(tmp_path: Path):
    write_base(tmp_path / "org" / "name")
    assert found("org/name") == tmp_path / "org" / "name"
    file = write_gguf(tmp_path / "m.gguf")
    assert found("m.gguf") == file
    (tmp_path / "other.gguf").write_bytes(b"nothing")
    with pytest.raises(BadInput):
        found("other.gguf")
    with pytest.raises(BadInput, match="no path that exists"):
        found("nowhere")


def test_an_artefact_is_laid_out_once(tmp_path: Path):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    made = remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    store = remerge.Store()
    added = store.add(tmp_path / "out", name="production")
    place = found("production")
    assert files_of(place) == files_of(tmp_path / "out")
    before = {path: path.stat().st_ino for path in place.iterdir()}
    # By any of its names it is the same directory, as it was.
    assert found(added.id) == found(made.manifest.merge_key[:12]) == place
    assert {path: path.stat().st_ino for path in place.iterdir()} == before
    # What somebody took away is brought back.
    next(place.glob("*.safetensors")).unlink()
    assert files_of(found("production")) == files_of(tmp_path / "out")
    assert find("production", "base", Means(), store=None, progress=False).name == "production"
    with pytest.raises(BadInput, match="produktion"):
        found("produktion")


def test_a_collected_artefact_is_made_again(tmp_path: Path):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    store = remerge.Store()
    store.add(tmp_path / "out", name="old")
    store.gc(["old"])
    assert store.show("old").status.startswith("collected")
    assert files_of(found("old")) == files_of(tmp_path / "out")
