"""``remerge store`` as a user runs it, on the trained examples."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remerge.cli import group

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMERGE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(group, [str(word) for word in words], catch_exceptions=True)


def store(*words: str | Path) -> Any:
    """What a command of the store says with ``--json``."""
    result = run("store", *words, "--json")
    assert result.exit_code == 0, result.output or result.exception
    return json.loads(result.stdout)


def merged(place: Path, adapter: str = "sort", *words: str) -> Path:
    result = run("merge", EXAMPLES / "base", EXAMPLES / "adapters" / adapter, "-o", place, *words)
    assert result.exit_code == 0, result.output
    return place


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(place: Path) -> dict[str, bytes]:
    return {
        p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()
    }


def test_collected_and_made_again(tmp_path: Path) -> None:
    out = merged(tmp_path / "out")
    added = store("add", out)
    assert added["name"].startswith("merged-base-") and "-adapter-sort-" in added["name"]
    assert len(added["adapters"]) == 1
    before = contents(out)
    shutil.rmtree(out)
    dry = store("gc", "--dry-run")
    assert [one["action"] for one in dry["artefacts"]] == ["collect"]
    assert store("show", added["name"])["status"] == "here"
    freed = store("gc")
    weights = sum(len(b) for name, b in before.items() if name.endswith(".safetensors"))
    assert freed["bytes"] == dry["bytes"] == weights
    assert store("show", added["name"])["status"].startswith("collected, rebuildable in about")
    made = store("materialize", added["name"], "-o", tmp_path / "again", "--threads", "1")
    assert made["rebuilt"]
    assert contents(tmp_path / "again") == before
    # The store itself has its bytes back only when it is asked.
    assert not list((tmp_path / "store/blobs/derived").glob("??/*"))
    rebuilt = store("rebuild", added["id"][:8])
    assert len(rebuilt["restored"]) == 2
    assert not store("materialize", added["name"], "-o", tmp_path / "third")["rebuilt"]
    assert contents(tmp_path / "third") == before


def test_a_name_is_moved_on_request_alone(tmp_path: Path) -> None:
    first = store("add", merged(tmp_path / "a"), "--name", "prod")["id"]
    other = merged(tmp_path / "b", "dates")
    refused = run("store", "add", other, "--name", "prod")
    assert refused.exit_code != 0 and "--move" in str(refused.exception)
    second = store("add", other)["id"]
    assert run("store", "tag", second, "prod").exit_code != 0
    assert store("show", "prod")["id"] == first
    assert store("tag", second, "prod", "--move") == {"id": second, "name": "prod", "was": first}
    entry = store("log", "prod")["log"][0]
    assert (entry["action"], entry["artefact"], entry["was"]) == ("move", second, first)


@pytest.mark.parametrize("name", ["../x", "-x", "a/b", "", "a..b", "x" * 201, "deadbeef", ".x"])
def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    store("add", EXAMPLES / "adapters/sort", "--name", "one")
    assert run("store", "tag", "one", name).exit_code != 0
    assert [row["names"] for row in store("ls")["artefacts"]] == [["one"]]


def test_another_recipe_gets_a_name_of_its_own(tmp_path: Path) -> None:
    first = store("add", merged(tmp_path / "a"))
    second = store("add", merged(tmp_path / "b", "sort", "--dtype", "float32"))
    assert second["name"] == f"{first['name']}-{second['id'][:8]}"
    assert store("show", first["name"])["id"] == first["id"]


def test_equal_weights_with_other_files_beside_them(tmp_path: Path) -> None:
    bases = [shutil.copytree(EXAMPLES / "base", tmp_path / name) for name in ("one", "two")]
    (bases[1] / "generation_config.json").write_text('{"temperature": 0.5}')
    before: dict[str, dict[str, bytes]] = {}
    for base in bases:
        out = tmp_path / f"out-{base.name}"
        assert run("merge", base, EXAMPLES / "adapters/sort", "-o", out).exit_code == 0
        before[base.name] = contents(out)
        store("add", out, "--name", base.name)
        store("add", base)
        shutil.rmtree(base)
    assert [one["action"] for one in store("gc")["artefacts"]] == ["collect", "collect"]
    for name, files in before.items():
        store("materialize", name, "-o", tmp_path / f"again-{name}")
        assert contents(tmp_path / f"again-{name}") == files


def test_capitals_alone_make_no_other_name(tmp_path: Path) -> None:
    store("add", EXAMPLES / "adapters/sort", "--name", "one")
    assert "capitals" in str(run("store", "tag", "one", "ONE").exception)


def test_an_adapter_stays(tmp_path: Path) -> None:
    added = store("add", EXAMPLES / "adapters/sort")
    for words in (["rm", added["name"]], ["gc", added["name"]], ["gc", added["name"], "--force"]):
        result = run("store", *words)
        assert "adapter" in str(result.exception), words
    store("gc", "--force")
    store("materialize", added["name"], "-o", tmp_path / "out")
    before = contents(EXAMPLES / "adapters/sort")
    assert contents(tmp_path / "out").items() <= before.items()


def test_what_a_collection_keeps(tmp_path: Path) -> None:
    ids = [
        store("add", merged(tmp_path / f"{number}", "sort", *words), "--name", f"v{number}")["id"]
        for number, words in enumerate(([], ["--dtype", "float32"], ["--dtype", "float16"]), 1)
    ]

    def kept(*words: str) -> list[str]:
        found = store("gc", "--dry-run", *words)["artefacts"]
        return [one["id"] for one in found if one["action"] == "keep"]

    assert kept() == []
    assert kept("--keep-last", "1") == ids[2:]
    assert kept("--keep-tag", "v[12]") == ids[:2]
    assert kept("--keep-within", "1h") == ids
    assert kept("--keep-within", "0h") == []
    store("pin", "v2")
    assert kept() == [ids[1]]
    store("pin", "v2", "--remove")
    assert kept() == []
    assert run("store", "gc", "--keep-within", "soon").exit_code != 0


def test_what_cannot_be_made_again_is_kept(tmp_path: Path) -> None:
    base = shutil.copytree(EXAMPLES / "base", tmp_path / "base")
    result = run("merge", base, EXAMPLES / "adapters/sort", "-o", tmp_path / "out")
    assert result.exit_code == 0
    store("add", tmp_path / "out", "--name", "one")
    config = base / "generation_config.json"
    content = config.read_bytes()
    config.write_bytes(content + b"\n")
    decided = store("gc")["artefacts"][0]
    assert decided["action"] == "keep" and "generation_config.json" in decided["why"]
    shutil.rmtree(base)
    assert store("gc")["artefacts"][0]["action"] == "keep"
    assert store("verify")["verified"]
    forced = store("gc", "--force")["artefacts"][0]
    assert forced["action"] == "collect" and not forced["rebuildable"]
    assert store("show", "one")["status"] == "deleted, not rebuildable"
    lost = run("store", "materialize", "one", "-o", tmp_path / "again")
    assert lost.exit_code != 0 and not (tmp_path / "again").exists()
    # Put in again, it is there again.
    store("add", tmp_path / "out")
    assert store("show", "one")["status"] == "here"


def test_a_base_of_its_own_in_the_store(tmp_path: Path) -> None:
    base = shutil.copytree(EXAMPLES / "base", tmp_path / "base")
    assert run("merge", base, EXAMPLES / "adapters/sort", "-o", tmp_path / "out").exit_code == 0
    before = contents(tmp_path / "out")
    store("add", tmp_path / "out", "--name", "one")
    store("add", base)
    shutil.rmtree(base)
    assert store("gc")["artefacts"][0]["action"] == "collect"
    assert store("materialize", "one", "-o", tmp_path / "again")["rebuilt"]
    assert contents(tmp_path / "again") == before


def test_what_is_derived_again_finds_its_inputs_in_the_store(tmp_path: Path) -> None:
    places = [tmp_path / "base", tmp_path / "adapter"]
    shutil.copytree(EXAMPLES / "base", places[0])
    shutil.copytree(EXAMPLES / "adapters/sort", places[1])
    out = tmp_path / "out"
    assert run("merge", *places, "-o", out).exit_code == 0
    store("add", out)
    shutil.rmtree(places[1])
    assert run("verify", out).exit_code == 0
    shutil.rmtree(places[0])
    assert "base" in str(run("verify", out).exception)
    store("add", EXAMPLES / "base")
    assert run("verify", out).exit_code == 0
    assert run("reproduce", out / "remerge.json", "-o", tmp_path / "again").exit_code == 0
    assert contents(tmp_path / "again").items() >= {
        (n, b) for n, b in contents(out).items() if n != "provenance.json"
    }
    # Nothing of what was lent stays.
    assert not list((tmp_path / "store/staging").iterdir())


def test_a_merge_on_a_merge(tmp_path: Path) -> None:
    first = merged(tmp_path / "first")
    second = tmp_path / "second"
    assert run("merge", first, EXAMPLES / "adapters/dates", "-o", second).exit_code == 0
    before = contents(second)
    store("add", first, "--name", "first")
    store("add", second, "--name", "second")
    shutil.rmtree(first)
    store("gc", "second")
    # While the second is only a promise, the first must be one that can be kept.
    assert store("gc", "first")["artefacts"][0]["action"] == "collect"
    assert store("materialize", "second", "-o", tmp_path / "again")["rebuilt"]
    assert contents(tmp_path / "again") == before


def test_untouched_files_are_kept_once(tmp_path: Path) -> None:
    store("add", merged(tmp_path / "a"), "--name", "a")
    added = store("add", EXAMPLES / "base")
    assert added["bytes_added"] < added["bytes"]
    with_same = store("add", merged(tmp_path / "b"), "--name", "b")
    # What is told of its making has another time.
    assert with_same["already_there"]
    assert with_same["bytes_added"] == (tmp_path / "b/provenance.json").stat().st_size


def test_damage_is_named_and_mended(tmp_path: Path) -> None:
    before = contents(merged(tmp_path / "out"))
    store("add", tmp_path / "out", "--name", "one")
    blob = next((tmp_path / "store/blobs/derived").glob("??/*"))
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    result = run("store", "verify", "--json")
    found = json.loads(result.stdout)
    assert [damage["hint"] for damage in found["damage"]] == ["Run: remerge store rebuild one."]
    assert store("materialize", "one", "-o", tmp_path / "again")["rebuilt"]
    assert contents(tmp_path / "again") == before
    assert len(store("rebuild", "one")["restored"]) == 1
    assert store("verify")["verified"]


def test_nothing_is_collected_over_a_damaged_adapter(tmp_path: Path) -> None:
    store("add", merged(tmp_path / "out"), "--name", "one")
    digest = next((EXAMPLES / "adapters/sort").glob("*.safetensors"))
    blob = tmp_path / "store/blobs/canonical" / sha256(digest)[:2] / sha256(digest)
    content = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(content[:-1] + b"?")
    decided = store("gc")["artefacts"][0]
    assert decided["action"] == "keep" and "damaged" in decided["why"]
    store("add", EXAMPLES / "adapters/sort")
    assert store("gc")["artefacts"][0]["action"] == "collect"


def test_a_changed_file_is_not_taken(tmp_path: Path) -> None:
    out = merged(tmp_path / "out")
    weights = next(out.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = run("store", "add", out)
    assert weights.name in str(result.exception)
    assert store("ls")["artefacts"] == []


def test_where_there_is_no_store(tmp_path: Path) -> None:
    for words in (["ls"], ["show", "x"], ["gc"], ["log"], ["verify"]):
        assert "There is no store" in str(run("store", *words).exception)
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    (tmp_path / "store/somebodys").write_text("work")
    assert "not empty" in str(run("store", "add", EXAMPLES / "adapters/sort").exception)


def test_what_cannot_be_added_makes_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nothing", tmp_path / "empty", tmp_path / "nothing:adapter"):
        assert run("store", "add", path).exit_code != 0
    assert run("store", "add", EXAMPLES / "base", "--name", "../x").exit_code != 0
    assert not (tmp_path / "store").exists()


def test_a_merge_is_kept_whose_adapter_was_trained_on(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(EXAMPLES / "adapters/sort", adapter)
    assert run("merge", EXAMPLES / "base", adapter, "-o", tmp_path / "out").exit_code == 0
    shutil.copytree(EXAMPLES / "adapters/dates", adapter, dirs_exist_ok=True)
    added = store("add", tmp_path / "out")
    assert added["adapters"] == []
    assert "another one now" in added["notes"][0]
    (kept,) = store("gc")["artefacts"]
    assert kept["action"] == "keep"
    store("add", EXAMPLES / "adapters/sort")
    (gone,) = store("gc")["artefacts"]
    assert gone["action"] == "collect"


@pytest.mark.parametrize("out", ["store", "store/blobs", "around"])
def test_no_output_replaces_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    place = tmp_path / ("around/store" if out == "around" else "store")
    monkeypatch.setenv("REMERGE_STORE", str(place))
    store("add", EXAMPLES / "adapters/sort")
    before = contents(place)
    words = ["merge", EXAMPLES / "base", EXAMPLES / "adapters/sort", "--overwrite", "-o"]
    assert "would delete" in str(run(*words, tmp_path / out).exception)
    assert contents(place) == before


def test_the_store_in_an_output_is_no_file_of_it(tmp_path: Path) -> None:
    out = merged(tmp_path / "out")
    (out / "mine").write_text("")
    for _ in range(2):
        added = store("add", out, "--store", out / "store")
        assert added["notes"] == ["Not kept, as no manifest names them: mine."]


def test_an_adapter_in_a_folder(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "adapters", tmp_path / "several")
    assert store("add", f"{tmp_path}/several:sort")["kind"] == "adapter"


def test_every_command_can_be_quiet() -> None:
    store("add", EXAMPLES / "adapters/sort", "--name", "it")
    for words in ("ls", "show it", "log", "tag it other", "pin it", "gc", "verify", "reindex"):
        result = run("store", *words.split(), "-q")
        assert (result.exit_code, result.output) == (0, ""), words
    assert run("store", "rm", "other", "-q").output == ""
