"""Checking checkpoints by transformers: a right one passes, every kind of wrong one fails.

`tests/engines/test_check.py` does the same in the engines that serve.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import remerge
from remerge.errors import BadInput, IntegrityError, UsageError
from remerge.validation.check import CheckReport
from remerge.validation.limits import FORMATS, gates, kl_limit, share_gate
from remerge.validation.score_comparison import Comparison, Differences, Share

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE, ADAPTER = EXAMPLES / "base", EXAMPLES / "adapters" / "sort"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    remerge.merge(BASE, ADAPTER, tmp_path / "out")
    return tmp_path / "out"


def check(out: Path, **options: object) -> CheckReport:
    settings: dict[str, object] = {"max_prompts": 4, "max_tokens": 60, "answers": 0, **options}
    return remerge.check(out, "transformers", **settings)  # type: ignore[arg-type]


def failing(report: CheckReport) -> set[str]:
    assert report.passed == all(gate.passed for gate in report.gates)
    return {gate.name for gate in report.gates if not gate.passed}


def change(out: Path, edit: object) -> None:
    """Write the tensors of every shard anew after ``edit(name, tensor)``."""
    for file in out.glob("*.safetensors"):
        tensors = {name: edit(name, tensor) for name, tensor in load_file(file).items()}  # type: ignore[operator]
        save_file({n: t.contiguous() for n, t in tensors.items()}, file, metadata={"format": "pt"})


def test_a_right_one_passes(out: Path):
    report = check(out, answers=1)
    assert failing(report) == set()
    assert (report.word, report.format) == ("scored", "bfloat16")
    assert report.comparison is not None and report.share is not None
    # transformers on a merge by PEFT's formula, whose weights are rounded to bfloat16.
    assert 1e-8 < report.comparison.kl_mean < 1e-4
    assert report.share.value == pytest.approx(1, abs=0.01)
    (answer,) = report.answers
    assert answer.engine and answer.prompt.startswith("<|begin|>")


def test_the_base_in_its_place_fails(out: Path):
    for file in BASE.glob("*.safetensors"):
        shutil.copy(file, out / file.name)
    report = check(out)
    assert {"KL divergence", "adapter's share"} <= failing(report)
    assert report.share is not None and report.share.value == pytest.approx(0, abs=0.01)


@pytest.mark.slow
def test_permuted_queries_and_keys_fail(out: Path):
    """Rows of queries and keys in the order in which GGUF has them."""

    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return tensor
        return tensor.reshape(-1, 2, 32, tensor.shape[-1]).swapaxes(1, 2).reshape(tensor.shape)

    change(out, edit)
    assert "KL divergence" in failing(check(out))


@pytest.mark.slow
def test_another_tokenizer_fails(out: Path):
    document = json.loads((out / "tokenizer.json").read_text())
    words = document["model"]["vocab"]
    words["a"], words["e"] = words["e"], words["a"]
    (out / "tokenizer.json").write_text(json.dumps(document))
    assert failing(check(out)) == {"tokenisation"}


@pytest.mark.slow
def test_a_bos_that_is_not_put_fails(out: Path):
    document = json.loads((out / "tokenizer.json").read_text())
    document["post_processor"] = None
    (out / "tokenizer.json").write_text(json.dumps(document))
    report = check(out)
    assert failing(report) == {"tokenisation"}
    assert all(difference.position == 0 for difference in report.tokenisation)


@pytest.mark.slow
def test_a_missing_tensor_is_no_model(out: Path):
    file = next(f for f in out.glob("*.safetensors") if "model.norm.weight" in load_file(f))
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    index = json.loads((out / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"lacks 1 tensors, first model\.norm\.weight"):
        check(out)


@pytest.mark.slow
def test_another_checkpoint_as_reference(out: Path, tmp_path: Path):
    """Without a manifest there is the reference given, or the checkpoint itself."""
    (out / "remerge.json").unlink()
    report = check(out, reference=BASE)
    assert "KL divergence" in failing(report)
    assert report.share is None
    report = check(out)
    assert failing(report) == set()
    assert any("compared with itself" in note for note in report.notes)
    report = check(out, base=BASE, adapter=ADAPTER)
    assert failing(report) == set()
    assert report.share is not None


def test_other_inputs_than_the_manifests_are_refused(out: Path):
    with pytest.raises(IntegrityError, match="not the file that the manifest names"):
        check(out, adapter=EXAMPLES / "adapters" / "dates")


def test_what_is_refused_before_any_work(out: Path, tmp_path: Path):
    for engine in ("llama.cpp", "onnxruntime"):
        with pytest.raises(UsageError, match="does not read a directory of safetensors"):
            remerge.check(out, engine)
    with pytest.raises(UsageError, match="remerge engines install vllm"):
        remerge.check(out, "vllm")
    with pytest.raises(UsageError, match="There is no engine 'sglang'"):
        remerge.check(out, "sglang")
    with pytest.raises(UsageError, match="no limits for the format 'Q9'"):
        check(out, form="Q9")
    with pytest.raises(BadInput, match="There is nothing at"):
        check(tmp_path / "none")
    with pytest.raises(BadInput, match="is no model"):
        check(tmp_path)
    with pytest.raises(UsageError, match="leave out --base and --adapter"):
        check(out, reference=BASE, base=BASE)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="tgi does not read GGUF files"):
        remerge.check(tmp_path / "a.gguf", "tgi")


def comparison(kl: float, **others: float) -> Comparison:
    found = {
        "positions": 600,
        "distinct": 600,
        "vocabulary": 512,
        "likeliest": None,
        "mean_difference": (kl / 2) ** 0.5,
        "max_difference": 1.0,
        "kl_mean": kl,
        "kl_max": 10 * kl,
        "top1": 0.99,
        "top5": 0.99,
        "logits": Differences("logits", 0.1, 1.0),
        "perplexity_reference": 10.0,
        "perplexity": 10.0,
        **others,
    }
    return Comparison(**found)  # type: ignore[arg-type]


def test_the_smaller_limit_holds():
    form = FORMATS["Q4_K_M"]
    assert kl_limit(form, comparison(1.0)) == form.kl
    assert kl_limit(form, comparison(1e-3)) == pytest.approx(5e-3)
    assert kl_limit(form, comparison(0.0)) == kl_limit(FORMATS["F32"], None) == 1e-5
    held = [gate.passed for gate in gates(comparison(4e-3), form, comparison(1e-3))]
    assert held == [True, True, True]
    first, second, third = gates(
        comparison(6e-3, perplexity=20.0, top1=0.5), form, comparison(1e-3)
    )
    assert not (first.passed or second.passed or third.passed)


def test_coarser_types_may_differ_by_more():
    order = ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
    for finer, coarser in pairwise(order):
        assert FORMATS[finer].noise < FORMATS[coarser].noise
        assert FORMATS[finer].kl < FORMATS[coarser].kl


def test_a_share_that_prompts_cannot_tell_is_no_gate():
    assert share_gate(Share(0.9, 0.2, 1e-9)) is None
    assert share_gate(Share(float("nan"), float("nan"), 0.0)) is None
    there, lost = share_gate(Share(0.9, 0.1, 1e-3)), share_gate(Share(0.1, 0.1, 1e-3))
    assert there is not None and there.passed
    assert lost is not None and not lost.passed


def test_static_checks(out: Path):
    for engine in ("tgi", "tensorrt-llm"):
        report = remerge.check(out, engine)
        assert (report.word, report.passed) == ("statically checked", True)
    config = json.loads((out / "config.json").read_text())
    # transformers 4 then takes 10000.
    del config["rope_theta"]
    config["architectures"] = ["NobodysForCausalLM"]
    config["quantization_config"] = {"quant_method": "quark"}
    (out / "config.json").write_text(json.dumps(config))
    report = remerge.check(out, "tensorrt-llm")
    assert failing(report) == {"rope_theta", "model", "quantisation"}
    next(out.glob("*.safetensors")).unlink()
    (out / "tokenizer.json").unlink()
    assert {"weights", "tokenizer"} <= failing(remerge.check(out, "tgi"))
