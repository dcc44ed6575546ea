"""Measuring whether adapters get along, before a merge or for its manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from remerge.adapters.adapter import check_finite
from remerge.adapters.deltas import Changes
from remerge.artefacts.conflict_report import ConflictReport, report_of
from remerge.merging.conflicts import measure
from remerge.merging.opening import read_changes
from remerge.merging.plan import Plan
from remerge.merging.replacements import copies_of
from remerge.outputs.planning import Inputs
from remerge.sources.checkpoint import Checkpoint
from remerge.sources.reading import DecodedBase, decoded

_MOST = 8


@dataclass(frozen=True)
class Conflicts:
    """What was found of these adapters; ``notes`` are of the inputs."""

    labels: tuple[str, ...]
    report: ConflictReport
    notes: tuple[str, ...]


def find_conflicts(inputs: Inputs, threads: int | None) -> Conflicts:
    """Compare all adapters with each other, without a merge.

    Raises `BadInput` where an adapter does not fit the base or has values that are not finite.
    """
    readable = decoded(inputs.base)
    adapters = [adapter.for_base(readable) for adapter in inputs.adapters]
    found = [read_changes(readable, adapter) for adapter in adapters]
    for adapter in adapters:
        check_finite(adapter)
    told = [note for adapter in adapters for note in adapter.notes]
    return Conflicts(
        inputs.labels,
        conflicts_of(found, inputs.base, readable, threads),
        tuple(dict.fromkeys((*inputs.notes, *told))),
    )


def conflicts_in(plan: Plan, threads: int) -> ConflictReport | None:
    """Whether the adapters of a merge get along; None where there are no two."""
    if len(plan.own) < 2:
        return None
    return conflicts_of(plan.own, plan.base, decoded(plan.base), threads)


def conflicts_of(
    found: Sequence[Changes], base: Checkpoint, readable: DecodedBase, threads: int | None
) -> ConflictReport:
    """The report on what these adapters change."""
    # Every thread holds the factors of a tensor.
    count = min(threads or _MOST, os.cpu_count() or 1, _MOST)
    return report_of(measure(found, copies_of(base, readable), count))
