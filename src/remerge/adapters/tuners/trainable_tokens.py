"""Trainable tokens (PEFT tuners/trainable_tokens): rows of an embedding, replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from remerge.adapters.config import PeftConfig, Token
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.keys import Parts
from remerge.adapters.tokens import trained_rows
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys


class TrainableTokensConfig(PeftConfig):
    """``token_indices`` are the rows, in the order of the stored ones."""

    token_indices: Annotated[list[Token], Field(min_length=1)]


def _edits(context: Reading[TrainableTokensConfig], layers: Sequence[Parts]) -> list[Edit]:
    indices = tuple(context.config.token_indices)
    found: list[Edit] = []
    for parts in layers:
        # The base's rows may stand beside the trained ones, kept to undo a merge.
        names = context.all_of(parts, "delta", prefix="trainable_tokens_")
        found += trained_rows(context, parts.module, names[0], indices) if names else []
    return found


TRAINABLE_TOKENS = Tuner(
    "trainable tokens",
    TrainableTokensConfig,
    part_keys("trainable_tokens", "delta", "original"),
    _edits,
)
