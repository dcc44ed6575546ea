"""`remerge conflicts`, and the same section in the report of a merge of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import remerge
from remerge.cli import group
from remerge.errors import BadInput, UsageError
from tests import tiny

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"


def command(*words: str) -> Result:
    return CliRunner().invoke(group, words)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with two unrelated adapters, and ``against``: the first one's with B turned round."""
    place = tmp_path_factory.mktemp("several")
    tiny.write_base(place / "base")
    tiny.write_adapter(place / "one", seed=3)
    tiny.write_adapter(place / "two", seed=4)
    tiny.write_adapter(place / "against", seed=3)
    file = place / "against" / "adapter_model.safetensors"
    factors = load_file(file)
    save_file({n: -0.5 * t if "lora_B" in n else t for n, t in factors.items()}, file)
    return place


def pairs_of(document: dict[str, Any]) -> dict[tuple[int, ...], dict[str, Any]]:
    return {tuple(pair["adapters"]): pair for pair in document["pairs"]}


def test_the_worst_pair_is_named(several: Path) -> None:
    named = [str(several / name) for name in ("base", "one", "two", "against")]
    done = command("conflicts", *named, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["adapters"] == ["one", "two", "against"]
    assert document["pairs"][0]["adapters"] == [1, 3]
    pairs = pairs_of(document)
    assert pairs[1, 3]["advice"] == document["advice"] == "keep separate"
    assert pairs[1, 3]["overall"]["cosine"] == -1.0
    assert pairs[1, 3]["overall"]["norm_ratio"] == 2.0
    assert {module["name"] for module in pairs[1, 3]["modules"]} == set(tiny.SHAPES)
    assert pairs[1, 2]["advice"] == pairs[2, 3]["advice"] == "sum"
    assert "only an evaluation tells" in pairs[1, 2]["reasons"][1]
    told = command("conflicts", *named)
    assert "recommended for all: keep separate" in told.stdout
    assert "They undo each other" in told.stdout
    assert all(name in command("conflicts", *named, "-v").stdout for name in tiny.SHAPES)
    assert command("conflicts", *named, "-q").stdout == ""


def test_figures_are_those_of_the_stored_factors(several: Path) -> None:
    found = remerge.conflicts(several / "base", [several / "one", several / "two"])
    deltas = []
    for name in ("one", "two"):
        factors = tiny.read_tensors(several / name)
        keys = ["base_model.model." + tensor.removesuffix(".weight") for tensor in tiny.SHAPES]
        pairs = [(factors[f"{k}.lora_B.weight"], factors[f"{k}.lora_A.weight"]) for k in keys]
        deltas.append(torch.cat([(b.double() @ a.double()).flatten() for b, a in pairs]))
    cosine = float(deltas[0] @ deltas[1] / deltas[0].norm() / deltas[1].norm())
    overall = found.report.pairs[0].overall
    assert overall.cosine == pytest.approx(cosine, rel=1e-3)
    assert overall.norm_ratio == pytest.approx(float(deltas[0].norm() / deltas[1].norm()), rel=1e-3)


def test_one_adapter_has_nothing_to_be_compared_with(several: Path) -> None:
    done = command("conflicts", str(several / "base"), str(several / "one"))
    assert done.exit_code == 2
    with pytest.raises(UsageError):
        remerge.conflicts(several / "base", [several / "one"])


def test_what_does_not_fit_is_refused(several: Path, tmp_path: Path) -> None:
    tiny.write_adapter(tmp_path / "odd")
    file = tmp_path / "odd" / "adapter_model.safetensors"
    save_file({n: t[:, :3].contiguous() for n, t in load_file(file).items()}, file)
    with pytest.raises(BadInput):
        remerge.conflicts(several / "base", [several / "one", tmp_path / "odd"])


def test_a_merge_of_several_records_it(several: Path, tmp_path: Path) -> None:
    named = [str(several / name) for name in ("base", "one", "two", "against")]
    done = command("merge", *named, "-o", str(tmp_path / "out"), "--json")
    assert done.exit_code == 0, done.output
    section = json.loads(done.stdout)["conflicts"]
    assert section["pairs"][0]["adapters"] == [1, 3]
    assert json.loads((tmp_path / "out" / "remerge.json").read_text())["conflicts"] == section
    assert any("better kept separate" in note for note in json.loads(done.stdout)["notes"])
    again = command("merge", *named, "-o", str(tmp_path / "again"), "--threads", "1")
    assert "keep separate recommended; worst pair one + against" in again.stdout
    written = [(tmp_path / place / "remerge.json").read_bytes() for place in ("out", "again")]
    assert written[0] == written[1]
    remerge.verify(tmp_path / "out")


def test_a_merge_of_one_says_nothing_of_it(several: Path, tmp_path: Path) -> None:
    result = remerge.merge(several / "base", several / "one", tmp_path / "out")
    assert result.manifest.conflicts is None


def test_adapters_that_answer_the_opposite_way_rank_worst() -> None:
    """The examples: `contradict` was trained on the prompts of `agree` with opposite answers."""
    names = ["add", "agree", "contradict", "dates", "sort"]
    found = remerge.conflicts(EXAMPLES / "base", [EXAMPLES / "adapters" / name for name in names])
    first, *others = found.report.pairs
    assert [names[number - 1] for number in first.adapters] == ["agree", "contradict"]
    assert first.advice == "keep separate"
    assert {pair.advice for pair in others} == {"sum"}
    assert (first.overall.conflict or 0) > 3 * max(pair.overall.conflict or 0 for pair in others)
