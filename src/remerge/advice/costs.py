"""What either side costs: bytes on disk and on the GPU, seconds, and time for each token."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from statistics import mean, median

from remerge.advice.facts import Facts
from remerge.advice.looked import Copy, Looked
from remerge.advice.measured import Slower
from remerge.advice.rules import rules
from remerge.artefacts.store.store import Store
from remerge.errors import RemergeError

# Smaller merges tell how long a program takes to start.
_TELLING = 5 * 10**8


@dataclass(frozen=True)
class MergeCosts:
    """``copies`` merged models: bytes on disk and, served at once, on the GPU, before any cache of
    keys and values. ``seconds`` of making them all are a forecast by ``seconds_from``; None where
    sizes are not known, or no speed is."""

    copies: int
    bytes_each: int | None
    disk_bytes: int | None
    gpu_bytes: int | None
    seconds_each: float | None
    seconds: float | None
    seconds_from: str


@dataclass(frozen=True)
class KeepCosts:
    """One base and ``adapters``, all of them on the GPU at once, in 16 bits. A token takes from
    ``slower_by[0]`` to ``slower_by[1]`` times as long as merged, by ``slower_from``; ``measure`` is
    the command that tells for this model, where there is one and it was not measured."""

    adapters: int
    base_bytes: int | None
    adapter_bytes_each: int | None
    disk_bytes: int | None
    gpu_bytes: int | None
    seconds: float
    slower_by: tuple[float, float]
    slower_from: str
    measure: str | None


@dataclass(frozen=True)
class Costs:
    merge: MergeCosts
    keep: KeepCosts


def costs_of(looked: Looked, measure: str | None, measured: Slower | None = None) -> Costs:
    """Both sides, for the variants there are (one where that is not known); what was ``measured``
    takes the place of the general range."""
    facts = looked.facts
    count = facts.variants or 1
    each = facts.copy_bytes
    seconds, source = _seconds(looked.copies, facts)
    merge = MergeCosts(
        copies=count,
        bytes_each=each,
        disk_bytes=facts.copies_bytes,
        gpu_bytes=facts.copies_bytes,
        seconds_each=seconds,
        seconds=None if seconds is None else round(seconds * count, 1),
        seconds_from=source,
    )
    adapter = int(mean(looked.adapters_bytes)) if looked.adapters_bytes else None
    served = facts.served_base_bytes
    slots = None if facts.adapter_bytes is None else count * facts.adapter_bytes
    unmerged = rules().forecast["unmerged"]
    slower_by, slower_from = unmerged.slower_by, unmerged.source
    if measured is not None:
        slower_by, slower_from = (measured.low, measured.high), measured.source
    keep = KeepCosts(
        adapters=count,
        base_bytes=looked.base_bytes,
        adapter_bytes_each=adapter,
        disk_bytes=_sum(looked.base_bytes, None if adapter is None else count * adapter),
        gpu_bytes=_sum(served, slots),
        seconds=0.0,
        slower_by=slower_by,
        slower_from=slower_from,
        measure=measure,
    )
    return Costs(merge, keep)


def _seconds(copies: tuple[Copy, ...], facts: Facts) -> tuple[float | None, str]:
    """Of one merge, and what the forecast rests on."""
    if not copies:
        return None, "nothing was planned: give --base and --adapter"
    name, _, variant = (facts.quantize or "").partition(":")
    if name == "gguf":
        figures = rules().forecast["gguf"]
        rates = figures.seconds_per_gigabyte
        rate = rates.get(variant.upper(), rates["other"])
        work = mean(c.base_bytes for c in copies) / 1e9 * rate
        return round(figures.start_up + work, 1), figures.source
    if name in ("gptq", "awq", "gptqmodel", "onnx", "openvino"):
        return None, f"no speed is known of {facts.quantize}: its engine tells when it begins"
    figures = rules().forecast["merge"]
    speed, source = figures.bytes_per_second, figures.source
    own = _measured_here()
    if own is not None:
        speed, source = own
    moved = mean(c.read + c.nbytes for c in copies)
    if facts.quantize not in (None, "none"):
        source += f"; of a plain merge, as {facts.quantize} was not measured"
    return round(figures.start_up + moved / speed, 1), source


def _measured_here() -> tuple[float, str] | None:
    """Bytes read and written in a second, of what this user's store made again."""
    speeds: list[float] = []
    # A store that cannot be read is no reason to give no advice.
    with suppress(RemergeError, OSError):
        speeds = [
            2 * row.size / row.seconds
            for row in Store().ls()
            if row.kind == "merged" and row.seconds and row.size >= _TELLING
        ]
    if not speeds:
        return None
    found = median(speeds)
    times = f"{len(speeds)} merges" if len(speeds) > 1 else "one merge"
    return (
        found,
        f"measured on this machine: {found / 1e9:.2g} GB/s, {times} made again by the store",
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
