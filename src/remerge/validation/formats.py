"""The formats of one model side by side: how large each is, how far from the merge in float32, how
good at a task, and how long it took to make.

The reference is scored once; every format is made, scored by the engine that reads it, and deleted
unless it is to be kept.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from remerge.artefacts.making import Report
from remerge.artefacts.manifest import FileRecord
from remerge.engines.asking import ask, collect
from remerge.engines.environments import is_installed
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.engines.scorers import SCORERS
from remerge.engines.scoring import Answered, Item, Questions, Scores, Side, rows_path
from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput, RemergeError, UsageError
from remerge.validation.artefact import Artefact, find_artefact
from remerge.validation.check import REFERENCE, interpreter
from remerge.validation.judging import answered
from remerge.validation.prompts import built_in, cut, read_prompts
from remerge.validation.questions import QuestionSet
from remerge.validation.references import Reference, Settings, prompt_length, reference_of
from remerge.validation.rendering import answer_tokens, render, token_ids
from remerge.validation.score_comparison import Comparison, compare
from remerge.validation.tasks import read_questions

# Who scores an artefact of each kind.
_ENGINES = {"checkpoint": "transformers", "gguf": "llama.cpp", "onnx": "onnxruntime"}
_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data", ".bin")
_CHECKPOINTS = ("safetensors", "fp8", "w8a8")
_GGUFS = ("gguf:Q8_0", "gguf:Q5_K_M", "gguf:Q4_K_M")


class Made(Protocol):
    """What making an output tells of it."""

    @property
    def output(self) -> Path: ...

    @property
    def seconds(self) -> float: ...

    @property
    def manifest(self) -> Any: ...


# Makes a form of the model at a place.
Make = Callable[[str, Path], Made]


@dataclass(frozen=True)
class Task:
    """Questions, the token ids of each, and the most tokens of an answer."""

    asked: QuestionSet
    prompts: tuple[tuple[int, ...], ...]
    tokens: int

    def items(self, first: int) -> dict[int, Item]:
        """All of them, to be answered, numbered from ``first`` on."""
        items = (Item("answer", prompt, self.tokens) for prompt in self.prompts)
        return dict(enumerate(items, first))

    def right(self, answers: Sequence[Answered], tokenizer: Any) -> float:
        """The mean score of answers: the share of right ones."""
        said = [tokenizer.decode(one.answer, skip_special_tokens=True) for one in answers]
        return fmean(answered(self.asked, said).scores)


@dataclass(frozen=True)
class FormatRow:
    """One format: bytes of its weights and how many bits that is for each, seconds it took to make,
    who scored it, and what was found. ``score`` is the share of right answers. ``failure`` says why
    there is nothing more."""

    form: str
    nbytes: int = 0
    bits_per_weight: float = 0.0
    seconds: float = 0.0
    engine: str = ""
    comparison: Comparison | None = None
    score: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class FormatTable:
    """All formats; ``perplexity`` and ``score`` are the reference's own."""

    rows: tuple[FormatRow, ...]
    reference: str
    positions: int
    perplexity: float
    questions: int
    score: float | None
    notes: tuple[str, ...]


def compare_formats(
    make: Make,
    forms: Sequence[str],
    *,
    prompts: Path | None,
    evaluation: Path | None,
    keep: Path | None,
    settings: Settings,
    questions: int,
    pythons: Mapping[str, str],
    threads: int | None,
    max_memory: int,
    report: Report,
) -> FormatTable:
    """Make every form with ``make``, and score it. Raises what stands in the way of all of them; a
    form that alone fails says so in its row."""
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UsageError(f"{keep} exists and is not empty.", hint="Choose another --keep.")
    with tempfile.TemporaryDirectory(prefix=".remerge-formats-", dir=_beside(keep)) as folder:
        work = Path(folder)
        rows: list[FormatRow] = []
        truth: _Truth | None = None
        for form in forms:
            place = work / form.replace(":", "-")
            try:
                made = make(form, place)
                artefact = find_artefact(made.output)
                if truth is None:
                    against = reference_of(made.output, artefact, None, None, (), work, max_memory)
                    truth = _score_reference(
                        against, work, prompts, evaluation, settings, questions, threads, report
                    )
                rows.append(_row(form, made, artefact, truth, work, pythons, threads, report))
            except RemergeError as error:
                if truth is None and form == forms[-1]:
                    raise
                rows.append(FormatRow(form, failure=str(error)))
                continue
            if keep is None:
                shutil.rmtree(place)
            else:
                keep.mkdir(exist_ok=True)
                place.rename(keep / place.name)
        assert truth is not None
        return FormatTable(
            tuple(rows),
            truth.words,
            truth.questions.rows,
            truth.perplexity,
            0 if truth.task is None else len(truth.task.prompts),
            truth.score,
            truth.notes,
        )


def usual_forms(pythons: Mapping[str, str]) -> tuple[str, ...]:
    """The forms people choose between, as far as engines for them are here."""
    has_llama = LLAMA_CPP.name in pythons or is_installed(LLAMA_CPP)
    return (*_CHECKPOINTS, *(_GGUFS if has_llama else ()))


def _beside(keep: Path | None) -> Path | None:
    """Where to work: what is kept is renamed, and must not cross file systems."""
    return None if keep is None else keep.resolve().parent


@dataclass(frozen=True)
class _Truth:
    """What the reference said."""

    words: str
    questions: Questions
    scores: Scores
    tokenizer: Any
    task: Task | None
    score: float | None
    perplexity: float
    weights: int
    notes: tuple[str, ...]


def _score_reference(
    against: Reference,
    work: Path,
    prompts: Path | None,
    evaluation: Path | None,
    settings: Settings,
    count: int,
    threads: int | None,
    report: Report,
) -> _Truth:
    tokenizer = open_tokenizer(against.tokenizer)
    asked = built_in() if prompts is None else read_prompts(prompts, tokenizer)
    length = prompt_length(against.config, settings)
    chosen = cut(asked, tokenizer, settings.prompts, length)
    questions = Questions((), chosen.prompts, 0, 0)
    task = None if evaluation is None else read_task(evaluation, tokenizer, count)
    request = {**against.request, "threads": threads}
    folder = work / "reference"
    folder.mkdir()
    side = _side("merge", questions, task, folder)
    found: dict[tuple[str, int], Answered] = {}
    ask(Path(sys.executable), REFERENCE, [side], request, report, collect(found))
    truth = _rows(side, work / "reference.npy")
    score = None if task is None else task.right(_answers(side, found), tokenizer)
    perplexity = compare(truth, truth, questions).perplexity
    return _Truth(
        against.words,
        questions,
        truth,
        tokenizer,
        task,
        score,
        perplexity,
        max(against.elements or 1, 1),
        (*against.notes, *chosen.notes),
    )


def _row(
    form: str,
    made: Made,
    artefact: Artefact,
    truth: _Truth,
    work: Path,
    pythons: Mapping[str, str],
    threads: int | None,
    report: Report,
) -> FormatRow:
    records: Sequence[FileRecord] = made.manifest.outputs
    nbytes = sum(record.size for record in records if record.name.endswith(_WEIGHTS))
    scorer = SCORERS[_ENGINES[artefact.kind]]
    row = FormatRow(form, nbytes, 8 * nbytes / truth.weights, made.seconds, scorer.name)
    request = {"artefact": str(artefact.place.absolute()), "threads": threads}
    try:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            side = _side("artefact", truth.questions, truth.task, Path(folder))
            found: dict[tuple[str, int], Answered] = {}
            python = interpreter(scorer, artefact, pythons)
            told = ask(python, scorer.module, [side], request, report, collect(found))
            if told.get("loaded_only"):
                return replace(row, failure=f"loaded, not scored: {told['loaded_only']}")
            engine = _rows(side, Path(folder) / "engine.npy")
            comparison = compare(truth.scores, engine, truth.questions)
        score = None
        if truth.task is not None:
            score = truth.task.right(_answers(side, found), truth.tokenizer)
    except RemergeError as error:
        return replace(row, failure=f"not scored: {error}")
    return replace(row, comparison=comparison, score=score)


def _side(name: str, questions: Questions, task: Task | None, folder: Path) -> Side:
    side = questions.side(name, folder)
    items = {} if task is None else task.items(len(side.items))
    return replace(side, items={**side.items, **items})


def _rows(side: Side, whole: Path) -> Scores:
    rows = side.of_kind("rows").values()
    return Scores.read([rows_path(side.folder, item) for item in rows], whole)


def _answers(side: Side, found: Mapping[tuple[str, int], Answered]) -> list[Answered]:
    return [found[side.name, number] for number in side.of_kind("answer")]


def read_task(path: Path, tokenizer: Any, count: int) -> Task:
    """The first questions of a file of JSON lines (docs/compare.md) whose answers are written.

    A prompt is one message of a user where the tokenizer has a chat template, else the text itself.
    Raises `UsageError` for a file that is none, `BadInput` naming a line that is none, or that has
    choices to be weighed.
    """
    asked = read_questions(path, path.stem).first(count)
    for question in asked.questions:
        if question.of_choices:
            raise BadInput(
                f"{question.where} has choices, which are weighed: formats are asked for answers.",
                hint='Give the line "scorer": "exact", and the choices in its prompt.',
            )
    prompts = tuple(token_ids(render(one, tokenizer), tokenizer) for one in asked.questions)
    tokens = max(answer_tokens(one, tokenizer) for one in asked.questions)
    return Task(asked, prompts, tokens)


def document(table: FormatTable) -> dict[str, Any]:
    """The table as JSON data."""
    return asdict(table)
