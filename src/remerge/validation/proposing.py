"""What would pass: the smallest change to an artefact whose gate failed, and its proof."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remerge.artefacts.test_result import Suspect
from remerge.errors import RemergeError
from remerge.merging.schemes.registry import SCHEMES
from remerge.sources.checkpoint import StoredTensor, open_checkpoint
from remerge.sources.reading import decoded
from remerge.validation.limits import FORMATS, Gate
from remerge.validation.model_parts import module_of
from remerge.validation.remaking import Make, command_of, options_of
from remerge.validation.sides import Sides

# More of the weights than this kept apart is another format.
_FEW = 0.25
# Changed artefacts that are made to be proven.
_TRIES = 3
# From coarse to fine, by what --to says; a checkpoint in 16 bits comes after the last.
_SCHEMES = ("nvfp4", "fp8", "w8a8")
_GGUF = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32")
_METHODS = ("sum", "linear", "ties", "dare_ties", "dare_linear", "della", "breadcrumbs", "sce")


@dataclass(frozen=True)
class Verdict:
    """Whether the gate holds of a side, and its mean divergence in nats."""

    passed: bool
    kl: float


# Asks sides everything, answers to questions too or texts alone.
Judge = Callable[[Sequence[str], bool], list[Verdict]]


@dataclass(frozen=True)
class Failed:
    """What a bisection knows: tensors that are not the merge's, suspects, the gates that did not
    hold, the divergence (``whole``) and what is left of it with all of that put right."""

    wrong: tuple[str, ...]
    suspects: tuple[Suspect, ...]
    gates: Sequence[Gate]
    whole: float
    rest: float


@dataclass(frozen=True)
class Proposing:
    """How changes are tried. ``make`` makes an artefact anew (None: nothing can be), ``again``
    judges what lies at a place by the same gate; ``scores`` says whether the scores of a merge by
    another method pass. ``form`` is the artefact's, ``names`` GGUF's names of its tensors; the rest
    are the words of a command."""

    make: Make | None
    again: Callable[[Path], bool]
    scores: Callable[[str], bool]
    form: str
    base: str
    adapters: tuple[str, ...]
    output: str
    names: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Proposal:
    """In words and as a command; ``proven`` where what it makes passed the gate."""

    text: str | None
    command: str | None
    proven: bool


@dataclass(frozen=True)
class _Change:
    """Options with a change, and what it is."""

    text: str
    options: Mapping[str, Any]


def propose(
    failed: Failed, how: Proposing, sides: Sides, judge: Judge
) -> tuple[Proposal | None, list[str]]:
    """The first change that passes, and what is to be said; None where nothing was found."""
    try:
        options: dict[str, Any] | None = options_of(sides.compared, how.form)
        said: list[str] = []
    except RemergeError as error:
        options, said = None, [f"Nothing is proposed to be made anew. {error.what}"]
    changed = any(
        not gate.passed and gate.name in ("digests", "made from") for gate in failed.gates
    )
    if failed.wrong or changed:
        again = _merge_again(failed, how, sides, judge, options)
        others = any(gate.name not in ("digests", "made from") for gate in failed.gates)
        if failed.wrong or again.proven or not others:
            return again, said
    if options is None:
        return None, said
    lost = any(gate.name.startswith("score") for gate in failed.gates)
    if lost and len(how.adapters) > 1:
        found = _other_method(how, options)
        if found is not None:
            return found, said
        said.append("No other method passes its scores on the merge as it would be.")
    changes = _kept(failed, how, sides, judge, options)
    changes += _finer(failed, how, options)
    for change in changes[:_TRIES]:
        if _proven(change.options, how):
            return _proposal(change, how, proven=True), said
    if changes and how.make is None:
        return _proposal(changes[0], how, proven=False), said
    said.append("Nothing that was tried passes.")
    return None, said


def _proposal(change: _Change, how: Proposing, *, proven: bool) -> Proposal:
    command = command_of(how.base, how.adapters, how.output, change.options)
    return Proposal(change.text, command, proven)


def _proven(options: Mapping[str, Any], how: Proposing) -> bool:
    """Whether what these options make passes; it is made beside nothing else, and deleted."""
    if how.make is None:
        return False
    with tempfile.TemporaryDirectory(prefix="remerge-proof-") as folder:
        try:
            return how.again(how.make(options, Path(folder) / "made"))
        except RemergeError:
            return False


def _merge_again(
    failed: Failed,
    how: Proposing,
    sides: Sides,
    judge: Judge,
    options: Mapping[str, Any] | None,
) -> Proposal:
    """The artefact is not what its recipe says. Proven with the wrong tensors put right, or else by
    merging."""
    named = f", first {failed.wrong[0]}" if failed.wrong else ""
    text = (
        f"Merge again: {len(failed.wrong)} tensors are not what the recipe makes of base and "
        f"adapter{named}."
        if failed.wrong
        else "Merge again: the artefact is not what its manifest says."
    )
    proven = False
    if failed.wrong:
        side = "artefact:right"
        sides.repairs[side] = failed.wrong
        proven = judge([side], True)[0].passed
    proven = proven or (options is not None and _proven(options, how))
    command = None
    if options is not None:
        command = command_of(how.base, how.adapters, how.output, options)
    return Proposal(text, command, proven)


def _other_method(how: Proposing, options: Mapping[str, Any]) -> Proposal | None:
    """Another way to combine the adapters, the first whose scores pass."""
    asked = str(options.get("method", "sum"))
    kept = {key: value for key, value in options.items() if key not in ("method", "parameters")}
    for method in _METHODS:
        if method != asked and how.scores(method):
            changed = {"method": method, **kept}
            proven = _proven(changed, how)
            change = _Change(f"Combine the adapters by {method} instead of {asked}.", changed)
            return _proposal(change, how, proven=proven)
    return None


def _kept(
    failed: Failed, how: Proposing, sides: Sides, judge: Judge, options: Mapping[str, Any]
) -> list[_Change]:
    """The fewest of the suspects, the worst first, with which the gate passes when they are as the
    merge has them."""
    allowed = _changeable(sides)
    sizes = {name: math.prod(t.shape) for name, t in sides.compared.plan.tensors.items()}
    steps: list[tuple[str, ...]] = []
    room = _FEW * sum(sizes.values())
    inner = [set(one.tensors) for one in failed.suspects]
    for suspect in sorted(failed.suspects, key=lambda one: -one.share):
        mine = set(suspect.tensors)
        fresh = tuple(n for n in suspect.tensors if allowed is None or n in allowed)
        size = sum(sizes[name] for name in fresh)
        # Of what was divided the parts are taken.
        if suspect.share <= 0 or any(mine > other for other in inner) or not 0 < size <= room:
            continue
        room -= size
        steps.append(fresh)
    if not steps:
        return []

    limit = _stated_kl(failed.gates)

    def first(counts: Sequence[int]) -> int | None:
        """The smallest of these numbers of steps with which it passes, all tried in one run."""
        sides.repairs.clear()
        for count in (0, *counts):
            kept = sorted(name for step in steps[:count] for name in step)
            sides.repairs[f"artefact:kept{count}"] = tuple(kept)
        real, none, *found = judge(["artefact", *sides.repairs], False)
        # An engine that rounds activations too diverges by more than the weights alone do.
        scale = max(1.0, real.kl / none.kl) if none.kl > 0 else 1.0
        for count, verdict in zip(counts, found, strict=True):
            if verdict.passed and (limit is None or verdict.kl * scale <= limit):
                return count
        return None

    doubled = sorted({len(steps), *(2**n for n in range(len(steps).bit_length()))})
    high = first(doubled)
    if high is None:
        return []
    between = range(doubled[doubled.index(high) - 1] + 1 if high > 1 else 1, high)
    stride = max(1, len(between) // 8)
    high = (first(between[::stride]) if between else None) or high
    # What is kept is a little less than exact: more of it is the second try.
    found = [
        _keeping(steps[:count], how, options)
        for count in dict.fromkeys((high, min(2 * high, len(steps))))
    ]
    return [change for change in found if change is not None]


def _changeable(sides: Sides) -> frozenset[str] | None:
    """The tensors that a scheme quantised, which alone can be left out of it; None for all."""
    artefact = sides.compared.artefact
    if artefact.kind != "checkpoint":
        return None
    reads = decoded(open_checkpoint(artefact.place)).tensors
    coded = frozenset(n for n, source in reads.items() if not isinstance(source, StoredTensor))
    return coded or None


def _keeping(
    steps: Sequence[Sequence[str]], how: Proposing, options: Mapping[str, Any]
) -> _Change | None:
    to = str(options.get("to", "safetensors"))
    tensors = [name for step in steps for name in step]
    shown = ", ".join(dict.fromkeys(map(module_of, tensors)))
    if to.startswith("gguf:"):
        patterns = [rf"^{re.escape(how.names[n])}$" for n in tensors if n in how.names]
        finer = "F16" if to == "gguf:Q8_0" else "Q8_0"
        if not patterns or to in ("gguf:F16", "gguf:BF16", "gguf:F32"):
            return None
        given = [f"{pattern}={finer}" for pattern in dict.fromkeys(patterns)]
        changed = {**options, "tensor_type": [*given, *options.get("tensor_type", ())]}
        return _Change(f"Keep {shown} in {finer}.", changed)
    if to in SCHEMES:
        modules = list(dict.fromkeys(map(module_of, tensors)))
        changed = {**options, "ignore": sorted({*modules, *options.get("ignore", ())})}
        return _Change(f"Leave {shown} unquantised.", changed)
    if to != "safetensors" or options.get("requantize") or options.get("dtype") == "float32":
        return None
    changed = {**options, "keep_float32": sorted({*tensors, *options.get("keep_float32", ())})}
    return _Change(f"Keep {shown} in float32.", changed)


def _finer(failed: Failed, how: Proposing, options: Mapping[str, Any]) -> list[_Change]:
    """Better formats, the next first; those that would not do by far are passed over."""
    to = str(options.get("to", "safetensors"))
    if to.startswith("gguf:"):
        now = FORMATS[to.removeprefix("gguf:")].noise
        found = [(f"gguf:{name}", FORMATS[name].noise) for name in _GGUF]
        dropped = {"tensor_type"}
    elif to in SCHEMES:
        now = FORMATS[how.form].noise
        forms = {"nvfp4": "fp4", "fp8": "fp8", "w8a8": "int8"}
        found = [(name, FORMATS[forms[name]].noise) for name in _SCHEMES]
        found.append(("safetensors", FORMATS["bfloat16"].noise))
        dropped = {"ignore", "quantize_experts"}
    elif to == "safetensors" and options.get("dtype") != "float32":
        changed = {k: v for k, v in options.items() if k != "keep_float32"}
        return [_Change("Write all of it in float32.", {**changed, "dtype": "float32"})]
    else:
        return []
    limit = _stated_kl(failed.gates)
    changes: list[_Change] = []
    for name, noise in found:
        # Divergence goes with the square of the errors.
        expected = failed.whole * (noise / now) ** 2
        if noise < now and (limit is None or expected <= 2 * limit):
            kept = {key: value for key, value in options.items() if key not in {"to", *dropped}}
            changes.append(_Change(f"Write {_called(name)} instead of {to}.", {**kept, "to": name}))
    return changes


def _called(name: str) -> str:
    return "a checkpoint in the base's own dtype" if name == "safetensors" else name


def _stated_kl(gates: Sequence[Gate]) -> float | None:
    """The smallest limit of a divergence that was passed over."""
    limits = [float(g.limit) for g in gates if g.name.startswith("KL divergence") and not g.passed]
    return min(limits, default=None)
