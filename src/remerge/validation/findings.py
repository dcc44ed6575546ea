"""What a verification finds, whatever kind of output it derives again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from remerge.artefacts.digests import file_digest, side_digest
from remerge.errors import IntegrityError, NotReproduced, RemergeError
from remerge.merging.plan import Plan


@dataclass(frozen=True)
class VerifyReport:
    """What was found equal: files ``derived`` again, or only as their manifest has them."""

    output: Path
    merge_key: str
    files: int
    tensors: int
    bytes_compared: int
    notes: tuple[str, ...]
    derived: bool = True


def check_side_files(output: Path, plan: Plan, recorded: Mapping[str, str]) -> None:
    """Compare the files beside the weights; ``recorded`` are the manifest's digests."""
    for side in plan.side_files:
        path = output / side.name
        found = file_digest(path)
        derived = side_digest(side)
        as_recorded = found == recorded.get(side.name)
        if found != derived or not as_recorded:
            raise failure(path, "", as_recorded)


def failure(path: Path, where: str, as_recorded: bool) -> RemergeError:
    """The error for a file that is not what was derived."""
    if as_recorded:
        return NotReproduced(
            f"{path} is what its manifest says, but deriving it again gives other bytes.{where}",
            why="It was not made from these inputs, or the numerical stack differs.",
        )
    return IntegrityError(
        f"{path} is not the file that its manifest names.{where}",
        why="It was changed or damaged after the merge.",
        hint="Merge again with --overwrite.",
    )
