"""A fact that speaks more for one side never turns the answer towards the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from remerge.advice.deciding import decide
from remerge.advice.facts import STAGES, Facts
from remerge.advice.flips import flips
from remerge.advice.rules import Rule, rules

ORDER = {"keep": 0, "both": 1, "merge": 2}
COUNTS = st.one_of(st.integers(1, 40), st.integers(1, 10**6))
RATES = st.floats(0, 1000)
BUDGETS = st.floats(0.1, 3000)
SIZES = st.one_of(st.none(), st.integers(1, 10**6))
KNOWN = rules().obstacles


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


FACTS = st.builds(
    Facts,
    variants=maybe(COUNTS),
    stage=maybe(st.sampled_from(STAGES)),
    requests_per_second=maybe(RATES),
    latency_budget_ms=maybe(BUDGETS),
    further_fine_tuning=maybe(st.booleans()),
    quantize=maybe(st.sampled_from(["none", "fp8", "gguf:Q4_K_M"])),
    disk=SIZES,
    gpu_memory=SIZES,
    copy_bytes=SIZES,
    served_base_bytes=SIZES,
    adapter_bytes=SIZES,
    obstacles=st.lists(st.sampled_from(sorted(KNOWN)), max_size=2).map(tuple),
    unmergeable=st.one_of(st.none(), st.none(), st.just("It is a prompt.")),
)


def answer(facts: Facts, **changed: Any) -> int:
    return ORDER[decide(replace(facts, **changed)).decision]


@settings(max_examples=500, deadline=None)
@given(FACTS, COUNTS, COUNTS)
def test_more_variants_never_lead_to_a_merge(facts: Facts, one: int, other: int) -> None:
    few, many = sorted((one, other))
    assert answer(facts, variants=few) >= answer(facts, variants=many)


@settings(max_examples=300, deadline=None)
@given(FACTS)
def test_a_stage_further_on_never_leads_away_from_a_merge(facts: Facts) -> None:
    found = [answer(facts, stage=stage) for stage in STAGES]
    assert found == sorted(found)


@settings(max_examples=300, deadline=None)
@given(FACTS)
def test_planned_fine_tuning_never_leads_to_a_merge(facts: Facts) -> None:
    assert answer(facts, further_fine_tuning=True) <= answer(facts, further_fine_tuning=False)


@settings(max_examples=500, deadline=None)
@given(FACTS, RATES, RATES)
def test_more_traffic_never_leads_away_from_a_merge(facts: Facts, one: float, two: float) -> None:
    few, many = sorted((one, two))
    assert answer(facts, requests_per_second=few) <= answer(facts, requests_per_second=many)


@settings(max_examples=500, deadline=None)
@given(FACTS, BUDGETS, BUDGETS)
def test_a_tighter_budget_never_leads_away_from_a_merge(
    facts: Facts, one: float, two: float
) -> None:
    tight, generous = sorted((one, two))
    assert answer(facts, latency_budget_ms=tight) >= answer(facts, latency_budget_ms=generous)


@settings(max_examples=500, deadline=None)
@given(FACTS, st.integers(1, 100))
def test_a_quantised_format_never_leads_away_from_a_merge(facts: Facts, percent: int) -> None:
    """Quantised, copies and base shrink alike."""
    plain = replace(facts, quantize="none", served_base_bytes=facts.copy_bytes)
    small = None if facts.copy_bytes is None else facts.copy_bytes * percent // 100
    asked = replace(plain, quantize="fp8", copy_bytes=small, served_base_bytes=small)
    if decide(plain).decision == "merge":
        assert decide(asked).decision != "keep"
    # With the same sizes it never moves at all towards keeping.
    assert answer(plain) <= answer(plain, quantize="fp8")


@settings(max_examples=300, deadline=None)
@given(FACTS, st.integers(1, 10**6), st.integers(1, 10**6))
def test_more_room_on_disk_never_leads_away_from_a_merge(facts: Facts, one: int, two: int) -> None:
    little, much = sorted((one, two))
    assert answer(facts, disk=little) <= answer(facts, disk=much)


@settings(max_examples=300, deadline=None)
@given(FACTS)
def test_what_would_change_the_answer_does(facts: Facts) -> None:
    now = decide(facts).decision
    for flip in flips(facts):
        assert flip.decision != now
        assert decide(replace(facts, **{flip.fact: flip.value})).decision == flip.decision


@pytest.mark.parametrize(
    "wrong",
    [
        {"fact": "variants", "pulls": "merge", "from": {2: 1, 3: 2}},
        {"fact": "variants", "pulls": "keep", "from": {2: 2, 3: 1}},
        {"fact": "variants", "pulls": "keep", "up_to": {2: 1}},
        {"fact": "requests_per_second", "pulls": "keep", "from": {5: 1}},
        {"fact": "latency_budget_ms", "pulls": "merge", "up_to": {100: 1, 500: 2}},
        {"fact": "stage", "pulls": "keep", "is": {"stable": 1}},
        {"fact": "stage", "pulls": "merge", "is": {"ab-testing": 2, "stable": 1}},
        {"fact": "further_fine_tuning", "pulls": "merge", "is": {"yes": 1}},
        {"fact": "stage", "pulls": "merge", "is": {"stabel": 1}},
        {"fact": "variants", "pulls": "keep"},
    ],
    ids=str,
)
def test_a_rule_that_pulls_the_wrong_way_is_not_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule.model_validate({"id": "wrong", "says": "", "source": "", **wrong})


def test_every_rule_has_a_sentence_and_a_source() -> None:
    known = rules()
    told = (*known.rules, *known.constraints, *known.obstacles.values())
    assert all(one.says and one.source for one in told)
    assert all(figures.source for figures in known.forecast.values())
    assert len({one.id for one in (*known.rules, *known.constraints)}) == len(
        (*known.rules, *known.constraints)
    )
