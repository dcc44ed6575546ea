"""Questions with right answers: what a model is asked, and what its answer is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# Judges an answer by the question's line: true or false, or a score from 0 to 1.
Function = Callable[[str, dict[str, Any]], object]


@dataclass(frozen=True)
class Question:
    """One question. It has a ``prompt``, or ``messages`` of a chat that a user ends.

    ``scorer`` says what decides: one of the ``expected`` texts, a regular expression ``pattern``,
    or the choice of index ``right`` among ``choices``; with a function of the user's own, nothing
    of these need be there. ``max_tokens`` is the line's own limit of an answer. ``where`` names the
    line in messages; ``document`` is all that it says.
    """

    where: str
    scorer: str
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()
    expected: tuple[str, ...] = ()
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    right: int | None = None
    max_tokens: int | None = None
    document: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)

    @property
    def of_choices(self) -> bool:
        """Whether choices are weighed, and nothing is generated."""
        return self.scorer in ("choice", "choice_norm")

    @property
    def shown(self) -> str:
        """What is asked, for people to read."""
        if self.prompt is not None:
            return self.prompt
        return "\n".join(f"{one['role']}: {_text(one.get('content'))}" for one in self.messages)

    @property
    def wanted(self) -> str:
        """What would be right, for people to read; empty where only a function knows."""
        if self.of_choices and self.right is not None:
            return self.choices[self.right]
        if self.scorer == "regex" and self.pattern is not None:
            return f"/{self.pattern}/"
        return " | ".join(self.expected)


def _text(content: object) -> str:
    return content if isinstance(content, str) else str(content)


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a file, with its size in bytes and digest. ``function`` is the user's own
    scorer, where one was named."""

    name: str
    questions: tuple[Question, ...]
    size: int
    sha256: str
    function: Function | None = None

    @property
    def scorer(self) -> str:
        """What decides; several where lines differ."""
        return ", ".join(dict.fromkeys(question.scorer for question in self.questions))

    def first(self, count: int | None) -> QuestionSet:
        """The first ``count`` questions; all for None."""
        return replace(self, questions=self.questions[:count])
