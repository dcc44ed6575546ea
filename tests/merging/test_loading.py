"""A merge as a transformers model: what transformers builds no model of is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import remerge

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    "change", [{"hidden_act": "none such"}, {"num_attention_heads": 0}, {"hidden_size": 100}]
)
def test_a_configuration_that_transformers_cannot_build(
    tmp_path: Path, change: dict[str, object]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(EXAMPLES / "base", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    merged = remerge.open_merged(base, EXAMPLES / "adapters" / "sort")
    with pytest.raises(remerge.BadInput, match="transformers cannot load the merge"):
        merged.load_model()
