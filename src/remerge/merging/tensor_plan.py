"""One tensor of the output: where its bytes come from and what changes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from remerge.adapters.deltas import Change
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Codec
from remerge.sources.dtypes import MERGEABLE
from remerge.sources.reading import Source


@dataclass(frozen=True)
class Encoding:
    """A part of a tensor that is written in a quantised format.

    ``codec`` also is an `Encodes`; ``role`` is the part's. ``origin`` is the base's tensor that the
    values start from: ``codec`` itself where the base's format is written back; None for a tensor
    that the base lacks. ``change`` is None for a tensor that no delta touches. ``shares`` are the
    codes of the tensors that share what is measured.
    """

    codec: Codec
    role: str
    change: Change | None
    origin: Source | None
    shares: tuple[Encoding, ...] = ()

    @property
    def anew(self) -> bool:
        """Whether the tensor was in no such format before: it is quantised from float32 then."""
        return self.origin is not self.codec

    @property
    def compares(self) -> bool:
        """Whether there is a delta to measure: the base holds a tensor of floats of this shape."""
        return (
            self.change is not None
            and self.origin is not None
            and self.origin.dtype in MERGEABLE
            and tuple(self.origin.shape) == tuple(self.codec.shape)
        )


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output: where its bytes come from and what changes them.

    ``source`` is None for a tensor that the base lacks; ``change`` is None for one that no delta
    touches. ``dtype`` is the output's, after ``--dtype``. ``encoding`` is set for a part of a
    quantised tensor that is encoded anew; ``source`` then is the base's part.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Source | None
    change: Change | None
    encoding: Encoding | None = None

    @property
    def copied(self) -> bool:
        """Whether the output's bytes are the base's bytes."""
        if self.change is not None or self.encoding is not None:
            return False
        return isinstance(self.source, StoredTensor) and self.dtype == self.source.dtype

    @property
    def reads_source(self) -> bool:
        """Whether the output's values start from those of ``source``."""
        if self.source is None or self.encoding is not None:
            return False
        return self.change is None or self.change.reads_base

    @property
    def compares(self) -> bool:
        """Whether the base holds a tensor of floats of this shape, from which there is a delta."""
        return (
            self.source is not None
            and self.source.dtype in MERGEABLE
            and tuple(self.source.shape) == self.shape
        )

    @property
    def touched_by(self) -> Change | None:
        """The change that this tensor, or the tensor it is a part of, undergoes."""
        return self.change if self.encoding is None else self.encoding.change

    @property
    def origin(self) -> Source | None:
        """The base's tensor, decoded, that the change starts from."""
        return self.source if self.encoding is None else self.encoding.origin

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def output_dtype(stored: str, wanted: str | None) -> str:
    """A tensor's dtype after ``--dtype``: floats are converted, codes and integers are not."""
    return wanted if wanted is not None and stored in MERGEABLE else stored


def usual_dtype(plans: Mapping[str, TensorPlan]) -> str:
    """The float dtype that most of the output's values have."""
    counts: dict[str, int] = {}
    for plan in plans.values():
        if plan.dtype in MERGEABLE:
            counts[plan.dtype] = counts.get(plan.dtype, 0) + plan.elements
    return max(sorted(counts), key=lambda name: counts[name]) if counts else "F32"
