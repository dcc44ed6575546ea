"""GLoRA: a weight scaled and shifted, and a bias that also sees the weight (arXiv:2306.07967).

``W + W * A + B`` and ``b + b * D + E + W C`` (PEFT glora/layer.py, merge), every one of A to E a
low-rank product, a vector, a number or nothing. PEFT stores zeros for those that are nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from remerge.adapters.blocks import in_blocks, other_parameter, span_of
from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.deltas import Added, BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index, Region
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer
from remerge.adapters.tuners.hira import Modulated
from remerge.adapters.tuners.weights import Weight, all_fit
from remerge.errors import Unsupported

_KEY = re.compile(
    r"(?P<module>.+)\.glora_(?P<path>[A-E])(?:\.(?!(?:Xd|Xu|X|zeros)$)[^.]+)?"
    r"\.(?P<leaf>Xd|Xu|X|zeros)"
)
Form = Literal["lora", "vector", "constant", "none"]


class GloraConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (glora/config.py)."""

    r: Rank = 8
    config_A_B: Form = "lora"
    config_C: Literal["lora", "vector", "none"] = "lora"
    config_D_E: Literal["vector", "constant", "none"] = "constant"


Context = Reading[GloraConfig]


@dataclass(frozen=True)
class Response:
    """``b += W @ left @ right``: what the base's weight, at ``weight``, answers to one input.

    ``left (in, r)``, ``right (r, 1)``.
    """

    weight: Region
    left: Factor
    right: Factor
    band: int = 0
    gathers: bool = True

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.left, self.right)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """``W @ left @ right (out, 1)``."""
        answers: list[torch.Tensor] = []
        asked = load(self.left) @ load(self.right)

        def answer(rows: range, block: torch.Tensor) -> None:
            answers.append((block @ asked).cpu())

        in_blocks(other_parameter(base, self.weight), answer)
        return {"answer": torch.cat(answers)}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        block += prepared["answer"][span_of(rows)].to(block.device)


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    return None if found is None else (found["module"], f"{found['path']}.{found['leaf']}")


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense = dense_layer(context, parts, conv1d=False)
        if dense is not None:
            edits += _edit(context, parts, dense)
    return edits


def _edit(context: Context, parts: Parts, dense: Weight) -> list[Edit]:
    config, biased = context.config, context.shape(dense.bias) is not None
    forms: dict[str, Form] = dict.fromkeys("AB", config.config_A_B)
    forms |= dict.fromkeys("DE", config.config_D_E if biased else "none")
    forms["C"] = config.config_C if biased else "none"
    wanted = {f"{path}.{leaf}" for path, form in forms.items() for leaf in _LEAVES[form]}
    if not context.only(parts, frozenset(wanted)):
        return []
    size = dense.outputs, dense.inputs
    scale, shift = (_path(context, parts, dense, path, forms[path], size) for path in "AB")
    edits: list[Edit] = []
    if scale is not None and shift is not None:
        edits.append(Edit(dense.parameter, (Modulated(*scale), dense.low_rank(*shift, 1.0))))
    column = dense.outputs, 1
    scale, shift = (_path(context, parts, dense, path, forms[path], column) for path in "DE")
    seen = _path(context, parts, dense, "C", forms["C"], (dense.inputs, 1))
    steps = (
        *([] if scale is None else [Modulated(*scale)]),
        *([] if shift is None else [Added(shift[0], 1.0)]),
        *([] if seen is None else [Response(_region(context, dense), *seen)]),
    )
    return [*edits, Edit(dense.bias, steps)] if steps else edits


_LEAVES: dict[Form, tuple[str, ...]] = {
    "lora": ("Xd", "Xu"),
    "vector": ("X",),
    "constant": ("X",),
    "none": ("zeros",),
}


def _path(
    context: Context, parts: Parts, dense: Weight, path: str, form: Form, size: tuple[int, int]
) -> tuple[Factor, Factor] | None:
    """The product ``(rows, r) @ (r, cols)`` that a path stands for; None for none, and with a
    misfit where it does not fit."""
    if form == "none":
        return None
    names = context.all_of(parts, *(f"{path}.{leaf}" for leaf in _LEAVES[form]), prefix="glora_")
    if names is None:
        return None
    (rows, cols), rank = size, context.config.r
    if form == "lora":
        shapes = dict(zip(names, ((rows, rank), (rank, cols)), strict=True))
        if not all_fit(context, dense, shapes):
            return None
        return matrix(context.adapter, names[0]), matrix(context.adapter, names[1])
    # The paths of the bias alone are vectors of one axis.
    wanted = (1,) if form == "constant" else (rows,) if path in "DE" else (rows, 1)
    if not all_fit(context, dense, {names[0]: wanted}):
        return None
    ones = made((1, cols), lambda: torch.ones(1, cols))
    if form == "vector":
        return matrix(context.adapter, names[0], (rows, 1)), ones
    number = matrix(context.adapter, names[0], (1, 1))
    return made((rows, 1), lambda: number.read().expand(rows, 1)), ones


def _region(context: Context, dense: Weight) -> Region:
    """Where the layer's weight lies; raises `Unsupported` where it lies in pieces."""
    regions = context.names.regions(dense.parameter)
    if len(regions) != 1:
        raise Unsupported(
            f"GLoRA on the bias of {dense.module}, whose weight lies in {len(regions)} tensors.",
            why="The bias's change is computed from the weight.",
            hint="Serve it as an adapter, or merge onto a base saved by transformers itself.",
        )
    return regions[0]


GLORA = Tuner("glora", GloraConfig, _layer_key, _edits)
