"""Ranks and alphas that differ from layer to layer, as a PEFT configuration states them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


def patterns(ranks: Mapping[str, int], alphas: Mapping[str, float], alpha: str) -> dict[str, Any]:
    """PEFT's r, alpha (under the family's name for it) and the patterns of the layers that differ.

    ``ranks`` and ``alphas`` are by the path of the module; neither is empty.
    """
    rank, usual = _usual(ranks.values()), _usual(alphas.values())
    return {
        "r": rank,
        alpha: usual,
        "rank_pattern": {_exactly(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {_exactly(m): a for m, a in alphas.items() if a != usual},
    }


def _usual(values: Collection[Number]) -> Number:
    return Counter(values).most_common(1)[0][0]


def _exactly(module: str) -> str:
    # PEFT would also take a plain name for the end of a longer path.
    return f"^{re.escape(module)}"
