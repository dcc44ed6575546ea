"""TIES as KnOTS and Core Space apply it, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ties(values: Sequence[np.ndarray], weights: Sequence[float], density: float) -> np.ndarray:
    """Keep what is at least the (n - int(density n))-th smallest magnitude of each, elect the sign
    of the sum, and divide the weighted sum of what has it by its number."""
    stack = np.stack(values)
    if density < 1:
        for own in stack:
            sizes = np.sort(np.abs(own), axis=None)
            own[np.abs(own) < sizes[own.size - int(density * own.size) - 1]] = 0.0
    agree = np.where(stack.sum(0) >= 0, stack > 0, stack < 0)
    column = np.array(weights).reshape(-1, 1, 1)
    return (stack * column * agree).sum(0) / np.maximum(agree.sum(0), 1)
