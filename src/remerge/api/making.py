"""Planning and making: merges, combinations, what engines write, extracted adapters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch

from remerge.api.gating import Judged, judge_of, unjudged
from remerge.api.options import (
    Planned,
    PlanOptions,
    Source,
    budget_of,
    device_of,
    planned_of,
    several,
    silent,
    unheard,
)
from remerge.artefacts.extraction_manifest import ExtractionOptions
from remerge.artefacts.making import Judge, MergeResult, Report, make
from remerge.engines.calling import Note
from remerge.errors import UsageError
from remerge.merging.budget import DEFAULT, Resources
from remerge.merging.extraction import LARGEST_RANK
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.plan import Plan
from remerge.merging.recipe import parse_dtype
from remerge.sources.references import resolve

if TYPE_CHECKING:
    from remerge.artefacts.extracting import ExtractionResult
    from remerge.artefacts.making_adapter import AdapterResult
    from remerge.artefacts.making_by_engine import EngineResult


def plan(
    base: Source | None, adapters: Source | Sequence[Source], **options: Unpack[PlanOptions]
) -> Plan:
    """The whole merge before it is done, from headers and configurations.

    ``base`` and ``adapters``, one or several, are directories or Hub ids
    (``org/name[@revision]``); without ``base`` the adapters' configurations name it. Raises
    `BadInput` for whatever would merge wrong.
    """
    return planned_of(base, several(adapters), options).plan


def merge(
    base: Source | None,
    adapters: Source | Sequence[Source],
    output: Source,
    *,
    retention: Literal["sample", "full"] = "sample",
    overwrite: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    report: Report = silent,
    gate: Mapping[str, Any] | None = None,
    judged: Judged = unjudged,
    **options: Unpack[PlanOptions],
) -> MergeResult:
    """Merge one adapter or several into one base and write the checkpoint to ``output``.

    ``output`` is complete or as it was: it never holds half a merge. ``device``, ``threads`` and
    ``max_memory`` change no byte of it. ``report`` is told bytes done, bytes in all and the tensor
    at hand, from any thread. ``retention`` says on how much of the tensors is measured what the
    output keeps of the delta. With a ``gate`` (as of `compare`, where an empty one has its
    defaults) it is compared with the adapters on the base before it is published, which it is only
    if it passes; ``judged`` is told either way. Raises `NotReproduced` where it does not.
    """
    started = time.time()
    if retention not in ("sample", "full"):
        raise UsageError(f"retention {retention!r} is not known.", hint="Choose sample or full.")
    where = device_of(device)
    planned = planned_of(base, several(adapters), options)
    if planned.plan.recipe.format != "safetensors":
        call = "combine" if planned.asked is None else "export"
        raise UsageError("merge writes checkpoints alone.", hint=f"Call remerge.{call}.")
    return _make(
        planned,
        output,
        threads,
        where,
        started,
        overwrite=overwrite,
        retention=retention,
        report=report,
        judge=judge_of(planned, base, several(adapters), output, gate, judged, device, threads, {}),
    )


def _make(
    planned: Planned,
    output: Source,
    threads: int | None,
    device: torch.device,
    started: float,
    *,
    overwrite: bool,
    retention: Literal["sample", "full"],
    report: Report,
    judge: Judge | None = None,
) -> MergeResult:
    made = planned.plan
    return make(
        planned.inputs,
        made,
        Path(output),
        Resources.of(planned.budget, threads, quantised=made.decodes, combines=made.combines),
        device=device,
        started=started,
        overwrite=overwrite,
        retention=retention,
        report=report,
        judge=judge,
    )


def combine(
    base: Source | None,
    adapters: Source | Sequence[Source],
    output: Source,
    *,
    overwrite: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    report: Report = silent,
    **options: Unpack[PlanOptions],
) -> AdapterResult:
    """Combine adapters into one new PEFT adapter for their base, and write it to ``output``.

    Options are those of `merge` that make sense for it; ``dtype`` is that of the factors (float32
    for keep). Products of factors (``sum``, ``linear``, ``cat``, ``svd``, ...) stay exact but for
    that dtype, unless a smaller ``parameters["svd_rank"]`` is asked for; anything else is
    decomposed, to the adapters' largest rank by default, and what is missed is stated.
    """
    # It always imports transformers, which takes seconds; most merges can do without.
    from remerge.artefacts.making_adapter import make_adapter

    started = time.time()
    where = device_of(device)
    planned = planned_of(base, several(adapters), {**options, "to": "adapter"})
    return make_adapter(
        planned.inputs,
        planned.plan,
        Path(output),
        max_memory=planned.budget,
        threads=threads,
        device=where,
        started=started,
        overwrite=overwrite,
        report=report,
    )


def export(
    source: Source | None,
    output: Source,
    *,
    adapters: Source | Sequence[Source] = (),
    overwrite: bool = False,
    prove: bool = False,
    threads: int | None = None,
    engine_python: Mapping[str, str] | None = None,
    report: Report = silent,
    note: Note = unheard,
    gate: Mapping[str, Any] | None = None,
    judged: Judged = unjudged,
    **options: Unpack[PlanOptions],
) -> EngineResult | MergeResult:
    """Write a checkpoint, or base and adapters, in the form ``to`` says, in one pass.

    ``source`` is a checkpoint, merged before or not; with ``adapters`` these are merged into it
    on the way. Options are those of `merge`. What an engine writes (``gguf:Q4_K_M``) is done in
    its environment (``remerge engines install llama.cpp``), or by the interpreter that
    ``engine_python`` names for it; anything else is a checkpoint again. ``prove`` has the engine
    write twice, and records whether both are the same. ``note`` is told what is
    worth knowing before it ends, such as a forecast. ``gate`` and ``judged`` are those of `merge`.
    """
    started = time.time()
    named = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    if not named and source is None:
        raise UsageError("There is nothing to export.", hint="Name a checkpoint, or an adapter.")
    planned = planned_of(source, named, options)
    if planned.plan.recipe.format == "adapter":
        raise UsageError("An adapter comes of several.", hint="Call remerge.combine.")
    own = engine_python or {}
    judge = judge_of(planned, source, named, output, gate, judged, "cpu", threads, own)
    if planned.asked is None:
        if prove:
            raise UsageError("prove is for what engines write; verify derives a checkpoint again.")
        return _make(
            planned,
            output,
            threads,
            torch.device("cpu"),
            started,
            overwrite=overwrite,
            retention="sample",
            report=report,
            judge=judge,
        )
    # It needs engines, and most merges none.
    from remerge.artefacts.making_by_engine import make_by_engine

    return make_by_engine(
        planned.inputs,
        planned.plan,
        planned.asked,
        Path(output),
        threads=threads,
        pythons=own,
        started=started,
        overwrite=overwrite,
        prove=prove,
        report=report,
        note=note,
        judge=judge,
    )


def open_merged(
    base: Source | None,
    adapters: Source | Sequence[Source],
    *,
    device: str = "cpu",
    **options: Unpack[PlanOptions],
) -> MergedCheckpoint:
    """The merged checkpoint as a mapping ``name -> lazy tensor``, before anything is written.

    Each tensor has ``.shape``, ``.dtype`` and ``[rows]``, computed on read;
    ``load_model()`` gives a transformers model with the merged weights.
    """
    where = device_of(device)
    return plan(base, adapters, **options).open(where)


def extract(
    base: Source,
    merged: Source,
    output: Source,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "float32",
    modules_to_save: bool = True,
    strict: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    max_memory: int | str = DEFAULT,
    report: Report = silent,
    progress: bool = True,
) -> ExtractionResult:
    """Find the LoRA adapter that leads from ``base`` to ``merged`` and write it for PEFT.

    ``rank`` is the most that a tensor may take; with ``energy`` each takes the smallest rank that
    explains this share of its change. What low-rank factors cannot say (norms, biases, a grown
    vocabulary) goes in whole, unless ``modules_to_save`` is false or ``strict`` refuses it.
    """
    # It always imports transformers, which takes seconds; most merges can do without.
    from remerge.artefacts import extracting

    started = time.time()
    options = ExtractionOptions(
        rank=_rank(rank, energy),
        energy=energy,
        dtype=_factor_dtype(dtype),
        modules_to_save=modules_to_save,
        strict=strict,
    )
    budget = budget_of(max_memory)
    return extracting.extract(
        resolve(base, "base", progress=progress),
        resolve(merged, "base", progress=progress),
        Path(output),
        options,
        max_memory=budget,
        threads=threads,
        started=started,
        overwrite=overwrite,
        report=report,
    )


def _rank(rank: int | None, energy: float | None) -> int:
    if rank is None and energy is None:
        raise UsageError("How large may the adapter be?", hint="Give --rank 16, or --energy 0.99.")
    if rank is not None and rank < 1:
        raise UsageError(f"--rank {rank} is no rank.", hint="Give at least 1.")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"--energy {energy} is no share.", hint="Give one above 0, at most 1.")
    return LARGEST_RANK if rank is None else rank


def _factor_dtype(dtype: str) -> Literal["F32", "F16", "BF16"]:
    parsed = parse_dtype(dtype)
    if parsed == "keep":
        raise UsageError("--dtype keep means nothing for factors.", hint="Choose float32.")
    return parsed
