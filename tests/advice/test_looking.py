"""What base and adapter say: sizes of the files that a merge writes, and what engines refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import remerge
from remerge.advice.advising import Advice
from remerge.advice.deciding import decide
from remerge.advice.facts import Facts
from remerge.errors import BadInput, Unsupported
from tests import tiny
from tests.hub_server import HubServer
from tests.sources.conftest import hub

__all__ = ["hub"]

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "adapter")
    return tmp_path


def reconfigure(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def asked(place: Path, **facts: Any) -> Advice:
    return remerge.advise(base=place / "base", adapters=place / "adapter", progress=False, **facts)


@pytest.mark.parametrize("quantize", [None, "fp8"])
def test_a_copy_is_as_large_as_what_a_merge_writes(tmp_path: Path, quantize: str | None) -> None:
    base, adapter = EXAMPLES / "base", EXAMPLES / "adapters/sort"
    told = remerge.advise(base=base, adapters=adapter, variants=3, quantize=quantize)
    remerge.merge(base, adapter, tmp_path / "out", to=quantize or "safetensors")
    # The manifest, the provenance and the card are not planned.
    own = {"remerge.json", "provenance.json", "README.md"}
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    written = sum(file.stat().st_size for file in files if file.name not in own)
    assert told.costs.merge.bytes_each == written
    assert told.costs.merge.disk_bytes == 3 * written
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    assert told.costs.keep.base_bytes == weights


def test_a_format_that_the_model_cannot_have_is_refused(place: Path) -> None:
    with pytest.raises(Unsupported, match="no linear layer"):
        asked(place, quantize="fp8")


def test_the_adapters_given_are_the_variants(place: Path) -> None:
    tiny.write_adapter(place / "other", seed=5)
    told = remerge.advise(
        base=place / "base", adapters=[place / "adapter", place / "other"], stage="stable"
    )
    assert told.facts.variants == 2
    assert told.costs.merge.copies == told.costs.keep.adapters == 2
    assert "adapters given: 2" in told.assumed[0]
    # Of one variant, they are one merge.
    one = remerge.advise(
        base=place / "base", adapters=[place / "adapter", place / "other"], variants=1
    )
    assert one.decision == "merge"
    assert one.next.split()[3:5] == [str(place / "adapter"), str(place / "other")]


def test_the_forecast_grows_with_the_copies_and_names_what_it_rests_on(place: Path) -> None:
    one, two = asked(place, variants=1).costs.merge, asked(place, variants=2).costs.merge
    assert one.seconds is not None and two.seconds == pytest.approx(2 * one.seconds, abs=0.1)
    assert "docs/benchmarks.md" in one.seconds_from
    assert asked(place, variants=1, quantize="gptq").costs.merge.seconds is None


def as_dora(adapter: Path) -> None:
    reconfigure(adapter, use_dora=True)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in list(tensors.items()):
        if "lora_B" in name:
            vector = name.replace("lora_B.weight", "lora_magnitude_vector")
            tensors[vector] = torch.ones(tensor.shape[0])
    save_file(tensors, file)


def as_saved_module(adapter: Path) -> None:
    reconfigure(adapter, modules_to_save=["norm"])
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.model.norm.weight": torch.ones(1151)}, file)


def as_pissa(adapter: Path) -> None:
    reconfigure(adapter, init_lora_weights="pissa")


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [(as_dora, "dora"), (as_saved_module, "modules-to-save"), (as_pissa, "residual-base")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_engines_refuse_cannot_be_kept(
    place: Path, change: Callable[[Path], None], obstacle: str
) -> None:
    change(place / "adapter")
    told = asked(place, variants=4)
    assert told.facts.obstacles == (obstacle,)
    # Four variants alone speak for keeping.
    assert remerge.advise(variants=4).decision == "keep"
    assert told.decision == "both"
    assert told.decided.reasons[0].rule == "adapter-cannot-be-served"
    assert told.decided.reasons[0].hard


def test_what_one_engine_refuses_rules_nothing_out(place: Path) -> None:
    reconfigure(place / "adapter", rank_pattern={"nothing_of_this_name": 8})
    told = asked(place, variants=20)
    assert told.facts.obstacles == ("rank-by-module",)
    assert told.decision == "keep"
    assert any("rank_pattern" in note for note in told.notes)


def test_what_no_weight_can_hold_cannot_be_merged(place: Path) -> None:
    reconfigure(place / "adapter", alora_invocation_tokens=[1, 2])
    told = asked(place, variants=1, stage="stable", requests_per_second=200)
    assert told.decision == "keep"
    assert told.decided.reasons[0].rule == "adapter-cannot-be-merged"
    assert "aLoRA" in told.decided.reasons[0].text


def test_too_little_room(place: Path) -> None:
    copy = asked(place).costs.merge.bytes_each
    assert copy is not None
    facts: dict[str, Any] = {"stage": "stable", "requests_per_second": 200, "variants": 2}
    assert asked(place, **facts).decision == "merge"
    assert asked(place, **facts, disk=2 * copy).decision == "merge"
    assert asked(place, **facts, disk=2 * copy - 1).decision == "both"
    assert asked(place, **facts, disk=copy - 1).decision == "keep"
    assert asked(place, **facts, gpu_memory=2 * copy - 1).decision == "both"
    # The base alone fits, and no adapter beside it.
    assert asked(place, variants=20, gpu_memory=copy + 1).decision == "both"
    # Nothing fits.
    small = asked(place, **facts, gpu_memory=copy // 2)
    assert not small.possible
    assert {reason.rule for reason in small.decided.reasons if reason.hard} == {
        "adapter-not-beside-base",
        "copy-not-on-gpu",
    }


def test_a_merge_larger_than_its_quantised_base() -> None:
    """Merged it would have 16 bits again; on its base the adapter fits."""
    facts = Facts(variants=1, stage="stable", gpu_memory=8)
    sizes = replace(facts, served_base_bytes=5, adapter_bytes=1, copy_bytes=16)
    assert decide(facts).decision == "merge"
    assert decide(sizes).decision == "keep"


def test_too_large_for_either_way(place: Path) -> None:
    as_dora(place / "adapter")
    told = asked(place, variants=1, stage="stable", disk=1)
    assert not told.possible
    assert "in the way" in told.summary


def test_what_does_not_fit_is_refused(place: Path) -> None:
    file = place / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.ones(4, 7)}, file)
    with pytest.raises(BadInput, match="does not fit the base"):
        asked(place, variants=1)
    with pytest.raises(BadInput, match="neither an existing directory"):
        remerge.advise(base="no-such-base", adapters=place / "adapter")


def test_a_base_on_the_hub_is_not_fetched(place: Path, hub: HubServer) -> None:
    hub.add("org/base", place / "base")
    told = remerge.advise(base="org/base", adapters=place / "adapter", variants=1)
    assert hub.requests
    assert not [path for path in hub.requests if path.endswith(".safetensors")]
    base = sum(f.stat().st_size for f in (place / "base").glob("*.safetensors"))
    assert told.costs.keep.base_bytes == told.costs.merge.bytes_each == base
    assert any("not fetched" in note for note in told.notes)
    assert told.next == f"remerge merge org/base {place / 'adapter'} -o merged"


def test_the_base_that_the_adapter_names(place: Path) -> None:
    reconfigure(place / "adapter", base_model_name_or_path=str(place / "base"))
    told = remerge.advise(adapters=place / "adapter", variants=1)
    assert told.costs.merge.bytes_each
    assert str(place / "base") in told.next
    reconfigure(place / "adapter", base_model_name_or_path="org/elsewhere")
    other = remerge.advise(adapters=place / "adapter", variants=1)
    assert other.costs.merge.bytes_each is None
    assert any("org/elsewhere" in note for note in other.notes)


def test_a_speed_measured_here_counts_more(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store knows how long it took to make a merge again."""
    monkeypatch.setenv("REMERGE_STORE", str(tmp_path / "store"))
    # A merge of half a gigabyte would take a test too long.
    monkeypatch.setattr("remerge.advice.costs._TELLING", 1)
    assert "docs/benchmarks.md" in asked(place).costs.merge.seconds_from
    remerge.merge(place / "base", place / "adapter", place / "out")
    store = remerge.Store()
    store.rebuild(store.add(place / "out").name)
    row = next(row for row in store.ls() if row.kind == "merged")
    assert row.seconds
    costs = asked(place).costs.merge
    assert "measured on this machine" in costs.seconds_from
    assert costs.seconds_each == pytest.approx(1.3 + row.seconds, rel=0.25, abs=0.1)


def test_speeds_are_those_of_the_benchmarks() -> None:
    """The figures in rules.yaml follow from docs/benchmarks.json."""
    from remerge.advice.rules import rules

    root = Path(__file__).parent.parent.parent
    measured = json.loads((root / "docs/benchmarks.json").read_text())
    run = next(row for row in measured["rows"] if row["name"] == "remerge, rank 16")["runs"][0]
    figures = rules().forecast["merge"]
    forecast = figures.start_up + 2 * measured["base"]["bytes"] / figures.bytes_per_second
    assert forecast == pytest.approx(run["wall"], rel=0.05)
