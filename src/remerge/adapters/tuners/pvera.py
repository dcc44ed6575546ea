"""PVeRA: VeRA whose hidden values are drawn from learned distributions (PEFT pvera/layer.py).

The first half of A's rows makes means, the second log-variances; merged, as at inference by
default, only the means count.
"""

from __future__ import annotations

from collections.abc import Sequence

from remerge.adapters.edits import Edit, Reading
from remerge.adapters.keys import Keys, Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.vera import VeraConfig, vera_edits


class PveraConfig(VeraConfig):
    """The fields that decide a merge; defaults are PEFT's (pvera/config.py)."""

    sample_at_inference: bool = False


def _edits(context: Reading[PveraConfig], layers: Sequence[Parts]) -> list[Edit]:
    return vera_edits(context, layers, halves=2)


def _notes(context: Reading[PveraConfig], keys: Keys) -> list[str]:
    if not context.config.sample_at_inference:
        return []
    return [
        "The adapter samples its hidden values at inference; the merged model has their means, "
        "which no draw of the adapter gives exactly."
    ]


PVERA = Tuner(
    "pvera",
    PveraConfig,
    part_keys("pvera", "lambda_b", "lambda_d", shared=("A", "B")),
    _edits,
    notes=_notes,
)
