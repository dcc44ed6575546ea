"""Whether adapters get along, as it is written down: figures of every pair, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, ConfigDict

from remerge.merging.conflicts import Measured
from remerge.merging.meetings import Module, Pair, figures

Advice = Literal["sum", "linear", "ties", "keep separate"]

# The thresholds by which figures become advice. ``shared`` counts beyond chance. Fitted to small
# adapters of the example base (docs/conflicts.md): unrelated tasks shared 1 to 4 %, also where both
# began at the same random A; adapters for the same prompts 39 to 71 %, whether or not their answers
# agree.
LITTLE_SHARED = 0.1
MUCH_SHARED = 0.3
# Of two changes this alike either is at most 0.6 of its size away from the other's direction, and
# a sum is nearly twice either.
NEARLY_EQUAL = 0.8
# Unrelated changes have cosines within 0.02 of zero; these point against each other as wholes.
AGAINST = -0.1
MUCH_AGAINST = -0.3

_WORST = 5


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConflictFigures(_Record):
    """Two deltas beside each other (`remerge.merging.meetings.Figures`), to 4 digits."""

    cosine: float | None
    shared: float | None
    shared_by_chance: float | None
    conflict: float | None
    input_overlap: float | None
    output_overlap: float | None
    largest_input_cosine: float | None
    largest_output_cosine: float | None
    sign_conflicts: float | None
    sign_conflicts_weighted: float | None
    norm_ratio: float | None


class ModuleConflict(ConflictFigures):
    """One module that both change; ``weight``: what it counts for in the figures of the pair."""

    name: str
    weight: float | None


class PairConflict(_Record):
    """Two adapters, numbered from 1; ``common`` counts the modules that both change, ``modules``
    are those that conflict most. ``replaced`` are tensors to which both give other values."""

    adapters: tuple[int, int]
    advice: Advice
    reasons: tuple[str, ...]
    overall: ConflictFigures
    common: int
    modules: tuple[ModuleConflict, ...]
    replaced: tuple[str, ...]


class ConflictReport(_Record):
    """All pairs, the worst first, and what to do with all of them together.

    ``not_comparable`` names tensors and the adapters whose delta of them depends on the base.
    """

    advice: Advice
    reasons: tuple[str, ...]
    pairs: tuple[PairConflict, ...]
    not_comparable: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]

    def shortened(self) -> ConflictReport:
        """The same with the worst few modules of each pair."""
        pairs = [p.model_copy(update={"modules": p.modules[:_WORST]}) for p in self.pairs]
        return self.model_copy(update={"pairs": tuple(pairs)})


def report_of(measured: Measured) -> ConflictReport:
    """Figures rounded to what no other LAPACK changes, with advice."""
    pairs = sorted((_pair(pair, measured) for pair in measured.pairs), key=_badness)
    advice, reasons = _together(pairs)
    skipped = {
        name: tuple(number + 1 for number in numbers) for name, numbers in measured.skipped.items()
    }
    return ConflictReport(
        advice=advice,
        reasons=reasons,
        pairs=tuple(pairs),
        not_comparable=skipped,
        notes=tuple(_notes(measured)),
    )


def _pair(pair: Pair, measured: Measured) -> PairConflict:
    overall = _rounded(pair.modules, pair.norms)
    modules = [_module(module, pair.norms) for module in pair.modules]
    modules.sort(key=lambda m: (-(m.conflict or 0.0) * (m.weight or 0.0), m.name))
    replaced = tuple(
        name
        for name, clashes in measured.clashes.items()
        if (pair.one, pair.other) in {(clash.one, clash.other) for clash in clashes}
    )
    advice, reasons = _advice(overall, len(modules), replaced)
    reasons = (*reasons, *_alone(pair, measured))
    return PairConflict(
        adapters=(pair.one + 1, pair.other + 1),
        advice=advice,
        reasons=reasons,
        overall=overall,
        common=len(modules),
        modules=tuple(modules),
        replaced=replaced,
    )


def _module(module: Module, norms: tuple[float, float]) -> ModuleConflict:
    found = _rounded([module], module.norms)
    return ModuleConflict(
        name=module.name,
        weight=_round(module.size / (norms[0] * norms[1])),
        **found.model_dump(),
    )


def _rounded(modules: Sequence[Module], norms: tuple[float, float]) -> ConflictFigures:
    found = asdict(figures(modules, norms))
    return ConflictFigures(**{name: _round(value) for name, value in found.items()})


def _round(value: float | None) -> float | None:
    """Four digits, and nothing of what cancels out but for rounding."""
    return None if value is None else float(f"{round(value, 9):.4g}") + 0.0


def _badness(pair: PairConflict) -> tuple[bool, float, tuple[int, int]]:
    return not pair.replaced, -(pair.overall.conflict or 0.0), pair.adapters


def _alone(pair: Pair, measured: Measured) -> tuple[str, ...]:
    """A sentence on what one of the two replaces whole and the other would have to run on."""
    names = [
        name
        for name, adapters in measured.wholes.items()
        if len({pair.one, pair.other} & adapters) == 1
    ]
    if not names:
        return ()
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"One of them replaces {names[0]}{more} whole: the other would run on what it was not "
        "trained with, which no figure here measures. Evaluate both tasks.",
    )


def _advice(
    found: ConflictFigures, common: int, replaced: Sequence[str]
) -> tuple[Advice, tuple[str, ...]]:
    """What to do with two adapters, and why."""
    if replaced:
        more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        return "keep separate", (
            f"Both replace {replaced[0]}{more} by values of their own, of which one can be kept "
            "(--prefer).",
        )
    if found.cosine is None or found.shared is None or found.shared_by_chance is None:
        return "sum", ("One of the two changes nothing.",)
    if not common:
        return "sum", ("They change nothing in common.",)
    chance = min(found.shared_by_chance, 1.0)
    beyond = (found.shared - chance) / (1.0 - chance) if chance < 1.0 else 0.0
    shared = f"{found.shared:.1%} of their change lies along the same inputs and outputs"
    cosine = f"cosine {found.cosine:.2f}"
    signs = (
        ""
        if found.sign_conflicts_weighted is None
        else f" {found.sign_conflicts_weighted:.0%} of it has opposite signs, by weight (chance: "
        "50%)."
    )
    if found.cosine >= NEARLY_EQUAL:
        return "linear", (
            f"They make nearly the same change ({cosine}): a sum would make it twice, a mean "
            "(linear) once.",
        )
    if found.cosine <= MUCH_AGAINST:
        return "keep separate", (
            f"They undo each other ({cosine}).{signs}",
            f"{shared}.",
        )
    if beyond >= MUCH_SHARED:
        return "keep separate", (
            f"{shared} (by chance: {found.shared_by_chance:.1%}), but it is not the same change "
            f"({cosine}): together they may do neither.{signs}",
            "If they were trained for the same answers, linear takes their mean; the factors alone "
            "cannot tell.",
        )
    if beyond >= LITTLE_SHARED or found.cosine <= AGAINST:
        return "ties", (
            f"{shared} (by chance: {found.shared_by_chance:.1%}, {cosine}): where they disagree, "
            f"one sign should win.{signs}",
        )
    return "sum", (
        f"They hardly meet: {shared} (by chance: {found.shared_by_chance:.1%}, {cosine}).",
        "Nothing in their directions speaks against a sum; how much of both it keeps, only an "
        "evaluation tells.",
    )


def _together(pairs: Sequence[PairConflict]) -> tuple[Advice, tuple[str, ...]]:
    """What to do with all adapters: what the worst pair allows."""
    for advice in ("keep separate", "ties"):
        bad = [pair for pair in pairs if pair.advice == advice]
        if bad:
            return advice, bad[0].reasons
    equal = [pair for pair in pairs if pair.advice == "linear"]
    if not equal:
        largest = max(pairs, key=lambda pair: pair.overall.shared or 0.0, default=None)
        return "sum", largest.reasons if largest is not None else ()
    if len(equal) == len(pairs):
        return "linear", equal[0].reasons
    return "ties", (
        "Some of them make nearly the same change, others another: TIES takes the mean where they "
        "agree, a sum would make the common change twice.",
    )


def _notes(measured: Measured) -> list[str]:
    notes: list[str] = []
    if measured.dora:
        notes.append("Of DoRA its low-rank product is compared, without the rescaling of the base.")
    if measured.skipped:
        some = ", ".join(list(measured.skipped)[:3])
        more = " and others" if len(measured.skipped) > 3 else ""
        notes.append(
            f"Not compared: {some}{more}, where the change of an adapter depends on the base."
        )
    sampled = any(m.meeting is None for pair in measured.pairs for m in pair.modules)
    if sampled:
        notes.append("Modules without low-rank factors are compared on a sample of their elements.")
    return notes
