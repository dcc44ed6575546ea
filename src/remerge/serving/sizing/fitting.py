"""The memory that given sizes come to, and the largest sizes that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from remerge.serving.sizing.asked import Parts
from remerge.serving.sizing.cache import Layout, cache_bytes
from remerge.serving.sizing.figures import EngineFigures
from remerge.serving.sizing.shape import Shape
from remerge.serving.sizing.weights import Weights


@dataclass(frozen=True)
class Load:
    """All that decides memory but the sizes: ``element`` is the bytes of a float of the weights as
    computed with (None: as stored), ``adapters`` bytes of adapters as loaded, ``adapting`` what
    they take besides for each token of a batch and each sequence."""

    shape: Shape
    weights: Weights
    figures: EngineFigures
    layout: Layout
    element: int | None
    adapters: int
    given: int
    adapting: tuple[int, int] = (0, 0)

    def parts(self, context: int, sequences: int, batch: int) -> Parts:
        """The memory of these sizes."""
        figures, shape = self.figures, self.shape
        # An engine that computes a prompt whole has it all in one batch.
        tokens = batch or context
        per_token = figures.per_batched_token
        width = (
            per_token.hidden * shape.hidden
            + per_token.feed_forward * shape.feed_forward
            + per_token.query * shape.query
            + per_token.constant
            + figures.per_context_and_batched_token * context
            + self.adapting[0]
        )
        own = figures.per_sequence
        each = own.vocabulary * shape.vocabulary + own.constant + own.per_token * context
        each += self.adapting[1]
        weights = self.weights.loaded(self.element)
        again = figures.again
        output = shape.vocabulary * shape.hidden * (self.element or 4)
        weights += int(again.weights * weights + again.output_matrix * output)
        files = int(figures.loading.files * self.weights.largest_file)
        return Parts(
            weights=weights + self.weights.repacked,
            cache=cache_bytes(shape, replace(self.layout, batch=tokens), context, sequences),
            compute=int(tokens * width + sequences * each),
            engine=figures.base,
            adapters=self.adapters,
            loading=files + int(figures.loading.widest * self.weights.widest),
            given=self.given,
        )

    def fits(self, context: int, sequences: int, batch: int) -> bool:
        return self.parts(context, sequences, batch).total <= self.given


def largest(most: int, fits: Callable[[int], bool], unit: int = 1) -> int:
    """The largest number up to ``most`` that fits, of those that are ``most`` or whole ``unit``s,
    where nothing above one that does not fit would; 0 where none does."""
    if fits(most):
        return most
    low, high = 0, -(-most // unit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit
