"""PEANuT: a small network that makes a weight's change out of the weight (arXiv:2410.01870).

``W + s * B h(A W)`` with ``A (r, out)``, ``B (out, r)`` and h a chain of trained ``(r, r)`` layers,
down and back up with residuals (PEFT peanut/layer.py, _compute_delta_weight). Only ``A W (r, in)``
needs more of the base than a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from remerge.adapters.blocks import span_of
from remerge.adapters.config import Number, PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer
from remerge.adapters.tuners.gathered import projected
from remerge.adapters.tuners.weights import Weight, all_fit
from remerge.errors import Unsupported

_KEY = re.compile(
    r"(?P<module>.+)\.peanut_(?P<part>A|B|encoders|decoders)"
    r"(?:\.(?!weight$)(?!\d+\.)[^.]+)?(?P<index>\.\d+)?\.weight"
)


class PeanutConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (peanut/config.py)."""

    r: Rank = 32
    depth: Annotated[int, Field(ge=0, le=1000)] = 0
    act_fn: str = "relu"
    scaling: Number = 1.0


Context = Reading[PeanutConfig]


@dataclass(frozen=True)
class Network:
    """``W + scale * up (out, r) @ h(down (r, out) @ W)``; ``encoders`` and ``decoders (r, r)``."""

    down: Factor
    up: Factor
    encoders: tuple[Factor, ...]
    decoders: tuple[Factor, ...]
    activation: str
    scale: float
    band: int = 0
    gathers: bool = True

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.down, self.up, *self.encoders, *self.decoders)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """``h(A W) (r, in)``."""
        act = _activation(self.activation)
        hidden = act(projected(base, load(self.down).T).T.cpu())
        kept: list[torch.Tensor] = []
        for layer in self.encoders:
            kept.append(hidden)
            hidden = act(hidden @ load(layer).cpu().T)
        for layer in self.decoders:
            hidden = act(hidden @ load(layer).cpu().T) + kept.pop()
        return {"hidden": hidden.T.contiguous()}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        hidden = prepared["hidden"][:, span_of(cols)].to(block.device)
        block.addmm_(load(self.up)[span_of(rows)], hidden, alpha=self.scale)


def _activation(name: str) -> Any:
    """The activation of this name, in float64."""
    # transformers takes seconds to import, and most adapters can do without.
    from transformers.activations import ACT2FN

    functions: Any = ACT2FN
    return functions[name].to(torch.float64).requires_grad_(False)


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    if found is None or (found["part"] in ("A", "B")) != (found["index"] is None):
        return None
    return found["module"], found["part"] + (found["index"] or "")


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense = dense_layer(context, parts, conv1d=False)
        if dense is not None:
            edits += _edit(context, parts, dense)
    return edits


def _edit(context: Context, parts: Parts, dense: Weight) -> list[Edit]:
    config = context.config
    encoders = [f"encoders.{i}" for i in range(config.depth)]
    decoders = [f"decoders.{i}" for i in range(config.depth)]
    wanted = ("A", "B", *encoders, *decoders)
    names = context.all_of(parts, *wanted, prefix="peanut_")
    if names is None or not context.only(parts, frozenset(wanted)):
        return []
    shapes = dict.fromkeys(names[2:], (config.r, config.r))
    shapes |= {names[0]: (config.r, dense.outputs), names[1]: (dense.outputs, config.r)}
    if not all_fit(context, dense, shapes):
        return []
    down, up, *inner = (matrix(context.adapter, name) for name in names)
    middle = tuple(inner[: config.depth]), tuple(inner[config.depth :])
    return [Edit(dense.parameter, (Network(down, up, *middle, config.act_fn, config.scaling),))]


def _check(config: PeanutConfig, raw: Mapping[str, Any]) -> None:
    try:
        _activation(config.act_fn)
    except (KeyError, ImportError, RuntimeError, AttributeError) as error:
        raise Unsupported(
            f"act_fn is {config.act_fn[:40]!r}, which the installed transformers cannot compute.",
            hint="Update transformers, or serve it as an adapter on its base.",
        ) from error


PEANUT = Tuner("peanut", PeanutConfig, _layer_key, _edits, check=_check)
