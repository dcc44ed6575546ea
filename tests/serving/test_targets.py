"""Which models and adapters are served by which engine, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remerge.artefacts.store.rebuilding import Means
from remerge.engines.servers.server import Served
from remerge.errors import BadInput, RemergeError, Unsupported, UsageError
from remerge.serving.targets import Target, choose_engine, find_target, served_of
from tests.serving.fake_llama import write_gguf
from tests.tiny import write_adapter, write_base


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_base(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    write_adapter(tmp_path / "adapter")


def target(text: str) -> Target:
    return find_target(text, Means(), progress=False)


def served(text: str, engine: str = "vllm", name: str | None = None) -> Served:
    return served_of(target(text), engine, name=name, pythons={})


def change(file: str, **values: object) -> None:
    path = Path(file)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_names():
    write_adapter(Path("other/adapter"))
    write_adapter(Path("other/base"))
    found = served("base+adapter+other/adapter+other/base")
    assert found.name == "base"
    assert [one.name for one in found.adapters] == ["adapter", "adapter-2", "base-2"]
    assert found.adapters[0].path == Path("adapter").absolute()
    assert served("base", name="mine").name == "mine"
    renamed = served("base+adapter", name="mine")
    assert (renamed.name, renamed.adapters[0].name) == ("base", "mine")
    with pytest.raises(UsageError, match="is the base's"):
        served("base+adapter", name="base")
    with pytest.raises(UsageError, match="one thing"):
        served("base+adapter+other/adapter", name="mine")


def test_the_rank_is_that_of_the_tensors():
    change("adapter/adapter_config.json", rank_pattern={})
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert served("base+adapter").adapters[0].rank == config["r"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "another family"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "PiSSA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_what_an_engine_cannot_serve_unmerged(values: dict[str, object], says: str):
    change("adapter/adapter_config.json", **values)
    with pytest.raises(Unsupported, match=says) as caught:
        served("base+adapter")
    assert "remerge merge" in str(caught.value.hint)
    assert "transformers" in str(caught.value.hint)


def test_an_adapter_of_another_base_is_refused():
    write_base(Path("wide"))
    change("wide/config.json", num_hidden_layers=1)
    index = json.loads(Path("adapter/adapter_config.json").read_text())
    index["target_modules"] = ["nothing"]
    for file in Path("adapter").glob("*.safetensors"):
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        save_file({k.replace("layers.0", "layers.77"): v for k, v in tensors.items()}, file)
    with pytest.raises(RemergeError):
        served("base+adapter")


def test_what_is_no_model(tmp_path: Path):
    with pytest.raises(BadInput, match="is an adapter") as caught:
        target("adapter")
    assert "+" in str(caught.value.hint)
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="no tokenizer"):
        served("base")


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp", "transformers"])
def test_a_model_without_a_tokenizer(engine: str):
    Path("base/tokenizer.json").unlink()
    with pytest.raises(BadInput, match="has no tokenizer") as caught:
        served("base", engine)
    assert caught.value.hint


def test_which_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_gguf(tmp_path / "m.gguf")
    assert choose_engine(target("m.gguf"), {}) == "llama.cpp"
    assert choose_engine(target("base"), {"vllm": "/some/python"}) == "vllm"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert choose_engine(target("base"), {}) == "transformers"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="no engine here") as caught:
        choose_engine(target("base"), {})
    assert "remerge engines install vllm" in str(caught.value.hint)
    with pytest.raises(UsageError, match="does not serve"):
        served("m.gguf", "transformers")
    assert served("m.gguf", "llama.cpp") == Served(tmp_path / "m.gguf", "m")
