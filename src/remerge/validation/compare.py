"""The merged artefact against the adapter on its base: weights, probabilities, task scores, and a
gate with a verdict. Adapters run on their base by PEFT itself, the artefact in its own engine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from remerge.artefacts.card.writing import refresh_card
from remerge.artefacts.making import Report
from remerge.artefacts.recording import input_name
from remerge.artefacts.test_result import (
    Bisection,
    Differing,
    Figures,
    GateResult,
    LogitsResult,
    TaskResult,
    statement,
    write_test_result,
)
from remerge.merging.budget import Resources
from remerge.validation.bisecting import Case, bisect
from remerge.validation.compared import open_compared
from remerge.validation.comparison_judged import (
    compare_task,
    compare_texts,
    harness_figures,
    served_gates,
    tokens_gate,
)
from remerge.validation.comparison_run import Asking, Run, Settings, open_run
from remerge.validation.gate import harness_gates
from remerge.validation.harness import Harness
from remerge.validation.limits import Gate, limit_of
from remerge.validation.loaded_weights import Loaded, loaded_weights
from remerge.validation.paired import score_gate
from remerge.validation.proposing import Proposing, Verdict
from remerge.validation.sides import by_method
from remerge.validation.weights import compare_weights

# Of differing answers so many are kept.
_SHOWN = 200


@dataclass(frozen=True)
class CompareReport:
    """What a comparison found: the artefact, all figures, and where they were written down (None
    where they could not be, or were not to be)."""

    output: Path
    figures: Figures
    written: Path | None
    wrong: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.figures.verdict == "passed"


def compare(
    base: str | Path | None,
    adapters: Sequence[str | Path],
    output: Path,
    asking: Asking,
    settings: Settings,
    report: Report,
) -> CompareReport:
    """Compare and judge. Raises what opening the inputs and reading the questions raises, and what
    an engine raises that cannot load the artefact; a gate that does not hold raises nothing."""
    started = time.time()
    compared = open_compared(base, adapters, output, settings.options, settings.max_memory)
    with tempfile.TemporaryDirectory(prefix="remerge-compare-") as folder:
        work = Path(folder)
        run = open_run(compared, asking, settings, work)
        loaded = _weights(run, settings, report)
        run.ask_servers(settings.endpoints, report, as_chat=asking.as_chat)
        run.ask(report)
        harness = harness_figures(run, settings, report)

        def again(place: Path) -> bool:
            plain = replace(settings, form=None, record=False, bisect=False)
            return compare(base, adapters, place, asking, plain, report).passed

        return _reported(run, loaded, harness, settings, started, again, report)


def _weights(run: Run, settings: Settings, report: Report) -> Loaded:
    """The stored tensors against the merge, where the artefact holds tensors to read."""
    compared, coarse = run.compared, limit_of(run.form).noise
    if compared.artefact.kind == "gguf":
        return loaded_weights(run.sides, coarse, report)
    if compared.artefact.kind != "checkpoint":
        return Loaded(None)
    threads = Resources.of(settings.max_memory, settings.running.threads, quantised=True).threads

    def told(done: int, total: int, tensor: str) -> None:
        report(done, total, "elements")

    place = compared.artefact.place
    return Loaded(compare_weights(place, compared.plan, threads, told, coarse))


def _reported(
    run: Run,
    loaded: Loaded,
    harness: Harness | None,
    settings: Settings,
    started: float,
    again: Callable[[Path], bool],
    report: Report,
) -> CompareReport:
    compared, told, weights = run.compared, run.sides.told.get("artefact", {}), loaded.weights
    run.notes += [loaded.note] if loaded.note else []
    gates = list(compared.gates)
    if weights is not None:
        gates.append(weights.gate)
        if weights.result.unknown:
            run.notes.append(
                f"{len(weights.result.unknown)} tensors of the artefact are not the merge's, first "
                f"{weights.result.unknown[0]}."
            )
    run.notes += told.get("notes", [])
    logits: list[LogitsResult] = []
    if "merged" in run.served:
        gates += served_gates(run)
    else:
        gates.append(tokens_gate(run, told))
    if told.get("loaded_only"):
        gates.append(Gate("scores", f"none: {told['loaded_only']}", "some", False))
    elif "merged" not in run.served:
        for texts in run.sets.texts:
            result, holds = compare_texts(run, texts)
            logits.append(result)
            gates += holds
    tasks: list[TaskResult] = []
    shown: list[Differing] = []
    for task in run.sets.tasks if not told.get("loaded_only") else ():
        result, apart = compare_task(run, task)
        tasks.append(result)
        shown += apart
        gates.append(score_gate(result, run.thresholds.max_drop))
    if harness is not None:
        gates += harness_gates(harness, run.thresholds.max_drop)
        run.notes += harness.notes
    if len(shown) > _SHOWN:
        run.notes.append(f"Of {len(shown)} differing answers the first {_SHOWN} are kept.")
    passed = all(gate.passed for gate in gates)
    bisection = None
    if settings.bisect and not passed:
        bisection = _bisection(run, loaded, settings, gates, again, report)
    versions: dict[str, str] = {}
    for said in run.sides.told.values():
        versions |= said.get("versions", {})
    versions |= {} if harness is None else harness.versions
    weighed = "the adapter on its base, by PEFT"
    if run.reference == "merge":
        weighed = "the merge, rounded once to float32"
    elif len(compared.inputs.adapters) > 1:
        weighed = "the adapters together on their base, by PEFT"
    figures = Figures(
        started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        seconds=round(time.time() - started, 3),
        verdict="passed" if passed else "failed",
        reference=weighed,
        engine="a server" if "merged" in run.served else run.sides.scorer.name,
        format=run.form,
        device=settings.running.device,
        dtype=settings.running.dtype,
        nbytes=compared.nbytes,
        command=settings.command,
        gates=tuple(GateResult(**vars(gate)) for gate in gates),
        weights=None if weights is None else weights.result,
        logits=tuple(logits),
        tasks=tuple(tasks),
        harness=() if harness is None else harness.results,
        differing=tuple(shown[:_SHOWN]),
        bisection=bisection,
        costs=tuple(run.sides.costs),
        notes=tuple(dict.fromkeys(run.notes)),
        versions=versions,
    )
    run.sides.memory.trim(run.sides.folders)
    written = _record(run, figures) if settings.record else None
    return CompareReport(
        compared.artefact.place, figures, written, weights.wrong if weights else ()
    )


def _bisection(
    run: Run,
    loaded: Loaded,
    settings: Settings,
    gates: Sequence[Gate],
    again: Callable[[Path], bool],
    report: Report,
) -> Bisection | None:
    """Where the divergence comes from; what is to be said of it is noted."""
    inputs = run.compared.inputs

    def judge(sides: Sequence[str], tasks: bool) -> list[Verdict]:
        wanted = run.wanted_rows(tasks=tasks)
        run.sides.ask({side: wanted for side in sides if side != "artefact"}, (), report)
        return [_verdict(run, side, tasks=tasks) for side in sides]

    def scores(method: str) -> bool:
        side = f"method:{method}"
        run.sides.answers |= by_method(run.sides, method, run.wanted_rows(tasks=True), report)
        results = [compare_task(run, task, side)[0] for task in run.sets.tasks]
        return all(score_gate(result, run.thresholds.max_drop).passed for result in results)

    paths = [adapter.path for adapter in inputs.adapters]
    proposing = Proposing(
        make=None if settings.make is None else partial(settings.make, inputs.base.path, paths),
        again=again,
        scores=scores,
        form=run.form,
        base=input_name(inputs.base_reference),
        adapters=tuple(map(input_name, inputs.adapter_references)),
        output=run.compared.artefact.place.name,
        names=loaded.names,
    )
    case = Case(
        sides=run.sides,
        reference=run.reference,
        texts=run.sets.texts,
        items=run.sets.items,
        weights=loaded.weights,
        failed=[gate for gate in gates if not gate.passed],
        judge=judge,
        proposing=proposing,
    )
    found, notes = bisect(case, report)
    run.notes += notes
    return found


def _verdict(run: Run, side: str, *, tasks: bool) -> Verdict:
    """On a side that was asked all texts, and all ``tasks`` too."""
    scored = [compare_texts(run, texts, side) for texts in run.sets.texts]
    holds = [gate for _, gates in scored for gate in gates]
    for task in run.sets.tasks if tasks else ():
        holds.append(score_gate(compare_task(run, task, side)[0], run.thresholds.max_drop))
    kl = sum(result.kl_mean for result, _ in scored) / len(scored)
    return Verdict(all(gate.passed for gate in holds), kl)


def _record(run: Run, figures: Figures) -> Path | None:
    document = statement(figures, run.compared.files, run.sets.files)
    try:
        written = write_test_result(run.compared.artefact.place, document)
    except OSError:
        # A read-only artefact is compared all the same.
        return None
    refresh_card(run.compared.artefact.place)
    return written
