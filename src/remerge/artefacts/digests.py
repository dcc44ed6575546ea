"""SHA-256 of a merge's inputs: stated by the Hub's cache, remembered, or read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from remerge.artefacts import user_index
from remerge.merging.plan import Plan, SideFile
from remerge.sources.references import stated_digest
from remerge.sources.storage import file_digest

__all__ = [
    "adapter_digests",
    "file_digest",
    "input_digests",
    "side_digest",
    "small_digests",
    "weight_digests",
]


def input_digests(plan: Plan) -> dict[str, str]:
    """SHA-256 of every input that a merge key names: as the Hub's cache states it, as it was read
    before, else read now. A merge itself always computes them."""
    found = adapter_digests(plan)
    digests = weight_digests([shard.path for shard in plan.base.shards])
    found |= {f"base/{shard.name}": digests[shard.path] for shard in plan.base.shards}
    return found | small_digests(plan)


def adapter_digests(plan: Plan) -> dict[str, str]:
    """SHA-256 of the adapters' files, now: ``adapter/1/name``, counted in their order."""
    return {
        f"adapter/{number}/{name}": digest
        for number, adapter in enumerate(plan.adapters, 1)
        for name, digest in adapter.digests().items()
    }


def weight_digests(paths: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of weight files: as the Hub's cache states it, as it is remembered, else read now."""
    known = {path: stated_digest(path) or user_index.known_digest(path) for path in paths}
    unknown = [path for path, digest in known.items() if digest is None]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        fresh = dict(zip(unknown, pool.map(file_digest, unknown), strict=True))
    user_index.remember_digests(fresh)
    return {path: digest or fresh[path] for path, digest in known.items()}


def small_digests(plan: Plan) -> dict[str, str]:
    """Digests of the inputs beside the weights: the configuration and the files carried along."""
    sources = {f"side/{side.name}": side.source for side in plan.side_files}
    found = {key: file_digest(path) for key, path in sources.items() if path is not None}
    return found | {"base/config.json": file_digest(plan.base.path / "config.json")}


def side_digest(side: SideFile) -> str:
    """SHA-256 of a side file as it is written."""
    if side.content is not None:
        return hashlib.sha256(side.content).hexdigest()
    if side.source is None:
        raise ValueError(f"{side.name} has neither content nor source")
    return file_digest(side.source)
