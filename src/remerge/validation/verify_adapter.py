"""Deriving a new adapter again and comparing its bytes, writing nothing."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from remerge.artefacts.adapter_manifest import AdapterManifest
from remerge.artefacts.digests import file_digest
from remerge.artefacts.making import Report
from remerge.artefacts.making_adapter import counting
from remerge.merging.adapter_factors import Factors
from remerge.merging.adapter_plan import plan_adapter
from remerge.merging.plan import Plan
from remerge.outputs.combined_adapter import derive
from remerge.outputs.peft_adapter import CONFIG, WEIGHTS
from remerge.outputs.planning import Inputs
from remerge.sources.dtypes import dtype_name
from remerge.sources.header import build_header, read_header
from remerge.validation.findings import (
    VerifyReport,
    check_side_files,
    failure,
    restore_preparations,
)


def verify_adapter(
    output: Path,
    manifest: AdapterManifest,
    inputs: Inputs,
    plan: Plan,
    max_memory: int,
    threads: int | None,
    *,
    device: torch.device,
    report: Report,
) -> VerifyReport:
    """Derive the new adapter again, from inputs that were found to be those of its manifest, and
    compare it with what lies in ``output``."""
    adapter = plan_adapter(plan)
    recorded = {record.name: record.sha256 for record in manifest.outputs}
    comparer = Comparer(output / WEIGHTS)
    try:
        with adapter.plan.open(device) as merged:
            restore_preparations(merged, adapter.plan, output)
            found = Factors(adapter, merged, max_memory, threads or min(os.cpu_count() or 1, 8))
            based, told = inputs.base_reference, counting(adapter, report)
            # The name that the base had then: it may lie elsewhere now.
            derived = derive(found, comparer, manifest.base.name, based.commit, told)
    finally:
        comparer.close()
    for name, difference in (
        (WEIGHTS, comparer.difference),
        (CONFIG, None if (output / CONFIG).read_bytes() == derived.config else "its content"),
    ):
        as_recorded = file_digest(output / name) == recorded.get(name)
        if difference is not None or not as_recorded:
            where = f" First difference: {difference}." if difference else ""
            raise failure(output / name, where, as_recorded)
    check_side_files(output, plan, recorded)
    return VerifyReport(
        output,
        manifest.merge_key,
        len(manifest.outputs),
        len(manifest.tensors) + len(manifest.saved_whole),
        sum(record.size for record in manifest.outputs),
        plan.notes,
    )


class Comparer:
    """A sink that compares tensors with those of an adapter_model.safetensors as they come.

    ``difference`` says what the first one that differs is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[tuple[str, str, tuple[int, ...]]] = []
        self._stream = path.open("rb")
        self._stream.seek(read_header(path).data_offset)
        self.difference: str | None = None

    def add(self, slot: str, tensor: torch.Tensor) -> None:
        """Compare a whole tensor."""
        self.add_blocks(slot, tensor.dtype, tuple(tensor.shape), (tensor,))

    def add_blocks(
        self, slot: str, dtype: torch.dtype, shape: tuple[int, ...], blocks: Iterable[torch.Tensor]
    ) -> None:
        """Compare a tensor of which the rows come in blocks."""
        self._entries.append((slot, dtype_name(dtype), shape))
        for block in blocks:
            derived = block.reshape(-1).view(torch.uint8).numpy().tobytes()
            if self._stream.read(len(derived)) != derived:
                self.difference = self.difference or f"tensor {slot.replace('|', ' lora_')}"

    def finish(self, keys: Mapping[str, str]) -> int:
        """Compare the header, and whether anything follows."""
        header = build_header(
            ((keys[slot], dtype, shape) for slot, dtype, shape in self._entries), {"format": "pt"}
        )
        more = self._stream.read(1)
        self._stream.seek(0)
        head = struct.pack("<Q", len(header.raw)) + header.raw
        if self._stream.read(len(head)) != head:
            self.difference = "the header"
        elif more:
            self.difference = self.difference or "bytes after the last tensor"
        return self._path.stat().st_size

    def close(self) -> None:
        self._stream.close()
