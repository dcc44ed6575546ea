"""Sets of texts and questions as items that models are asked: some are scored position by position,
others answered, or their choices weighed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.artefacts.digests import file_digest
from remerge.artefacts.manifest import FileRecord
from remerge.engines.scoring import Answered, Item
from remerge.errors import BadInput, UsageError
from remerge.validation import judging
from remerge.validation.choices import ChoiceIds, choice_ids, chosen
from remerge.validation.prompts import built_in, read_prompts
from remerge.validation.questions import Question, QuestionSet
from remerge.validation.rendering import Prompt, answer_tokens, render, token_ids
from remerge.validation.tasks import Evaluation, read_questions

# What the rows of one set of texts may take on disk, for each side.
_ROWS = 2**30
_MAX_TEXT = 200_000_000


@dataclass(frozen=True)
class Texts:
    """Texts scored at every position: the numbers of their items, and the texts as they are cut by
    an engine's own tokenizer (those that it puts its special tokens around)."""

    name: str
    items: tuple[int, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A question with the numbers of its items: one to be answered, or one a choice, whose tokens
    follow after ``context``."""

    question: Question
    prompt: Prompt
    items: tuple[int, ...]
    weighed: ChoiceIds | None = None


@dataclass(frozen=True)
class Task:
    """A set of questions, asked."""

    questions: QuestionSet
    asked: tuple[Asked, ...]

    @property
    def items(self) -> tuple[int, ...]:
        return tuple(number for one in self.asked for number in one.items)


@dataclass(frozen=True)
class Sets:
    """All that is asked. ``files`` are those that the questions and texts come from."""

    items: Mapping[int, Item]
    texts: tuple[Texts, ...]
    tasks: tuple[Task, ...]
    files: tuple[FileRecord, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """How much is asked: of each set so many questions (None: all), of a prompt so many tokens to
    score, of a text in pieces of so many, at most ``positions`` of the model."""

    questions: int | None
    tokens: int
    answer_tokens: int | None
    positions: int
    vocabulary: int
    as_chat: bool = True


class _Items:
    """Items numbered as they come."""

    def __init__(self) -> None:
        self.found: dict[int, Item] = {}

    def add(self, item: Item) -> int:
        number = len(self.found)
        self.found[number] = item
        return number


def make_sets(
    evaluations: Sequence[Evaluation],
    scorer: judging.Scorer | None,
    text: Path | None,
    prompts: Path | None,
    tokenizer: Any,
    limits: Limits,
) -> Sets:
    """Read and render everything. Without questions and texts, the built-in prompts are scored.

    Raises `UsageError` and `BadInput` naming file and line.
    """
    items, notes = _Items(), list[str]()
    tasks: list[Task] = []
    texts: list[Texts] = []
    files: list[FileRecord] = []
    for evaluation in evaluations:
        read = read_questions(evaluation.path, evaluation.name, scorer)
        name = evaluation.path.name
        files.append(FileRecord(name=name, size=read.size, sha256=read.sha256))
        questions = read.first(limits.questions)
        if len(questions.questions) < len(read.questions):
            notes.append(
                f"{read.name}: the first {len(questions.questions)} of {len(read.questions)} "
                "questions were asked."
            )
        task = _task(questions, tokenizer, limits, items)
        tasks.append(task)
        rendered = [one.prompt for one in task.asked]
        texts.append(_scored(questions.name, rendered, tokenizer, limits, items, notes))
    if prompts is not None:
        files.append(_record(prompts))
        rendered = read_prompts(prompts, tokenizer)[: limits.questions]
        texts.append(_scored("prompts", rendered, tokenizer, limits, items, notes))
    if text is not None:
        files.append(_record(text))
        texts.append(_pieces(text, tokenizer, limits, items, notes))
    if not texts:
        files.append(_built_in())
        texts.append(_scored("built-in", built_in(), tokenizer, limits, items, notes))
    return Sets(items.found, tuple(texts), tuple(tasks), tuple(files), tuple(notes))


def _task(questions: QuestionSet, tokenizer: Any, limits: Limits, items: _Items) -> Task:
    asked: list[Asked] = []
    for question in questions.questions:
        prompt = render(question, tokenizer, limits.as_chat)
        if question.of_choices:
            weighed = choice_ids(prompt, question.choices, tokenizer, question.where)
            _check_room(question, max(map(len, weighed.prompts)), limits)
            numbers = tuple(items.add(Item("followed", ids)) for ids in weighed.prompts)
            asked.append(Asked(question, prompt, numbers, weighed))
            continue
        ids = token_ids(prompt, tokenizer)
        tokens = answer_tokens(question, tokenizer, limits.answer_tokens)
        tokens = min(tokens, max(limits.positions - len(ids), 0))
        _check_room(question, len(ids) + 1, limits)
        asked.append(Asked(question, prompt, (items.add(Item("answer", ids, tokens)),)))
    return Task(questions, tuple(asked))


def _check_room(question: Question, tokens: int, limits: Limits) -> None:
    if tokens > limits.positions:
        raise BadInput(
            f"{question.where} takes {tokens} tokens, and the model has {limits.positions} "
            "positions.",
            hint="Leave it out, or shorten it.",
        )


def _scored(
    name: str,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    limits: Limits,
    items: _Items,
    notes: list[str],
) -> Texts:
    longest = min(limits.tokens, limits.positions)
    encoded = [token_ids(prompt, tokenizer) for prompt in prompts]
    usable = [ids[:longest] for ids in encoded if len(ids) > 1]
    if not usable:
        raise BadInput(f"{name}: no prompt has two tokens: there is nothing to predict.")
    if any(len(ids) > longest for ids in encoded):
        notes.append(f"{name}: of prompts the first {longest} tokens were scored.")
    kept = _within(usable, limits, name, notes)
    texts = tuple(dict.fromkeys(p.text for p in prompts[: len(kept)] if p.special))
    return Texts(name, tuple(items.add(Item("rows", ids)) for ids in kept), texts)


def _pieces(path: Path, tokenizer: Any, limits: Limits, items: _Items, notes: list[str]) -> Texts:
    """A text cut into tokens as a whole, and these into pieces one after the other."""
    try:
        if path.stat().st_size > _MAX_TEXT:
            raise UsageError(f"--text {path} has more than {_MAX_TEXT:,} bytes.")
        content = path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--text {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"--text {path} is no UTF-8 text.") from error
    # It is cut into pieces: that it is longer than the model takes is no news.
    ids = tuple(tokenizer(content, verbose=False)["input_ids"])
    length = min(limits.tokens, limits.positions)
    pieces = [ids[at : at + length] for at in range(0, len(ids), length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise BadInput(f"--text {path} has fewer than two tokens: there is nothing to predict.")
    kept = _within(pieces, limits, "text", notes)
    return Texts("text", tuple(items.add(Item("rows", piece)) for piece in kept))


def _within(
    prompts: Sequence[tuple[int, ...]], limits: Limits, name: str, notes: list[str]
) -> list[tuple[int, ...]]:
    """As many of the first as fit into what rows may take, one at least."""
    room = max(_ROWS // (4 * limits.vocabulary), 1)
    kept: list[tuple[int, ...]] = []
    for ids in prompts:
        room -= len(ids)
        if kept and room < 0:
            notes.append(
                f"{name}: probabilities were compared on the first {len(kept)} of {len(prompts)} "
                f"texts: every position takes {4 * limits.vocabulary / 1e6:.1f} MB."
            )
            break
        kept.append(ids)
    return kept


def _built_in() -> FileRecord:
    """The built-in prompts as a file, a line each: a result names what judged it."""
    content = "\n".join(prompt.text for prompt in built_in()).encode()
    return FileRecord(
        name="built-in prompts", size=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


def _record(path: Path) -> FileRecord:
    try:
        return FileRecord(name=path.name, size=path.stat().st_size, sha256=file_digest(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def judged(task: Task, answers: Mapping[int, Answered], tokenizer: Any) -> judging.Answered:
    """A model's answers to a task, as text, with their scores."""
    said: list[str] = []
    for one in task.asked:
        if one.weighed is None:
            ids = answers[one.items[0]].answer
            said.append(tokenizer.decode(ids, skip_special_tokens=True))
            continue
        before = len(one.weighed.context) - 1
        sums = [sum(answers[number].followed[before:]) for number in one.items]
        norm = one.question.scorer == "choice_norm"
        said.append(one.question.choices[chosen(sums, one.question.choices, by_bytes=norm)])
    return judging.answered(task.questions, said)
