"""Trained coefficients of a transform, at places that a seed draws (FourierFT, WaveFT)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import torch
from pydantic import Field

from remerge.adapters.edits import Context
from remerge.adapters.keys import Parts
from remerge.adapters.tuners.places import MOST_PLACES, shuffled
from remerge.adapters.tuners.weights import Weight
from remerge.errors import Unsupported

Count = Annotated[int, Field(gt=0, le=2**31)]


def drawn_places(
    count: int, shape: tuple[int, int], seed: int, flipped: bool
) -> dict[str, torch.Tensor]:
    """Rows (``down``) and columns (``across``) of a parameter of this shape at which coefficients
    lie; with ``flipped`` they were drawn for its transpose. int64 ``(count,)`` each."""
    height, width = shape
    places = shuffled(count, height * width, seed)
    if flipped:
        return {"down": places % height, "across": places // height}
    return {"down": places // width, "across": places % width}


def spectrum(
    context: Context, parts: Parts, dense: Weight, prefix: str, counts: Collection[int]
) -> str | None:
    """The name of a layer's coefficients, of which there are one of ``counts`` (any number where
    that is empty); None, with a misfit, where they are missing, too many or too few.

    Raises `Unsupported` for a layer so large that their places cannot be drawn alone.
    """
    names = context.all_of(parts, "spectrum", prefix=prefix)
    if names is None:
        return None
    found, most = context.stored(names[0]), dense.outputs * dense.inputs
    if len(found) != 1 or found[0] > most or (counts and found[0] not in counts):
        allowed = " or ".join(str(count) for count in sorted(counts)) or f"up to {most}"
        size = f"{dense.outputs} x {dense.inputs}"
        context.misfits.add(
            names[0],
            f"has shape {found}, but {dense.module} ({size}) needs {allowed} coefficients",
            "shape",
        )
        return None
    if most >= MOST_PLACES:
        raise Unsupported(
            f"{dense.module} has {most} weights, among which the adapter's {found[0]} coefficients "
            "were placed by shuffling them all.",
            why=f"Over {MOST_PLACES} weights the shuffle takes them all in memory.",
            hint="Serve it as an adapter on its base.",
        )
    return names[0]
