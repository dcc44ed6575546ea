"""rules.yaml, read and held to the directions that facts have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from remerge.advice.facts import STAGES, Facts

Decision = Literal["keep", "both", "merge"]
Side = Literal["keep", "merge"]
Engine = Literal["vllm", "llama.cpp"]

# What speaks more for a merge comes later.
_ORDER: Mapping[str, tuple[str, ...]] = {
    "stage": STAGES,
    "further_fine_tuning": ("yes", "no"),
    "quantize": ("none", "wanted"),
}
# Of numbers: whether more speaks for a merge.
_MORE_MERGES: Mapping[str, bool] = {
    "variants": False,
    "requests_per_second": True,
    "latency_budget_ms": False,
}


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Read):
    """One reason: the weight by which a fact pulls to a side. See the head of rules.yaml."""

    id: str
    pulls: Side
    fact: str
    reaches: dict[float, float] = Field(default_factory=dict[float, float], alias="from")
    within: dict[float, float] = Field(default_factory=dict[float, float], alias="up_to")
    values: dict[str, float] = Field(default_factory=dict[str, float], alias="is")
    says: str
    source: str

    def weight(self, facts: Facts) -> float:
        """Zero where the fact is unknown, or says nothing."""
        value = getattr(facts, self.fact)
        if value is None:
            return 0.0
        if self.values:
            return self.values.get(_word(self.fact, value), 0.0)
        reached = [bound for bound in self.reaches if value >= bound]
        if reached:
            return self.reaches[max(reached)]
        within = [bound for bound in self.within if value <= bound]
        return self.within[min(within)] if within else 0.0

    @model_validator(mode="after")
    def _is_monotone(self) -> Rule:
        """A weight may only grow in the direction in which the fact speaks for its side."""
        kinds = [kind for kind in (self.reaches, self.within, self.values) if kind]
        if len(kinds) != 1:
            raise ValueError(f"{self.id}: one of from, up_to and is")
        if self.values:
            order = _ORDER[self.fact]
            if unknown := self.values.keys() - set(order):
                raise ValueError(f"{self.id}: {unknown} is none of {order}")
            towards = [self.values.get(word, 0.0) for word in order]
            rising = self.pulls == "merge"
        else:
            bounds = self.reaches or self.within
            towards = [bounds[bound] for bound in sorted(bounds)]
            # Beside the bounds the weight is zero: below them with `from`, above with `up_to`.
            towards = [0.0, *towards] if self.reaches else [*towards, 0.0]
            rising = _MORE_MERGES[self.fact] == (self.pulls == "merge")
        if towards != sorted(towards, reverse=not rising):
            raise ValueError(f"{self.id}: its weights turn back, or pull the wrong way")
        return self


class Constraint(_Read):
    """What cannot be: two quantities of `Facts` in bytes compared, or an obstacle in force."""

    id: str
    exceeds: tuple[str, str] | None = None
    unless: tuple[str, str] | None = None
    obstacle: Literal["served", "merged"] | None = None
    rules_out: frozenset[Decision]
    says: str
    source: str


class Obstacle(_Read):
    """Something about an adapter that engines cannot serve unmerged."""

    engines: frozenset[Engine]
    says: str
    source: str


class Otherwise(_Read):
    """The reason where there is no other."""

    id: str
    pulls: Side
    says: str
    source: str


class Thresholds(_Read):
    merge_leads_by: float
    keep_leads_by: float
    strong: float


class Forecast(_Read):
    """Figures that forecasts rest on; which it is decides what is set."""

    bytes_per_second: float = 0.0
    start_up: float = 0.0
    seconds_per_gigabyte: dict[str, float] = Field(default_factory=dict[str, float])
    slower_by: tuple[float, float] = (1.0, 1.0)
    source: str


class Rules(_Read):
    decision: Thresholds
    rules: tuple[Rule, ...]
    otherwise: Otherwise
    constraints: tuple[Constraint, ...]
    obstacles: dict[str, Obstacle]
    forecast: dict[str, Forecast]


@cache
def rules() -> Rules:
    """The rules of this version."""
    text = files("remerge.advice").joinpath("rules.yaml").read_text(encoding="utf-8")
    return Rules.model_validate(_with_words(yaml.safe_load(text)))


def _with_words(document: Any) -> Any:
    """YAML reads a bare yes as true."""
    for rule in document["rules"]:
        if "is" in rule:
            words = {True: "yes", False: "no"}
            rule["is"] = {words.get(key, key): weight for key, weight in rule["is"].items()}
    return document


def _word(fact: str, value: Any) -> str:
    if fact == "quantize":
        return "none" if value == "none" else "wanted"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
