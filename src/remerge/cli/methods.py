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
        "--density", type=numbers, metavar=_FLOATS, help="Share of each delta's values to keep."
    ),
    "gamma": click.option(
        "--gamma", type=numbers, metavar=_FLOATS, help="Share of the largest values to drop."
    ),
    "epsilon": click.option(
        "--epsilon", type=numbers, metavar=_FLOATS, help="How far chances to stay differ by rank."
    ),
    "lambda": click.option("--lambda", "lambda_", type=float, help="Factor of the combined delta."),
    "normalize": click.option(
        "--normalize/--no-normalize",
        default=None,
        help="Divide by the sum of the weights that count.",
    ),
    "rescale": click.option(
        "--rescale",
        type=click.Choice(["expected", "l1", "none"]),
        help="Make up for dropped values: by their chance, by the delta's L1 norm, or not.",
    ),
    "majority_sign_method": click.option(
        "--majority-sign-method",
        type=click.Choice(["total", "frequency"]),
        help="Elect a sign by the sum of the deltas, or by their number.",
    ),
    "scope": click.option(
        "--scope",
        type=click.Choice(["tensor", "model"]),
        help="Take shares of every tensor, or of all together.",
    ),
    "seed": click.option("--seed", type=click.IntRange(0), help="Of random masks."),
    "svd_rank": click.option(
        "--svd-rank", type=click.IntRange(1), help="Rank of the combination of each layer."
    ),
    "select_topk": click.option(
        "--select-topk", type=float, help="Share of values to keep, by variance over the adapters."
    ),
    "filter_wise": click.option(
        "--filter-wise/--no-filter-wise", default=None, help="Measure angles row by row."
    ),
    "t": click.option("--t", type=float, help="From the first adapter (0) to the second (1)."),
    "row_wise": click.option(
        "--row-wise/--no-row-wise", default=None, help="Interpolate every row by itself."
    ),
    "within": click.option(
        "--within",
        type=click.Choice(["sum", "ties", "tsv"]),
        help="Method to use in the shared space of the factors.",
    ),
    "agreement": click.option(
        "--agreement", type=click.IntRange(1), help="How many adapters must need a value."
    ),
    "mask_lambda": click.option(
        "--mask-lambda", type=float, help="How much of a merged value must be an adapter's own."
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
