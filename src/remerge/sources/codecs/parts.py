"""The stored parts of a quantised tensor: found by name and held against what they must be."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from remerge.errors import BadInput, Unsupported
from remerge.sources.checkpoint import StoredTensor

_DAMAGED = "The checkpoint is damaged, or its parts come from different saves."
_FETCH = "Download the base again, or merge into its unquantised original."


def part(tensors: Mapping[str, StoredTensor], name: str, owner: str) -> StoredTensor:
    """A stored tensor by name; raises `BadInput` when ``owner`` lacks it."""
    if name not in tensors:
        raise BadInput(
            f"Quantised tensor {owner!r} has no {name!r}, without which it cannot be read.",
            why=_DAMAGED,
            hint=_FETCH,
        )
    return tensors[name]


def check_dtype(stored: StoredTensor, *dtypes: str) -> None:
    """Raises `Unsupported` for a part stored in none of these dtypes."""
    if stored.dtype not in dtypes:
        raise Unsupported(
            f"Tensor {stored.name!r} is stored as {stored.dtype}, where {' or '.join(dtypes)} "
            "is read here.",
            hint="Merge into the unquantised original of this base.",
        )


def check_shape(stored: StoredTensor, shape: tuple[int, ...], because: str) -> None:
    """Raises `BadInput` for a part of another shape; ``because`` names what asks for it."""
    if stored.shape != shape:
        raise misfit(stored, f"shape {list(shape)}", because)


def check_count(stored: StoredTensor, count: int, because: str) -> None:
    """Raises `BadInput` for a part of another number of elements, whatever its shape."""
    if prod(stored.shape) != count:
        raise misfit(stored, f"{count:,} elements", because)


def check_matrix(stored: StoredTensor) -> None:
    """Raises `BadInput` for a part that is no matrix, or an empty one."""
    if len(stored.shape) != 2 or 0 in stored.shape:
        raise misfit(stored, "two dimensions", "it holds packed codes of a matrix")


def check_absent(tensors: Mapping[str, StoredTensor], name: str, beside: str) -> None:
    """Raises `BadInput` for a tensor that stands both plainly and as codes."""
    if name in tensors:
        raise BadInput(
            f"Tensor {name!r} stands beside {beside!r}, which holds the same weight quantised.",
            why=_DAMAGED,
            hint=_FETCH,
        )


def misfit(stored: StoredTensor, wanted: str, because: str) -> BadInput:
    """A part that contradicts another one."""
    return BadInput(
        f"Tensor {stored.name!r} has shape {list(stored.shape)}, where {wanted} must be: "
        f"{because}.",
        why=_DAMAGED,
        hint=_FETCH,
    )


def leftover(stored: StoredTensor, missing: str) -> BadInput:
    """A part that belongs to no quantised tensor."""
    return BadInput(
        f"Tensor {stored.name!r} is part of a quantised tensor, but {missing}.",
        why=_DAMAGED,
        hint=_FETCH,
    )
