"""Is the corpus itself sound? Asked without remerge."""

from __future__ import annotations

from typing import Any

import torch

from tests.corpus.case import Built, Tensors, read_checkpoint
from tests.corpus.check import (
    FLOAT32_TOLERANCE,
    Report,
    expected_config,
    units_apart,
    with_one_prefix,
)
from tests.corpus.oracle import Expected, adapter_logits, expected, round_once


def self_check(built: Built) -> Report:
    """PEFT reads its own adapter, its merge moves the base, and the two oracles agree."""
    report = Report()
    case = built.case
    if case.expects == "refused":
        return report
    expected_config(built)
    base = with_one_prefix(built, read_checkpoint(built.base))
    if case.expects == "forward":
        if not torch.isfinite(adapter_logits(built)).all():
            report.add("logits of the adapter on the base are not finite")
        return report
    want = expected(built)
    if case.loose_prefix:
        want = Expected(with_one_prefix(built, want.exact), None, want.missing, want.config)
    if want.missing:
        report.add(f"PEFT misses keys: {want.missing[0][:200]}")
    moved = [n for n, t in want.exact.items() if n not in base or not unchanged(base[n], t)]
    if bool(moved) == case.no_change:
        report.add(f"{len(moved)} tensors differ from the base")
    lost = sorted(base.keys() - want.exact.keys() - set(case.optional))
    if lost:
        report.add(f"PEFT's result lacks tensors of the base: {lost[:4]}")
    new = sorted(want.exact.keys() - base.keys())
    unties = "tie_word_embeddings" in (*case.config_changes, *case.config_free)
    may_add = unties or case.adapter_class is not None
    if new and not may_add:
        report.add(f"PEFT's result has tensors that the base has not: {new[:4]}")
    if want.config:
        compare_configs(built, want, report)
    if want.peft is not None:
        compare_oracles(want, base, 4 if case.decomposition else 1, report)
    report.elements = sum(want.exact[name].numel() for name in moved)
    return report


def compare_configs(built: Built, want: Expected, report: Report) -> None:
    """The changes that a case foresees are those that PEFT makes to ties and vocabulary."""
    foreseen = expected_config(built)
    for holder, found in ((foreseen, want.config), *_text_configs(foreseen, want.config)):
        for key in ("tie_word_embeddings", "vocab_size"):
            if key in built.case.config_free:
                continue
            if key in holder and key in found and holder[key] != found[key]:
                report.add(f"PEFT leaves {key} = {found[key]}, the case foresees {holder[key]}")


def _text_configs(*configs: dict[str, Any]) -> list[tuple[dict[str, Any], ...]]:
    nested = tuple(config.get("text_config") for config in configs)
    return [nested] if all(isinstance(config, dict) for config in nested) else []  # type: ignore


def unchanged(old: torch.Tensor, new: torch.Tensor) -> bool:
    return old.shape == new.shape and torch.equal(old.double(), new.double())


def compare_oracles(want: Expected, base: Tensors, slack: float, report: Report) -> None:
    """PEFT in the base's dtype is PEFT in float64 but for roundings: of the sum, or of D first."""
    assert want.peft is not None
    for name, exact in want.exact.items():
        own = want.peft[name]
        if not own.is_floating_point():
            continue
        dtype = base[name].dtype if name in base else own.dtype
        own = own.to(dtype)
        once = round_once(exact, dtype)
        report.off += int((units_apart(own, once) > 0).sum())
        if name in base and base[name].shape == own.shape:
            old = base[name].double()
            size = exact.abs() + (exact - old).abs() + old.abs()
        else:
            size = exact.abs() + exact.abs().max()
        unit = torch.finfo(dtype).eps
        error = (own.double() - exact).abs()
        bound = (slack * unit * size).clamp(min=FLOAT32_TOLERANCE)
        if not bool((error <= bound).all()):
            report.add(f"{name}: PEFT differs from its own float64 by {float(error.max()):.3g}")
