"""The tensors of a checkpoint against the exact merge in float64, every element of them.

A merge that is right differs by one rounding to the stored dtype: its errors are spread evenly over
half a unit in the last place to either side, and what is there of the delta is what one rounding
leaves of it. An artefact whose tensors are not so is another model than was asked for, however
little its answers show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from remerge.artefacts.advice import MOST_EXCESS
from remerge.artefacts.test_result import TensorResult, WeightsResult
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.plan import Plan
from remerge.merging.tensor_plan import TensorPlan
from remerge.merging.weighing import BLOCK, Sums, add, held
from remerge.sources.checkpoint import StoredTensor, open_checkpoint
from remerge.sources.dtypes import MERGEABLE
from remerge.sources.one_thread import one_thread
from remerge.sources.reading import Reader, Source, decoded
from remerge.validation.limits import Gate

# Of few elements any may happen to be the worst.
_FEW, _EXCESS_OF_FEW = 256, 4.0
# What may lack of a delta or be too much, besides chance; quantisers clip and shift.
_KEPT, _KEPT_QUANTISED = 0.1, 0.25
# Times the format's errors; those of another tensor in its place are 1.4 of the weights.
_COARSE, _LEAST = 3.0, 1e-3
_LARGEST = 1e9

Done = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Weights:
    """What was measured, and the tensors that are not what the merge makes of them, worst first."""

    result: WeightsResult
    wrong: tuple[str, ...]

    @property
    def gate(self) -> Gate:
        measured = (
            "all one rounding from the merge"
            if not self.wrong
            else f"{len(self.wrong)} are not, first {self.wrong[0]}"
        )
        missing = len(self.result.missing)
        if missing:
            measured += f"; {missing} of the delta's are missing, first {self.result.missing[0]}"
        return Gate(
            "weights",
            measured,
            f"{len(self.result.tensors)} tensors",
            not self.wrong and not missing,
        )


def compare_weights(
    place: Path,
    plan: Plan,
    threads: int,
    report: Done = lambda done, total, tensor: None,
    coarse: float = 0.0,
) -> Weights:
    """Every stored tensor of the checkpoint at ``place`` against ``plan``, the merge that it claims
    to be (in float32: what is compared with is exact). ``coarse`` is the size of a quantised
    format's errors, relative to the weights.

    Quantised tensors are decoded; they have no last place. Tensors of other names or shapes than
    the merge's are named and not measured.
    """
    checkpoint = open_checkpoint(place)
    reads = decoded(checkpoint)
    measured = {
        name: tensor
        for name, tensor in reads.tensors.items()
        if name in plan.tensors
        and tuple(tensor.shape) == plan.tensors[name].shape
        and tensor.dtype in MERGEABLE
        and plan.tensors[name].dtype in MERGEABLE
    }
    total = sum(math.prod(t.shape) for t in measured.values())
    work = _Work(plan, reads.tensors, report, total, coarse)
    with plan.open(torch.device("cpu")) as merged, one_thread():
        merged.prepare_all(plan.touched.values(), threads)
        work.reader = Reader(checkpoint)
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix="weights") as pool:
                jobs = [pool.submit(work.measure, merged, name) for name in measured]
                found = [job.result() for job in jobs]
        finally:
            work.reader.close()
    touched = {name for name, tensor in plan.tensors.items() if tensor.change is not None}
    missing = sorted(touched - measured.keys())
    unknown = sorted(reads.tensors.keys() - plan.tensors.keys())
    dtypes = [tensor.dtype for tensor in measured.values()]
    if not found:
        dtypes = ["F32"]
    return _judged(dict(zip(measured, found, strict=True)), dtypes, missing, unknown)


def of_loaded(told: Mapping[str, Any], plan: Plan, coarse: float) -> Weights:
    """The weights that `remerge.engines.weigh_model` told of a model; ``coarse`` as above. Values
    that 16 bits hold were rounded to these, and all others are taken for a quantised format's."""
    found = {
        name: _figures(
            plan.tensors[name], Sums(**sums), coarse if told["rounds"][name] == "F32" else None
        )
        for name, sums in told["tensors"].items()
    }
    dtypes = list(told["rounds"].values()) or ["F32"]
    return _judged(found, dtypes, told["missing"], [])


@dataclass
class _Measured:
    tensor: TensorResult
    sums: Sums
    wrong: float


@dataclass
class _Work:
    """One pass over the tensors, a tensor a thread."""

    plan: Plan
    stored: Mapping[str, Source]
    report: Done
    total: int
    coarse: float
    reader: Any = None
    _done: int = 0
    _lock: Any = field(default_factory=Lock)

    def measure(self, merged: MergedCheckpoint, name: str) -> _Measured:
        tensor, plan = self.stored[name], self.plan.tensors[name]
        plain = isinstance(tensor, StoredTensor)
        sums = Sums()
        rounds = tensor.dtype
        for first in range(0, math.prod(tensor.shape), BLOCK):
            count = min(BLOCK, math.prod(tensor.shape) - first)
            values = self.reader.values(tensor, first, count)
            if first == 0 and plain:
                rounds = held(values, tensor.dtype)
            add(sums, merged, plan, values, rounds, first)
            with self._lock:
                self._done += count
                self.report(self._done, self.total, name)
        return _figures(plan, sums, None if plain else self.coarse)


def _figures(plan: TensorPlan, sums: Sums, coarse: float | None) -> _Measured:
    """``coarse`` is the size of the format's errors where the tensor is quantised."""
    quantised = coarse is not None
    touched = plan.change is not None
    count = max(sums.elements, 1)
    kept = noise = None
    wrong = 0.0
    if touched and sums.delta > 0:
        kept, noise = sums.kept / sums.delta, math.sqrt(sums.noise / sums.delta)
        # Errors that know nothing of the delta: they add up to no more than chance.
        chance = 4 * noise / math.sqrt(count)
        expected = 1.0 if quantised else sums.expected / sums.delta
        allowed = (_KEPT_QUANTISED if quantised else _KEPT) + chance
        wrong = max(wrong, abs(kept - expected) / allowed)
    excess = None
    if coarse is not None:
        apart = _ratio(math.sqrt(sums.error), math.sqrt(sums.size))
        wrong = max(wrong, apart / max(_COARSE * coarse, _LEAST))
    else:
        excess = _ratio(math.sqrt(sums.error), math.sqrt(sums.rounding))
        wrong = max(wrong, excess / (MOST_EXCESS if count >= _FEW else _EXCESS_OF_FEW))
    result = TensorResult(
        elements=sums.elements,
        touched=touched,
        base_norm=math.sqrt(sums.base) if plan.compares else None,
        delta_norm=math.sqrt(sums.delta) if touched and plan.compares else None,
        kept=kept,
        noise=noise,
        worst=None if quantised else min(sums.worst, _LARGEST),
        mean=None if quantised else min(sums.units / count, _LARGEST),
        excess=excess,
    )
    return _Measured(result, sums, wrong)


def _ratio(error: float, rounding: float) -> float:
    if error == 0:
        return 0.0
    return min(error / rounding, _LARGEST) if rounding else _LARGEST


def _judged(
    found: Mapping[str, _Measured], dtypes: list[str], missing: list[str], unknown: list[str]
) -> Weights:
    tensors = {name: one.tensor for name, one in sorted(found.items())}
    wrong = sorted((n for n in found if found[n].wrong > 1), key=lambda n: -found[n].wrong)
    plain = {name: t for name, t in tensors.items() if t.worst is not None}
    worst = max(plain, key=lambda name: plain[name].worst or 0.0, default="")
    elements = sum(tensor.elements for tensor in plain.values())
    delta, kept, noise = (
        math.fsum(getattr(one.sums, key) for one in found.values())
        for key in ("delta", "kept", "noise")
    )
    result = WeightsResult(
        dtype=max(sorted(set(dtypes)), key=dtypes.count),
        measured=sum(tensor.elements for tensor in tensors.values()),
        tensors=tensors,
        worst=plain[worst].worst or 0.0 if worst else 0.0,
        worst_tensor=worst,
        mean=math.fsum((t.mean or 0.0) * t.elements for t in plain.values()) / max(elements, 1),
        kept=kept / delta if delta else None,
        noise=math.sqrt(noise / delta) if delta else None,
        missing=tuple(missing),
        unknown=tuple(unknown),
    )
    return Weights(result, tuple(wrong))
