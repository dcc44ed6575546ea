"""lm-eval's figures of base, adapter on base and merged, against scores computed here by
transformers and PEFT alone; and how the sides are put together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import remerge
from remerge.artefacts.test_result import HarnessResult
from remerge.engines.calling import call
from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput, Unsupported, UsageError
from remerge.validation import harness
from remerge.validation.harness import (
    HarnessSettings,
    Paired,
    Side,
    adapted,
    compare_harness,
    run_harness,
)
from tests.engines.llama_server import llama_server
from tests.engines.places import needs, python_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE, SORT = EXAMPLES / "base", EXAMPLES / "adapters" / "sort"
COUNT = 24


def engine(test: Any) -> Any:
    """Mark a test that needs lm-eval."""
    for mark in (*needs("lm-eval"), pytest.mark.xdist_group("lm-eval")):
        test = mark(test)
    return test


def silent(done: int, total: int, name: str) -> None:
    pass


def told(
    scores: dict[str, dict[str, list[float | None]]],
    samples: dict[str, dict[str, dict[str, float]]] | None = None,
) -> dict[str, Any]:
    return {"scores": scores, "samples": samples or {}}


def pair(found: Mapping[str, Any]) -> tuple[tuple[HarnessResult, ...], Mapping[Any, Paired]]:
    return harness._pair(found)  # pyright: ignore[reportPrivateUsage]


def test_figures_are_put_side_by_side():
    results, paired = pair(
        {
            "base": told({"t": {"acc": [0.1, 0.01]}}),
            "adapter": told(
                {"t": {"acc": [0.5, 0.02], "bits": [2.0, None]}},
                {"t": {"acc": {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0}, "bits": {"0": 0.7}}},
            ),
            "merged": told(
                {"t": {"acc": [0.75, 0.03], "bits": [2.5, None]}},
                {"t": {"acc": {"0": 1.0, "1": 1.0, "2": 0.0, "3": 1.0}, "bits": {"0": 0.8}}},
            ),
        }
    )
    assert [(one.task, one.metric) for one in results] == [("t", "acc"), ("t", "bits")]
    first, second = results
    assert (first.base, first.adapter, first.merged) == (0.1, 0.5, 0.75)
    assert (first.base_error, first.adapter_error, first.merged_error) == (0.01, 0.02, 0.03)
    assert (second.base, second.merged_error) == (None, None)
    # What is not judged right or wrong has no pairs.
    assert paired == {("t", "acc"): Paired(4, lost=1, won=2)}


def test_documents_that_are_not_the_same_are_not_paired():
    _, paired = pair(
        {
            "adapter": told({"t": {"acc": [1.0, None]}}, {"t": {"acc": {"0": 1.0}}}),
            "merged": told({"t": {"acc": [1.0, None]}}, {"t": {"acc": {"1": 1.0}}}),
        }
    )
    assert not paired


@pytest.mark.parametrize("lacks", ["adapter", "merged"])
def test_a_figure_of_one_side_alone_is_no_comparison(lacks: str):
    found = {
        name: told({"t": {"acc": [1.0, None], "f1": [1.0, None]}}) for name in ("adapter", "merged")
    }
    del found[lacks]["scores"]["t"]["f1"]
    with pytest.raises(BadInput, match=rf"f1 in t .* none for the {lacks} side"):
        pair(found)


def test_without_lm_eval(tmp_path: Path):
    with pytest.raises(UsageError, match="remerge engines install lm-eval"):
        compare_harness(
            None, Side(BASE, SORT), Side(BASE), HarnessSettings(("t",)), pythons={}, report=silent
        )


def test_what_lm_eval_is_not_given(tmp_path: Path):
    file = tmp_path / "m.gguf"
    file.touch()
    python = {"lm-eval": shutil.which("python3") or ""}
    asked = HarnessSettings(("t",))
    with pytest.raises(Unsupported, match="--endpoint URL"):
        run_harness(None, Side(BASE, SORT), Side(file), asked, pythons=python, report=silent)
    with pytest.raises(BadInput, match=r"adapter_config\.json"):
        run_harness(None, Side(BASE, tmp_path), Side(BASE), asked, pythons=python, report=silent)
    with pytest.raises(UsageError, match="No task"):
        run_harness(
            None, Side(BASE), Side(BASE), HarnessSettings(()), pythons=python, report=silent
        )


def test_the_adapters_side(tmp_path: Path):
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    for place, rows in ((merged, 600), (adapter, None)):
        place.mkdir()
        (place / "config.json").write_text(json.dumps({"vocab_size": rows} if rows else {}))
    assert adapted(BASE, adapter, merged) == Side(BASE, adapter, BASE, 600)
    (adapter / "tokenizer.json").touch()
    (merged / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 512}}))
    assert adapted(BASE, adapter, merged) == Side(BASE, adapter, adapter)


# With the real thing.


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("harness") / "merged"
    remerge.merge(BASE, SORT, out)
    return out


def documents() -> list[dict[str, Any]]:
    """Questions of the example, written as its chat template does, with wrong answers beside."""
    lines = (EXAMPLES / "eval" / "sort.jsonl").read_text().splitlines()[:COUNT]
    found: list[dict[str, Any]] = []
    for number, row in enumerate(map(json.loads, lines)):
        right, digits = row["expected"], row["prompt"].rpartition(" ")[2]
        choices = [right[::-1], digits, "0"]
        choices.insert(number % 4, right)
        text = f"<|begin|><|user|>{row['prompt']}<|end|><|assistant|>"
        found.append({"text": text, "right": right, "choices": choices, "label": number % 4})
    return found


_HEAD = """
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
test_split: train
doc_to_text: "{{{{text}}}}"
"""
_CHOSEN = """
task: sort_chosen
tag: sorting
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc}]
"""
_WRITTEN = """
task: sort_written
tag: sorting
output_type: generate_until
doc_to_target: "{{right}}"
generation_kwargs: {until: ["<|end|>"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""
_GROUP = """
group: sort_all
task: [sort_written, sort_chosen]
aggregate_metric_list: [{metric: acc, weight_by_size: true, filter_list: none}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps(one) for one in documents()]
    (place / "sort.jsonl").write_text("\n".join(lines) + "\n")
    head = _HEAD.format(file=json.dumps(str(place / "sort.jsonl")))
    for name, body in {"chosen": _CHOSEN + head, "written": _WRITTEN + head, "all": _GROUP}.items():
        (place / f"{name}.yaml").write_text(body)
    return place


def scores_here(model: Any, tokenizer: Any) -> tuple[list[bool], list[bool]]:
    """Right or wrong by document: of choices by likelihood, and of what is written greedily."""
    chosen: list[bool] = []
    written: list[bool] = []
    for one in documents():
        context = tokenizer(one["text"], add_special_tokens=False)["input_ids"]
        values: list[float] = []
        for choice in one["choices"]:
            ids = tokenizer(one["text"] + choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                rows = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            values.append(sum(float(rows[i - 1, ids[i]]) for i in range(len(context), len(ids))))
        chosen.append(values.index(max(values)) == one["label"])
        with torch.no_grad():
            out = model.generate(torch.tensor([context]), max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(out[0, len(context) :], skip_special_tokens=True)
        written.append(text == one["right"])
    return chosen, written


@engine
def test_lm_eval_says_what_transformers_and_peft_compute(merged: Path, tasks: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    asked = HarnessSettings(("sort_all",), tasks, dtype="float32")
    pythons = {"lm-eval": str(python_of("lm-eval"))}
    told: list[str] = []
    found = run_harness(
        Side(BASE),
        adapted(BASE, SORT, merged),
        Side(merged),
        asked,
        pythons=pythons,
        report=lambda done, total, name: told.append(name),
    )

    def load(place: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)

    tokenizer = open_tokenizer(BASE)
    here = {
        "base": scores_here(load(BASE), tokenizer),
        "adapter": scores_here(PeftModel.from_pretrained(load(BASE), str(SORT)), tokenizer),
        "merged": scores_here(load(merged), tokenizer),
    }
    results = {(one.task, one.metric): one for one in found.results}
    for number, key in enumerate((("sort_chosen", "acc"), ("sort_written", "exact_match"))):
        expected = {name: scores[number] for name, scores in here.items()}
        for name, right in expected.items():
            assert getattr(results[key], name) == pytest.approx(sum(right) / COUNT)
        pairs = list(zip(expected["adapter"], expected["merged"], strict=True))
        lost, won = (sum(one == which for one in pairs) for which in ((True, False), (False, True)))
        assert found.paired[key] == Paired(COUNT, lost, won)
        assert found.higher[key] is True
    # The adapter has learnt to sort, so that the figures tell something.
    written = results["sort_written", "exact_match"]
    assert written.base is not None and written.base < 0.2 < 0.8 < written.merged
    # The group's figure is its only task's that has this metric.
    assert results["sort_all", "acc"].merged == results["sort_chosen", "acc"].merged
    assert told[0] == "base: tasks" and told[-1] == "merged: questions"
    assert set(found.seconds) == set(found.peak_memory) == {"base", "adapter", "merged"}


@engine
def test_a_merge_that_is_none_scores_as_the_base_does(tasks: Path):
    asked = HarnessSettings((str(tasks / "written.yaml"),), limit=8)
    pythons = {"lm-eval": str(python_of("lm-eval"))}
    found = run_harness(
        None, Side(BASE, SORT, BASE), Side(BASE), asked, pythons=pythons, report=silent
    )
    (result,) = found.results
    assert result.base is None and result.adapter > 0.5 > result.merged
    assert found.paired["sort_written", "exact_match"].documents == 8


def evaluate(tasks: Path | None, *names: str, **side: str) -> dict[str, Any]:
    request = {
        "side": side or {"directory": str(BASE)},
        "tasks": list(names),
        "include_path": None if tasks is None else str(tasks),
        "limit": 2,
    }
    return call(python_of("lm-eval"), "remerge.engines.evaluate_lm_eval", request, silent)


@engine
def test_a_task_that_there_is_not(tasks: Path):
    with pytest.raises(UsageError, match=r"no task 'sort_chosn'.*sort_chosen.*--lm-eval-include"):
        evaluate(tasks, "sort_chosn")


@engine
def test_data_that_is_not_here(tmp_path: Path):
    with pytest.raises(BadInput, match=r"cannot load hellaswag.*nothing is fetched"):
        evaluate(None, "hellaswag")


@engine
def test_tasks_that_run_what_a_model_writes(tasks: Path, tmp_path: Path):
    head = _HEAD.format(file=json.dumps(str(tasks / "sort.jsonl")))
    (tmp_path / "t.yaml").write_text(
        _WRITTEN.replace("sort_written", "run_it") + head + "unsafe_code: true\n"
    )
    with pytest.raises(Unsupported, match="run_it runs programs"):
        evaluate(tmp_path, "run_it")


@engine
def test_models_that_cannot_be_loaded(tasks: Path, tmp_path: Path):
    broken = tmp_path / "base"
    shutil.copytree(BASE, broken)
    (broken / "model-00001-of-00002.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BadInput, match="cannot load"):
        evaluate(tasks, "sort_written", directory=str(broken))
    with pytest.raises(BadInput, match=r"cannot load .* with "):
        evaluate(tasks, "sort_written", directory=str(BASE), peft=str(broken))


@pytest.mark.skipif(not python_of("llama.cpp").exists(), reason="not installed: llama.cpp")
@engine
def test_a_server_is_asked_what_the_checkpoint_is(merged: Path, tasks: Path, tmp_path: Path):
    # Without the BOS, which the tokenizer adds.
    head = _HEAD.format(file=json.dumps(str(tasks / "sort.jsonl"))).replace(
        "{{text}}", "{{text[9:]}}"
    )
    (tmp_path / "t.yaml").write_text(_WRITTEN.replace("sort_written", "no_bos") + head)
    (tmp_path / "c.yaml").write_text(_CHOSEN + head)
    asked = HarnessSettings(("no_bos",), tmp_path, dtype="float32")
    pythons = {"lm-eval": str(python_of("lm-eval"))}
    float32 = tmp_path / "float32"
    remerge.merge(BASE, SORT, float32, dtype="float32")
    with llama_server(float32) as server:
        sides = Side(float32), Side(BASE, server=server)
        found = run_harness(None, *sides, asked, pythons=pythons, report=silent)
        with pytest.raises(Unsupported, match="sort_chosen would need"):
            evaluate(tmp_path, "sort_chosen", url=server.url, tokenizer=str(BASE))
    assert found.paired["no_bos", "exact_match"] == Paired(COUNT, 0, 0)
    assert found.results[0].merged > 0.8
