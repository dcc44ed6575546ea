"""The merged artefact against the adapter on its base: weights, probabilities, task scores, and a
gate with a verdict. Adapters run on their base by PEFT itself, the artefact in its own engine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from remerge.artefacts.making import Report, write_side_file
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
from remerge.engines.scoring import Item, Questions
from remerge.engines.tokenisation import TEXTS, differences, of_composed, open_tokenizer
from remerge.merging.budget import DEFAULT, Resources
from remerge.merging.plan import Plan
from remerge.sources.documents import as_object, parse_json
from remerge.validation import judging
from remerge.validation.asking_sets import Limits, Sets, Task, Texts, judged, make_sets
from remerge.validation.bisecting import Case, bisect
from remerge.validation.compared import Compared, open_compared
from remerge.validation.gate import Thresholds, logits_gates, of_arithmetic
from remerge.validation.limits import Gate, limit_of, share_gate, tokenisation_gate
from remerge.validation.loaded_weights import Loaded, loaded_weights
from remerge.validation.memory import check_memory
from remerge.validation.paired import differing, score_gate, task_result
from remerge.validation.proposing import Proposing, Verdict
from remerge.validation.remaking import Make
from remerge.validation.remembered_answers import open_memory
from remerge.validation.score_comparison import Comparison, adapter_share
from remerge.validation.score_comparison import compare as compare_scores
from remerge.validation.sides import Running, Sides, by_method, scorer_of
from remerge.validation.tasks import Evaluation
from remerge.validation.weights import compare_weights

# Of differing answers so many are kept.
_SHOWN = 200


@dataclass(frozen=True)
class Asking:
    """What the models are asked (docs/compare.md)."""

    evaluations: tuple[Evaluation, ...] = ()
    scorer: judging.Scorer | None = None
    text: Path | None = None
    prompts: Path | None = None
    limit: int | None = None
    tokens: int = 512
    answer_tokens: int | None = None
    as_chat: bool = True


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


@dataclass(frozen=True)
class Settings:
    """How a comparison is run; ``form`` names the format whose limits hold, ``record`` says whether
    the result is written beside the artefact, ``remember`` whether answers are kept. ``bisect``
    finds what a failed gate comes from; changes are proven by what ``make`` makes."""

    running: Running
    thresholds: Thresholds = field(default_factory=Thresholds)
    engine: str | None = None
    form: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    record: bool = True
    remember: bool = True
    command: str = ""
    max_memory: int = DEFAULT
    bisect: bool = False
    make: Make | None = None


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
        run = _open(compared, asking, settings, work)
        loaded = _weights(run, settings, report)
        run.ask(report)

        def again(place: Path) -> bool:
            plain = replace(settings, form=None, record=False, bisect=False)
            return compare(base, adapters, place, asking, plain, report).passed

        return _reported(run, loaded, settings, started, again, report)


@dataclass
class _Run:
    """One comparison under way. ``reference`` is the side that the artefact is held to; ``own``
    names the adapter side of each task."""

    compared: Compared
    sets: Sets
    sides: Sides
    tokenizer: Any
    form: str
    reference: str
    own: Mapping[str, str]
    texts: tuple[str, ...]
    thresholds: Thresholds
    notes: list[str]

    def ask(self, report: Report) -> None:
        """Ask all sides; where PEFT cannot put the adapters on, the merge takes its place."""
        self.sides.ask(self._wanted(), self.texts, report)
        for side in [name for name in self.sides.refused if name.startswith("adapter")]:
            which = side.partition(":")[2]
            said = self.sides.refused[side].rstrip(".")
            self.notes.append(
                f"The merge in float32 stands for the adapter{f' {which}' if which else ''} on its "
                f"base: {said}."
            )
            if side == self.reference:
                self.reference = "merge"
            self.own = {
                name: "merge" if other == side else other for name, other in self.own.items()
            }
        if "merge" in (self.reference, *self.own.values()):
            self.sides.ask({"merge": self._wanted(merge=True)["merge"]}, (), report)

    def wanted_rows(self, *, tasks: bool) -> dict[int, Item]:
        """The items of all texts, and of all ``tasks`` too."""
        numbers = [number for texts in self.sets.texts for number in texts.items]
        for task in self.sets.tasks if tasks else ():
            numbers += task.items
        return {number: self.sets.items[number] for number in sorted(set(numbers))}

    def _wanted(self, *, merge: bool = False) -> dict[str, dict[int, Any]]:
        rows = [number for texts in self.sets.texts for number in texts.items]
        tasks = {task.questions.name: task.items for task in self.sets.tasks}
        every = [number for items in tasks.values() for number in items]
        wanted: dict[str, list[int]] = {"base": [*rows, *every], "artefact": [*rows, *every]}
        if merge:
            wanted["merge"] = [*rows, *every]
        elif self.reference != "merge":
            wanted[self.reference] = list(rows)
        for name, side in self.own.items():
            if side != "merge":
                wanted[side] = [*wanted.get(side, []), *tasks[name]]
        if self.sides.noise:
            wanted["noise"] = rows
        return {
            side: {number: self.sets.items[number] for number in sorted(set(numbers))}
            for side, numbers in wanted.items()
        }


def _open(compared: Compared, asking: Asking, settings: Settings, work: Path) -> _Run:
    running = settings.running
    scorer = scorer_of(compared, settings.engine)
    tokenizer, ends = _tokenizer(compared.plan, work)
    positions = _positions(compared.plan.config)
    limits = Limits(
        asking.limit,
        asking.tokens,
        asking.answer_tokens,
        positions,
        _vocabulary(compared.plan),
        asking.as_chat,
    )
    sets = make_sets(
        asking.evaluations, asking.scorer, asking.text, asking.prompts, tokenizer, limits
    )
    form = settings.form or compared.artefact.format or "unknown"
    limit = of_arithmetic(limit_of(form), running.dtype)
    check_memory(compared.plan, running.dtype, running.device)
    texts = tuple(dict.fromkeys((*TEXTS, *(t for one in sets.texts for t in one.texts))))
    scores = work / "scores"
    scores.mkdir()
    memory = open_memory(kept=settings.remember)
    sides = Sides(compared, scorer, running, memory, limit.noise, ends, scores)
    together = compared.adapter_weights is not None
    labels = compared.inputs.labels
    reference = "adapter:" if together else "merge"
    own = {
        task.questions.name: f"adapter:{task.questions.name}"
        if len(labels) > 1 and task.questions.name in labels
        else reference
        for task in sets.tasks
    }
    notes = [*compared.notes, *compared.plan.notes, *sets.notes]
    return _Run(
        compared,
        sets,
        sides,
        tokenizer,
        form,
        reference,
        own,
        texts,
        settings.thresholds,
        notes,
    )


def _tokenizer(plan: Plan, work: Path) -> tuple[Any, list[int]]:
    """The merge's tokenizer, and the tokens that end an answer: its own, and what the model's
    configurations name."""
    directory = work / "tokenizer"
    directory.mkdir()
    found: set[int] = set()
    for side in plan.side_files:
        if side.name.endswith((".safetensors", ".py", ".index.json")):
            continue
        write_side_file(directory, side)
        if side.name == "generation_config.json":
            stated = as_object(parse_json((directory / side.name).read_text("utf-8"))) or {}
            found |= _tokens(stated.get("eos_token_id"))
    tokenizer = open_tokenizer(directory)
    text = as_object(plan.config.get("text_config")) or {}
    for stated in (
        plan.config.get("eos_token_id"),
        text.get("eos_token_id"),
        getattr(tokenizer, "eos_token_id", None),
    ):
        found |= _tokens(stated)
    return tokenizer, sorted(found)


def _tokens(stated: object) -> set[int]:
    listed: list[Any] = list(stated) if isinstance(stated, list) else [stated]  # pyright: ignore[reportUnknownArgumentType]
    return {token for token in listed if isinstance(token, int) and not isinstance(token, bool)}


def _positions(config: Mapping[str, Any]) -> int:
    text = as_object(config.get("text_config")) or config
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        places = text.get(key)
        if isinstance(places, int) and places > 1:
            return places
    return 2**31


def _vocabulary(plan: Plan) -> int:
    text = as_object(plan.config.get("text_config")) or {}
    size = plan.config.get("vocab_size", text.get("vocab_size"))
    return size if isinstance(size, int) and size > 0 else 2**17


def _weights(run: _Run, settings: Settings, report: Report) -> Loaded:
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
    run: _Run,
    loaded: Loaded,
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
    gates.append(_cuts(run, told))
    logits: list[LogitsResult] = []
    if told.get("loaded_only"):
        gates.append(Gate("scores", f"none: {told['loaded_only']}", "some", False))
    else:
        for texts in run.sets.texts:
            result, holds = _compare_texts(run, texts)
            logits.append(result)
            gates += holds
    tasks: list[TaskResult] = []
    shown: list[Differing] = []
    for task in run.sets.tasks if not told.get("loaded_only") else ():
        result, apart = _compare_task(run, task)
        tasks.append(result)
        shown += apart
        gates.append(score_gate(result, run.thresholds.max_drop))
    if len(shown) > _SHOWN:
        run.notes.append(f"Of {len(shown)} differing answers the first {_SHOWN} are kept.")
    passed = all(gate.passed for gate in gates)
    bisection = None
    if settings.bisect and not passed:
        bisection = _bisection(run, loaded, settings, gates, again, report)
    versions: dict[str, str] = {}
    for said in run.sides.told.values():
        versions |= said.get("versions", {})
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
        engine=run.sides.scorer.name,
        format=run.form,
        device=settings.running.device,
        dtype=settings.running.dtype,
        nbytes=compared.nbytes,
        command=settings.command,
        gates=tuple(GateResult(**vars(gate)) for gate in gates),
        weights=None if weights is None else weights.result,
        logits=tuple(logits),
        tasks=tuple(tasks),
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
    run: _Run,
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
        results = [_compare_task(run, task, side)[0] for task in run.sets.tasks]
        return all(score_gate(result, run.thresholds.max_drop).passed for result in results)

    proposing = Proposing(
        make=settings.make,
        again=again,
        scores=scores,
        form=run.form,
        base=str(inputs.base_reference),
        adapters=tuple(map(str, inputs.adapter_references)),
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


def _verdict(run: _Run, side: str, *, tasks: bool) -> Verdict:
    """On a side that was asked all texts, and all ``tasks`` too."""
    scored = [_compare_texts(run, texts, side) for texts in run.sets.texts]
    holds = [gate for _, gates in scored for gate in gates]
    for task in run.sets.tasks if tasks else ():
        holds.append(score_gate(_compare_task(run, task, side)[0], run.thresholds.max_drop))
    kl = sum(result.kl_mean for result, _ in scored) / len(scored)
    return Verdict(all(gate.passed for gate in holds), kl)


def _record(run: _Run, figures: Figures) -> Path | None:
    document = statement(figures, run.compared.files, run.sets.files)
    try:
        return write_test_result(run.compared.artefact.place, document)
    except OSError:
        # A read-only artefact is compared all the same.
        return None


def _cuts(run: _Run, told: Mapping[str, Any]) -> Gate:
    expected = [list(run.tokenizer(text)["input_ids"]) for text in run.texts]
    every = differences(expected, told["tokens"])
    cuts = of_composed(every, run.texts)
    if len(every) > len(cuts):
        run.notes.append(
            "The tokenizer composes Unicode characters (NFC), and the engine takes text as it "
            "comes: letters with marks of their own are cut otherwise."
        )
    run.notes += [f"Cut differently: {cut}" for cut in cuts[:3]]
    return tokenisation_gate(len(run.texts), len(cuts))


def _compare_texts(
    run: _Run, texts: Texts, side: str = "artefact"
) -> tuple[LogitsResult, list[Gate]]:
    items = [run.sets.items[number] for number in texts.items]
    questions = Questions((), tuple(item.ids for item in items), 0, 0)
    truth = run.sides.scores(run.reference, items)
    engine = run.sides.scores(side, items)
    found = compare_scores(truth, engine, questions)
    noise: Comparison | None = None
    if run.sides.noise:
        noise = compare_scores(truth, run.sides.scores("noise", items), questions)
    form = of_arithmetic(limit_of(run.form), run.sides.running.dtype)
    holds = logits_gates(texts.name, found, form, noise, run.thresholds)
    base = None
    if "base" not in run.sides.refused:
        alone = run.sides.scores("base", items)
        base = compare_scores(truth, alone, questions).perplexity
        share = share_gate(adapter_share(alone, truth, engine))
        if share is None:
            run.notes.append(
                f"{texts.name}: these texts cannot tell whether the adapter is there: it hardly "
                "changes what comes next. Give some of its task with --eval."
            )
        else:
            holds.append(
                Gate(f"{share.name}, {texts.name}", share.measured, share.limit, share.passed)
            )
    result = LogitsResult(
        name=texts.name,
        prompts=len(items),
        positions=found.positions,
        vocabulary=found.vocabulary,
        likeliest=found.likeliest,
        differing=found.logits.of,
        difference_mean=found.logits.mean,
        difference_max=found.logits.largest,
        kl_mean=found.kl_mean,
        kl_max=found.kl_max,
        noise_kl=None if noise is None else noise.kl_mean,
        top1=found.top1,
        top5=found.top5,
        perplexity_base=base,
        perplexity_adapter=found.perplexity_reference,
        perplexity_merged=found.perplexity,
    )
    return result, holds


def _compare_task(
    run: _Run, task: Task, side: str = "artefact"
) -> tuple[TaskResult, tuple[Differing, ...]]:
    name = task.questions.name

    def of(side: str) -> judging.Answered:
        answers = {number: run.sides.answers[side, number] for number in task.items}
        return judged(task, answers, run.tokenizer)

    base = None if "base" in run.sides.refused else of("base")
    adapter, merged = of(run.own[name]), of(side)
    result = task_result(
        name,
        task.questions.scorer,
        base=None if base is None else base.scores,
        adapter=adapter.scores,
        merged=merged.scores,
    )
    return result, differing(task.questions, base=base, adapter=adapter, merged=merged)
