"""Every kind of adapter that PEFT has is merged, or refused by name and with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, PeftType

import remerge
from remerge.adapters.families import FAMILIES, UNMERGEABLE
from tests.adapters.tuners.against_peft import base_of, edit, model_of, our_merged, train


def test_every_type_is_accounted_for() -> None:
    types = {kind.value for kind in PeftType}
    assert types == set(FAMILIES) | set(UNMERGEABLE)
    assert not set(FAMILIES) & set(UNMERGEABLE)


def test_names_are_those_of_the_types() -> None:
    assert all(tuner.name.upper().replace(" ", "_") == name for name, tuner in FAMILIES.items())


@pytest.mark.parametrize("kind", [*UNMERGEABLE, "NEXT_YEARS_IDEA"])
def test_refusals(kind: str, tmp_path: Path) -> None:
    base, adapter = base_of("llama"), tmp_path / "adapter"
    train(model_of("llama", base), LoraConfig(r=2, target_modules=["q_proj"]), adapter)
    edit(adapter, peft_type=kind)
    with pytest.raises(remerge.Unsupported, match=kind) as caught:
        our_merged(base, adapter, tmp_path / "bad")
    assert caught.value.why == UNMERGEABLE.get(kind, caught.value.why)
    assert not (tmp_path / "bad").exists()
