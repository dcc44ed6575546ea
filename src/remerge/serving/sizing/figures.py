"""figures.yaml, read."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from remerge.errors import UsageError


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PerToken(_Read):
    """Bytes of a token in a batch, for each of the model's widths."""

    hidden: float
    feed_forward: float
    query: float
    constant: float


class PerSequence(_Read):
    vocabulary: float
    constant: float
    per_token: float = 0.0


class Loading(_Read):
    """Shares of the largest file, and of the widest tensor, in memory beside loaded weights."""

    files: float
    widest: float


class Again(_Read):
    """Shares of the output matrix, and of all weights, that stay in memory besides."""

    output_matrix: float = 0.0
    weights: float = 0.0


class EngineFigures(_Read):
    base: int
    base_source: str
    per_batched_token: PerToken
    per_context_and_batched_token: float = 0.0
    per_sequence: PerSequence
    compute_source: str
    loading: Loading
    loading_source: str
    again: Again = Again()
    again_source: str = ""
    sequences: int
    most_sequences: int
    sequences_source: str
    batch: int
    batch_source: str
    smallest_batch: int
    block: int
    latent_block: int
    block_source: str
    steps: int
    caches: tuple[str, ...]


class Speed(_Read):
    bandwidth: float
    operations: float


class Reached(_Read):
    share: float
    source: str


class Slower(_Read):
    slower: float
    source: str


class Figures(_Read):
    engines: dict[str, dict[str, EngineFigures]]
    caches: dict[str, tuple[int, int]]
    gpus: dict[str, Speed]
    gpu_unknown: Speed
    reached: Reached
    narrow_on_processor: Slower


@cache
def figures() -> Figures:
    text = (files("remerge.serving.sizing") / "figures.yaml").read_text()
    return Figures.model_validate(yaml.safe_load(text))


def figures_of(engine: str, *, gpu: bool) -> EngineFigures:
    """Of an engine on a GPU or on processors; raises `UsageError` for one that is not sized."""
    found = figures().engines.get(engine)
    if found is None:
        raise UsageError(
            f"{engine} is no engine that serves.",
            hint=f"It is one of {', '.join(figures().engines)}.",
        )
    return found["gpu" if gpu else "processor"]


def element_bytes(cache_dtype: str) -> Fraction:
    """Bytes of one number of keys or values."""
    nbytes, numbers = figures().caches[cache_dtype]
    return Fraction(nbytes, numbers)
