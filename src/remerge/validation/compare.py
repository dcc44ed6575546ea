"""The merged artefact against the adapter on its base: weights, probabilities, task scores, and a
gate with a verdict. Adapters run on their base by PEFT itself, the artefact in its own engine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from remerge.artefacts.digests import input_digests
from remerge.artefacts.making import Report, write_side_file
from remerge.artefacts.test_result import (
    Differing,
    Figures,
    GateResult,
    LogitsResult,
    TaskResult,
    statement,
    write_test_result,
)
from remerge.engines.endpoint_client import Endpoint
from remerge.engines.scoring import Item, Questions
from remerge.engines.tokenisation import TEXTS, differences, of_composed, open_tokenizer
from remerge.errors import UsageError
from remerge.merging.budget import DEFAULT, Resources
from remerge.merging.plan import Plan
from remerge.sources.documents import as_object, parse_json
from remerge.validation import judging
from remerge.validation.asking_sets import Limits, Sets, Task, Texts, judged, make_sets
from remerge.validation.compared import Compared, open_compared
from remerge.validation.gate import Thresholds, harness_gates, logits_gates, of_arithmetic
from remerge.validation.harness import Harness, HarnessSettings, adapted, run_harness
from remerge.validation.harness import Side as HarnessSide
from remerge.validation.limits import Gate, limit_of, share_gate, tokenisation_gate
from remerge.validation.memory import check_memory
from remerge.validation.paired import differing, score_gate, task_result
from remerge.validation.remembered_answers import open_memory
from remerge.validation.score_comparison import Comparison, adapter_share
from remerge.validation.score_comparison import compare as compare_scores
from remerge.validation.served_sides import Served, Who, ask_served, first_token_kl
from remerge.validation.sides import Running, Sides, scorer_of
from remerge.validation.tasks import Evaluation
from remerge.validation.weights import Weights, compare_weights

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
    the result is written beside the artefact, ``remember`` whether answers are kept."""

    running: Running
    thresholds: Thresholds = field(default_factory=Thresholds)
    engine: str | None = None
    form: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    endpoints: Mapping[Who, Endpoint] = field(default_factory=dict["Who", Endpoint])
    harness: HarnessSettings | None = None
    record: bool = True
    remember: bool = True
    command: str = ""
    max_memory: int = DEFAULT


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
        weights = _weights(compared, settings, report)
        run.ask_servers(settings.endpoints, report, as_chat=asking.as_chat)
        run.ask(report)
        harness = _harness(run, settings, report)
        return _reported(run, weights, harness, settings, started)


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
    served: dict[Who, Served] = field(default_factory=dict["Who", Served])

    def ask_servers(
        self, endpoints: Mapping[Who, Endpoint], report: Report, *, as_chat: bool
    ) -> None:
        """Ask the sides that servers answer for; these are not loaded here."""
        digests = input_digests(self.compared.plan) if "adapter" in endpoints else {}
        for who, endpoint in endpoints.items():
            identity: dict[str, Any] = {"side": who, "artefact": self.compared.digest}
            if who == "adapter":
                identity = {"side": who, "inputs": digests}
            found = self.served[who] = ask_served(
                who,
                endpoint,
                self.sets.tasks,
                self.sets.items,
                self.tokenizer,
                self.sides.memory,
                identity,
                report,
                as_chat=as_chat,
            )
            self.notes += found.notes
            self.sides.costs.append(found.cost)
        if "adapter" in self.served:
            # A server tells too little to hold probabilities to.
            self.reference = "merge"
            self.own = dict.fromkeys(self.own, "served")

    def ask(self, report: Report) -> None:
        """Ask all other sides; where PEFT cannot put the adapters on, the merge takes its place."""
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
        rows = "merged" not in self.served or "adapter" not in self.served
        if rows and "merge" in (self.reference, *self.own.values()):
            self.sides.ask({"merge": self._wanted(merge=True)["merge"]}, (), report)

    def _wanted(self, *, merge: bool = False) -> dict[str, dict[int, Item]]:
        rows = [number for texts in self.sets.texts for number in texts.items]
        tasks = {task.questions.name: task.items for task in self.sets.tasks}
        every = [number for items in tasks.values() for number in items]
        if merge:
            return {"merge": self._items([*rows, *every])}
        wanted: dict[str, list[int]] = {}
        if len(self.served) < 2:
            wanted["base"] = [*rows, *every]
        if "merged" not in self.served:
            wanted["artefact"] = [*rows, *every]
        if self.reference != "merge":
            wanted[self.reference] = list(rows)
        for name, side in self.own.items():
            if side not in ("merge", "served"):
                wanted[side] = [*wanted.get(side, []), *tasks[name]]
        if self.sides.noise and "merged" not in self.served:
            wanted["noise"] = rows
        return {side: self._items(numbers) for side, numbers in wanted.items()}

    def _items(self, numbers: Sequence[int]) -> dict[int, Item]:
        return {number: self.sets.items[number] for number in sorted(set(numbers))}

    def answered(self, task: Task, side: str) -> judging.Answered:
        """A side's answers to a task, judged."""
        answers = {number: self.sides.answers[side, number] for number in task.items}
        return judged(task, answers, self.tokenizer)


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
    if settings.endpoints and not asking.evaluations:
        raise UsageError("A server is asked questions.", hint="Give some: --eval FILE.")
    if len(settings.endpoints) < 2:
        check_memory(compared.plan, running.dtype, running.device)
    texts = tuple(dict.fromkeys((*TEXTS, *(t for one in sets.texts for t in one.texts))))
    scores = work / "scores"
    scores.mkdir()
    memory = open_memory(work / "answers", kept=settings.remember)
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


def _weights(compared: Compared, settings: Settings, report: Report) -> Weights | None:
    """The stored tensors against the merge, where the artefact holds tensors to read."""
    if compared.artefact.kind != "checkpoint":
        return None
    threads = Resources.of(settings.max_memory, settings.running.threads, quantised=True).threads
    return compare_weights(
        compared.artefact.place,
        compared.plan,
        threads,
        lambda done, total, tensor: report(done, total, "elements"),
    )


def _reported(
    run: _Run,
    weights: Weights | None,
    harness: Harness | None,
    settings: Settings,
    started: float,
) -> CompareReport:
    compared, told = run.compared, run.sides.told.get("artefact", {})
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
        gates += _served_gates(run)
    else:
        gates.append(_cuts(run, told))
    if told.get("loaded_only"):
        gates.append(Gate("scores", f"none: {told['loaded_only']}", "some", False))
    elif "merged" not in run.served:
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
    if harness is not None:
        gates += harness_gates(harness, run.thresholds.max_drop)
        run.notes += harness.notes
    if len(shown) > _SHOWN:
        run.notes.append(f"Of {len(shown)} differing answers the first {_SHOWN} are kept.")
    passed = all(gate.passed for gate in gates)
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
        harness=() if harness is None else harness.results,
        differing=tuple(shown[:_SHOWN]),
        costs=tuple(run.sides.costs),
        notes=tuple(dict.fromkeys(run.notes)),
        versions=versions,
    )
    run.sides.memory.trim(run.sides.folders)
    written = _record(run, figures) if settings.record else None
    return CompareReport(
        compared.artefact.place, figures, written, weights.wrong if weights else ()
    )


def _harness(run: _Run, settings: Settings, report: Report) -> Harness | None:
    """lm-eval's tasks on all sides."""
    if settings.harness is None:
        return None
    inputs, place = run.compared.inputs, run.compared.artefact.place
    if len(inputs.adapters) != 1:
        raise UsageError("lm-eval compares one adapter.", hint="Leave out --lm-eval.")
    base = inputs.base.path
    adapter = adapted(base, inputs.adapters[0].path, place)
    merged = HarnessSide(place)
    endpoints = settings.endpoints
    if "adapter" in endpoints:
        adapter = HarnessSide(base, tokenizer=adapter.tokenizer, server=endpoints["adapter"])
    if "merged" in endpoints:
        merged = HarnessSide(place if place.is_dir() else base, server=endpoints["merged"])
    below = None if len(endpoints) == 2 else HarnessSide(base)
    return run_harness(
        below, adapter, merged, settings.harness, pythons=settings.running.pythons, report=report
    )


def _served_gates(run: _Run) -> list[Gate]:
    """The first tokens of a server's answers against the reference's probabilities there."""
    found: list[Gate] = []
    limit = run.thresholds.max_kl or of_arithmetic(limit_of(run.form), "bfloat16").kl
    if "adapter" in run.served:
        return found
    scored = {item.ids: item for item in run.sets.items.values() if item.kind == "rows"}
    for task in run.sets.tasks:
        told = run.served["merged"].likeliest[task.questions.name]
        pairs = [
            (scored[ids], likeliest)
            for one, likeliest in zip(task.asked, told, strict=True)
            if one.weighed is None and (ids := run.sets.items[one.items[0]].ids) in scored
        ]
        rows = [run.sides.scores(run.reference, [item]) for item, _ in pairs]
        last = [one.dense(slice(one.rows - 1, one.rows), one.width)[0] for one in rows]
        kl = first_token_kl(last, [likeliest for _, likeliest in pairs], run.tokenizer)
        if kl is None:
            run.notes.append(f"{task.questions.name}: the server tells no probabilities.")
            continue
        measured = f"at least {kl[0]:.2e} over {kl[1]} questions"
        name = f"KL divergence of first tokens, {task.questions.name}"
        found.append(Gate(name, measured, f"{limit:.2e}", kl[0] <= limit))
    return found


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


def _compare_texts(run: _Run, texts: Texts) -> tuple[LogitsResult, list[Gate]]:
    items = [run.sets.items[number] for number in texts.items]
    questions = Questions((), tuple(item.ids for item in items), 0, 0)
    truth = run.sides.scores(run.reference, items)
    engine = run.sides.scores("artefact", items)
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


def _compare_task(run: _Run, task: Task) -> tuple[TaskResult, tuple[Differing, ...]]:
    name = task.questions.name

    local = "base" in run.sides.told or ("base", task.items[0]) in run.sides.answers
    base = run.answered(task, "base") if local and "base" not in run.sides.refused else None
    if "adapter" in run.served:
        adapter = run.served["adapter"].answers[name]
    else:
        adapter = run.answered(task, run.own[name])
    if "merged" in run.served:
        merged = run.served["merged"].answers[name]
    else:
        merged = run.answered(task, "artefact")
    result = task_result(
        name,
        task.questions.scorer,
        base=None if base is None else base.scores,
        adapter=adapter.scores,
        merged=merged.scores,
    )
    return result, differing(task.questions, base=base, adapter=adapter, merged=merged)
