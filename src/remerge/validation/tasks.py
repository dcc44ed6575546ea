"""Sets of questions, as people write them: JSON lines, every one understood or refused by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.errors import BadInput, UsageError
from remerge.sources.documents import as_list, as_object
from remerge.validation.judging import NAMES, Scorer, compile_pattern, right_choice
from remerge.validation.lines import object_of, read_lines
from remerge.validation.questions import Question, QuestionSet

# What a line says of its right answer, and what then decides.
_KEYS = {"choices": "choice", "regex": "regex", "expected": "exact"}
_NEEDS = {
    "exact": "expected",
    "contains": "expected",
    "regex": "regex",
    "choice": "choices",
    "choice_norm": "choices",
}
_FORM = (
    'Write {"prompt": "...", "expected": "..."}, or "messages" for the prompt, or "choices" with '
    '"answer", or "regex".'
)
_MOST_TOKENS = 1_000_000


@dataclass(frozen=True)
class Evaluation:
    """A set of questions by the name that its figures bear."""

    name: str
    path: Path


def parse_eval(value: str) -> Evaluation:
    """``[NAME=]FILE``; the name is by default the file's, without its ending. What as a whole names
    a file is one, whatever signs it has. Raises `UsageError` for an empty name or file."""
    name, equals, rest = value.partition("=")
    if not equals or Path(value).is_file():
        name, rest = Path(value).stem, value
    name = name.strip()
    if not name or not rest or not name.isprintable():
        raise UsageError(
            f"--eval {value!r} names no questions.", hint="Write FILE.jsonl or NAME=FILE.jsonl."
        )
    return Evaluation(name, Path(rest))


def parse_evals(values: Sequence[str]) -> tuple[Evaluation, ...]:
    """Several; raises `UsageError` also where two have one name."""
    found = tuple(parse_eval(value) for value in values)
    seen: dict[str, Evaluation] = {}
    for one in found:
        if one.name in seen:
            raise UsageError(
                f"{seen[one.name].path} and {one.path} are both named {one.name}.",
                hint="Name them: --eval NAME=FILE.",
            )
        seen[one.name] = one
    return found


def read_questions(path: Path, name: str, scorer: Scorer | None = None) -> QuestionSet:
    """The questions of a file of JSON lines (docs/compare.md), all judged by ``scorer`` if one is
    given, else each as its line says.

    Raises `UsageError` for a file that cannot be read or holds no question, `BadInput` naming the
    line for one that is not understood or that ``scorer`` cannot judge.
    """
    read = read_lines(path, "--eval")
    questions = tuple(
        _question(read.where(number), object_of(read.where(number), line), scorer)
        for number, line in read.lines
    )
    if not questions:
        raise UsageError(f"--eval {path} holds no question.", hint=_FORM)
    function = None if scorer is None else scorer.function
    return QuestionSet(name, questions, read.size, read.sha256, function)


def _question(where: str, document: Mapping[str, Any], given: Scorer | None) -> Question:
    # Tables written as JSON lines have a null where a row has nothing.
    line = {key: value for key, value in document.items() if value is not None}
    prompt, messages = _asked(where, line)
    own = given is not None and given.function is not None
    scorer = given.name if given is not None else _scorer(where, line)
    expected: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    right = pattern = None
    needed = None if own else _NEEDS[scorer]
    # Choices whose right one is to be written instead of weighed.
    written = needed == "expected" and "choices" in line
    if needed == "choices" or written:
        choices = _choices(where, line)
        right = right_choice(line, choices, where)
    if written and right is not None:
        expected = (choices[right],)
    elif needed == "expected" or (own and isinstance(line.get("expected"), str | list)):
        # A function of the user's own may be told whatever it likes; this is shown to people.
        expected = _expected(where, line, scorer, strict=not own)
    if needed == "regex":
        pattern = _needed(where, line, "regex", scorer)
        if not isinstance(pattern, str):
            raise BadInput(f"{where}: the regex is no text.")
        compile_pattern(pattern, where)
    return Question(
        where,
        scorer,
        prompt,
        messages,
        expected,
        pattern,
        choices,
        right,
        _max_tokens(where, line),
        document,
    )


def _asked(where: str, line: Mapping[str, Any]) -> tuple[str | None, tuple[Mapping[str, Any], ...]]:
    prompt, messages = line.get("prompt"), line.get("messages")
    if prompt is not None and messages is not None:
        raise BadInput(f"{where} has a prompt and messages.", hint="Leave one of them out.")
    if messages is None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadInput(f"{where} has no prompt or messages.", hint=_FORM)
        return prompt, ()
    found = [as_object(one) for one in as_list(messages) or ()]
    chat = tuple(one for one in found if one is not None and isinstance(one.get("role"), str))
    if not chat or len(chat) < len(found):
        raise BadInput(
            f"{where}: messages is no list of messages.",
            hint='Write [{"role": "user", "content": "..."}].',
        )
    if chat[-1]["role"] == "assistant":
        raise BadInput(
            f"{where}: the assistant has answered already.",
            why="Its last message would be part of the question.",
            hint='Move its text from the messages to "expected".',
        )
    return None, chat


def _scorer(where: str, line: Mapping[str, Any]) -> str:
    """What decides where no option does: the line's own word, else what it says is right."""
    stated = line.get("scorer")
    if isinstance(stated, str) and stated in NAMES:
        return stated
    if stated is not None:
        raise BadInput(
            f"{where}: there is no scorer {str(stated)[:80]!r} for a line.",
            why="A file of questions never runs code." if ":" in str(stated) else None,
            hint=f"A line may name {', '.join(NAMES)}; a function is named by option.",
        )
    found = [scorer for key, scorer in _KEYS.items() if key in line]
    # Beside choices, what is expected is one of them.
    if found == ["choice", "exact"]:
        return "choice"
    if len(found) > 1:
        raise BadInput(
            f"{where} has several of {', '.join(_KEYS)}.",
            hint='Leave all but one out, or say with "scorer" which of them decides.',
        )
    if not found:
        raise BadInput(
            f"{where} has no prompt with an expected answer, choices or a regex.", hint=_FORM
        )
    return found[0]


def _needed(where: str, line: Mapping[str, Any], key: str, scorer: str) -> Any:
    if key not in line:
        raise BadInput(
            f"{where} cannot be judged by {scorer}: it has no {key}.",
            hint="Take another scorer, or keep such lines in files of their own.",
        )
    return line[key]


def _expected(where: str, line: Mapping[str, Any], scorer: str, *, strict: bool) -> tuple[str, ...]:
    """Texts of which any is right."""
    stated = _needed(where, line, "expected", scorer)
    listed = as_list(stated)
    values = [stated] if listed is None else listed
    texts = tuple(value for value in values if isinstance(value, str))
    if not strict:
        return texts
    if not texts or len(texts) < len(values):
        raise BadInput(
            f"{where}: expected is neither a text nor a list of texts.",
            hint='Put numbers in quotes: "expected": "42".',
        )
    if scorer == "contains" and not all(text.strip() for text in texts):
        raise BadInput(f"{where}: every answer contains nothing, which is expected.")
    return texts


def _choices(where: str, line: Mapping[str, Any]) -> tuple[str, ...]:
    stated = as_list(_needed(where, line, "choices", "choice")) or []
    texts = [value for value in stated if isinstance(value, str) and value.strip()]
    if len(texts) < 2 or len(texts) < len(stated):
        raise BadInput(
            f"{where}: choices is no list of two texts or more.",
            hint='Write "choices": ["yes", "no"], "answer": 0.',
        )
    if len({text.strip() for text in texts}) < len(texts):
        raise BadInput(f"{where}: two choices are the same.")
    return tuple(texts)


def _max_tokens(where: str, line: Mapping[str, Any]) -> int | None:
    stated = line.get("max_tokens")
    if stated is None:
        return None
    if isinstance(stated, bool) or not isinstance(stated, int) or not 0 < stated <= _MOST_TOKENS:
        raise BadInput(f"{where}: max_tokens is no number of tokens (1 to {_MOST_TOKENS:,}).")
    return stated
