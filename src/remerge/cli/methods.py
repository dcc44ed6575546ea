"""The options of combine methods, one for each hyper-parameter that any of them has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_FLOATS = "NUMBER[,NUMBER...]"


def numbers(text: str) -> tuple[float, ...]:
    """One number for all adapters, or one for each, with commas between."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number, and no list such as 0.7,0.3.") from None


# By the name that a method's parameters have.
PARAMETERS: dict[str, Callable[[Any], Any]] = {
    "density": click.option(
        "--density",
        type=numbers,
        metavar=_FLOATS,
        help="Share of each delta's values to keep: ties, dare_*, della*, breadcrumbs*, "
        "magnitude_prune, core_space, knots, peft_ties*, peft_dare_*, peft_magnitude_prune*.",
    ),
    "gamma": click.option(
        "--gamma",
        type=numbers,
        metavar=_FLOATS,
        help="Share of the largest values to drop: breadcrumbs*.",
    ),
    "epsilon": click.option(
        "--epsilon",
        type=numbers,
        metavar=_FLOATS,
        help="How far chances to stay differ by rank: della*.",
    ),
    "lambda": click.option(
        "--lambda",
        "lambda_",
        type=float,
        help="Factor of the combined delta: ties, dare_*, della*, breadcrumbs*, consensus.",
    ),
    "normalize": click.option(
        "--normalize/--no-normalize",
        default=None,
        help="Divide by the sum of the weights that count: ties, dare_*, della*, breadcrumbs*.",
    ),
    "rescale": click.option(
        "--rescale",
        type=click.Choice(["expected", "l1", "none"]),
        help="Make up for dropped values, by their chance, by the delta's L1 norm, "
        "or not: dare_*, della*.",
    ),
    "majority_sign_method": click.option(
        "--majority-sign-method",
        type=click.Choice(["total", "frequency"]),
        help="Elect a sign by the sum of the deltas, or by their number: ties, *_ties*, della.",
    ),
    "scope": click.option(
        "--scope",
        type=click.Choice(["tensor", "model"]),
        help="Take shares of every tensor, or of all together: ties, breadcrumbs*, "
        "magnitude_prune.",
    ),
    "seed": click.option(
        "--seed", type=click.IntRange(0), help="Of random masks: dare_*, della*, peft_dare_*."
    ),
    "svd_rank": click.option(
        "--svd-rank",
        type=click.IntRange(1),
        help="Rank of the combination of each layer: svd, *_svd, --to adapter.",
    ),
    "select_topk": click.option(
        "--select-topk",
        type=float,
        help="Share of values to keep, by variance over the adapters: sce.",
    ),
    "filter_wise": click.option(
        "--filter-wise/--no-filter-wise",
        default=None,
        help="Measure angles row by row: model_stock.",
    ),
    "t": click.option(
        "--t", type=float, help="From the first adapter (0) to the second (1): slerp."
    ),
    "row_wise": click.option(
        "--row-wise/--no-row-wise", default=None, help="Interpolate every row by itself: nuslerp."
    ),
    "within": click.option(
        "--within",
        type=click.Choice(["sum", "ties", "tsv"]),
        help="Method to use in the shared space of the factors: core_space, knots.",
    ),
    "agreement": click.option(
        "--agreement",
        type=click.IntRange(1),
        help="How many adapters must need a value: consensus.",
    ),
    "mask_lambda": click.option(
        "--mask-lambda",
        type=float,
        help="How much of a merged value must be an adapter's own: consensus.",
    ),
}


def method_options(command: F) -> F:
    """Add the options of all methods to a command, which gets them as keywords."""
    for option in reversed(PARAMETERS.values()):
        option(command)
    return command


def given_parameters(options: dict[str, Any]) -> dict[str, Any]:
    """Take the methods' options out of a command's keywords: those that were given, by the
    parameter's name."""
    found = {name: options.pop("lambda_" if name == "lambda" else name) for name in PARAMETERS}
    return {name: value for name, value in found.items() if value is not None}


class MethodCommand(click.Command):
    """A command whose help shows the methods' options by themselves, below its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        methods: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                (methods if (param.name or "").rstrip("_") in PARAMETERS else own).append(record)
        with formatter.section("Options"):
            formatter.write_dl(own)
        with formatter.section("Options of methods, with those that have them"):
            formatter.write_dl(methods)
