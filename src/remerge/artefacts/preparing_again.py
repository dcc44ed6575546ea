"""What a derivation writes besides weights: recorded numbers, and the files carried along."""

from __future__ import annotations

from pathlib import Path

from remerge.artefacts.digests import file_digest
from remerge.artefacts.making import prepare_into, write_side_file
from remerge.artefacts.manifest import PREPARATIONS
from remerge.artefacts.rederiving import Derivation
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.plan import Plan
from remerge.outputs.directory import copy_durably
from remerge.sources.storage import sync_file


def prepare_again(
    derivation: Derivation, plan: Plan, merged: MergedCheckpoint, work: Path, threads: int
) -> dict[str, str]:
    """Take the recorded numbers into ``work``, else compute them as the merge did; their digest by
    name where any are kept."""
    path = work / PREPARATIONS
    if derivation.preparations is not None:
        copy_durably(derivation.preparations, path)
    prepare_into(work, merged, plan, threads)
    if not path.exists():
        return {}
    sync_file(path)
    return {PREPARATIONS: file_digest(path)}


def write_sides(plan: Plan, folder: Path) -> dict[str, str]:
    """Write the files beside the weights; their digests by name."""
    return {side.name: write_side_file(folder, side).sha256 for side in plan.side_files}
