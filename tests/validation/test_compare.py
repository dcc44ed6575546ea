"""`remerge compare` against an independent computation, on right and broken merges of examples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import remerge
from tests.validation import independent
from tests.validation.artefacts import (
    ADAPTERS,
    BASE,
    BROKEN,
    as_written,
    by_peft,
    changed,
    questions,
    without_manifest,
)

TASKS = ("sort", "dates", "add", "agree", "contradict")
FEW = 8


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this module's own: base and adapter are asked once for all artefacts."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def _remembered(_own_user_directories: None, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared / "cache"))


@pytest.fixture(autouse=True)
def _one_thread():
    """The oracle's small models gain nothing from two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a merge of each example, made when asked for."""
    return tmp_path_factory.mktemp("merged")


def right(merged: Path, task: str) -> Path:
    if not (merged / task).exists():
        remerge.merge(BASE, ADAPTERS / task, merged / task)
    return merged / task


def compare(task: str, output: Path, **over: Any) -> Any:
    gate = {"evaluations": [str(questions(task))], "limit": FEW, **over.pop("gate", {})}
    return remerge.compare(BASE, ADAPTERS / task, output, gate=gate, record=False, **over)


def failed(report: Any) -> list[str]:
    return [gate.name for gate in report.figures.gates if not gate.passed]


def figures_are_the_oracles(task: str, output: Path, count: int) -> None:
    report = compare(task, output, gate={"limit": count})
    assert report.passed, failed(report)
    asked = independent.questions(questions(task), count)
    prompts = independent.token_ids(BASE, [question["prompt"] for question in asked])
    adapter = independent.adapter_on_base(BASE, ADAPTERS / task)
    plain = independent.plain(output)
    rows = [independent.logits(model, prompts) for model in (adapter, plain)]
    expected = independent.compare_logits(*rows, prompts)
    (found,) = report.figures.logits
    assert found.positions == expected.positions
    assert found.vocabulary == 512
    close = {"rel": 1e-3, "abs": 1e-9}
    assert found.difference_mean == pytest.approx(expected.mean_difference, **close)
    assert found.difference_max == pytest.approx(expected.max_difference, rel=1e-2)
    assert found.kl_mean == pytest.approx(expected.mean_kl, rel=5e-3, abs=1e-9)
    assert found.kl_max == pytest.approx(expected.max_kl, rel=2e-2, abs=1e-8)
    assert found.top1 == pytest.approx(expected.top_1)
    assert found.top5 == pytest.approx(expected.top_5, abs=0.21 / expected.positions)
    assert found.perplexity_adapter == pytest.approx(expected.adapter_perplexity, **close)
    assert found.perplexity_merged == pytest.approx(expected.merged_perplexity, **close)
    answered = [independent.answers(model, BASE, prompts) for model in (adapter, plain)]
    pair = independent.paired(*(independent.exact(one, asked) for one in answered))
    (score,) = report.figures.tasks
    assert score.adapter.value == pytest.approx(sum(pair.adapter) / count)
    assert score.merged.value == pytest.approx(sum(pair.merged) / count)
    assert (score.lost, score.won) == (pair.lost, pair.won)
    assert score.p_value == pytest.approx(pair.p)


def weights_are_the_oracles(task: str, output: Path, report: Any) -> None:
    exact = independent.exact_merge(BASE, ADAPTERS / task)
    stored = independent.tensors(output)
    found = report.figures.weights
    for name, tensor in found.tensors.items():
        assert tensor.touched == (name in exact), name
        if name in exact:
            off = independent.units(stored[name], exact[name])
            assert tensor.worst == pytest.approx(float(off.max()), rel=1e-6, abs=1e-6), name
            assert tensor.mean == pytest.approx(float(off.mean()), rel=1e-6, abs=1e-9), name
        else:
            assert tensor.worst == 0, name
    worst, _, _ = independent.weight_errors(BASE, ADAPTERS / task, output)
    assert found.worst == pytest.approx(worst, rel=1e-6)
    # float32 stands between float64 and bfloat16: a tie may fall to the other side.
    assert found.worst < 0.501


def test_figures_are_those_of_an_independent_computation(merged: Path) -> None:
    output = right(merged, "sort")
    figures_are_the_oracles("sort", output, FEW)
    weights_are_the_oracles("sort", output, compare("sort", output))


@pytest.mark.proof
@pytest.mark.parametrize("task", TASKS)
def test_figures_of_every_example(merged: Path, task: str) -> None:
    output = right(merged, task)
    figures_are_the_oracles(task, output, 30)
    weights_are_the_oracles(task, output, compare(task, output, gate={"limit": 30}))


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("safe", [False, True])
def test_pefts_own_merges_pass(tmp_path: Path, task: str, safe: bool) -> None:
    output = by_peft(ADAPTERS / task, tmp_path / "out", safe=safe)
    report = compare(task, output, gate={"limit": 30})
    assert report.passed, failed(report)


def test_a_merge_by_peft_passes(tmp_path: Path) -> None:
    output = by_peft(ADAPTERS / "sort", tmp_path / "out", safe=True)
    report = compare("sort", output)
    assert report.passed, failed(report)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_merges_in_other_dtypes_pass(tmp_path: Path, dtype: str) -> None:
    remerge.merge(BASE, ADAPTERS / "sort", tmp_path / "ours", dtype=dtype)
    theirs = by_peft(ADAPTERS / "sort", tmp_path / "peft", safe=False, dtype=getattr(torch, dtype))
    for output in (tmp_path / "ours", theirs):
        report = compare("sort", output)
        assert report.passed, failed(report)


FAST = ("layer dropped", "8 bits a row", "untouched swapped")


@pytest.mark.parametrize("how", FAST)
def test_a_broken_merge_fails(merged: Path, tmp_path: Path, how: str) -> None:
    output = changed(right(merged, "sort"), tmp_path / "out", BROKEN[how]("sort"))
    assert "weights" in failed(compare("sort", output)), how


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", ["dates", "add"])
@pytest.mark.parametrize("how", BROKEN)
def test_every_broken_merge_fails(merged: Path, tmp_path: Path, how: str, task: str) -> None:
    output = changed(right(merged, task), tmp_path / "out", BROKEN[how](task))
    report = compare(task, output)
    assert "weights" in failed(report)
    assert report.wrong, "the tensors are named"


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["sign flipped", "scale halved", "touched swapped", "layer dropped"]
)
def test_probabilities_alone_find_it(merged: Path, tmp_path: Path, how: str) -> None:
    """Weights of a GGUF file, or behind a server, cannot be read: KL must do."""
    output = changed(right(merged, "sort"), tmp_path / "out", BROKEN[how]("sort"))
    found = failed(compare("sort", output))
    assert any(name.startswith("KL divergence") for name in found), found


@pytest.mark.slow
def test_another_model_in_the_merges_place_fails(merged: Path, tmp_path: Path) -> None:
    base = without_manifest(BASE, tmp_path / "base")
    assert {"weights", "KL divergence, sort", "score of sort"} <= set(failed(compare("sort", base)))
    other = right(merged, "agree")
    assert "made from" in failed(compare("sort", other))
    unnamed = failed(compare("sort", without_manifest(other, tmp_path / "other")))
    assert {"weights", "KL divergence, sort"} <= set(unnamed)


def test_one_changed_byte_fails(merged: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(right(merged, "sort"), output)
    file = max(output.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    # The last bit of a bfloat16: nothing that answers or probabilities would show.
    content[-2] ^= 1
    file.write_bytes(content)
    manifest = (output / "remerge.json").read_bytes()
    report = compare("sort", output)
    assert failed(report) == ["digests"]
    assert (output / "remerge.json").read_bytes() == manifest


@pytest.mark.slow
def test_another_tokenizer_fails(merged: Path, tmp_path: Path) -> None:
    output = without_manifest(right(merged, "sort"), tmp_path / "out")
    file = output / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    assert failed(compare("sort", output)) == ["tokenisation"]


@pytest.mark.slow
def test_without_anything_built_in_prompts_are_scored(merged: Path, tmp_path: Path) -> None:
    output = right(merged, "sort")
    report = remerge.compare(BASE, ADAPTERS / "sort", output, record=False)
    assert report.passed, failed(report)
    assert [texts.name for texts in report.figures.logits] == ["built-in"]
    broken = changed(output, tmp_path / "out", BROKEN["sign flipped"]("sort"))
    found = failed(remerge.compare(BASE, ADAPTERS / "sort", broken, record=False))
    assert {"weights", "KL divergence, built-in"} <= set(found)


@pytest.mark.slow
def test_a_text_file(merged: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Sort the digits: 499089. Add 78 and 95. " * 40)
    output = right(merged, "sort")
    asked = {"text": str(text)}
    report = remerge.compare(
        BASE, ADAPTERS / "sort", output, gate=asked, record=False, max_tokens=64
    )
    (found,) = report.figures.logits
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    ids = tokenizer(text.read_text())["input_ids"]
    pieces = [ids[at : at + 64] for at in range(0, len(ids), 64)]
    models = independent.adapter_on_base(BASE, ADAPTERS / "sort"), independent.plain(output)
    rows = [independent.logits(model, pieces) for model in models]
    expected = independent.compare_logits(*rows, pieces)
    assert found.positions == expected.positions == len(ids)
    assert found.perplexity_merged == pytest.approx(expected.merged_perplexity, rel=1e-3)
    assert found.kl_mean == pytest.approx(expected.mean_kl, rel=1e-2)


@pytest.mark.slow
def test_choices_regex_contains_and_a_function(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = right(merged, "agree")
    adapter = ADAPTERS / "agree"
    prompts = [f"Is {number} even?" for number in (2, 3, 44, 57, 808, 91, 6, 13)]
    asked = [
        {"prompt": p, "choices": ["yes", "no"], "answer": i % 2} for i, p in enumerate(prompts)
    ]
    choices = as_written(asked, tmp_path / "choices.jsonl")
    regex = as_written([{"prompt": p, "regex": "^ye"} for p in prompts], tmp_path / "regex.jsonl")
    contains = as_written(
        [{"prompt": p, "expected": "es", "scorer": "contains"} for p in prompts],
        tmp_path / "contains.jsonl",
    )
    files = [str(file) for file in (choices, regex, contains)]
    gate = {"evaluations": files}
    report = remerge.compare(BASE, adapter, output, gate=gate, record=False)
    by_name = {task.name: task for task in report.figures.tasks}
    model = independent.adapter_on_base(BASE, adapter)
    sums = [independent.choice_scores(model, BASE, question)[0] for question in asked]
    right_ones = sum(
        max(range(2), key=one.__getitem__) == question["answer"]
        for one, question in zip(sums, asked, strict=True)
    )
    assert by_name["choices"].adapter.value == right_ones / len(asked)
    said = independent.answers(model, BASE, independent.token_ids(BASE, prompts))
    assert by_name["regex"].adapter.value == sum(a.startswith("ye") for a in said) / len(said)
    assert by_name["contains"].adapter.value == sum("es" in a for a in said) / len(said)
    (tmp_path / "judge_of_words.py").write_text(
        "def says(answer, question):\n    return 0.75 if answer.strip() == 'no' else 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"evaluations": [str(contains)], "scorer": "judge_of_words:says"}
    report = remerge.compare(BASE, adapter, output, gate=own, record=False)
    expected = 0.75 * sum(a.strip() == "no" for a in said) / len(said)
    assert report.figures.tasks[0].adapter.value == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("weights", [None, [0.5, 0.5, 1.0]])
def test_a_sum_of_several(tmp_path: Path, weights: list[float] | None) -> None:
    """One of them is DoRA, and one brings lm_head whole."""
    adapters = [ADAPTERS / name for name in ("sort", "dates", "add")]
    asked = {} if weights is None else {"weights": weights}
    remerge.merge(BASE, adapters, tmp_path / "out", **asked)
    files = [str(questions(name)) for name in ("sort", "dates", "add")]
    gate = {"evaluations": files, "limit": FEW, "max_drop": 1.0}
    report = remerge.compare(BASE, adapters, tmp_path / "out", gate=gate, record=False)
    # The sum is what was asked for, whatever it does to each task.
    assert not failed(report), (failed(report), report.figures.notes)
    assert [task.name for task in report.figures.tasks] == ["sort", "dates", "add"]
    # PEFT runs DoRA on what the adapters before it gave, which is no sum.
    assert report.figures.reference == "the merge, rounded once to float32"
    assert any("not DoRA" in note for note in report.figures.notes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_weighted_sum_of_plain_ones_is_pefts(tmp_path: Path) -> None:
    weights = [0.75, 0.5]
    adapters = [ADAPTERS / name for name in ("sort", "agree")]
    remerge.merge(BASE, adapters, tmp_path / "out", weights=weights)
    gate = {"evaluations": [f"both={questions('sort')}"], "limit": FEW, "max_drop": 1.0}
    report = remerge.compare(BASE, adapters, tmp_path / "out", gate=gate, record=False)
    assert not failed(report), failed(report)
    assert report.figures.reference == "the adapters together on their base, by PEFT"
    asked = independent.questions(questions("sort"), FEW)
    prompts = independent.token_ids(BASE, [question["prompt"] for question in asked])
    named = {path.name: path for path in adapters}
    models = independent.adapters_on_base(BASE, named, weights), independent.plain(tmp_path / "out")
    rows = [independent.logits(model, prompts) for model in models]
    expected = independent.compare_logits(*rows, prompts)
    assert report.figures.logits[0].kl_mean == pytest.approx(expected.mean_kl, rel=1e-2, abs=1e-8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_task_of_several_is_held_to_its_own_adapter(tmp_path: Path) -> None:
    """Opposite answers do not add up: one of the two tasks must be lost."""
    adapters = [ADAPTERS / "agree", ADAPTERS / "contradict"]
    remerge.merge(BASE, adapters, tmp_path / "out", method="ties")
    files = [str(questions(name)) for name in ("agree", "contradict")]
    gate = {"evaluations": files, "limit": 30}
    report = remerge.compare(BASE, adapters, tmp_path / "out", gate=gate, record=False)
    assert all(task.adapter.value > 0.8 for task in report.figures.tasks)
    assert any(name.startswith("score of") for name in failed(report))
    assert not any(name in ("weights", "made from", "digests") for name in failed(report))
