"""What a merge's delta retention means for its user: words, a warning, and the way out."""

from __future__ import annotations

from collections.abc import Sequence

from remerge.artefacts.conflict_report import ConflictReport
from remerge.artefacts.manifest import Manifest, RetentionRecord

# Below the first, or above the second, a merge is told to have lost something: a tenth of the
# delta, or rounding noise half as large as the delta itself.
LEAST_KEPT = 0.9
# Of a tensor's errors over those of one rounding: a right merge has 1, one that rounds delta and
# sum apart up to 1.5, eight bits 4 and more.
MOST_EXCESS = 2.0
MOST_NOISE = 0.5
_SHOWN = 3


def retention_line(found: RetentionRecord, measured: str) -> str:
    """The figures of one tensor, or of all, in a line."""
    if found.kept is None or found.noise is None:
        return "the delta is zero"
    where = "all elements" if measured == "full" else "a sample"
    return (
        f"{found.kept:.2%}, rounding noise {found.noise:.2%} of the delta, "
        f"{found.unchanged:.2%} of the elements unchanged (measured on {where})"
    )


def advice(manifest: Manifest) -> tuple[str, ...]:
    """A warning for every way in which the output lost much of the delta, and where adapters do not
    get along, with the way out."""
    return (*_of_conflicts(manifest), *_of_retention(manifest))


def conflict_line(report: ConflictReport, names: Sequence[str]) -> str:
    """What suits all adapters and how the worst pair stands, in a line; ``names`` of adapters."""
    worst = report.pairs[0]
    pair = " + ".join(names[number - 1] for number in worst.adapters)
    found = worst.overall
    if found.shared is None or found.cosine is None:
        return report.advice
    return (
        f"{report.advice} recommended; worst pair {pair}: {found.shared:.1%} along the same inputs "
        f"and outputs, cosine {found.cosine:.2f}"
    )


def _of_conflicts(manifest: Manifest) -> tuple[str, ...]:
    report = manifest.conflicts
    if report is None or report.advice != "keep separate":
        return ()
    names = [manifest.adapters[number - 1].name for number in report.pairs[0].adapters]
    return (
        f"{' and '.join(names)} do not get along and are better kept separate. "
        + " ".join(report.reasons),
    )


def _of_retention(manifest: Manifest) -> tuple[str, ...]:
    report = manifest.retention
    if report is None or not _loses(report.overall):
        worst = [] if report is None else [n for n, t in report.tensors.items() if _loses(t)]
        if not worst:
            return ()
        return (
            f"{len(worst)} tensors lose much of their delta to rounding ({_named(worst)}); "
            "--keep-float32 PATTERN keeps them in float32.",
        )
    kept, noise = report.overall.kept, report.overall.noise
    return (
        f"The output keeps {kept:.1%} of the delta, with rounding noise {noise:.1%} of its size: "
        + _way_out(manifest, list(report.tensors)),
    )


def _loses(found: RetentionRecord) -> bool:
    if found.kept is None or found.noise is None:
        return False
    return found.kept < LEAST_KEPT or found.noise > MOST_NOISE


def _way_out(manifest: Manifest, tensors: list[str]) -> str:
    if manifest.recipe.requantize is not None:
        return (
            "its quantised format is coarser than the change. Merge without --requantize and "
            "quantise with calibration, or serve the adapter unmerged on the quantised base."
        )
    if manifest.recipe.quantize is not None:
        return (
            f"{manifest.recipe.quantize} is coarser than the change. Choose a finer scheme, keep "
            "layers out of it (--ignore), write 16 bits and quantise with calibration, or serve "
            "the adapter unmerged."
        )
    if manifest.recipe.dtype == "F16":
        return "keep the tensors in float32 (--keep-float32 PATTERN), or the adapter unmerged."
    return (
        "bfloat16 has 8 bits, too few for changes this small. --dtype float16 has 11 (a value that "
        "does not fit its range is refused), --keep-float32 PATTERN keeps named tensors whole, and "
        "an adapter served unmerged loses nothing."
    )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
