"""Situations whose right answer is known, from what people are told before any rule was weighed.

Do not merge: many variants of one base, still iterating, further fine-tuning planned. Merge: one
stable variant, quantisation needed, high traffic. Both: where something speaks for each.
"""

from __future__ import annotations

from typing import Any

import pytest

from remerge.advice.deciding import decide
from remerge.advice.facts import Facts, read_facts

KNOWN: list[tuple[dict[str, Any], str]] = [
    # Many variants of one base.
    ({"variants": 50}, "keep"),
    ({"variants": 20, "stage": "stable"}, "keep"),
    ({"variants": 20, "stage": "stable", "requests_per_second": 2}, "keep"),
    ({"variants": 100, "stage": "stable", "requests_per_second": 500}, "keep"),
    ({"variants": 5, "stage": "stable"}, "keep"),
    ({"variants": 10, "stage": "ab-testing"}, "keep"),
    ({"variants": 30, "stage": "iterating", "further_fine_tuning": True}, "keep"),
    # Still iterating.
    ({"stage": "iterating"}, "keep"),
    ({"variants": 1, "stage": "iterating"}, "keep"),
    ({"variants": 1, "stage": "iterating", "requests_per_second": 1}, "keep"),
    ({"variants": 3, "stage": "iterating", "latency_budget_ms": 2000}, "keep"),
    ({"variants": 2, "stage": "ab-testing"}, "keep"),
    ({"variants": 4, "stage": "ab-testing", "requests_per_second": 1}, "keep"),
    # Further fine-tuning planned.
    ({"further_fine_tuning": True}, "keep"),
    ({"variants": 1, "further_fine_tuning": True}, "keep"),
    ({"variants": 1, "stage": "iterating", "further_fine_tuning": True}, "keep"),
    ({"variants": 1, "stage": "stable", "further_fine_tuning": True}, "keep"),
    # One stable variant.
    ({"variants": 1, "stage": "stable"}, "merge"),
    ({"variants": 1, "stage": "stable", "requests_per_second": 0.1}, "merge"),
    ({"variants": 1, "stage": "stable", "further_fine_tuning": False}, "merge"),
    ({"variants": 1, "stage": "stable", "latency_budget_ms": 100}, "merge"),
    # Quantisation needed.
    ({"quantize": "gguf:Q4_K_M"}, "merge"),
    ({"variants": 1, "quantize": "fp8"}, "merge"),
    ({"variants": 1, "stage": "stable", "quantize": "awq"}, "merge"),
    ({"variants": 2, "stage": "stable", "quantize": "gguf:Q4_K_M"}, "merge"),
    # High traffic.
    ({"requests_per_second": 200}, "merge"),
    ({"variants": 1, "requests_per_second": 100}, "merge"),
    ({"variants": 1, "stage": "stable", "requests_per_second": 50}, "merge"),
    ({"variants": 2, "stage": "stable", "requests_per_second": 300}, "merge"),
    # Something for each.
    ({"variants": 2, "stage": "ab-testing", "requests_per_second": 100}, "both"),
    ({"variants": 3, "stage": "ab-testing", "requests_per_second": 200}, "both"),
    (
        {
            "variants": 1,
            "stage": "stable",
            "requests_per_second": 100,
            "further_fine_tuning": True,
        },
        "both",
    ),
    (
        {"variants": 1, "stage": "stable", "quantize": "fp8", "further_fine_tuning": True},
        "both",
    ),
    ({"variants": 1, "stage": "iterating", "requests_per_second": 200}, "both"),
    ({"variants": 1, "stage": "iterating", "quantize": "gguf:Q4_K_M"}, "both"),
    ({"variants": 1, "stage": "ab-testing"}, "both"),
    # Nothing known: what can be undone.
    ({}, "keep"),
]


@pytest.mark.parametrize(("given", "right"), KNOWN, ids=lambda value: str(value))
def test_known_answers(given: dict[str, Any], right: str) -> None:
    assert decide(read_facts(given)).decision == right


def test_the_same_facts_give_the_same_answer() -> None:
    for given, _ in KNOWN:
        assert decide(read_facts(given)) == decide(read_facts(dict(reversed(given.items()))))


def test_reasons_come_by_weight_and_bear_their_sources() -> None:
    for given, _ in KNOWN:
        reasons = decide(read_facts(given)).reasons
        assert [r.weight for r in reasons] == sorted((r.weight for r in reasons), reverse=True)
        assert all(reason.text and reason.source for reason in reasons)
        assert reasons


def test_what_is_unknown_says_nothing() -> None:
    (reason,) = decide(Facts()).reasons
    assert reason.rule == "can-be-undone"
    assert reason.weight == 0
