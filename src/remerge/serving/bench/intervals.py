"""How much faster: the ratio of paired rounds with an interval that holds for few of them.

Within a round both arms do the same work, in an order that is drawn; what disturbs one may disturb
the other. So the logarithms of the rounds' ratios lie symmetrically around the true one, which is
all that Wilcoxon's signed-rank test asks: its interval is exact for any number of rounds, and one
round in which the machine was busy moves it little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
# Below it no interval of that level exists: with five rounds the widest has 94 %.
FEWEST = 6


@dataclass(frozen=True)
class Ratio:
    """A ratio; ``low`` and ``high`` bound it with at least 95 % confidence, None where there are
    too few rounds for that. ``rounds`` is how many there were."""

    value: float
    low: float | None
    high: float | None
    rounds: int

    @property
    def contains_one(self) -> bool:
        """Whether no difference is shown."""
        return self.low is None or self.high is None or self.low <= 1.0 <= self.high


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """Hodges and Lehmann's estimate of a ratio from those of paired rounds, with the interval of
    Wilcoxon's signed-rank test (Hollander, Wolfe and Chicken 2014, sections 3.2 and 3.3), both
    taken on logarithms.

    Raises ValueError for no ratios, or one that is not above zero.
    """
    if not ratios or min(ratios) <= 0 or not all(map(math.isfinite, ratios)):
        raise ValueError("ratios are finite numbers above zero")
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    rows, columns = np.triu_indices(len(logs))
    walsh = np.sort((logs[rows] + logs[columns]) / 2)
    value = float(np.exp(np.median(walsh)))
    cut = _cut(len(logs))
    if cut == 0:
        return Ratio(value, None, None, len(logs))
    low, high = float(np.exp(walsh[cut - 1])), float(np.exp(walsh[-cut]))
    return Ratio(value, low, high, len(logs))


def _cut(rounds: int) -> int:
    """How many averages at either end lie outside of the interval, and one: the largest ``k`` for
    which the sum of positive ranks is below ``k`` with at most half of what is left to chance."""
    ways = [1]
    for rank in range(1, rounds + 1):
        # Each rank is in the sum, or is not.
        longer = [*ways, *[0] * rank]
        for index, count in enumerate(ways):
            longer[index + rank] += count
        ways = longer
    # In whole numbers: 2 x below <= 5 % of 2^rounds.
    below = found = 0
    for count in ways:
        below += count
        if 40 * below > 2**rounds:
            break
        found += 1
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
