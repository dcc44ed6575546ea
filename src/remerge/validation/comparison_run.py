"""One comparison under way: what is asked of whom, and who stands for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remerge.artefacts.digests import input_digests
from remerge.artefacts.making import Report, write_side_file
from remerge.engines.endpoint_client import Endpoint
from remerge.engines.scoring import Item
from remerge.engines.tokenisation import TEXTS, open_tokenizer
from remerge.errors import UsageError
from remerge.merging.budget import DEFAULT
from remerge.merging.plan import Plan
from remerge.sources.documents import as_object, parse_json
from remerge.validation import judging
from remerge.validation.asking_sets import Limits, Sets, Task, judged, make_sets
from remerge.validation.compared import Compared
from remerge.validation.gate import Thresholds, of_arithmetic
from remerge.validation.harness import HarnessSettings
from remerge.validation.limits import limit_of
from remerge.validation.memory import check_memory
from remerge.validation.references import positions_of
from remerge.validation.remembered_answers import open_memory
from remerge.validation.served_sides import Served, Who, ask_served
from remerge.validation.sides import Running, Sides, scorer_of
from remerge.validation.tasks import Evaluation

# Positions of a model that has as many as memory holds.
_UNBOUNDED = 2**31
# Makes what options of `remerge.export` ask for of base and adapters, at a place where nothing is;
# where it is then.
MakeOf = Callable[[Path, Sequence[Path], Mapping[str, Any], Path], Path]


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
class Settings:
    """How a comparison is run; ``form`` names the format whose limits hold, ``record`` says whether
    the result is written beside the artefact, ``remember`` whether answers are kept. ``bisect``
    finds what a failed gate comes from; changes are proven by what ``make`` makes."""

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
    bisect: bool = False
    make: MakeOf | None = None


@dataclass
class Run:
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

    def wanted_rows(self, *, tasks: bool) -> dict[int, Item]:
        """The items of all texts, and of all ``tasks`` too."""
        numbers = [number for texts in self.sets.texts for number in texts.items]
        for task in self.sets.tasks if tasks else ():
            numbers += task.items
        return self._items(numbers)

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


def open_run(compared: Compared, asking: Asking, settings: Settings, work: Path) -> Run:
    """Read and render what is asked; ``work`` is a directory for the while. Raises what reading the
    questions raises, and `BadInput` where the model does not fit into memory."""
    running = settings.running
    scorer = scorer_of(compared, settings.engine)
    tokenizer, ends = _tokenizer(compared.plan, work)
    positions = positions_of(compared.plan.config) or _UNBOUNDED
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
    return Run(
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


def _vocabulary(plan: Plan) -> int:
    text = as_object(plan.config.get("text_config")) or {}
    size = plan.config.get("vocab_size", text.get("vocab_size"))
    return size if isinstance(size, int) and size > 0 else 2**17
