"""The merged checkpoint: a read-only mapping ``name -> tensor`` that is computed on read.

Writers, verifiers and loaders all consume this one object; nothing of the size of a tensor is
kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock, local
from typing import Any, cast

import torch

from remerge.adapters.deltas import Change, Load, Prepared
from remerge.adapters.regions import matrix_view
from remerge.errors import BadInput, Unsupported
from remerge.merging.factor_cache import FactorCache
from remerge.merging.kernel import TILE_ELEMENTS, Scratch, merge_elements
from remerge.merging.preparations import decomposes, prepare
from remerge.merging.remembered import remembering
from remerge.merging.tensor_plan import Encoding, TensorPlan
from remerge.sources.checkpoint import Checkpoint
from remerge.sources.codecs.codec import Encodes, Joins, Values
from remerge.sources.dtypes import BITS, torch_dtype
from remerge.sources.reading import Reader, Source


@dataclass
class MergedCheckpoint(Mapping[str, "MergedTensor"]):
    """A base with an adapter's changes, read tensor by tensor or row by row."""

    base: Checkpoint
    plans: Mapping[str, TensorPlan]
    config: Mapping[str, Any]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    prepared: dict[str, Sequence[Prepared]] = field(default_factory=dict[str, Sequence[Prepared]])
    _measured: dict[str, Mapping[str, torch.Tensor]] = field(
        default_factory=dict[str, Mapping[str, torch.Tensor]]
    )
    _measuring: dict[str, Any] = field(default_factory=dict[str, Any])
    _lock: Any = field(default_factory=Lock)
    _local: Any = field(default_factory=local)

    def __post_init__(self) -> None:
        self._factors = FactorCache(self.device)
        self.reader = Reader(self.base)

    def __getitem__(self, name: str) -> MergedTensor:
        return MergedTensor(self, self.plans[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)

    def load_model(self, **kwargs: Any) -> Any:
        """A transformers model with the merged weights, nothing written to disk.

        ``kwargs`` go to ``from_pretrained`` (``dtype``, ``device_map``, ...). The class is the one
        that config.json names.
        """
        from remerge.merging.loading import load_model

        return load_model(self, **kwargs)

    @property
    def load(self) -> Load:
        return self._factors.load

    def merge(
        self, plan: TensorPlan, source: torch.Tensor | None, target: torch.Tensor, first: int
    ) -> None:
        """Fill ``target`` with the elements from ``first`` on of a tensor that is not copied.

        ``source`` holds the same elements of the base, or None where the base is not read.
        """
        if plan.encoding is not None:
            target.copy_(self.encoded(plan.encoding, first, target.numel()))
        elif plan.change is not None:
            self.apply(plan.change, plan.source, source, target, first)
        elif source is not None:
            _cast(plan.name, plan.dtype, source, target, first)
        else:
            raise ValueError(f"{plan.name} has neither a source nor a change")

    def apply(
        self,
        change: Change,
        origin: Source | None,
        source: torch.Tensor | None,
        target: torch.Tensor,
        first: int,
    ) -> None:
        """Fill ``target`` (any float dtype) with changed elements from ``first`` on.

        ``origin`` is the base's tensor, ``source`` its values at these elements.
        """
        prepared = self.prepare(change, origin)
        if change.whole_rows:
            self._apply_to_rows(change, origin, target, first, prepared)
        else:
            scratch = self._scratch()
            merge_elements(change, source, target, first, self.load, prepared, scratch)

    def _apply_to_rows(
        self,
        change: Change,
        origin: Source | None,
        target: torch.Tensor,
        first: int,
        prepared: Sequence[Prepared],
    ) -> None:
        """As `apply`, where a value depends on its whole row: rows cut by the ends of ``target``
        are read whole, and all of them computed."""
        columns = change.view[1]
        last = -(-(first + target.numel()) // columns)
        step = max(1, TILE_ELEMENTS // columns)
        row = first // columns
        while row < last:
            rows = change.widen(range(row, min(row + step, last)))
            start, count = rows.start * columns, len(rows) * columns
            source = self._base_values(change, origin, start, count)
            whole = torch.empty(count, dtype=target.dtype)
            scratch = self._scratch(count)
            merge_elements(change, source, whole, start, self.load, prepared, scratch)
            begin, end = max(first, start), min(first + target.numel(), start + count)
            target[begin - first : end - first] = whole[begin - start : end - start]
            row = rows.stop

    def _base_values(
        self, change: Change, origin: Source | None, first: int, count: int
    ) -> torch.Tensor | None:
        """The values that a change starts from, None where it replaces them all."""
        if origin is None or not change.reads_base:
            return None
        return self.reader.values(origin, first, count)

    def exact(self, change: Change, origin: Source | None) -> Values:
        """The changed tensor in float64, before any rounding."""

        def values(first: int, count: int) -> torch.Tensor:
            source = self._base_values(change, origin, first, count)
            target = torch.empty(count, dtype=torch.float64)
            self.apply(change, origin, source, target, first)
            return target

        return values

    def to_encode(self, encoding: Encoding) -> Values:
        """What a quantised format rounds: the merge in float64 where a base's own format is written
        back, else rounded once to float32, as an output of that dtype would hold it."""
        change, origin = encoding.change, encoding.origin
        if change is not None and not encoding.anew:
            return self.exact(change, origin)

        def values(first: int, count: int) -> torch.Tensor:
            if change is None:
                assert origin is not None
                source = self.reader.values(origin, first, count)
                if source.dtype != torch.float64:
                    return source.to(torch.float32)
                target = torch.empty(count, dtype=torch.float32)
                _cast(encoding.codec.name, "F32", source, target, first)
                return target
            target = torch.empty(count, dtype=torch.float32)
            source = self._base_values(change, origin, first, count)
            self.apply(change, origin, source, target, first)
            return target

        return values

    def encoded(self, encoding: Encoding, first: int, count: int) -> torch.Tensor:
        """Elements of a part of a tensor in a quantised format, as stored."""
        codec = encoding.codec
        assert isinstance(codec, Encodes)
        values = remembering(self.to_encode(encoding))
        return codec.encode(encoding.role, values, self.measured(encoding), first, count)

    def measured(self, encoding: Encoding) -> Mapping[str, torch.Tensor]:
        """What encoding a tensor needs to know of the whole of it, and of those that share it."""
        alone = self._measured_alone(encoding)
        if not isinstance(encoding.codec, Joins):
            return alone
        return encoding.codec.joined([alone, *map(self._measured_alone, encoding.shares)])

    def _measured_alone(self, encoding: Encoding) -> Mapping[str, torch.Tensor]:
        """Computed at the first call; who asks meanwhile waits, for this tensor alone."""
        codec = encoding.codec
        assert isinstance(codec, Encodes)
        with self._lock:
            measuring = self._measuring.setdefault(codec.name, Lock())
        with measuring:
            if codec.name not in self._measured:
                self._measured[codec.name] = codec.measure(self.to_encode(encoding))
            return self._measured[codec.name]

    def prepare(self, change: Change, origin: Source | None) -> Sequence[Prepared]:
        """The preparations of a tensor's steps, computed at the first call.

        Two threads may compute the same numbers; that is cheaper than making the others wait.
        """
        found = self.prepared.get(change.tensor)
        if found is None:
            matrix = None
            if change.reads_base and origin is not None:
                matrix = SourceMatrix(self, origin, change.view)
            computed = prepare(change, matrix, self.load, self.device, self.matrix)
            found = self.prepared.setdefault(change.tensor, computed)
        return found

    def matrix(self, tensor: str) -> SourceMatrix:
        """A tensor of the base in float64, before any change."""
        plan = self.plans.get(tensor) or self._encoded.get(tensor)
        origin = None if plan is None else plan.origin
        if plan is None or origin is None:
            raise Unsupported(f"The base has no readable tensor {tensor}, which a change needs.")
        change = plan.touched_by
        view = matrix_view(origin.shape) if change is None else change.view
        return SourceMatrix(self, origin, view)

    @cached_property
    def _encoded(self) -> Mapping[str, TensorPlan]:
        """One part of each tensor that is written in a quantised format, by its name."""
        parts = [plan for plan in self.plans.values() if plan.encoding is not None]
        return {plan.encoding.codec.name: plan for plan in parts if plan.encoding is not None}

    def prepare_all(self, plans: Iterable[TensorPlan], threads: int) -> None:
        """The preparations of all these tensors: side by side, but for those that decompose, which
        take the memory budget each."""
        found = [(plan.touched_by, plan.origin) for plan in plans]
        changes = [(change, origin) for change, origin in found if change is not None]
        for change, origin in changes:
            if decomposes(change):
                self.prepare(change, origin)

        def work(pair: tuple[Change, Source | None]) -> None:
            torch.set_num_threads(1)
            self.prepare(*pair)

        with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
            for _ in pool.map(work, changes):
                pass

    def _scratch(self, elements: int = TILE_ELEMENTS) -> Scratch:
        found: Scratch | None = getattr(self._local, "scratch", None)
        if found is None or found.wide.numel() < elements:
            found = self._local.scratch = Scratch.new(self.device, max(elements, TILE_ELEMENTS))
        return found

    def read_elements(self, plan: TensorPlan, first: int, count: int) -> torch.Tensor:
        """``count`` elements of the output tensor from ``first`` on, 1-D.

        Raises `Unsupported` for formats that pack several elements into a byte.
        """
        if BITS[plan.dtype] % 8:
            raise Unsupported(f"Tensor {plan.name} is {plan.dtype}, which torch cannot index.")
        source = None
        if plan.reads_source and plan.source is not None:
            source = self.reader.values(plan.source, first, count)
            if plan.copied:
                return source
        target = torch.empty(count, dtype=torch_dtype(plan.dtype))
        self.merge(plan, source, target, first)
        return target

    def close(self) -> None:
        self.reader.close()

    def __enter__(self) -> MergedCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the merged checkpoint; indexing reads and merges only the rows asked for."""

    checkpoint: MergedCheckpoint
    plan: TensorPlan

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.plan.shape)

    @property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.plan.dtype)

    def __len__(self) -> int:
        return self.plan.shape[0]

    def is_floating_point(self) -> bool:
        """As a tensor's, which transformers asks while it loads a quantised model."""
        return self.dtype.is_floating_point

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Rows by int, slice, ``...`` or a tuple that begins with one of these."""
        parts = cast("tuple[Any, ...]", key if isinstance(key, tuple) else (key,))
        rows, rest = (parts[0], parts[1:]) if parts else (..., ())
        if not self.plan.shape or rows is Ellipsis:
            whole = self._rows(0, self.plan.shape[0] if self.plan.shape else 1)
            return whole.reshape(self.plan.shape)[key]
        if isinstance(rows, int):
            row = rows + len(self) if rows < 0 else rows
            if not 0 <= row < len(self):
                raise IndexError(f"row {rows} of a tensor with {len(self)} rows")
            return self._rows(row, row + 1)[0][rest] if rest else self._rows(row, row + 1)[0]
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step < 0:
                raise IndexError("rows are read forwards only")
            block = self._rows(start, max(start, stop))[::step]
            return block[(slice(None), *rest)] if rest else block
        return self._rows(0, len(self))[key]

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        width = math.prod(self.plan.shape[1:])
        flat = self.checkpoint.read_elements(self.plan, start * width, (stop - start) * width)
        return flat.reshape(stop - start, *self.plan.shape[1:])


def _cast(name: str, dtype: str, source: torch.Tensor, target: torch.Tensor, first: int) -> None:
    """An untouched tensor in another dtype; refuses a value that no longer fits."""
    wide = source.to(torch.float32) if source.dtype != torch.float64 else source
    target.copy_(wide)
    lost = ~torch.isfinite(target) & torch.isfinite(wide)
    if lost.any():
        where = first + int(lost.nonzero()[0])
        raise BadInput(
            f"Tensor {name} holds {float(wide[lost][0])} at element {where}, which does not "
            f"fit {dtype}.",
            hint="Merge with --dtype keep, bfloat16 or float32.",
        )


@dataclass(frozen=True)
class SourceMatrix:
    """A base tensor's matrix view as a preparation reads it: whole rows in float64."""

    checkpoint: MergedCheckpoint
    source: Source
    shape: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.source.dtype)

    def other(self, tensor: str) -> SourceMatrix:
        return self.checkpoint.matrix(tensor)

    def rows(self, rows: range) -> torch.Tensor:
        columns = self.shape[1]
        start, count = rows.start * columns, len(rows) * columns
        flat = self.checkpoint.reader.values(self.source, start, count)
        return flat.reshape(len(rows), columns).to(self.checkpoint.device, torch.float64)
