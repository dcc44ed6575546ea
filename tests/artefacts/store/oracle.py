"""What a store's files say, read with nothing of the store's own code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# When and how long: what two runs of one command never have in common.
_TIMES = ("added", "time", "seconds")


@dataclass(frozen=True)
class Seen:
    """Names, records, states (without times) and the digests of blobs that are whole."""

    names: dict[str, str]
    records: dict[str, Any]
    states: dict[str, Any]
    canonical: frozenset[str]
    derived: frozenset[str]
    changes: int

    def files(self, artefact: str) -> dict[str, str]:
        """The files of an artefact: name -> SHA-256."""
        return {file["name"]: file["sha256"] for file in self.records[artefact]["files"]}


def see(root: Path) -> Seen:
    """Read everything; asserts nothing."""
    return Seen(
        names={p.name: p.read_text().strip() for p in _files(root / "refs")},
        records={p.stem: json.loads(p.read_bytes()) for p in _files(root / "records")},
        states={p.stem: _timeless(json.loads(p.read_bytes())) for p in _files(root / "states")},
        canonical=_whole(root / "blobs" / "canonical"),
        derived=_whole(root / "blobs" / "derived"),
        changes=len(log(root)),
    )


def log(root: Path) -> list[dict[str, Any]]:
    """The lines of the log; every one must be whole."""
    path = root / "log.jsonl"
    content = path.read_bytes() if path.exists() else b""
    assert content.endswith(b"\n") or not content, "a torn line"
    return [json.loads(line) for line in content.splitlines()]


def sound(root: Path) -> Seen:
    """Assert what must hold whenever no command is at work; what was seen.

    Nothing canonical is lost or changed, every name is of an artefact, every derived byte is there
    or its artefact says that it is collected.
    """
    seen = see(root)
    assert not (root / "journal.json").exists(), "a change is left half done"
    for kind in ("canonical", "derived"):
        there = {path.name for path in _files(root / "blobs" / kind)}
        assert there == (seen.canonical if kind == "canonical" else seen.derived), "wrong bytes"
    for artefact in seen.records:
        content = (root / "records" / artefact[:2] / f"{artefact}.json").read_bytes()
        assert hashlib.sha256(content).hexdigest() == artefact, "a record was changed"
    assert set(seen.names.values()) <= set(seen.records), "a name points to nothing"
    assert set(seen.states) == set(seen.records), "records and states are not one"
    lost = missing(seen)
    assert not lost, f"bytes are lost: {lost}"
    ids = [entry["change"] for entry in log(root)]
    assert len(ids) == len(set(ids)), "a change is twice in the log"
    return seen


def missing(seen: Seen) -> list[tuple[str, str]]:
    """Files whose bytes are neither there nor collected: artefact and name."""
    found: list[tuple[str, str]] = []
    for artefact, record in seen.records.items():
        state = seen.states[artefact]
        for file in (*record["files"], *state["attached"]):
            if not file["derived"]:
                there = file["sha256"] in seen.canonical
            else:
                there = (
                    file["sha256"] in seen.canonical | seen.derived
                    or state["collected"] is not None
                )
            if not there:
                found.append((artefact, file["name"]))
    return found


def leftovers(root: Path) -> list[str]:
    """What a killed process left and nobody needs."""
    staged = [p.name for p in (root / "staging").iterdir()] if (root / "staging").exists() else []
    return staged + [p.name for p in root.rglob("*~")]


def digests(folder: Path) -> dict[str, str]:
    """Every file below a directory: name -> SHA-256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not path.name.endswith("~"))


def _whole(folder: Path) -> frozenset[str]:
    """Blobs whose bytes are those of their name."""
    paths = _files(folder)
    return frozenset(p.name for p in paths if hashlib.sha256(p.read_bytes()).hexdigest() == p.name)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in _TIMES}
    if isinstance(value, list):
        return [_timeless(one) for one in value]
    return value
