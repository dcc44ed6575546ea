"""Adapters with known factors on a float64 base, so that methods can be held to 1e-10."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

import remerge
from remerge.adapters.deltas import Factor, LowRank, Window
from remerge.merging.methods.method import Joint, Method, PerAdapter, Term
from remerge.merging.scope import Scope

# name -> (rows, columns); neither a square nor a power of two.
LAYERS = {
    "model.layers.0.self_attn.q_proj": (37, 53),
    "model.layers.0.self_attn.k_proj": (29, 53),
    "model.layers.0.self_attn.v_proj": (61, 23),
}
# layer -> (B, A), without its scale.
Factors = Mapping[str, tuple[np.ndarray, np.ndarray]]


def write_base(
    path: Path, layers: Mapping[str, tuple[int, int]] = LAYERS, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """A llama-shaped base of these layers alone; gives its tensors."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(7)
    tensors = {
        f"{name}.weight": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in layers.items()
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (path / "config.json").write_text(json.dumps(config))
    return tensors


def random_factors(
    seed: int, rank: int | Mapping[str, int], layers: Mapping[str, tuple[int, int]] = LAYERS
) -> Factors:
    rng = np.random.default_rng(seed)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (rows, columns) in layers.items():
        r = rank if isinstance(rank, int) else rank[name]
        found[name] = rng.standard_normal((rows, r)), rng.standard_normal((r, columns))
    return found


def write_adapter(path: Path, factors: Factors, alpha: float, **config: Any) -> float:
    """A PEFT adapter of these factors in float64; scale alpha/r, by layer where ranks differ."""
    path.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for name, (b, a) in factors.items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.from_numpy(np.ascontiguousarray(a))
        tensors[f"{key}.lora_B.weight"] = torch.from_numpy(np.ascontiguousarray(b))
        ranks[name] = a.shape[0]
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = max(ranks.values())
    pattern = {name: r for name, r in ranks.items() if r != rank}
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha * rank,
        "rank_pattern": pattern,
        "alpha_pattern": {name: alpha * r for name, r in pattern.items()},
        "target_modules": sorted({name.rpartition(".")[2] for name in factors}),
        "base_model_name_or_path": "base",
        **config,
    }
    (path / "adapter_config.json").write_text(json.dumps(written))
    return alpha


def merged_deltas(
    place: Path,
    adapters: Sequence[Factors],
    scales: Sequence[float],
    method: str,
    weights: Sequence[float] | None = None,
    layers: Mapping[str, tuple[int, int]] = LAYERS,
    **parameters: Any,
) -> dict[str, np.ndarray]:
    """What remerge adds to each layer's weight."""
    base = write_base(place / "base", layers)
    paths: list[str | Path] = []
    for number, (factors, scale) in enumerate(zip(adapters, scales, strict=True)):
        paths.append(place / f"adapter{number}")
        write_adapter(place / f"adapter{number}", factors, scale)
    with remerge.open_merged(
        place / "base", paths, method=method, weights=weights, parameters=parameters
    ) as merged:
        return {
            name: (merged[f"{name}.weight"][...] - base[f"{name}.weight"]).numpy()
            for name in layers
        }


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(matrix, full_matrices=False)


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-10) -> None:
    """Equal to a share of the largest value."""
    error = np.abs(found - wanted).max(initial=0.0)
    assert error <= tolerance * max(1.0, np.abs(wanted).max(initial=0.0)), error


def joint_of(
    steps: Sequence[Sequence[LowRank]], weights: Sequence[float], view: tuple[int, int]
) -> Joint:
    """One tensor with these steps of each adapter."""
    terms = tuple(
        Term(number, weight, (), tuple(own))
        for number, (own, weight) in enumerate(zip(steps, weights, strict=True))
    )
    return Joint("w", view, "F64", terms, (), (None,) * len(terms), Scope())


def low_rank(
    left: np.ndarray,
    right: np.ndarray,
    scale: float = 1.0,
    row: int = 0,
    col: int = 0,
    *,
    turned: bool = False,
) -> LowRank:
    b, a = torch.from_numpy(left.copy()), torch.from_numpy(right.copy())
    return LowRank(
        Factor(left.shape, lambda: b), Factor(right.shape, lambda: a), scale, row, col, turned
    )


def total(
    method: Method[Any], joint: Joint, *, tiles: Sequence[Window] | None = None, **parameters: Any
) -> np.ndarray:
    """The change of the whole tensor, computed window by window as the kernel does."""
    for key, field in method.parameters.model_fields.items():
        if field.annotation == PerAdapter:
            asked = parameters.get(key, field.default)
            several = asked if isinstance(asked, tuple) else (asked,)
            parameters[key] = several * (len(joint.terms) if len(several) == 1 else 1)
    steps = method.combine(joint, method.read(parameters))
    found = torch.zeros(joint.view, dtype=torch.float64)
    for step in steps:
        prepared = step.prepare(Nothing(joint.view), load)
        for window in tiles or [Window(range(joint.view[0]), range(joint.view[1]))]:
            rows, cols = window.rows, window.cols
            tile = found[rows.start : rows.stop, cols.start : cols.stop]
            step.apply(tile, window, load, prepared)
    return found.numpy()


def load(factor: Factor) -> torch.Tensor:
    return factor.read()


@dataclass(frozen=True)
class Nothing:
    """A base that no preparation may read."""

    shape: tuple[int, int]
    dtype: torch.dtype = torch.float64

    def rows(self, rows: range) -> torch.Tensor:
        raise AssertionError("the base was read")

    def other(self, tensor: str) -> Nothing:
        raise AssertionError("the base was read")


@st.composite
def products(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """The B, A and scales of a few adapters on one layer: any shape and rank, some of them zero,
    copies of others, or of less rank than they look."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    lefts: list[np.ndarray] = []
    rights: list[np.ndarray] = []
    for _ in range(draw(st.integers(1, 4))):
        rank = draw(st.integers(1, 5))
        left, right = rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))
        match draw(st.sampled_from(["plain", "plain", "zero", "copy", "deficient"])):
            case "zero":
                left *= 0.0
            case "copy" if lefts:
                left, right = lefts[-1], rights[-1]
            case "deficient":
                right[-1] = right[0]
            case _:
                pass
        lefts.append(left)
        rights.append(right)
    scales = [draw(st.sampled_from([1.0, 0.5, -2.0])) for _ in lefts]
    return lefts, rights, scales
