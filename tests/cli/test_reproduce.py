"""``remerge reproduce``: from an output or a manifest to the same bytes, with which exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remerge.cli import group
from remerge.errors import BadInput, IntegrityError, NotReproduced, RemergeError, UsageError
from tests import tiny
from tests.hub_server import HubServer


def command(*arguments: object) -> Result:
    """In this process: a new one spends seconds on importing torch."""
    return CliRunner().invoke(group, ["reproduce", *(str(argument) for argument in arguments)])


def refused(done: Result, kind: type[RemergeError]) -> str:
    assert type(done.exception) is kind, (done.exception, done.output)
    assert done.stdout == ""
    return str(done.exception)


@pytest.fixture
def place(inputs: Path, tmp_path: Path) -> Path:
    """``base``, ``adapter`` and ``out``, which was merged from them."""
    root = tmp_path / "place"
    shutil.copytree(inputs, root)
    options = ("merge", root / "base", root / "adapter", "-o", root / "out", "-q")
    assert CliRunner().invoke(group, [str(word) for word in options]).exit_code == 0
    return root


def test_an_output_is_derived_and_nothing_is_written(place: Path):
    before = tiny.files_of(place, without=())
    done = command(place / "out", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert f"reproduced: {place / 'out'}\n" in done.stdout
    assert "6, every byte as the manifest has it" in done.stdout
    document = json.loads(command(place / "out", "--json").stdout)
    assert document["reproduced"]
    assert document["files"] == 6 == len(document["outputs"])
    assert document["bytes"] == sum(
        (place / "out" / name).stat().st_size for name in document["outputs"]
    )
    assert document["output"] is None
    assert command(place / "out", "-q").stdout == ""
    assert "model.safetensors.index.json" in command(place / "out", "-v").stdout
    assert tiny.files_of(place, without=()) == before


def test_a_manifest_alone_makes_the_artefact(place: Path, tmp_path: Path):
    """Found anywhere, under any name, the output gone; the manifest comes byte for byte."""
    wanted = tiny.files_of(place / "out")
    (place / "out/remerge.json").rename(tmp_path / "found.txt")
    shutil.rmtree(place / "out")
    done = command(tmp_path / "found.txt", "-o", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert tiny.files_of(tmp_path / "new") == wanted
    assert CliRunner().invoke(group, ["verify", str(tmp_path / "new")]).exit_code == 0
    assert "exists and is not empty" in refused(
        command(tmp_path / "found.txt", "-o", tmp_path / "new"), UsageError
    )
    (tmp_path / "new/config.json").write_text("{}")
    done = command(tmp_path / "found.txt", "-o", tmp_path / "new", "--overwrite")
    assert done.exit_code == 0, done.output
    assert tiny.files_of(tmp_path / "new") == wanted
    # An empty directory is filled in place, and inputs are never in the way.
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "found.txt", "-o", tmp_path / "empty").exit_code == 0
    assert tiny.files_of(tmp_path / "empty") == wanted
    again = command(tmp_path / "found.txt", "-o", place / "base", "--overwrite")
    assert "overlap" in refused(again, UsageError)


def test_an_unknown_input_is_asked_for_by_its_option(place: Path):
    (place / "adapter").rename(place / "moved")
    said = refused(command(place / "out"), BadInput)
    assert "the adapter 'adapter' lies now" in said
    assert "--adapter PATH" in said
    assert command(place / "out", "--adapter", place / "moved", "-q").exit_code == 0
    # Found once, it is known.
    assert command(place / "out", "-q").exit_code == 0
    (place / "base").rename(place / "elsewhere")
    assert "--base PATH" in refused(command(place / "out"), BadInput)
    assert command(place / "out", "--base", place / "elsewhere", "-q").exit_code == 0


def flip(path: Path, at: int = -5) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_an_input_that_is_another_is_exit_4(place: Path, tmp_path: Path):
    tiny.write_adapter(tmp_path / "other", seed=9)
    said = refused(command(place / "out", "--adapter", tmp_path / "other"), IntegrityError)
    assert "adapter_model.safetensors is not the file that the manifest names" in said
    flip(place / "base/model-00002-of-00002.safetensors")
    for more in ((), ("-o", tmp_path / "new")):
        said = refused(command(place / "out", *more), IntegrityError)
        assert "base/model-00002-of-00002.safetensors" in said
    assert not (tmp_path / "new").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_damaged_output_is_exit_4_and_can_be_made_anew(place: Path, tmp_path: Path):
    wanted = tiny.files_of(place / "out")
    flip(place / "out/model-00001-of-00002.safetensors")
    (place / "out/1_Pooling/config.json").unlink()
    said = refused(command(place / "out"), IntegrityError)
    assert "config.json is not the file that its manifest names (2 such files)" in said
    assert "reproduce" in said and "-o NEW" in said
    done = command(place / "out", "-o", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "Damaged in" in done.stderr
    assert tiny.files_of(tmp_path / "new") == wanted
    # In its own place too.
    assert command(place / "out", "-o", place / "out", "--overwrite", "-q").exit_code == 0
    assert tiny.files_of(place / "out") == wanted


def test_a_byte_that_differs_is_exit_5_and_is_named(place: Path, tmp_path: Path):
    """Weights and manifest were changed together: only deriving again can tell."""
    import hashlib

    shard = place / "out/model-00001-of-00002.safetensors"
    flip(shard)
    path = place / "out/remerge.json"
    manifest = json.loads(path.read_text())
    record = next(r for r in manifest["outputs"] if r["name"] == shard.name)
    record["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))
    said = refused(command(place / "out"), NotReproduced)
    assert "model-00001-of-00002.safetensors" in said
    assert "element" in said and "stored" in said
    shutil.copy(path, tmp_path / "alone.json")
    for more in ((), ("-o", tmp_path / "new")):
        said = refused(command(tmp_path / "alone.json", *more), NotReproduced)
        assert said.startswith(f"{shard.name}, derived again, is not the file")
    assert not (tmp_path / "new").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_another_plan_is_exit_5_with_the_versions(place: Path):
    path = place / "out/remerge.json"
    manifest = json.loads(path.read_text())
    manifest["plan_id"] = "1" * 64
    manifest["versions"]["remerge"] = "0.0.9"
    path.write_text(json.dumps(manifest))
    said = refused(command(place / "out"), NotReproduced)
    assert "remerge 0.0.9" in said and "Install remerge 0.0.9" in said


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda place: place / "none", "There is no"),
        (lambda place: place / "base", "has no remerge.json"),
        (lambda place: place / "adapter/adapter_config.json", "is not a manifest"),
        (lambda place: place / "adapter/adapter_model.safetensors", "nor remerge.json"),
    ],
)
def test_what_has_no_manifest_is_refused(place: Path, write, said: str):
    assert said in refused(command(write(place)), BadInput)


def test_a_file_of_an_output_stands_for_it(place: Path):
    done = command(place / "out/model-00001-of-00002.safetensors")
    assert done.exit_code == 0, done.output


def test_options_that_make_no_sense(place: Path):
    assert "belongs to -o" in refused(command(place / "out", "--overwrite"), UsageError)
    assert "no OPTION=PATH" in refused(command(place / "out", "--file", "imatrix"), UsageError)


def test_inputs_are_fetched_from_the_hub_at_their_commits(inputs: Path, tmp_path: Path):
    """On a machine that has seen nothing; the names' newest commits are other ones by now."""

    def remerge(hub: str, home: str, *words: object) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / home),
            "XDG_DATA_HOME": str(tmp_path / home),
            "XDG_CACHE_HOME": str(tmp_path / home),
        }
        return subprocess.run(
            [sys.executable, "-m", "remerge", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
        )

    with HubServer() as server:
        server.add("acme/base", inputs / "base")
        server.add("acme/sql", inputs / "adapter")
        done = remerge(server.url, "one", "merge", "acme/base", "acme/sql", "-o", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        manifest = tmp_path / "out/remerge.json"
        done = remerge(server.url, "two", "reproduce", manifest, "-o", tmp_path / "new")
        assert done.returncode == 0, done.stderr
    assert tiny.files_of(tmp_path / "new") == tiny.files_of(tmp_path / "out")
