"""The safetensors directory: shards laid out like the base's where that is possible."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from remerge.merging.plan import OutputFile, Piece
from remerge.merging.tensor_plan import TensorPlan
from remerge.sources.checkpoint import COMPONENT, INDEX, SINGLE, Checkpoint, Shard, StoredTensor
from remerge.sources.documents import as_object, read_json_object
from remerge.sources.dtypes import BITS
from remerge.sources.header import Header, build_header


def lay_out(
    base: Checkpoint, plans: Mapping[str, TensorPlan], max_shard_size: int | None
) -> tuple[OutputFile, ...]:
    """The weight files: the base's shards and names, or new ones of at most ``max_shard_size``.

    Tensors that the base lacks go to the end of the last shard.
    """
    if max_shard_size is not None:
        return _resharded(base, plans, max_shard_size)
    files: list[OutputFile] = []
    by_shard: dict[str, list[TensorPlan]] = {shard.name: [] for shard in base.shards}
    for plan in plans.values():
        by_shard[_home(plan, base)].append(plan)
    for shard in base.shards:
        held = by_shard[shard.name]
        if held:
            files.append(_file(shard.safetensors_name, held, shard.header.metadata, shard))
    return tuple(files)


def _home(plan: TensorPlan, base: Checkpoint) -> str:
    """The shard that a tensor goes to: where its bytes or codes come from, else the last."""
    if plan.name in base.tensors:
        return base.tensors[plan.name].shard
    if plan.encoding is not None and isinstance(plan.encoding.origin, StoredTensor):
        return plan.encoding.origin.shard
    source = plan.source if plan.encoding is None else plan.encoding.origin
    if source is not None and not isinstance(source, StoredTensor):
        return source.parts["codes"].shard
    return base.shards[-1].name


def index_document(base: Checkpoint, files: Sequence[OutputFile]) -> tuple[str, bytes] | None:
    """Name and content of the index; None where a single file needs none."""
    if len(files) == 1 and base.index is None:
        return None
    if len(files) == 1 and files[0].name in (SINGLE, COMPONENT):
        return None
    weight_map = {piece.plan.name: file.name for file in files for piece in file.pieces}
    total = sum(piece.stop - piece.start for file in files for piece in file.pieces)
    name = INDEX
    if base.index is not None and base.index.endswith(".safetensors.index.json"):
        name = base.index
    document: dict[str, Any] = {"metadata": {}, "weight_map": {}}
    if base.index is not None:
        document = read_json_object(base.path / base.index)
        before = sum(tensor.nbytes for tensor in base.tensors.values())
        if base.index == name and document["weight_map"] == weight_map and total == before:
            # Nothing moved: the base's own bytes, whatever its total_size says.
            return name, (base.path / base.index).read_bytes()
    metadata = as_object(document.get("metadata")) or {}
    document["metadata"] = {**metadata, "total_size": total}
    document["weight_map"] = dict(sorted(weight_map.items()))
    return name, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _file(
    name: str, held: Sequence[TensorPlan], metadata: Mapping[str, str], shard: Shard | None
) -> OutputFile:
    if shard is not None and shard.pickled is None and _same_header(shard.header, held):
        header = shard.header
    else:
        shard = None
        # Wide elements first: every tensor then begins at a multiple of its element size.
        held = sorted(held, key=lambda plan: -BITS[plan.dtype])
        header = build_header([(p.name, p.dtype, p.shape) for p in held], metadata)
    offset = header.data_offset
    pieces = tuple(
        Piece(offset + info.start, offset + info.stop, plan)
        for plan, info in zip(held, header.tensors.values(), strict=True)
    )
    return OutputFile(name, struct.pack("<Q", len(header.raw)) + header.raw, pieces, shard)


def _same_header(header: Header, held: Sequence[TensorPlan]) -> bool:
    """Whether the shard's own header describes the output, every element at an aligned place."""
    if len(header.tensors) != len(held):
        return False
    for plan, (name, info) in zip(held, header.tensors.items(), strict=True):
        if (plan.name, plan.dtype, plan.shape) != (name, info.dtype, info.shape):
            return False
        if not plan.copied and (header.data_offset + info.start) % (BITS[info.dtype] // 8):
            return False
    return True


def _resharded(
    base: Checkpoint, plans: Mapping[str, TensorPlan], limit: int
) -> tuple[OutputFile, ...]:
    groups: list[list[TensorPlan]] = [[]]
    used = 0
    for plan in plans.values():
        nbytes = plan.elements * BITS[plan.dtype] // 8
        if groups[-1] and used + nbytes > limit:
            groups.append([])
            used = 0
        groups[-1].append(plan)
        used += nbytes
    metadata = base.shards[0].header.metadata
    single = COMPONENT if base.shards[0].name.startswith(COMPONENT.split(".")[0]) else SINGLE
    if len(groups) == 1:
        return (_file(single, groups[0], metadata, None),)
    stem = single.removesuffix(".safetensors")
    return tuple(
        _file(f"{stem}-{n:05d}-of-{len(groups):05d}.safetensors", group, metadata, None)
        for n, group in enumerate(groups, 1)
    )
