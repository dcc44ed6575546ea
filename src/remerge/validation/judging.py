"""How an answer is judged: a score from 0 to 1, and right from one half on.

Answers are text. A model that weighs choices answers with the text of one.
"""

from __future__ import annotations

import copy
import importlib
import math
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import regex

from remerge.errors import BadInput, UsageError
from remerge.sources.documents import as_list
from remerge.validation.questions import Function, Question, QuestionSet

NAMES = ("exact", "contains", "regex", "choice", "choice_norm")
RIGHT = 0.5
# An expression may take longer than the universe lasts; a sane one takes microseconds.
_SECONDS = 5.0
_LONGEST_PATTERN = 10_000
_LETTERS = tuple(string.ascii_uppercase)


@dataclass(frozen=True)
class Scorer:
    """What decides of all questions of a file; ``function`` is the user's own."""

    name: str
    function: Function | None = None


@dataclass(frozen=True)
class Answered:
    """A model's answers to a set of questions, and the score of each."""

    answers: tuple[str, ...]
    scores: tuple[float, ...]


def open_scorer(name: str) -> Scorer:
    """A scorer by name, or ``module:function`` imported from the working directory or the
    environment: ``function(answer, question)`` is given the answer as the model wrote it and the
    question's line, and says true or false, or a score from 0 to 1.

    Raises `UsageError` for a name that is none, or a function that cannot be imported.
    """
    if name in NAMES:
        return Scorer(name)
    module, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UsageError(
            f"There is no scorer {name!r}.",
            hint=f"Take {', '.join(NAMES)}, or module:function for one of your own.",
        )
    here = str(Path.cwd())
    if here not in sys.path:
        # As `python -m` has it; the function may import its neighbours when it is called.
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a user's module raises what it likes
        raise UsageError(
            f"The scorer {name} cannot be imported: {_told(error)}.",
            hint=f"{module}.py must lie in the working directory or be installed.",
        ) from error
    if not callable(function):
        raise UsageError(f"The scorer {name} is no function.")
    return Scorer(name, function)


def compile_pattern(pattern: str, where: str) -> Any:
    """A regular expression, Python's but for newer Unicode: what `re` has no limit of time for, the
    package `regex` has. Raises `BadInput` for what is none."""
    if not pattern or len(pattern) > _LONGEST_PATTERN:
        size = "is empty" if not pattern else f"has more than {_LONGEST_PATTERN:,} characters"
        raise BadInput(f"{where}: the regex {size}.")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        raise BadInput(f"{where}: the regex {pattern!r} is none: {_told(error)}.") from error


def answered(questions: QuestionSet, answers: Sequence[str]) -> Answered:
    """Answers to all of the questions, in their order, judged. Raises as `score` does."""
    pairs = zip(questions.questions, answers, strict=True)
    scores = tuple(score(one, answer, questions.function) for one, answer in pairs)
    return Answered(tuple(answers), scores)


def score(question: Question, answer: str, function: Function | None = None) -> float:
    """0 to 1. White space around the answer counts only for a user's own ``function``.

    Raises `BadInput` where a regular expression takes too long, or the function fails.
    """
    if function is not None:
        return _own(question, answer, function)
    said = answer.strip()
    match question.scorer:
        case "exact":
            found = any(said == one.strip() for one in question.expected)
        case "contains":
            found = any(one.strip() in said for one in question.expected)
        case "regex":
            found = _matches(question, said)
        case _:
            found = question.right is not None and answer == question.choices[question.right]
    return float(found)


def _matches(question: Question, said: str) -> bool:
    pattern = compile_pattern(question.pattern or "", question.where)
    try:
        return pattern.search(said, timeout=_SECONDS) is not None
    except TimeoutError as error:
        raise BadInput(
            f"{question.where}: the regex {question.pattern!r} was not done with an answer of "
            f"{len(said):,} characters after {_SECONDS:g} s.",
            why="It repeats what is repeated already, as in (a|a)*, and tries every way.",
            hint="Write it without nested repetition, or give a shorter max_tokens.",
        ) from error


def _own(question: Question, answer: str, function: Function) -> float:
    try:
        # A copy: what the function does to it must not reach the next model's answer.
        found = function(answer, copy.deepcopy(dict(question.document)))
        value = float(found) if isinstance(found, SupportsFloat) else math.nan
    except (Exception, SystemExit) as error:
        raise BadInput(
            f"{question.where}: the scorer {question.scorer} failed: {_told(error)}.",
            why=f"The answer was {answer[:200]!r}.",
        ) from error
    if not 0 <= value <= 1:
        raise BadInput(
            f"{question.where}: the scorer {question.scorer} gave {str(found)[:80]!r}.",
            hint="It must give true or false, or a number from 0 to 1.",
        )
    return value


def _told(error: BaseException) -> str:
    said = " ".join(str(error).split())[:300].rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def right_choice(document: Mapping[str, Any], choices: Sequence[str], where: str) -> int:
    """The index of the right choice, by ``answer``, ``label`` or ``expected``: an index from 0, the
    text of a choice, or a letter from A. Raises `BadInput` where none says it, or it is unclear."""
    stated = [document[key] for key in ("answer", "label", "expected") if key in document]
    hint = 'Say with "answer" which is right: an index from 0, a letter from A, or its text.'
    if not stated:
        raise BadInput(f"{where} does not say which choice is right.", hint=hint)
    found = {_choice(value, choices, where, hint) for value in stated}
    if len(found) > 1:
        raise BadInput(f"{where} says of several choices that they are right.", hint=hint)
    return found.pop()


def _choice(value: object, choices: Sequence[str], where: str, hint: str) -> int:
    listed = as_list(value)
    if listed is not None and len(listed) == 1:
        value = listed[0]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    if isinstance(value, str):
        said = value.strip()
        readings = {index for index, choice in enumerate(choices) if choice.strip() == said}
        if said in _LETTERS[: len(choices)]:
            readings.add(_LETTERS.index(said))
        if len(readings) > 1:
            raise BadInput(
                f"{where}: {value!r} is the letter of one choice and the text of another.",
                hint="Give the index of the right one, from 0.",
            )
        if readings:
            return readings.pop()
    raise BadInput(f"{where}: {str(value)[:80]!r} is none of {len(choices)} choices.", hint=hint)
