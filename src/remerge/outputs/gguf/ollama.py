"""A Modelfile for Ollama: the chat template in its language, stop tokens, sampling parameters.

Hugging Face templates are programs and cannot be translated; but most do no more than put marks
around messages. These marks are found by rendering a few conversations, put together in Ollama's
language (Go's text/template), and kept only if they give every conversation as the program does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, str]
# Renders a conversation, with or without the start of an answer; None where the template refuses.
Render = Callable[[Sequence[Message], bool], str | None]

# Private characters, so that no template changes them or holds them itself.
_NAMES = ("system", "user", "assistant", "user", "assistant", "user")
_CONTENTS = tuple(f"\ue000{number}\ue001" for number in range(len(_NAMES)))
_MESSAGES: tuple[Message, ...] = tuple(
    {"role": role, "content": content} for role, content in zip(_NAMES, _CONTENTS, strict=True)
)
# Its parameters, by the names that generation_config.json has for them.
PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
# What Ollama takes where nothing is said.
_CONTEXT = 4096


@dataclass(frozen=True)
class Marks:
    """What a template puts before and after messages, in front of a conversation without a system
    message, and before an answer. ``system`` is None where the template takes none."""

    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str
    answer: str

    def render(self, messages: Sequence[Message], answers: bool) -> str:
        """A conversation, as Ollama will give it."""
        found = "" if messages and messages[0]["role"] == "system" else self.opening
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        for message in messages:
            before, after = roles[message["role"]] or ("", "")
            found += before + message["content"] + after
        return found + (self.answer if answers else "")

    def template(self) -> str:
        """The same in Go's text/template."""
        turns = [("user", self.user), ("assistant", self.assistant)]
        if self.system is not None:
            turns.insert(0, ("system", self.system))
        branches = "".join(
            f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}'
            f"{before}{{{{ .Content }}}}{after}"
            for number, (role, (before, after)) in enumerate(turns)
        )
        opening = f"{{{{ if not .System }}}}{self.opening}{{{{ end }}}}" if self.opening else ""
        return (
            f"{opening}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{self.answer}"
        )


def find_marks(render: Render, bos: str) -> Marks | None:
    """The marks of a template, None where it does more than put some around messages.

    ``bos`` stands before every conversation and is left out: llama.cpp puts it there itself.
    """

    def given(messages: Sequence[Message], answers: bool) -> str | None:
        found = render(messages, answers)
        return None if found is None else found.removeprefix(bos)

    system, turns = _MESSAGES[0], _MESSAGES[1:]
    asked, answered = given(turns[:1], False), given(turns[:2], False)
    asks, longer = given(turns[:1], True), given(turns[:3], False)
    with_system = given((system, turns[0]), False)
    if asked is None or answered is None or asks is None or longer is None:
        return None
    try:
        (opening, after_user), (_, after_answer) = _cut(asked, 1), _cut(answered, 2)
        before_answer = _without_start(_between(answered, 1, 2), after_user)
        before_user = _without_start(_between(longer, 2, 3), after_answer)
        marks = Marks(
            _system(with_system, before_user),
            (before_user, after_user),
            (before_answer, after_answer),
            _without_end(opening, before_user),
            _without_start(asks, asked),
        )
    except ValueError:
        return None
    conversations = [turns[:1], turns[:2], turns[:3], turns]
    if marks.system is not None:
        conversations += [(system, *some) for some in conversations]
    cases = [(some, answers) for some in conversations for answers in (False, True)]
    # An answer that is still to come is asked for after a question alone.
    cases = [(some, a) for some, a in cases if not a or some[-1]["role"] == "user"]
    same = all(given(some, answers) == marks.render(some, answers) for some, answers in cases)
    written = "".join((*marks.user, *marks.assistant, *(marks.system or ()), marks.opening))
    sayable = not re.search(r'\{\{|\}\}|"""', written + marks.answer)
    return marks if same and sayable else None


def _system(rendered: str | None, before_user: str) -> tuple[str, str] | None:
    if rendered is None or _CONTENTS[0] not in rendered:
        return None
    return _cut(rendered, 0)[0], _without_end(_between(rendered, 0, 1), before_user)


def modelfile(
    file: str,
    marks: Marks | None,
    stops: Sequence[str],
    generation: Mapping[str, Any],
    context: int | None,
) -> str:
    """The Modelfile of a GGUF file beside it.

    ``generation`` is the content of generation_config.json, ``context`` the most positions that
    the model has.
    """
    lines = [f"FROM ./{file}"]
    if marks is not None:
        lines.append(f'TEMPLATE """{marks.template()}"""')
    else:
        lines.append("# No TEMPLATE: Ollama takes the one in the file, where it knows it.")
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    if generation.get("do_sample") is not False:
        for key, name in PARAMETERS.items():
            value = generation.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                lines.append(f"PARAMETER {name} {value}")
    if context is not None and context < _CONTEXT:
        lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join(lines) + "\n"


def _cut(text: str, number: int) -> tuple[str, str]:
    """What stands before and after a message; raises `ValueError` where it is not there once."""
    before, after = text.split(_CONTENTS[number])
    return before, after


def _between(text: str, first: int, second: int) -> str:
    return _cut(_cut(text, first)[1], second)[0]


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError("another start")
    return text.removeprefix(start)


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError("another end")
    return text.removesuffix(end)
