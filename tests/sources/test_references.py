"""What BASE and ADAPTER may be, and what is said when they are something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from remerge.errors import BadInput
from remerge.sources.references import Reference, hub_origin, resolve

# --- directories ---------------------------------------------------------------------------------


def adapter(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(b"weights of " + directory.name.encode())
    return directory


def test_a_directory_wins_over_a_repository_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name", "base") == Reference(Path("org/name"))


@pytest.mark.parametrize("name", ["with:colon", "with@at", "with space", "-dash", "ünïcode"])
def test_a_directory_may_have_any_name(tmp_path, name):
    place = adapter(tmp_path / name)
    assert resolve(str(place), "base").path == place
    assert resolve(str(place), "adapter").path == place


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").mkdir()
    assert resolve("~/base", "base").path == tmp_path / "base"


def test_a_colon_picks_one_of_several_adapters(tmp_path):
    sql = adapter(tmp_path / "run" / "sql")
    adapter(tmp_path / "run" / "chat")
    found = resolve(f"{tmp_path}/run:sql", "adapter")
    assert (found.path, found.subfolder) == (sql, "sql")
    deep = adapter(tmp_path / "run" / "old" / "sql")
    assert resolve(f"{tmp_path}/run:old/sql", "adapter").path == deep


def test_the_default_adapter_lies_in_the_directory_itself(tmp_path):
    adapter(tmp_path)
    assert resolve(f"{tmp_path}:default", "adapter").path == tmp_path


def test_an_adapter_may_be_named_by_its_only_file_of_weights(tmp_path):
    weights = adapter(tmp_path / "run") / "adapter_model.safetensors"
    assert resolve(str(weights), "adapter").path == tmp_path / "run"
    bare = tmp_path / "loras" / "ink.safetensors"
    bare.parent.mkdir()
    bare.write_bytes(b"ink")
    assert resolve(str(bare), "adapter").path == bare.parent
    bare.with_name("oil.safetensors").write_bytes(b"oil")
    with pytest.raises(BadInput, match="lies beside oil"):
        resolve(str(bare), "adapter")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}/run", r"only in sub-folders: chat, sql.* Name one: .*/run:chat"),
        ("{}/run:sqk", r"no adapter named 'sqk'.* It has sql"),
        ("{}/run:../chat", r"no adapter named '\.\./chat'"),
        ("{}/empty", r"holds no adapter: there is no adapter_config\.json.*swapped.*once"),
        ("{}/file", r"is not a directory; the adapter is a directory.*Give "),
        ("{}/model.gguf", r"is a GGUF file"),
        ("{}/link", r"symbolic link to nothing: gone"),
        ("{}/rum", r"neither an existing directory nor the name of a repo.*Did you mean .*/run\?"),
        ("{}/nowhere/run", r"neither .* Check the spelling"),
    ],
)
def test_a_directory_that_is_none(tmp_path, text, says):
    adapter(tmp_path / "run" / "sql")
    adapter(tmp_path / "run" / "chat")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "model.gguf").touch()
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(BadInput, match=says):
        resolve(text.format(tmp_path), "adapter")


# --- what is never asked of the Hub --------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "gpt2", "./org/name", "/org/name", "~org/name", "../org/name", "a/b/c", "org/",
        "/name", "org//name", "org/na me", "org/name.git", "o--rg/name", "org/..", "org/-name",
        "org/näme", "org/" + "n" * 97, "org\\name", "org/name\n", "org/na\0me", "s3://bucket/x",
        "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_neither_is_refused_without_a_question(hub, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="neither an existing directory nor the name of a repo"):
        resolve(text, "base")
    assert hub.requests == []


def test_a_path_object_is_never_asked_of_the_hub(hub):
    with pytest.raises(BadInput, match="'org/name' is neither"):
        resolve(Path("./org/name"), "base")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("org/name@", "base", "'' is not a branch, tag or commit"),
        ("org/name@../../x", "base", "is not a branch, tag or commit"),
        ("org/name@a b", "base", "is not a branch, tag or commit"),
        ("org/name@/x", "base", "is not a branch, tag or commit"),
        ("org/name@-x", "base", "is not a branch, tag or commit"),
        ("org/name:part", "base", "only an adapter is picked with a colon. Give org/name"),
        ("org/name:../x", "adapter", "is not the name of a sub-folder"),
        ("org/name:", "adapter", "is not the name of a sub-folder"),
        ("https://huggingface.co/org/name", "base", "is an address; .* Give org/name$"),
        ("https://huggingface.co/org/name/tree/v1", "base", "Give org/name@v1$"),
        ("hf://org/name@v1", "base", "neither an existing directory"),
    ],
)
def test_a_malformed_repository_name_is_refused_without_a_question(hub, text, kind, says):
    with pytest.raises(BadInput, match=says):
        resolve(text, kind)
    assert hub.requests == []


# --- directories in a cache of the Hub -----------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_path_into_the_cache_is_known_by_its_repository(tmp_path, monkeypatch):
    """Nothing is asked: the server that is named does not exist."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    snapshot = tmp_path / "hub/models--org--some-name.v2/snapshots" / COMMIT
    adapter(snapshot)
    adapter(snapshot / "deep/two")
    known = {"hub_id": "org/some-name.v2", "commit": COMMIT}
    assert resolve(str(snapshot), "base") == Reference(snapshot, **known)
    assert resolve(snapshot, "adapter") == Reference(snapshot, **known)
    two = Reference(snapshot / "deep/two", **known, subfolder="deep/two")
    assert resolve(snapshot / "deep/two", "adapter") == two
    assert resolve(f"{snapshot}:deep/two", "adapter") == two
    # Through a link, and from below, it is the same.
    (tmp_path / "link").symlink_to(snapshot)
    assert resolve(tmp_path / "link", "base") == Reference(tmp_path / "link", **known)
    monkeypatch.chdir(snapshot)
    assert resolve(".", "base") == Reference(Path(), **known)
    # The Hub has no name for a part of a repository that is a base.
    assert resolve(snapshot / "deep", "base") == Reference(snapshot / "deep")


@pytest.mark.parametrize(
    "place",
    [
        f"models--org--name/snapshots/{COMMIT[:-1]}",
        f"models--org--name/snapshots/{COMMIT.upper()}",
        "models--org--name/snapshots/main",
        f"models--org--name/refs/{COMMIT}",
        f"datasets--org--name/snapshots/{COMMIT}",
        f"models--name/snapshots/{COMMIT}",
        f"models--a--b--c/snapshots/{COMMIT}",
        f"models--o rg--name/snapshots/{COMMIT}",
    ],
)
def test_what_is_no_snapshot(tmp_path, place):
    place = adapter(tmp_path / place)
    assert hub_origin(place) is None
    assert resolve(place, "adapter") == Reference(place)
