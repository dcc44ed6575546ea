"""Broken artefacts are named by what was broken in them, and right ones that are too coarse for
their gate get a proposal that passes when it is made."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import remerge
from remerge.validation.compare import CompareReport, compare
from remerge.validation.comparison_run import Asking, Settings
from remerge.validation.gate import Thresholds
from remerge.validation.sides import Running
from tests.engines import llama_models
from tests.engines.places import needs, python_of
from tests.validation import broken

pytestmark = pytest.mark.timeout(600)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE, ADAPTER = EXAMPLES / "base", EXAMPLES / "adapters" / "sort"
PYTHONS = {"llama.cpp": str(python_of("llama.cpp"))}
LAYER = "model.layers.2"
V_PROJ = "model.layers.2.self_attn.v_proj"


def llama_cpp(test: Any) -> Any:
    for mark in needs("llama.cpp"):
        test = mark(test)
    return test


def bisected(
    output: Path, base: Path = BASE, adapter: Path = ADAPTER, **thresholds: float
) -> CompareReport:
    def make(source: Path, paths: Sequence[Path], how: Mapping[str, Any], place: Path) -> Path:
        result = remerge.export(source, place, adapters=paths, engine_python=PYTHONS, **how)
        return result.output

    settings = Settings(
        Running("float32", "cpu", 2, PYTHONS),
        Thresholds().overridden(thresholds),
        record=False,
        bisect=True,
        make=make,
        form="Q4_K_M" if output.suffix == ".gguf" and "Q4_K_M" in output.name else None,
    )
    return compare(base, [adapter], output, Asking(), settings, lambda done, total, what: None)


def suspects(report: CompareReport) -> list[str]:
    assert not report.passed
    assert report.figures.bisection is not None, report.figures.notes
    return [suspect.name for suspect in report.figures.bisection.suspects]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bisecting") / "merged"
    remerge.merge(BASE, ADAPTER, place)
    return place


def damaged(
    merged: Path,
    place: Path,
    how: broken.Break,
    names: list[str] | None = None,
    base: Path = BASE,
    part: str = LAYER,
) -> Path:
    before, after = broken.read(base), broken.read(merged)
    wanted = names or broken.touched(before, after, part)
    return broken.write(merged, place, how(before, after, wanted))


@pytest.mark.slow
def test_a_layer_whose_delta_was_dropped(merged: Path, tmp_path: Path):
    report = bisected(damaged(merged, tmp_path / "out", broken.dropped))
    first, *others = suspects(report)
    assert first == LAYER
    assert all(name.startswith(f"{LAYER}.") for name in others)
    found = report.figures.bisection
    assert found is not None
    assert found.suspects[0].share > 0.95
    assert set(found.suspects[0].tensors) == set(report.wrong)
    assert found.proposal is not None and found.proposal.startswith("Merge again")
    assert found.proven
    assert found.command is not None
    assert found.command == "remerge merge base sort -o out --overwrite --dtype bfloat16"


@pytest.mark.parametrize(
    ("how", "names"),
    [
        pytest.param(broken.flipped, [f"{V_PROJ}.weight"], id="flipped"),
        pytest.param(broken.halved, [f"{V_PROJ}.weight"], id="halved", marks=pytest.mark.slow),
        pytest.param(broken.rounded, [f"{V_PROJ}.weight"], id="int8", marks=pytest.mark.slow),
        pytest.param(
            broken.swapped,
            [f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 3)],
            id="touched swapped",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            broken.swapped,
            [f"model.layers.{n}.input_layernorm.weight" for n in (0, 3)],
            id="untouched swapped",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tensors(merged: Path, tmp_path: Path, how: broken.Break, names: list[str]):
    found = suspects(bisected(damaged(merged, tmp_path / "out", how, names)))
    assert set(found[:3]) == {name.removesuffix(".weight") for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("how", [broken.flipped, broken.halved, broken.rounded])
def test_layers(merged: Path, tmp_path: Path, how: broken.Break):
    assert suspects(bisected(damaged(merged, tmp_path / "out", how)))[0] == LAYER


@pytest.mark.proof
@pytest.mark.parametrize("name", ["qwen2-tied", "qwen3-tied", "mixtral", "phi3-fused"])
@pytest.mark.parametrize("how", [broken.dropped, broken.rounded, broken.swapped])
def test_other_models(tmp_path: Path, name: str, how: broken.Break):
    base, adapter = llama_models.write(name, tmp_path, None)
    remerge.merge(base, adapter, tmp_path / "merged", dtype="bfloat16")
    before = broken.read(base)
    layers = [f"model.layers.{n}" for n in (1, 3)]
    # A matrix that the adapter changes: a bias of zeros may be dropped and swapped as one likes.
    names = [
        next(n for n in before if re.fullmatch(rf"{layer}\.self_attn\.(qkv|q)_proj\.weight", n))
        for layer in layers
    ]
    if name == "mixtral" and how is broken.swapped:
        names = [n for n in before if "layers.1." in n and ".experts." in n and "w1" in n][:2]
    names = names if how is broken.swapped else names[:1]
    out = damaged(tmp_path / "merged", tmp_path / "out", how, names, base=base)
    found = suspects(bisected(out, base, adapter))
    for wanted in names:
        assert broken.named(found, wanted.removesuffix(".weight")), found


@pytest.mark.slow
def test_quantised_checkpoints_are_taken_apart(merged: Path, tmp_path: Path):
    out = damaged(merged, tmp_path / "out", broken.dropped)
    remerge.export(out, tmp_path / "fp8", to="fp8")
    (tmp_path / "fp8" / "remerge.json").unlink()
    assert suspects(bisected(tmp_path / "fp8"))[0] == LAYER


@pytest.mark.slow
def test_a_coarse_format_is_made_finer(tmp_path: Path):
    remerge.export(BASE, tmp_path / "w8a8", adapters=ADAPTER, to="w8a8")
    report = bisected(tmp_path / "w8a8", max_kl=4e-4)
    suspects(report)
    found = report.figures.bisection
    assert found is not None and found.proven, report.figures
    assert found.command is not None
    words = shlex.split(found.command)
    words[words.index("-o") + 1] = str(tmp_path / "again")
    words[2:4] = [str(BASE), str(ADAPTER)]
    from click.testing import CliRunner

    from remerge.cli import group

    assert CliRunner().invoke(group, [*words[1:], "-q"]).exit_code == 0
    settings = Settings(Running("float32", "cpu", 2, {}), Thresholds(max_kl=4e-4), record=False)
    again = compare(BASE, [ADAPTER], tmp_path / "again", Asking(), settings, lambda *_: None)
    assert again.passed


@llama_cpp
@pytest.mark.parametrize(
    ("how", "names"),
    [
        pytest.param(broken.dropped, None, id="dropped"),
        pytest.param(broken.flipped, [f"{V_PROJ}.weight"], id="flipped"),
        pytest.param(
            broken.swapped,
            [f"model.layers.{n}.input_layernorm.weight" for n in (0, 3)],
            id="untouched swapped",
        ),
    ],
)
def test_gguf_of_a_broken_checkpoint(
    merged: Path, tmp_path: Path, how: broken.Break, names: list[str] | None
):
    out = damaged(merged, tmp_path / "out", how, names)
    result = remerge.export(out, tmp_path / "gguf", to="gguf:Q4_K_M", engine_python=PYTHONS)
    file = next(path for path in result.files if path.suffix == ".gguf")
    place = shutil.copy(file, tmp_path / "alone-Q4_K_M.gguf")
    found = suspects(bisected(Path(place)))
    for wanted in [LAYER] if names is None else names:
        assert broken.named(found, wanted.removesuffix(".weight")), found


def test_swapped_values_are_far_apart(merged: Path):
    """The check on the checks: what is broken differs from what is not."""
    before, after = broken.read(BASE), broken.read(merged)
    name = f"{V_PROJ}.weight"
    for how in (broken.dropped, broken.flipped, broken.halved, broken.rounded):
        assert not torch.equal(how(before, after, [name])[name], after[name])
