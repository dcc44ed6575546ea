"""The rules asked about facts: a pure function, the same for the same facts.

Both pulls only grow in the direction in which a fact speaks for their side (`rules` sees to it),
and the decision only moves towards the side whose pull grows; so more variants never turn keep into
merge, and so on for every fact (tests/advice/test_monotone.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remerge.advice.facts import Facts
from remerge.advice.rules import Constraint, Decision, Side, rules

ALL: frozenset[Decision] = frozenset(("keep", "both", "merge"))
# What rules an answer out weighs more than all rules together.
HARD = 100.0


@dataclass(frozen=True)
class Reason:
    """Why: ``pulls`` to a side by ``weight``; `HARD` where it rules the other side out."""

    rule: str
    pulls: Side
    weight: float
    text: str
    source: str

    @property
    def hard(self) -> bool:
        return self.weight >= HARD


@dataclass(frozen=True)
class Decided:
    """``reasons`` by weight; ``ruled_out`` are answers that cannot be, whatever the weights say.
    Where all are, ``decision`` is the one that can be undone."""

    decision: Decision
    reasons: tuple[Reason, ...]
    to_merge: float
    to_keep: float
    ruled_out: frozenset[Decision]

    @property
    def possible(self) -> bool:
        """Whether any answer can be."""
        return self.ruled_out != ALL


def decide(facts: Facts) -> Decided:
    """Merge, keep, or both, and why."""
    weighed = [(rule, rule.weight(facts)) for rule in rules().rules]
    reasons = [
        Reason(r.id, r.pulls, weight, r.says.format(value=_said(facts, r.fact)), r.source)
        for r, weight in weighed
        if weight
    ]
    to_merge = sum(weight for rule, weight in weighed if rule.pulls == "merge")
    to_keep = sum(weight for rule, weight in weighed if rule.pulls == "keep")
    binding = [(c, _text(c, facts)) for c in rules().constraints if _holds(c, facts)]
    out: frozenset[Decision] = frozenset(d for c, _ in binding for d in c.rules_out)
    for constraint, text in binding:
        pulls: Side = "merge" if "keep" in constraint.rules_out else "keep"
        reasons.append(Reason(constraint.id, pulls, HARD, text, _source(constraint, facts)))
    if not reasons:
        last = rules().otherwise
        reasons.append(Reason(last.id, last.pulls, 0.0, last.says, last.source))
    reasons.sort(key=lambda reason: -reason.weight)
    wanted = _weighed(to_merge, to_keep)
    decision = _allowed(wanted, to_keep, ALL - out)
    return Decided(decision, tuple(reasons), to_merge, to_keep, out)


def _weighed(to_merge: float, to_keep: float) -> Decision:
    """What both pulls give. Without a reason to merge, keep: that can be undone."""
    limits = rules().decision
    if not to_merge:
        return "keep"
    if not to_keep:
        return "merge"
    if to_keep - to_merge >= limits.keep_leads_by:
        return "keep"
    if to_merge - to_keep >= limits.merge_leads_by and to_keep < limits.strong:
        return "merge"
    return "both"


def _allowed(wanted: Decision, to_keep: float, allowed: frozenset[Decision]) -> Decision:
    """The answer nearest to what is wanted. Where adapters cannot be served at all, both means a
    merge to serve and an adapter to train."""
    if not allowed:
        return "keep"
    if "keep" not in allowed:
        wanted = "both" if to_keep >= rules().decision.strong else "merge"
    if wanted in allowed:
        return wanted
    return "both" if "both" in allowed else next(iter(allowed))


def in_force(facts: Facts) -> tuple[str, ...]:
    """Obstacles of which every engine makes one."""
    known = rules().obstacles
    return tuple(name for name in facts.obstacles if known[name].engines >= {"vllm", "llama.cpp"})


def _holds(constraint: Constraint, facts: Facts) -> bool:
    if constraint.obstacle == "served":
        return bool(in_force(facts))
    if constraint.obstacle == "merged":
        return facts.unmergeable is not None
    if constraint.exceeds is None or not _exceeds(constraint.exceeds, facts):
        return False
    return constraint.unless is None or not _exceeds(constraint.unless, facts)


def _exceeds(names: tuple[str, str], facts: Facts) -> bool:
    left, right = (getattr(facts, name) for name in names)
    return left is not None and right is not None and left > right


def _text(constraint: Constraint, facts: Facts) -> str:
    if constraint.obstacle == "served":
        known = rules().obstacles
        said = " ".join(known[name].says for name in in_force(facts))
        return constraint.says.format(obstacle=said)
    if constraint.obstacle == "merged":
        return constraint.says.format(obstacle=facts.unmergeable)
    assert constraint.exceeds is not None
    left, right = (gigabytes(getattr(facts, name)) for name in constraint.exceeds)
    return constraint.says.format(left=left, right=right)


def _source(constraint: Constraint, facts: Facts) -> str:
    if constraint.obstacle != "served":
        return constraint.source
    return " ".join(rules().obstacles[name].source for name in in_force(facts))


def gigabytes(nbytes: int) -> str:
    """Bytes for people, to three digits."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if nbytes >= 10**power:
            return f"{nbytes / 10**power:.3g} {unit}"
    return f"{nbytes} B"


def _said(facts: Facts, fact: str) -> Any:
    value = getattr(facts, fact)
    return f"{value:,.6g}" if isinstance(value, float) else value
