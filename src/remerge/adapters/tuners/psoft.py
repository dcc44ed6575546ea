"""PSOFT: a trained rotation within the subspace of a weight's largest singular values.

``W + s * B (R - I) A`` (PEFT psoft/layer.py), where A and B come from a float32 decomposition of
the base, and R is a Cayley transform between two trained scales. The signs of the singular vectors
matter to it, so that A and B are those that PEFT finds only on the same numerical stack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from remerge.adapters.blocks import span_of
from remerge.adapters.config import Number, PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Keys, Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer
from remerge.adapters.tuners.gathered import svd_bytes, whole
from remerge.adapters.tuners.places import Seed
from remerge.adapters.tuners.weights import Weight, all_fit, fits

# torch ships no types for it.
_LINALG: Any = torch.linalg
_KEY = re.compile(
    r"(?P<module>.+)\.psoft_R(?:\.(?!(?:weight|vector_[ab])$)[^.]+)?"
    r"\.(?P<part>weight|vector_a|vector_b)"
)


class PsoftConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (psoft/config.py)."""

    r: Rank = 32
    psoft_alpha: Annotated[Number, Field(gt=0)] = 32
    ab_svd_init: Literal["psoft_init", "pissa_init"] = "psoft_init"
    psoft_svd: Literal["full", "lowrank"] = "full"
    psoft_svd_lowrank_niter: Annotated[int, Field(ge=0, le=1000)] = 10
    random_seed: Seed = 0
    psoft_orth: bool = True
    psoft_mag_b: bool = True
    psoft_mag_a: bool = True
    use_cayley_neumann: bool = False
    num_cayley_neumann_terms: Annotated[int, Field(le=1000)] = 5
    cayley_neumann_eps: Number | None = None


Context = Reading[PsoftConfig]


@dataclass(frozen=True)
class Rotation:
    """``W + s * B (R - I) A``: ``weight`` is R's parameter, ``outer (r, 1)`` and ``inner (1, r)``
    scale R's rows and columns."""

    weight: Factor
    outer: Factor | None
    inner: Factor | None
    config: PsoftConfig
    band: int = 0
    gathers: bool = True

    @property
    def factors(self) -> tuple[Factor, ...]:
        scales = (self.outer, self.inner)
        return (self.weight, *(scale for scale in scales if scale is not None))

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of `prepare` on a matrix of this shape."""
        return svd_bytes(shape)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """``s * B (R - I)`` and A, float64."""
        scale = self.config.psoft_alpha / self.config.r
        left, values, right = _decomposed(whole(base), self.config)
        values = values / scale
        if self.config.ab_svd_init == "pissa_init":
            values = values.sqrt()
            right = values.unsqueeze(1) * right
        b = (left * values).to(torch.float64)
        turned = _turn(load(self.weight).cpu(), self.config)
        if self.outer is not None:
            turned = load(self.outer).cpu() * turned
        if self.inner is not None:
            turned = turned * load(self.inner).cpu()
        turned = turned - torch.eye(self.config.r, dtype=torch.float64)
        return {"left": scale * (b @ turned), "right": right.to(torch.float64).contiguous()}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        left = prepared["left"][span_of(rows)].to(block.device)
        block.addmm_(left, prepared["right"][:, span_of(cols)].to(block.device))


def _decomposed(
    weight: torch.Tensor, config: PsoftConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The r largest singular values and vectors, as PEFT finds them (_compute_svd_factors)."""
    rank = config.r
    if config.psoft_svd == "full":
        left, values, right = _LINALG.svd(weight, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    # torch.svd_lowrank (Halko et al., arXiv:0909.4061), which draws from the global generator that
    # other threads may use.
    wide = weight.shape[0] < weight.shape[1]
    tall = weight.T if wide else weight
    generator = torch.Generator().manual_seed(config.random_seed)
    basis = _LINALG.qr(tall @ torch.randn(tall.shape[1], rank, generator=generator)).Q
    for _ in range(config.psoft_svd_lowrank_niter):
        basis = _LINALG.qr(tall.T @ basis).Q
        basis = _LINALG.qr(tall @ basis).Q
    left, values, right = _LINALG.svd(basis.T @ tall, full_matrices=False)
    left = basis.matmul(left)
    return (right.T, values, left.T) if wide else (left, values, right)


def _turn(weight: torch.Tensor, config: PsoftConfig) -> torch.Tensor:
    """R without its scales, float64 ``(r, r)`` (OrthLayer.get_matrix)."""
    rank = config.r
    if not config.psoft_orth:
        return weight
    upper = torch.zeros(rank, rank, dtype=torch.float64)
    rows, cols = torch.triu_indices(rank, rank, 1)
    upper[rows, cols] = weight.reshape(-1)
    skew, one = upper - upper.T, torch.eye(rank, dtype=torch.float64)
    if not config.use_cayley_neumann:
        return _LINALG.solve(one - skew, one + skew, left=False)
    eps = config.cayley_neumann_eps
    if eps is not None:
        norm = math.sqrt(float(skew.square().sum()))
        skew = skew * (eps / (norm + 1e-12)) if norm > eps else skew
    # I + 2 Q + 2 Q^2 + ... with the last of its terms once.
    found, power = one, one
    terms = config.num_cayley_neumann_terms
    last = terms - 1 if terms < 3 else max(3, terms - 1)
    for term in range(1, last + 1):
        power = power @ skew
        found = found + power * (1 if term == last and terms > 2 else 2)
    return found


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    return None if found is None else (found["module"], found["part"])


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense = dense_layer(context, parts, conv1d=False)
        if dense is not None:
            edits += _edit(context, parts, dense)
    return edits


def _edit(context: Context, parts: Parts, dense: Weight) -> list[Edit]:
    config, rank = context.config, context.config.r
    scales = [
        part
        for part, used in (("vector_b", config.psoft_mag_b), ("vector_a", config.psoft_mag_a))
        if used
    ]
    names = context.all_of(parts, "weight", *scales, prefix="psoft_R.")
    if names is None or not context.only(parts, frozenset({"weight", *scales})):
        return []
    if rank > min(dense.outputs, dense.inputs):
        problem = f"has rank {rank}, more than {dense.module} ({dense.outputs} x {dense.inputs})"
        context.misfits.add(names[0], problem, "rank")
        return []
    size = (rank * (rank - 1) // 2,) if config.psoft_orth else (rank, rank)
    fit = fits(context, names[0], size, dense, "rank")
    if not all_fit(context, dense, dict.fromkeys(names[1:], (rank,)), "rank") or not fit:
        return []
    shape = (size[0], 1) if len(size) == 1 else size
    weight = matrix(context.adapter, names[0], shape)
    found = dict(zip(scales, names[1:], strict=True))
    outer = inner = None
    if "vector_b" in found:
        outer = matrix(context.adapter, found["vector_b"], (rank, 1))
    if "vector_a" in found:
        inner = matrix(context.adapter, found["vector_a"], (1, rank))
    return [Edit(dense.parameter, (Rotation(weight, outer, inner, config),))]


def _notes(context: Context, keys: Keys) -> list[str]:
    return [
        "PSOFT adapters turn singular vectors of the base, which were derived again from this base "
        "as PEFT does on load. Their signs may differ on a machine with another LAPACK, in PEFT as "
        "here: compare the result with the adapter as it was trained."
    ]


PSOFT = Tuner("psoft", PsoftConfig, _layer_key, _edits, notes=_notes)
