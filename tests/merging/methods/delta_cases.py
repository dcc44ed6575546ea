"""Adapters whose full deltas numpy knows, on a float64 base: what methods on deltas are held to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import remerge

# name -> shape; long rows, few rows, a vector, and a tensor that nobody changes.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.layers.0.self_attn.q_proj.weight": (37, 53),
    "model.layers.0.self_attn.k_proj.weight": (29, 53),
    "model.layers.0.self_attn.k_proj.bias": (29,),
    "model.layers.0.self_attn.v_proj.weight": (3, 1301),
    "model.layers.1.self_attn.v_proj.weight": (71, 1),
    "model.norm.weight": (53,),
}
Q, K, BIAS, V, COLUMN, NORM = SHAPES
# One adapter's deltas by tensor.
Full = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A base and three adapters on disk, with their values: plain LoRA, DoRA, and on one layer
    rank-stabilised LoRA with a bias."""

    place: Path
    base: Full
    deltas: tuple[Full, ...]

    @property
    def adapters(self) -> list[str | Path]:
        return [self.place / f"adapter{number}" for number in range(len(self.deltas))]

    def stack(self, name: str, count: int = 3) -> np.ndarray:
        """All deltas of a tensor, zeros of an adapter that leaves it alone: (adapters, *shape)."""
        return np.stack([d.get(name, np.zeros(SHAPES[name])) for d in self.deltas[:count]])

    def merged(self, method: str, count: int = 3, **options: Any) -> Full:
        """What remerge makes of the base and the first ``count`` adapters."""
        with remerge.open_merged(
            self.place / "base", self.adapters[:count], method=method, **options
        ) as merged:
            return {name: merged[name][...].numpy() for name in merged}


def write(place: Path, dtype: torch.dtype = torch.float64, *, equal: bool = False) -> Case:
    """The case in a new directory; ``equal``: of few values, most of them several times."""
    rng = np.random.default_rng(11)
    base = {name: rng.standard_normal(shape) * 0.3 for name, shape in SHAPES.items()}
    wide = {name: torch.from_numpy(v).to(dtype) for name, v in base.items()}
    base = {name: v.double().numpy() for name, v in wide.items()}
    (place / "base").mkdir(parents=True)
    save_file(wide, place / "base" / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (place / "base" / "config.json").write_text(json.dumps(config))
    deltas = (
        _adapter(place / "adapter0", base, [K, Q, V], 4, rng, equal=equal),
        _adapter(place / "adapter1", base, [Q, V, COLUMN], 3, rng, dora=True),
        _adapter(place / "adapter2", base, [K], 4, rng, rslora=True, bias=True, equal=equal),
    )
    return Case(place, base, deltas)


def _adapter(
    path: Path,
    base: Full,
    targets: Sequence[str],
    rank: int,
    rng: np.random.Generator,
    *,
    bias: bool = False,
    dora: bool = False,
    rslora: bool = False,
    equal: bool = False,
) -> Full:
    def draw(*shape: int) -> np.ndarray:
        if equal:
            return rng.integers(-1, 2, shape).astype(np.float64)
        return rng.standard_normal(shape)

    scale = 1.5 / (math.sqrt(rank) if rslora else rank)
    tensors: dict[str, np.ndarray] = {}
    deltas: Full = {}
    for name in targets:
        key = "base_model.model." + name.removesuffix(".weight")
        rows, columns = SHAPES[name]
        b, a = draw(rows, rank), draw(rank, columns)
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        deltas[name] = scale * b @ a
        if dora:
            magnitude = rng.uniform(0.5, 2, rows)
            tensors[f"{key}.lora_magnitude_vector"] = magnitude
            whole = base[name] + deltas[name]
            norm = np.linalg.norm(whole, axis=1)
            deltas[name] = (magnitude / norm)[:, None] * whole - base[name]
        if bias:
            values = draw(rows)
            tensors[f"{key}.lora_B.bias"] = values
            deltas[name.removesuffix("weight") + "bias"] = scale * values
    path.mkdir()
    stored = {name: torch.from_numpy(values) for name, values in tensors.items()}
    save_file(stored, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 1.5,
        "use_dora": dora,
        "use_rslora": rslora,
        "lora_bias": bias,
        "target_modules": sorted(name.removesuffix(".weight") for name in targets),
        "base_model_name_or_path": "base",
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return deltas


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Which values are the ``count`` largest, compared as float32, the earlier of equal ones."""
    taken = np.zeros(values.size, dtype=bool)
    order = np.argsort(-values.astype(np.float32).reshape(-1), kind="stable")
    taken[order[: max(count, 0)]] = True
    return taken.reshape(values.shape)


def elect(
    deltas: np.ndarray, weights: Sequence[float], *, total: bool = True, normalize: bool = False
) -> np.ndarray:
    """TIES' election, written from the paper."""
    weights_column = np.reshape(weights, (-1,) + (1,) * (deltas.ndim - 1))
    weighted = deltas * weights_column
    votes = (weighted if total else np.sign(weighted)).sum(0)
    elected = np.where(votes >= 0, 1, -1)
    agree = np.sign(weighted) == elected
    merged = np.where(agree, weighted, 0).sum(0)
    if normalize:
        divisor = (agree * weights_column).sum(0)
        merged = merged / np.where(divisor == 0, 1, divisor)
    return merged


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12, err_msg=name)
