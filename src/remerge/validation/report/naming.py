"""Names of tensors -> layer and module, by which a model is drawn as a grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# A name is hostile: longer numbers are no layers, and int() refuses them.
_DIGITS = 6
_MANY = "*"


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the ``stem`` before its layer's number, the ``layer`` (None where the
    name has no number), and the module's own name."""

    stem: tuple[str, ...]
    layer: int | None
    module: str


def place_of(tensor: str) -> Place:
    """The first whole number in a name is its layer, what follows the module.

    Further numbers, those of experts, become ``*``, so that all experts of a layer are one module;
    ``.weight`` is left out.

    >>> place_of("model.layers.3.mlp.experts.7.down_proj.weight")
    Place(stem=('model', 'layers'), layer=3, module='mlp.experts.*.down_proj')
    """
    parts = tensor.split(".")
    at = next((i for i, part in enumerate(parts) if _is_number(part)), None)
    if at is None:
        return Place((), None, _module(parts))
    return Place(tuple(parts[:at]), int(parts[at]), _module(parts[at + 1 :]))


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= _DIGITS


def _module(parts: list[str]) -> str:
    if len(parts) > 1 and parts[-1] == "weight":
        parts = parts[:-1]
    return ".".join(_MANY if _is_number(part) else part for part in parts)


def stem_names(places: Iterable[Place]) -> dict[tuple[str, ...], str]:
    """What to call every stem before its modules: nothing where there is only one, else what tells
    it from the others (a vision tower, an encoder)."""
    stems = list(dict.fromkeys(place.stem for place in places if place.layer is not None))
    if len(stems) < 2:
        return dict.fromkeys(stems, "")
    common = 0
    while all(len(stem) > common + 1 for stem in stems) and len({s[common] for s in stems}) == 1:
        common += 1
    return {stem: f"{'.'.join(stem[common:])}: " for stem in stems}
