"""Cards of every kind of output, read by huggingface_hub, which knows what the Hub asks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard, metadata_load

import remerge
from remerge.cli import group
from remerge.errors import BadInput, UsageError
from tests import tiny
from tests.hub_server import HubServer

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
BASE, SORT, ADD = EXAMPLES / "base", EXAMPLES / "adapters" / "sort", EXAMPLES / "adapters" / "add"
BASE_CARD = """---
license: other
license_name: llama-community
license_link: LICENSE
language: [en, de]
pipeline_tag: text-generation
library_name: transformers
tags: [facebook]
datasets: [base/pretraining]
extra_gated_prompt: secret
---
# The base's own words
"""
ADAPTER_CARD = """---
base_model: org/base
datasets: [trl-lib/sets, /home/me/data.json, data/train.jsonl]
license: mit
tags: [lora, "dataset:org/more"]
---
"""


@pytest.fixture
def local(inputs: Path, tmp_path: Path) -> Path:
    shutil.copytree(inputs, tmp_path / "in")
    (tmp_path / "in" / "base" / "README.md").write_text(BASE_CARD)
    (tmp_path / "in" / "base" / "1_Pooling" / "README.md").write_text("of the part")
    (tmp_path / "in" / "adapter" / "README.md").write_text(ADAPTER_CARD)
    config = tmp_path / "in" / "adapter" / "adapter_config.json"
    document = json.loads(config.read_text()) | {"base_model_name_or_path": "org/base-8B"}
    config.write_text(json.dumps(document))
    return tmp_path / "in"


def metadata(out: Path) -> dict[str, Any]:
    found = metadata_load(out / "README.md")
    assert found is not None
    assert ModelCard.load(out / "README.md").data.to_dict() == found
    return found


def test_metadata_of_a_merge(local: Path, tmp_path: Path):
    out = tmp_path / "out"
    result = remerge.merge(local / "base", local / "adapter", out)
    names = {record.name for record in result.manifest.outputs}
    assert "README.md" not in names
    assert "1_Pooling/README.md" in names
    assert metadata(out) == {
        "base_model": "org/base-8B",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["remerge", "merge", "lora"],
        "license": "other",
        "license_name": "llama-community",
        "language": ["en", "de"],
        "datasets": ["trl-lib/sets", "org/more"],
    }
    text = (out / "README.md").read_text()
    assert "own words" not in text
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert "/home/me" not in text
    assert "different licences: the base `llama-community`, adapter `adapter` `mit`" in text
    assert remerge.verify(out)
    assert not remerge.card(out).changed
    # What base and adapter said is known when they are gone.
    shutil.rmtree(local)
    (out / "README.md").write_text(text + "mine\n")
    assert not remerge.card(out).changed


def test_from_the_hub(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with HubServer() as hub:
        base = hub.add("org/base", local / "base")
        adapter = hub.add("me/lora", local / "adapter")
        script = "import sys, remerge; remerge.merge('org/base', 'me/lora', sys.argv[1])"
        out = tmp_path / "out"
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        subprocess.run([sys.executable, "-c", script, str(out)], check=True)
    found = metadata(out)
    assert found["base_model"] == ["org/base", "me/lora"]
    assert found["base_model_relation"] == "merge"
    (commit,) = base.commits
    assert found["license_link"] == f"https://huggingface.co/org/base/blob/{commit}/LICENSE"
    text = (out / "README.md").read_text()
    assert f"remerge merge org/base@{commit} me/lora@{next(iter(adapter.commits))} -o OUT" in text


def test_quantised(tmp_path: Path):
    shutil.copytree(BASE, tmp_path / "base")
    config = json.loads((BASE / "config.json").read_text()) | {"_name_or_path": "org/base"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    remerge.merge(tmp_path / "base", SORT, tmp_path / "out", to="fp8")
    found = metadata(tmp_path / "out")
    assert (found["base_model"], found["base_model_relation"]) == ("org/base", "quantized")
    assert found["tags"][-1] == "fp8"


def test_adapters(tmp_path: Path):
    remerge.combine(BASE, [SORT, ADD], tmp_path / "both", weights=[0.5, 0.5])
    found = metadata(tmp_path / "both")
    assert (found["library_name"], found["tags"]) == ("peft", ["remerge", "merge", "lora", "sum"])
    assert "AutoPeftModelForCausalLM" in (tmp_path / "both" / "README.md").read_text()
    remerge.merge(BASE, SORT, tmp_path / "merged")
    remerge.extract(BASE, tmp_path / "merged", tmp_path / "found", rank=4)
    assert metadata(tmp_path / "found") == {"library_name": "peft", "tags": ["remerge", "lora"]}
    text = (tmp_path / "found" / "README.md").read_text()
    assert "remerge extract base merged -o OUT --rank 4" in text
    assert not remerge.card(tmp_path / "found").changed
    assert not remerge.card(tmp_path / "both").changed


def test_a_comparison_brings_scores(tmp_path: Path):
    out = tmp_path / "out"
    remerge.merge(BASE, SORT, out)
    path = out / "README.md"
    path.write_text(path.read_text().replace("# base + sort", "# My model\n\nMy words."))
    gate = {"evaluations": [f"digits={EXAMPLES / 'eval' / 'sort.jsonl'}"], "limit": 8}
    report = remerge.compare(BASE, SORT, out, gate=gate)
    (result,) = ModelCard.load(path).data.eval_results
    (task,) = report.figures.tasks
    assert (result.dataset_name, result.metric_type) == ("digits", "exact_match")
    assert result.metric_value == pytest.approx(task.merged.value)
    text = path.read_text()
    assert "\n# My model\n\nMy words.\n" in text
    assert "**passed**" in text
    assert f"{task.merged.value:.3f} ({task.merged.low:.3f} to {task.merged.high:.3f})" in text
    assert str(tmp_path) not in text
    assert remerge.verify(out)
    # Other bytes have other scores, and the user's words stay.
    remerge.merge(BASE, ADD, out, overwrite=True)
    assert "model-index" not in metadata(out)
    assert "\n# My model\n\nMy words.\n" in path.read_text()


def test_the_hubs_validation_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    remerge.merge(BASE, SORT, tmp_path / "out")
    asked: list[dict[str, Any]] = []

    class Validating(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Validating)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    ModelCard.load(tmp_path / "out" / "README.md").validate()
    server.shutdown()
    (body,) = asked
    assert body["repoType"] == "model"
    assert yaml.safe_load(body["content"].split("---")[1]) == metadata(tmp_path / "out")


@pytest.mark.parametrize(
    "card",
    [
        b"---\nlicense: [\n---\n",
        b"\xff\xfe",
        b"---\nlicense: mit\n---\n" + b"x" * 2**20,
        b"---\nlicense: &a [*a]\nlanguage: {x: y}\ndatasets: 5\ntags: [1, null]\n---\n",
    ],
)
def test_a_hostile_card_of_the_base_is_passed_over(inputs: Path, tmp_path: Path, card: bytes):
    shutil.copytree(inputs / "base", tmp_path / "base")
    (tmp_path / "base" / "README.md").write_bytes(card)
    remerge.merge(tmp_path / "base", inputs / "adapter", tmp_path / "out")
    assert "license" not in metadata(tmp_path / "out")


def test_hostile_names(inputs: Path, tmp_path: Path):
    name = "a|b\n<!-- remerge:end -->\n```--- '\udcff"
    shutil.copytree(inputs / "base", tmp_path / name)
    remerge.merge(tmp_path / name, inputs / "adapter", tmp_path / "out")
    first = (tmp_path / "out" / "README.md").read_bytes()
    assert metadata(tmp_path / "out")["library_name"] == "transformers"
    assert first.count(b"<!-- remerge:end -->") == 1
    assert not remerge.card(tmp_path / "out").changed


def test_the_command(inputs: Path, tmp_path: Path):
    out = tmp_path / "out"
    remerge.merge(inputs / "base", inputs / "adapter", out)
    text = (out / "README.md").read_text()
    (out / "README.md").unlink()
    done = CliRunner().invoke(group, ["card", str(out), "--json"])
    assert json.loads(done.stdout)["changed"] is True
    assert (out / "README.md").read_text() == text
    (out / "README.md").write_bytes(b"mine \xff, no metadata\n")
    remerge.card(out)
    assert b"\n---\n\nmine \xff, no metadata\n\n<!-- rem" in (out / "README.md").read_bytes()
    broken = b"---\na: [\n---\n"
    (out / "README.md").write_bytes(broken)
    with pytest.raises(BadInput, match="not valid YAML"):
        remerge.card(out)
    with pytest.raises(BadInput, match="not valid YAML"):
        remerge.merge(inputs / "base", inputs / "adapter", out, dtype="float32", overwrite=True)
    assert (out / "README.md").read_bytes() == broken
    with pytest.raises(BadInput, match="no manifest"):
        remerge.card(inputs / "base")
    with pytest.raises(UsageError, match="is a directory"):
        remerge.card(out, tmp_path)


def test_sub_folders_and_others_keep_their_plans(inputs: Path, local: Path):
    assert remerge.plan(local / "base", inputs / "adapter").files
    plain = remerge.plan(inputs / "base", inputs / "adapter")
    (local / "base" / "1_Pooling" / "README.md").unlink()
    assert remerge.plan(local / "base", inputs / "adapter").plan_id == plain.plan_id


def test_the_same_merge_has_the_same_card(inputs: Path, tmp_path: Path):
    for name, threads in (("one", 1), ("two", 3)):
        remerge.merge(inputs / "base", inputs / "adapter", tmp_path / name, threads=threads)
    assert tiny.files_of(tmp_path / "one") == tiny.files_of(tmp_path / "two")
