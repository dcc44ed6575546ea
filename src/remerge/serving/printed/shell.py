"""The command itself, for a shell."""

from __future__ import annotations

import shlex

from remerge.serving.printed.form import Form, Printing, commented


def _write(printing: Printing) -> str:
    variables = [
        f"{name}={shlex.quote(value)}" for name, value in printing.command.variables.items()
    ]
    lines: list[str] = [" ".join(variables)] if variables else []
    program: list[str] = []
    words = [shlex.quote(word) for word in printing.command.words]
    while words and not words[0].startswith("--"):
        program.append(words.pop(0))
    lines.append(" ".join(program))
    for word in words:
        # An option begins a line, and its values stand behind it.
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return commented(printing) + " \\\n  ".join(lines) + "\n"


COMMAND = Form("command", "the command, for a shell", _write)
