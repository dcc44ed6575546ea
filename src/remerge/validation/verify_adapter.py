"""Deriving a new adapter again and comparing its bytes, writing nothing."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from remerge.artefacts.adapter_manifest import AdapterManifest
from remerge.artefacts.digests import file_digest
from remerge.artefacts.making import Report
from remerge.artefacts.making_adapter_again import derive_adapter
from remerge.artefacts.origins import shard_digests
from remerge.artefacts.rederiving import Derivation, check_inputs
from remerge.outputs.peft_adapter import CONFIG, WEIGHTS
from remerge.sources.dtypes import dtype_name
from remerge.sources.header import build_header, read_header
from remerge.validation.findings import VerifyReport, check_side_files, failure


def verify_adapter(
    output: Path,
    manifest: AdapterManifest,
    derivation: Derivation,
    threads: int | None,
    *,
    device: torch.device,
    report: Report,
) -> VerifyReport:
    """Derive the new adapter again and compare it with what lies in ``output``."""
    plan = derivation.plan
    check_inputs(derivation, shard_digests(plan))
    recorded = derivation.recorded
    comparer = Comparer(output / WEIGHTS)
    try:
        with tempfile.TemporaryDirectory(prefix="remerge-verify-") as place:
            derived, _ = derive_adapter(
                derivation, comparer, Path(place), device=device, threads=threads, report=report
            )
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
