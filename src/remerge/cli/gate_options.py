"""What a comparison asks and what its gate allows: the options of ``compare``, and of ``merge
--gate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "evaluations": click.option(
        "--eval",
        "evaluations",
        metavar="[NAME=]FILE",
        multiple=True,
        help="Questions with right answers, JSON lines (docs/compare.md); repeatable. Of several "
        "adapters, a set by an adapter's name is held to that adapter alone.",
    ),
    "scorer": click.option(
        "--scorer",
        metavar="NAME",
        help="exact, contains, regex, choice, choice_norm, or module:function of your own; by "
        "default what each line says.",
    ),
    "text": click.option("--text", metavar="FILE", help="A text to compare probabilities on."),
    "prompts": click.option(
        "--prompts", metavar="FILE", help="Texts without right answers: one a line, or JSON lines."
    ),
    "limit": click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="The first N of every set."
    ),
    "max_drop": click.option(
        "--max-drop",
        type=float,
        metavar="SHARE",
        help="Of a score, where chance would hardly give it (p < 0.05); 0.001.",
    ),
    "max_kl": click.option(
        "--max-kl",
        type=float,
        metavar="NATS",
        help="Mean KL divergence; by default what the format may cost this very model.",
    ),
    "min_agreement": click.option(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="Positions with the same likeliest token; the default goes with the format.",
    ),
}
GATE = tuple(_OPTIONS)


def gate_options(command: F) -> F:
    """Add every option of a gate."""
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command


def take_gate(options: dict[str, Any], written: Mapping[str, Any] | None) -> dict[str, Any]:
    """Take the gate's options out of those of a command: what was given, over what a recipe's
    ``gate:`` says."""
    given: dict[str, Any] = {}
    for name in GATE:
        value = options.pop(name)
        if is_given(name):
            given[name] = value
    return {**(written or {}), **given}


def is_given(option: str) -> bool:
    """Whether the command line says something of an option."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not ParameterSource.DEFAULT
