"""Where it hurts: which parts of an artefact cause its divergence. Part by part is given the
merge's values, all else stays the artefact's own, and the same prompts are scored again; what then
is left of the divergence says how much that part had in it.

Tensors that the weights show not to be the merge's come before anything else. Where all are as the
format has them, layers are tried first and then the modules of the worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remerge.artefacts.making import Report
from remerge.artefacts.test_result import Bisection, Suspect
from remerge.engines.scoring import Item
from remerge.errors import RemergeError, UsageError
from remerge.validation.asking_sets import Texts
from remerge.validation.limits import Gate
from remerge.validation.model_parts import (
    Part,
    in_runs,
    layer_of,
    parts_by_layer,
    parts_by_module,
)
from remerge.validation.probing import Probes
from remerge.validation.proposing import Failed, Judge, Proposal, Proposing, propose
from remerge.validation.sides import Sides
from remerge.validation.weights import Weights

# Parts tried at once: layers (neighbours together where a model has more), modules of one layer,
# and layers whose modules are tried.
_LAYERS, _MODULES, _OPENED = 32, 24, 3
# Of wrong tensors at most so many modules are tried alone.
_WRONG = 24
_SHOWN = 12
# A module with this share of its layer's part stands for it.
_ALONE = 0.8
# Where the weights explain less than this of a divergence, something else is at fault.
_EXPLAINED = 0.5
_NOTHING = Part("", ())
# Gates that the model itself has no part in.
_OF_BYTES = ("digests", "made from", "tokenisation")


@dataclass(frozen=True)
class Case:
    """A comparison whose gate failed. ``judge`` says of sides whether the gate holds of
    what they answer; ``failed`` are those that did not hold."""

    sides: Sides
    reference: str
    texts: Sequence[Texts]
    items: Mapping[int, Item]
    weights: Weights | None
    failed: Sequence[Gate]
    judge: Judge
    proposing: Proposing


def bisect(case: Case, report: Report) -> tuple[Bisection | None, list[str]]:
    """Suspects, the worst first, a proposal and its proof; and what is to be said besides. None
    where the artefact cannot be taken apart."""
    artefact = case.sides.compared.artefact
    try:
        if artefact.kind == "onnx":
            raise UsageError(
                "--bisect takes checkpoints and GGUF files apart, and this is ONNX.",
                why="Its graph has weights under names of its own.",
                hint="Bisect a checkpoint or a GGUF file of the same merge.",
            )
        return _bisected(case, report)
    except RemergeError as error:
        return None, [f"It could not be bisected. {error.what}"]


def _bisected(case: Case, report: Report) -> tuple[Bisection, list[str]]:
    if all(gate.name in _OF_BYTES for gate in case.failed):
        (as_it_is,) = case.judge(["artefact"], False)
        failed = Failed((), (), case.failed, as_it_is.kl, as_it_is.kl)
        return _with_proposal(case, failed, [])
    probes = Probes(case.sides, case.reference, _alternating(case), report)
    probes.choose()
    plan = case.sides.compared.plan
    wrong = () if case.weights is None else case.weights.wrong
    wrong = tuple(name for name in wrong if name in plan.tensors)
    everything = Part("", wrong or tuple(plan.tensors))
    found = _of_wrong(wrong, everything, probes) if wrong else _of_all(everything, probes)
    whole, rest = probes.left([_NOTHING, everything])
    notes = [
        f"Bisected on {len(probes.items)} prompts ({probes.positions} positions): KL "
        f"{whole:.2e} as it is, {rest:.2e} with "
        f"{'all wrong tensors' if wrong else 'all weights'} put right."
    ]
    ranked = [
        Suspect(name=part.name, tensors=part.tensors, kl=left, share=_share(whole, left))
        for part, left in found
    ]
    case.sides.costs.append(probes.cost)
    failed = Failed(wrong, tuple(ranked), case.failed, whole, rest)
    bisection, said = _with_proposal(case, failed, notes)
    if whole > 0 and rest > (1 - _EXPLAINED) * whole and not bisection.proven:
        said.append(
            "Most of the divergence is not in these weights: look at the configuration, the "
            "tokenizer, or the engine."
        )
    return bisection, said


def _with_proposal(case: Case, failed: Failed, notes: Sequence[str]) -> tuple[Bisection, list[str]]:
    proposal, said = propose(failed, case.proposing, case.sides, case.judge)
    proposal = proposal or Proposal(None, None, proven=False)
    return Bisection(
        kl=failed.whole,
        suspects=failed.suspects[:_SHOWN],
        proposal=proposal.text,
        command=proposal.command,
        proven=proposal.proven,
    ), [*notes, *said]


def _alternating(case: Case) -> dict[int, Item]:
    """The prompts of all sets in turn, so that the first of them stand for every task."""
    longest = max(len(texts.items) for texts in case.texts)
    order = [t.items[place] for place in range(longest) for t in case.texts if place < len(t.items)]
    return {number: case.items[number] for number in order}


def _share(whole: float, left: float) -> float:
    return (whole - left) / whole if whole > 0 else 0.0


def _of_wrong(wrong: Sequence[str], everything: Part, probes: Probes) -> list[tuple[Part, float]]:
    """Parts that are not the merge's: layers with several wrong modules and single modules, the
    worst first; then the modules of these layers. Two tensors in each other's place are both wrong,
    though neither alone put right makes the model better."""
    order = {name: number for number, name in enumerate(wrong)}
    layers = parts_by_layer(wrong)
    layers.sort(key=lambda part: min(order[name] for name in part.tensors))
    units: list[Part] = []
    inner: list[Part] = []
    for layer in layers[:_LAYERS]:
        modules = parts_by_module(layer.tensors, _WRONG)
        units += [layer] if len(modules) > 1 else modules
        inner += modules if len(modules) > 1 else []
    inner = inner[:_WRONG]
    probes.left([_NOTHING, *units, *inner, everything])
    ranked = _ranked(units, probes)
    place = {part.name: number for number, (part, _) in enumerate(ranked)}
    found = _ranked(inner, probes)
    return ranked + sorted(found, key=lambda one: place[layer_of(one[0].tensors[0])])


def _of_all(everything: Part, probes: Probes) -> list[tuple[Part, float]]:
    """All parts by what goes with them; of the worst layers their modules too."""
    layers = parts_by_layer(everything.tensors)
    units = in_runs(layers, _LAYERS)
    whole, *_ = probes.left([_NOTHING, *units, everything])
    ranked = _ranked(units, probes)
    if len(units) < len(layers):
        names = {tensor for part, _ in ranked[:_OPENED] for tensor in part.tensors}
        ranked = _ranked([part for part in layers if names >= set(part.tensors)], probes)
    opened = [parts_by_module(part.tensors, _MODULES) for part, _ in ranked[:_OPENED]]
    probes.left([module for modules in opened for module in modules])
    found: list[tuple[Part, float]] = []
    for number, (layer, left) in enumerate(ranked):
        modules = opened[number] if number < len(opened) else []
        inner = _ranked(modules, probes) if len(modules) > 1 else []
        alone = inner and whole - inner[0][1] >= _ALONE * (whole - left)
        found += inner if alone else [(layer, left), *inner]
    return sorted(found, key=lambda one: one[1])


def _ranked(parts: Sequence[Part], probes: Probes) -> list[tuple[Part, float]]:
    """Parts with what is left without them, the least left first."""
    return sorted(zip(parts, probes.left(parts), strict=True), key=lambda one: one[1])
