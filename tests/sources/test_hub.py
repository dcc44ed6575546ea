"""What is fetched from the Hub, what is said when it cannot be, and what its cache states."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from remerge.errors import BadInput, TryAgain
from remerge.sources.references import Reference, resolve, stated_digest
from tests.hub_server import TOKEN, HubServer


def write(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"{name} in {directory.name}")
    return directory


def fetched(reference: Reference) -> set[str]:
    files = (p for p in reference.path.rglob("*") if not p.is_dir())
    return {p.relative_to(reference.path).as_posix() for p in files}


SHARDS = ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"]
KEPT = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt",
    "chat_template.jinja", "LICENSE", "USE_POLICY.md", "README.md", "modules.json",
    "1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/config.json",
]  # fmt: skip
LEFT = [
    "pytorch_model.bin", "pytorch_model.bin.index.json", "model.Q4_K_M.gguf", "tf_model.h5",
    "flax_model.msgpack", "consolidated.safetensors", "onnx/model.onnx", "onnx/config.json",
    "original/params.json", "original/consolidated.00.pth", "checkpoint-500/model.safetensors",
    "checkpoint-500/trainer_state.json", "modeling_x.py", "training_args.bin", "cat.png",
    "orphan.safetensors", ".gitattributes",
]  # fmt: skip


def base(directory: Path) -> Path:
    write(directory, *KEPT, *LEFT, *SHARDS)
    index = {"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": "../../x"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_base_comes_without_other_formats_and_code(hub, tmp_path):
    commit = hub.add("org/name", base(tmp_path / "src")).refs["main"]
    found = resolve("org/name", "base")
    assert (found.hub_id, found.commit, found.subfolder) == ("org/name", commit, None)
    assert found.path == tmp_path / f"cache/models--org--name/snapshots/{commit}"
    assert fetched(found) == {*KEPT, *SHARDS, "model.safetensors.index.json"}
    assert str(found) == f"org/name@{commit}"


def test_code_comes_when_asked(hub, tmp_path):
    hub.add("org/name", base(tmp_path / "src"))
    assert "modeling_x.py" in fetched(resolve("org/name", "base", copy_code=True))


def test_a_single_file_comes_alone_and_pickles_only_without_safetensors(hub, tmp_path):
    names = ["config.json", "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"]
    hub.add("org/single", write(tmp_path / "single", *names))
    assert fetched(resolve("org/single", "base")) == {"config.json", "model.safetensors"}
    old = ["config.json", "pytorch_model.bin", "training_args.bin", "tf_model.h5"]
    hub.add("org/old", write(tmp_path / "old", *old))
    assert fetched(resolve("org/old", "base")) == {"config.json", "pytorch_model.bin"}


def test_a_malformed_index_is_left_to_the_merge(hub, tmp_path):
    names = ["config.json", "model.safetensors.index.json", *SHARDS]
    hub.add("org/name", write(tmp_path / "src", *names))
    assert fetched(resolve("org/name", "base")) == set(names)


def test_revisions(hub, tmp_path):
    names = ["config.json", "model.safetensors"]
    places = {n: write(tmp_path / n, *names) for n in ("main", "v1", "refs_pr_1")}
    repository = hub.add("org/name", places.pop("main"), **places)
    for revision in ("main", "v1", "refs/pr/1"):
        found = resolve(f"org/name@{revision}", "base")
        assert found.commit == repository.refs[revision]
        place = revision.replace("/", "_")
        assert (found.path / "config.json").read_text() == f"config.json in {place}"
    commit = repository.refs["v1"]
    assert resolve(f"org/name@{commit}", "base").commit == commit


ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    "names",
    [
        ["adapter_config.json", "adapters.safetensors"],
        ["adapter_config.json", "adapter_0.pt"],
        ["pytorch_lora_weights.safetensors"],
    ],
)
def test_adapters_of_other_trainers_come_too(hub, tmp_path, names: list[str]):
    hub.add("org/lora", write(tmp_path / "src", *names, "README.md"))
    assert fetched(resolve("org/lora", "adapter")) == {*names, "README.md"}


def test_an_adapter_comes_without_its_neighbours(hub, tmp_path):
    names = [*ADAPTER, "tokenizer.json", "chat_template.jinja", "README.md"]
    more = ["adapter_model.bin", "optimizer.pt", "model.safetensors", "sql/adapter_config.json"]
    hub.add("org/lora", write(tmp_path / "src", *names, *more))
    assert fetched(resolve("org/lora", "adapter")) == {*names, "sql/adapter_config.json"}


def test_an_adapter_in_a_sub_folder(hub, tmp_path):
    names = [f"{place}/{name}" for place in ("sql", "chat", "old/sql") for name in ADAPTER]
    repository = hub.add("org/lora", write(tmp_path / "src", *names), v1=tmp_path / "src")
    found = resolve("org/lora@v1:sql", "adapter")
    assert (found.path.name, found.subfolder) == ("sql", "sql")
    assert fetched(found) == set(ADAPTER)
    assert str(found) == f"org/lora@{repository.refs['v1']}:sql"
    assert fetched(resolve("org/lora:old/sql", "adapter")) == set(ADAPTER)
    with pytest.raises(BadInput, match=r"only in sub-folders: chat, old/sql, sql"):
        resolve("org/lora", "adapter")
    with pytest.raises(BadInput, match=r"no adapter named 'sqk'. It has sql"):
        resolve("org/lora:sqk", "adapter")


def test_pickled_adapters_and_what_llava_leaves_beside_them(hub, tmp_path):
    names = ["adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin"]
    hub.add("org/lora", write(tmp_path / "src", *names))
    assert fetched(resolve("org/lora", "adapter")) == set(names)


# --- what the Hub refuses ------------------------------------------------------------------------


def test_a_gated_repository(hub, tmp_path, monkeypatch):
    hub.add("org/name", base(tmp_path / "src"), gated=True)
    advice = rf"gated.*Accept them at {hub.url}/org/name, then log in with `hf auth login`"
    with pytest.raises(BadInput, match=advice):
        resolve("org/name", "base")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(BadInput, match=advice):
        resolve("org/name", "base")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "config.json" in fetched(resolve("org/name", "base"))


def test_missing_repository_revision_and_weights(hub, tmp_path):
    hub.add("org/name", base(tmp_path / "src"))
    with pytest.raises(BadInput, match=r"no directory org/nane, and no repository of that name"):
        resolve("org/nane", "base")
    with pytest.raises(BadInput, match=r"org/name has no revision 'v9'.*/org/name/commits/main"):
        resolve("org/name@v9", "base")
    with pytest.raises(BadInput, match=r"has no revision '0{40}'"):
        resolve(f"org/name@{'0' * 40}", "base")
    hub.add("org/gguf", write(tmp_path / "gguf", "config.json", "x.gguf"))
    with pytest.raises(BadInput, match=r"no safetensors.*It holds GGUF files"):
        resolve("org/gguf", "base")
    hub.add("org/lora", write(tmp_path / "lora", *ADAPTER))
    with pytest.raises(BadInput, match=r"It is an adapter. BASE and ADAPTER may be swapped"):
        resolve("org/lora", "base")
    with pytest.raises(BadInput, match=r"org/name holds no adapter.*may be swapped"):
        resolve("org/name", "adapter")


def test_a_file_that_vanishes_after_the_listing(hub, tmp_path):
    source = base(tmp_path / "src")
    hub.add("org/name", source)
    resolve("org/name", "base")
    for blob in (tmp_path / "cache").rglob("tokenizer.json"):
        blob.unlink()
    (source / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"A file of org/name@main cannot be found: .*tokenizer"):
        resolve("org/name", "base")


@pytest.mark.parametrize("status", [500, 503, 418, 401])
def test_a_hub_in_trouble(hub, tmp_path, monkeypatch, status):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("org/name", base(tmp_path / "src"))
    hub.broken = status
    kind, says = {
        500: (TryAgain, "could not be downloaded.*500.*Check the network"),
        503: (TryAgain, "could not be downloaded.*503.*Check the network"),
        418: (BadInput, "refuses org/name@main.*418"),
        401: (BadInput, "does not accept the token sent for org/name.*hf auth login"),
    }[status]
    with pytest.raises(kind, match=says):
        resolve("org/name", "base")


def test_no_network(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(TryAgain, match=r"could not be downloaded from http://127.0.0.1:9: Conn"):
        resolve("org/name", "base")


def test_a_full_disk(hub, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    hub.add("org/name", base(tmp_path / "src"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(TryAgain, match=r"No space left for org/name in the cache .*HF_HOME"):
        resolve("org/name", "base")


# --- without the Hub -----------------------------------------------------------------------------


def test_offline_reads_the_cache(hub, tmp_path, offline):
    hub.add("org/name", base(tmp_path / "src"))
    online = resolve("org/name", "base")
    asked = len(hub.requests)
    offline()
    assert resolve("org/name", "base") == online
    assert len(hub.requests) == asked


def test_a_broken_hub_falls_back_to_the_cache(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("org/name", base(tmp_path / "src"))
    online = resolve("org/name", "base")
    hub.broken = 503
    assert resolve("org/name", "base") == online


def test_offline_and_never_fetched(hub, tmp_path, offline):
    hub.add("org/name", base(tmp_path / "src"))
    offline()
    with pytest.raises(BadInput, match=r"not, or only in part, in the cache .*Unset HF_.* hf down"):
        resolve("org/name", "base")


def test_offline_and_fetched_in_part(hub, tmp_path, offline):
    hub.add("org/name", base(tmp_path / "src"))
    found = resolve("org/name", "base")
    (found.path / SHARDS[1]).unlink()
    offline()
    with pytest.raises(BadInput, match=r"not, or only in part, in the cache .*Unset HF_"):
        resolve("org/name", "base")


def test_offline_with_a_cache_that_another_tool_filled(hub, tmp_path, offline):
    from huggingface_hub import hf_hub_download

    hub.add("org/lora", write(tmp_path / "src", *ADAPTER, "README.md"))
    for name in ADAPTER:  # file by file, as transformers and peft do
        hf_hub_download("org/lora", name)
    offline()
    assert fetched(resolve("org/lora", "adapter")) == set(ADAPTER)


# --- digests -------------------------------------------------------------------------------------


def test_the_cache_states_digests_of_large_files(hub, tmp_path):
    hub.add("org/name", base(tmp_path / "src"))
    found = resolve("org/name", "base")
    for name in SHARDS:
        content = (tmp_path / "src" / name).read_bytes()
        assert stated_digest(found.path / name) == hashlib.sha256(content).hexdigest()
    assert stated_digest(found.path / "config.json") is None  # a git blob, named by SHA-1
    assert stated_digest(tmp_path / "src" / SHARDS[0]) is None
    assert stated_digest(tmp_path / "nowhere") is None


def test_links_that_only_look_like_the_cache_state_nothing(tmp_path):
    name = "0" * 64
    write(tmp_path, f"blobs/{name}", f"repo/blobs/{name}", "elsewhere/x", "repo/snapshots/c/x")
    outside = tmp_path / "elsewhere" / "link"
    outside.symlink_to(tmp_path / "repo" / "blobs" / name)
    assert stated_digest(outside) is None
    other = tmp_path / "repo" / "snapshots" / "c" / "link"
    other.symlink_to(tmp_path / "blobs" / name)
    assert stated_digest(other) is None
    # A blob that links on, to the store that names files by Xet hash, keeps its own name.
    (tmp_path / "repo" / "blobs" / ("1" * 64)).symlink_to(tmp_path / "blobs" / name)
    right = tmp_path / "repo" / "snapshots" / "c" / "right"
    right.symlink_to(Path("../../blobs") / ("1" * 64))
    assert stated_digest(right) == "1" * 64


# --- as a program --------------------------------------------------------------------------------


def test_environment_and_output_of_a_program(tmp_path):
    """HF_ENDPOINT and HF_HOME are honoured, and nothing is printed without a terminal."""
    program = "import sys; from remerge.sources.references import resolve; resolve(*sys.argv[1:])"
    with HubServer() as hub:
        hub.add("org/name", base(tmp_path / "src"))
        home = str(tmp_path / "home")
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", program, "org/name", "base"],
            env={**os.environ, **environment, "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "home" / "hub" / "models--org--name" / "snapshots").is_dir()


def test_importing_it_does_not_import_huggingface_hub():
    program = (
        "import sys, remerge.sources.references as r; sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
