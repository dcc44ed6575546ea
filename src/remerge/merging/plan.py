"""The plan: every output file, tensor, byte offset, source range and delta, before any weight.

It is made from the recipe and the headers alone and is the same on every machine; its digest is
the *plan id*. The *merge key* adds the digests of the inputs, because two fine-tunes of one
architecture have equal headers.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from remerge.adapters.adapter import Adapter
from remerge.adapters.deltas import Changes, step_name
from remerge.merging.combined import Combined
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.recipe import Recipe
from remerge.merging.tensor_plan import TensorPlan
from remerge.sources.checkpoint import Checkpoint, Shard, StoredTensor
from remerge.sources.documents import digest_of
from remerge.sources.reading import Source
from remerge.version import ALGORITHM


@dataclass(frozen=True)
class Piece:
    """A tensor's bytes ``[start, stop)`` of an output file."""

    start: int
    stop: int
    plan: TensorPlan


@dataclass(frozen=True)
class OutputFile:
    """A weight file to be written: ``head`` first, then the pieces, without holes.

    ``twin`` is the base shard with the same header: every byte that no delta touches then lies at
    the same offset there.
    """

    name: str
    head: bytes
    pieces: Sequence[Piece]
    twin: Shard | None

    @property
    def size(self) -> int:
        return self.pieces[-1].stop if self.pieces else len(self.head)

    @property
    def copied(self) -> bool:
        """Whether the whole file equals its twin."""
        return self.twin is not None and all(piece.plan.copied for piece in self.pieces)


@dataclass(frozen=True)
class SideFile:
    """A file carried along (``source``) or written anew (``content``)."""

    name: str
    source: Path | None = None
    content: bytes | None = None

    @property
    def size(self) -> int:
        if self.content is not None:
            return len(self.content)
        return self.source.stat().st_size if self.source is not None else 0


@dataclass(frozen=True)
class Plan:
    """A merge before it is done.

    ``formats`` counts the base's quantised tensors by format; ``own`` is what each adapter alone
    asks for.
    """

    recipe: Recipe
    base: Checkpoint
    adapters: tuple[Adapter, ...]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorPlan]
    files: tuple[OutputFile, ...]
    side_files: tuple[SideFile, ...]
    notes: tuple[str, ...]
    reproducible: str
    formats: Mapping[str, int]
    own: tuple[Changes, ...] = ()

    @cached_property
    def plan_id(self) -> str:
        """Digest of the plan document."""
        return digest_of(self.document())

    def open(self, device: torch.device) -> MergedCheckpoint:
        """The result as a mapping that computes on read."""
        return MergedCheckpoint(self.base, self.tensors, self.config, device)

    @property
    def adapter_bytes(self) -> int:
        return sum(adapter.nbytes for adapter in self.adapters)

    @cached_property
    def touched(self) -> Mapping[str, TensorPlan]:
        """Tensors that the adapter changes, by their names unquantised; of a tensor that is written
        back in parts, one part."""
        found: dict[str, TensorPlan] = {}
        for plan in self.tensors.values():
            change = plan.touched_by
            if change is not None:
                found.setdefault(change.tensor, plan)
        return found

    @property
    def steps(self) -> Mapping[str, int]:
        """How many steps each changed tensor undergoes."""
        changes = {name: plan.touched_by for name, plan in self.touched.items()}
        return {name: len(change.steps) for name, change in changes.items() if change is not None}

    def elements(self, tensor: str) -> int:
        """How many elements a changed tensor has."""
        change = self.touched[tensor].touched_by
        return math.prod(change.shape) if change is not None else 0

    @property
    def untouched(self) -> int:
        """How many tensors of the output no delta touches."""
        return sum(plan.touched_by is None for plan in self.tensors.values())

    @property
    def decodes(self) -> bool:
        """Whether tensors in a quantised format are read or written."""
        if any(plan.encoding is not None for plan in self.tensors.values()):
            return True
        origins = (plan.origin for plan in self.tensors.values())
        return any(
            origin is not None and not isinstance(origin, StoredTensor) for origin in origins
        )

    @property
    def combines(self) -> bool:
        """Whether full deltas of several adapters are combined."""
        changes = (plan.touched_by for plan in self.tensors.values())
        return any(isinstance(s, Combined) for c in changes if c is not None for s in c.steps)

    @property
    def written(self) -> Mapping[str, int]:
        """How many tensors are quantised into which format that the base had them not in."""
        codes = [plan.encoding for plan in self.tensors.values() if plan.encoding is not None]
        return Counter(e.codec.format for e in codes if e.anew and e.role == "codes")

    @property
    def bytes_to_write(self) -> int:
        return sum(file.size for file in self.files) + sum(side.size for side in self.side_files)

    @property
    def bytes_to_read(self) -> int:
        """What a merge reads of the weights: the base once, and the adapters."""
        return sum(shard.size for shard in self.base.shards) + self.adapter_bytes

    def document(self) -> dict[str, Any]:
        """The plan as JSON data, the same for the same headers and recipe."""
        return {
            "algorithm": ALGORITHM,
            "recipe": self.recipe.model_dump(),
            "adapters": [_adapter_document(adapter) for adapter in self.adapters],
            "files": [_file_document(file) for file in self.files],
            "side_files": sorted(side.name for side in self.side_files),
        }


def merge_key(plan: Plan, digests: Mapping[str, str]) -> str:
    """Name of the result: plan and inputs (``role/name`` -> SHA-256)."""
    return digest_of({"plan": plan.plan_id, "inputs": dict(digests), "algorithm": ALGORITHM})


def _adapter_document(adapter: Adapter) -> dict[str, Any]:
    tensors = {
        name: [info.dtype, list(info.shape)] for name, info in sorted(adapter.tensors.items())
    }
    return {"config": digest_of(adapter.config), "tensors": tensors}


def _file_document(file: OutputFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "size": file.size,
        "head": hashlib.sha256(file.head).hexdigest(),
        "tensors": [_piece_document(piece) for piece in file.pieces],
    }


def _piece_document(piece: Piece) -> dict[str, Any]:
    plan = piece.plan
    document: dict[str, Any] = {"name": plan.name, "bytes": [piece.start, piece.stop]}
    if plan.reads_source and plan.source is not None:
        document["from"] = _origin(plan.source)
        if plan.source.dtype != plan.dtype:
            document["dtype"] = [plan.source.dtype, plan.dtype]
    if plan.encoding is not None:
        origin = plan.encoding.origin
        document["encoded"] = [plan.encoding.role, None if origin is None else _origin(origin)]
        if plan.encoding.anew:
            document["encoded"].append(plan.encoding.codec.format)
            document["encoded"] += [other.codec.name for other in plan.encoding.shares]
    if plan.touched_by is not None:
        document["steps"] = [step_name(step) for step in plan.touched_by.steps]
    return document


def _origin(source: Source) -> list[Any] | dict[str, Any]:
    """Where a tensor's bytes come from: a range of a shard, or the parts of a quantised tensor."""
    if isinstance(source, StoredTensor):
        return [source.shard, source.start, source.stop]
    parts = {role: [part.shard, part.start, part.stop] for role, part in source.parts.items()}
    return {"format": source.format, **parts}
