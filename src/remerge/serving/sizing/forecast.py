"""How long a token takes, reckoned from bytes and operations.

A token after the prompt reads all weights that it uses and its sequence's cache once; a token of a
prompt takes two operations a parameter, and four a number of the keys that it meets.
"""

from __future__ import annotations

from remerge.serving.sizing.asked import Forecast
from remerge.serving.sizing.cache import Layout, step_bytes
from remerge.serving.sizing.rates import Rates
from remerge.serving.sizing.shape import Shape
from remerge.serving.sizing.weights import Weights


def prefill_seconds(
    shape: Shape, weights: Weights, rates: Rates, tokens: int, *, narrow: bool
) -> float:
    """Of one prompt of so many tokens, alone in the engine."""
    attended = sum(4 * shape.query * min(tokens, a.window or tokens) / 2 for a in shape.attentions)
    operations = tokens * (2.0 * weights.parameters + attended)
    moved = weights.loaded(None) / rates.bandwidth
    return max(operations * (rates.narrow if narrow else 1.0) / rates.operations, moved)


def forecast_of(
    shape: Shape,
    weights: Weights,
    rates: Rates,
    layout: Layout,
    sizes: tuple[int, int, int],
    *,
    narrow: bool,
) -> Forecast:
    """For ``sizes``: tokens of a prompt, tokens behind a sequence's next one, sequences at once."""
    prompt, context, sequences = sizes
    first = sequences * prefill_seconds(shape, weights, rates, prompt, narrow=narrow)
    loaded = weights.loaded(None)
    read = (loaded + sequences * step_bytes(shape, layout, context)) / rates.bandwidth
    computed = 2.0 * weights.parameters * sequences * (rates.narrow if narrow else 1.0)
    return Forecast(prompt, first, max(read, computed / rates.operations), rates.source)
