"""Run in quantisers' environments: how long calibration will take, from doing it to one layer."""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from remerge.errors import Unsupported

Tokens = Sequence[Sequence[int]]
# Samples of the trials. What is done once (imports, caches) falls to the first of them.
_FEW, _MORE = 2, 10
_VOCABULARY = 1024


def forecast(config: Any, tokens: Tokens, trial: Callable[[Any, Tokens], float]) -> str:
    """A sentence. ``trial`` quantises a model of one layer of the real sizes, with random weights,
    on a few samples, and gives the seconds that it took."""
    layers = config.get_text_config().num_hidden_layers
    few, more = tokens[:_FEW], tokens[:_MORE]
    try:
        _, shorter, longer = (_seconds(config, given, trial) for given in (few, few, more))
    except Unsupported as error:
        return f"How long it will take cannot be told: {error.what}"
    # A sample's share, as long as the samples are on average.
    share = max(0.0, longer - shorter) / max(len(more) - len(few), 1)
    share *= (sum(map(len, tokens)) / len(tokens)) / (sum(map(len, more)) / len(more))
    seconds = layers * (longer + share * (len(tokens) - len(more)))
    return (
        f"Forecast, from one layer and {len(more)} samples on this machine: about {said(seconds)} "
        f"for {layers} layers and {len(tokens)} samples."
    )


def said(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _seconds(config: Any, tokens: Tokens, trial: Callable[[Any, Tokens], float]) -> float:
    from transformers import AutoModelForCausalLM

    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers, text.pad_token_id = 1, None
    text.vocab_size = min(text.vocab_size, _VOCABULARY)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    model = AutoModelForCausalLM.from_config(small, dtype=config.dtype)
    return trial(model, [[token % text.vocab_size for token in row] for row in tokens])
