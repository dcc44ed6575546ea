"""How far an output's logits are from those of the merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remerge.errors import NotReproduced

Values = NDArray[Any]


@dataclass(frozen=True)
class Agreement:
    """Two models' logits over the same tokens.

    ``relative`` is the difference's norm over that of the merge's logits, both less their mean at
    each position, which softmax does not see; ``divergence`` the mean KL(merge || output) in nats;
    ``same_first`` the share of positions with the same likeliest token.
    """

    positions: int
    largest: float
    relative: float
    divergence: float
    same_first: float

    def document(self) -> dict[str, float]:
        """For a manifest: two digits, which the order of a sum does not reach."""
        return {
            "positions": self.positions,
            "logits_largest_difference": _rounded(self.largest),
            "logits_relative_difference": _rounded(self.relative),
            "kl_divergence": _rounded(self.divergence),
            "top1_agreement": _rounded(self.same_first),
        }

    def note(self, other: str) -> str:
        """One sentence."""
        return (
            f"Checked: over {self.positions} tokens the logits in {other} differ by "
            f"{self.relative:.1e} of their size from the merge's in float32 (transformers); KL "
            f"{self.divergence:.1e} nats, the likeliest token is the same at {self.same_first:.0%}."
        )


def agreement(expected: Values, found: Values) -> Agreement:
    """Compare logits of shape (positions, vocabulary). A padded vocabulary is cut."""
    expected = expected.astype(np.float64)
    found = found[:, : expected.shape[1]].astype(np.float64)
    ours, theirs = (_log_softmax(values) for values in (expected, found))
    centred, other = (v - v.mean(-1, keepdims=True) for v in (expected, found))
    difference = other - centred
    size = float(np.linalg.norm(centred))
    return Agreement(
        positions=len(expected),
        largest=float(np.abs(difference).max()),
        relative=_ratio(float(np.linalg.norm(difference)), size),
        divergence=max(0.0, float((np.exp(ours) * (ours - theirs)).sum(-1).mean())),
        same_first=float((expected.argmax(-1) == found.argmax(-1)).mean()),
    )


def check(reference: Mapping[str, Values], found: Values, allowed: float, other: str) -> Agreement:
    """The agreement of an output with the merge; raises `NotReproduced` beyond ``allowed``, as a
    relative difference, or where logits are not finite."""
    if not np.isfinite(found).all():
        raise NotReproduced(f"The model gives logits that are not finite in {other}.")
    result = agreement(reference["logits"], found)
    if result.relative > allowed:
        raise NotReproduced(
            f"In {other} the model's logits differ by {result.relative:.2g} of their size from the "
            f"merge's (at most {allowed:g} is allowed); the likeliest token is the same at "
            f"{result.same_first:.0%} of {result.positions} tokens.",
            why=f"{other} computes another model: it may read the configuration differently, or "
            "not know this architecture well.",
            hint="Write a checkpoint instead (leave out --to).",
        )
    return result


def read_reference(path: str | Path) -> Mapping[str, Values]:
    """``tokens`` (positions) and ``logits`` (positions, vocabulary), as `remerge.engines.reference`
    wrote them."""
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def _log_softmax(values: Values) -> Values:
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _ratio(difference: float, size: float) -> float:
    """Logits that are all equal have no size: then any difference is too large."""
    return difference / size if size else (0.0 if difference == 0.0 else float("inf"))


def _rounded(value: float) -> float:
    return float(f"{value:.1e}")
