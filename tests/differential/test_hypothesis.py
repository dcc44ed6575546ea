"""Any LoRA configuration on a tiny Llama or Qwen2: remerge gives PEFT's merge, rounded once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.corpus.build import build
from tests.corpus.case import Case
from tests.corpus.check import check

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Keys as people write them: a module, a layer's module, a group of modules, anything.
PATTERNS = (
    *LINEAR,
    "layers.0.self_attn.q_proj",
    r"layers\.1\..*proj",
    "self_attn.(k|v)_proj",
    "model.layers.1.mlp.down_proj",
)
DTYPES = ("bfloat16", "float16", "float32")
ALPHAS = st.one_of(
    st.integers(-16, 64), st.floats(-8, 32, allow_nan=False, width=32).map(lambda x: round(x, 3))
)


def without_overlap(patterns: dict[str, Any]) -> dict[str, Any]:
    """One pattern a module: where several match, PEFT's reload order is not the training's."""
    return dict(list(patterns.items())[:1])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    arch = draw(st.sampled_from(("llama", "qwen2", "llama_bias", "llama_square")))
    has_bias = arch == "llama_bias"
    targets = draw(st.lists(st.sampled_from(LINEAR), min_size=1, unique=True))
    # alpha_pattern and rank_pattern may overlap each other, not themselves.
    lora: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "target_modules": targets,
        "r": draw(st.integers(1, 12)),
        "lora_alpha": draw(ALPHAS),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "rank_pattern": without_overlap(
            draw(st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 9), max_size=1))
        ),
        "alpha_pattern": without_overlap(
            draw(st.dictionaries(st.sampled_from(PATTERNS), ALPHAS, max_size=1))
        ),
        "bias": draw(st.sampled_from(("none", "all", "lora_only"))),
        "lora_bias": has_bias and draw(st.booleans()),
        "modules_to_save": draw(
            st.sampled_from((None, ["lm_head"], ["embed_tokens"], ["norm", "lm_head"]))
        ),
    }
    if lora["use_dora"]:  # PEFT has no bias of its own in a DoRA layer
        lora["lora_bias"] = False
    for key in ("use_dora", "lora_bias", "use_rslora", "bias"):
        event(f"{key}={lora[key]}")
    return Case(
        f"random-{draw(st.integers(0, 2**20))}",
        arch,
        lora,
        dtype=draw(st.sampled_from(DTYPES)),
        adapter_dtype=draw(st.sampled_from((None, "float16", "bfloat16"))),
        max_shard_size=draw(st.sampled_from((None, "20KB"))),
    )


def merge_and_compare(case: Case) -> None:
    with tempfile.TemporaryDirectory() as directory:
        report = check(build(case, Path(directory)))
    assert report.ok, "\n".join([str(case), *report.problems])


RELAXED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.filterwarnings("ignore")
@settings(RELAXED, max_examples=15)
@given(case=cases())
def test_random_configurations(case: Case) -> None:
    merge_and_compare(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(RELAXED, max_examples=200)
@given(case=cases())
def test_many_random_configurations(case: Case) -> None:
    merge_and_compare(case)
