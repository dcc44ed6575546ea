"""The gate of a comparison: what must hold for an artefact to be deployed. It always judges; what
is not given has a default, and every limit is stated with what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from remerge.artefacts.test_result import GateResult
from remerge.errors import NotReproduced, UsageError
from remerge.validation.harness import Harness
from remerge.validation.limits import FormatLimit, Gate, gates
from remerge.validation.paired import SIGNIFICANT, mcnemar
from remerge.validation.score_comparison import Comparison

# What arithmetic in 16 bits adds to the errors of weights, and to the divergence: both sides round
# every activation, in another order.
_ARITHMETIC = {"float32": (0.0, 0.0), "bfloat16": (0.005, 0.01), "float16": (0.001, 0.002)}
# Standard errors that a difference of two figures rarely is from zero.
_ERRORS = 1.96


@dataclass(frozen=True)
class Thresholds:
    """``max_drop`` of a score (as a share), that chance would hardly give. ``max_kl`` in nats and
    ``min_agreement`` of the likeliest token; None for what the format may cost the very model
    (docs/compare.md)."""

    max_drop: float = 0.001
    max_kl: float | None = None
    min_agreement: float | None = None

    def overridden(self, given: Mapping[str, Any]) -> Thresholds:
        """With what is given in their place; raises `UsageError` for what is no share."""
        known = {field.name for field in fields(self)}
        for name, value in given.items():
            if name not in known:
                raise UsageError(
                    f"A gate has no {name}.", hint=f"It has {', '.join(sorted(known))}."
                )
            number = isinstance(value, int | float) and not isinstance(value, bool)
            limit = math.inf if name == "max_kl" else 1.0
            if not number or not 0 <= value <= limit:
                raise UsageError(f"{name} {value!r} is no number from 0 to {limit:g}.")
        return replace(self, **given)


def of_arithmetic(form: FormatLimit, dtype: str) -> FormatLimit:
    """A format's limits where both sides compute in ``dtype``."""
    noise, kl = _ARITHMETIC[dtype]
    return FormatLimit(math.hypot(form.noise, noise), form.kl + kl)


def logits_gates(
    name: str,
    found: Comparison,
    form: FormatLimit,
    noise: Comparison | None,
    thresholds: Thresholds,
) -> list[Gate]:
    """What the probabilities of one set of texts must meet."""
    holds = gates(found, form, noise)
    bound = "at least " if found.likeliest is not None else ""
    if thresholds.max_kl is not None:
        limit = thresholds.max_kl
        measured = f"{bound}{found.kl_mean:.2e}"
        holds[0] = Gate("KL divergence", measured, f"{limit:.2e}", found.kl_mean <= limit)
        # Who allows a divergence allows what follows of it.
        holds.pop(1)
    if thresholds.min_agreement is not None:
        limit = thresholds.min_agreement
        holds[-1] = Gate(
            "top-1 agreement", f"{found.top1:.1%}", f"{limit:.1%}", found.top1 >= limit
        )
    return [replace(gate, name=f"{gate.name}, {name}") for gate in holds]


def not_held(gates: Sequence[Gate | GateResult], hint: str) -> NotReproduced | None:
    """What is said where gates decide what happens next; None where all hold."""
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return None
    first = failed[0]
    return NotReproduced(
        f"The gate failed: {first.name} is {first.measured}, and {first.limit} is asked "
        f"({len(failed)} of {len(gates)} do not hold).",
        why="The merged model does not do what the adapter on its base does.",
        hint=hint,
    )


def harness_gates(found: Harness, max_drop: float) -> list[Gate]:
    """What lm-eval's figures must meet: as task scores where it judged every document, else by
    standard errors. Figures of which nobody says that more is better are not judged."""
    holds: list[Gate] = []
    for one in found.results:
        better = found.higher.get((one.task, one.metric))
        if better is None:
            continue
        drop = (one.adapter - one.merged) if better else (one.merged - one.adapter)
        pair = found.paired.get((one.task, one.metric))
        if pair is not None:
            p = mcnemar(pair.lost, pair.won)
            chance, limit = f"p = {p:.2g}", f"a drop of {max_drop:g}, or p = {SIGNIFICANT:g}"
            failed = drop > max_drop and p < SIGNIFICANT
        elif one.adapter_error is not None and one.merged_error is not None:
            error = math.hypot(one.adapter_error, one.merged_error)
            chance, limit = f"± {error:.2g}", f"a drop of {max_drop:g}, or of {_ERRORS:g} errors"
            failed = drop > max_drop and drop > _ERRORS * error
        else:
            continue
        measured = f"{one.adapter:.4g} to {one.merged:.4g}, {chance}"
        holds.append(Gate(f"lm-eval {one.task} {one.metric}", measured, limit, not failed))
    return holds
