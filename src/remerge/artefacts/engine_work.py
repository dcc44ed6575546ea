"""What an engine is told to write, and having it written: once, again, or for its digests alone."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from remerge.artefacts.engine_manifest import Origin
from remerge.artefacts.engine_recording import records_of
from remerge.artefacts.making import Report, make, write_side_file
from remerge.artefacts.manifest import CARD, MANIFEST, PROVENANCE, FileRecord
from remerge.engines.calling import Note, call
from remerge.engines.environments import python_of
from remerge.engines.forms import Asked
from remerge.merging.budget import DEFAULT, Resources
from remerge.merging.plan import Plan, merge_key
from remerge.outputs.planning import Inputs, make_plan
from remerge.outputs.spellings import both_spellings


def unheard(text: str) -> None:
    pass


@dataclass(frozen=True)
class Work:
    """Everything an engine needs to know to write an output."""

    inputs: Inputs
    plan: Plan
    asked: Asked
    origin: Origin
    merge_key: str
    threads: int | None
    pythons: Mapping[str, str]
    report: Report
    note: Note = unheard

    def run(
        self,
        work: Path,
        target: Path | None,
        beside: Path | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Have ``target`` (a file, or a directory to fill) written; with None only the digest of
        a file is taken. What goes with a file, which is called ``name``, comes to ``beside``. What
        the engine reads lies in ``work`` meanwhile."""
        form = self.asked.form
        python = python_of(form.engine, self.pythons)
        with tempfile.TemporaryDirectory(prefix=".model-", dir=work) as folder:
            # Converters read the model's name, size and kind off its directory's name.
            directory = Path(folder) / (self.origin.base.rpartition("/")[2] or "model")
            if form.reads == "checkpoint":
                self._survey(python)
                self._write_checkpoint(directory)
                peak = self._refer(directory, Path(folder) / "reference.npz")
            else:
                peak = 0
                directory.mkdir()
                for side in self.plan.side_files:
                    write_side_file(directory, side)
            request = {
                "base": str(self.inputs.base.path),
                "original": self.inputs.original,
                "adapters": [str(adapter.path) for adapter in self.inputs.adapters],
                "recipe": self.plan.recipe.model_dump(mode="json"),
                "plan_id": self.plan.plan_id,
                "directory": str(directory),
                "reference": str(Path(folder) / "reference.npz"),
                "target": os.devnull if target is None else str(target.absolute()),
                "beside": None if beside is None else str(beside.absolute()),
                "name": name,
                "files": {name: str(path.absolute()) for name, path in self.asked.files.items()},
                "threads": self.threads,
                "about": {**self.origin.model_dump(), "merge_key": self.merge_key},
            }
            # What an engine leaves where it stands goes with the folder.
            place = Path(folder)
            told = call(python, form.module, request, self.report, note=self.note, place=place)
            return {**told, "peak_memory": max(told["peak_memory"], peak)}

    def again(self, place: Path, name: str | None, *, alone: bool = False) -> dict[str, str]:
        """Write everything a second time, below ``place``; the digests of its files. Nothing of it
        is kept, and the one file called ``name``, be it ``alone`` or not, is never on disk."""
        with tempfile.TemporaryDirectory(prefix=".again-", dir=place) as folder:
            target = Path(folder)
            if self.asked.form.suffix is None:
                told = self.run(place, target)
                return {r.name: r.sha256 for r in records_of(target, told, None, None)}
            assert name is not None
            told = self.run(place, None, None if alone else target, name)
            beside = records_of(target, told, None, None)
            return {name: told["sha256"], **{r.name: r.sha256 for r in beside}}

    def write(self, folder: Path, name: str | None, *, alone: bool = False) -> list[FileRecord]:
        """Write everything into ``folder``, durably: the one file called ``name``, be it ``alone``
        or not, or all files of a form of several."""
        target = folder if name is None else folder / name
        told = self.run(folder, target, None if alone else folder, name)
        return records_of(folder, told, name, name if alone else None)

    def _survey(self, python: Path) -> None:
        """Have the engine refuse what it does not know before anything is written."""
        form = self.asked.form
        if form.survey is not None:
            options = dict(self.asked.options)
            request = {"config": dict(self.plan.config), "options": options}
            call(python, form.survey, request, self.report)

    def _refer(self, directory: Path, target: Path) -> int:
        """Write the merge's logits, by remerge's own environment; the memory that it took."""
        request = {"directory": str(directory), "target": str(target)}
        python = Path(sys.executable)
        return call(python, "remerge.engines.reference", request, self.report)["peak_memory"]

    def _write_checkpoint(self, directory: Path) -> None:
        """The merge as a checkpoint, for an engine that loads one: in its transformers' words."""
        recipe = self.plan.recipe.model_copy(update={"format": "safetensors", "form": {}})
        plan = make_plan(self.inputs, recipe, DEFAULT)
        resources = Resources.of(
            DEFAULT, self.threads, quantised=plan.decodes, combines=plan.combines
        )
        cpu = torch.device("cpu")
        make(self.inputs, plan, directory, resources, device=cpu, started=time.time())
        # Beside the output's own files it would be taken for what the engine made.
        for name in (MANIFEST, PROVENANCE, CARD):
            (directory / name).unlink()
        path = directory / "config.json"
        path.write_text(json.dumps(both_spellings(json.loads(path.read_bytes())), indent=2) + "\n")


def key_of(plan: Plan, digests: Mapping[str, str], asked: Asked, origin: Origin) -> str:
    """The merge key of what an engine writes: the engine is an input as well, and so is what the
    output says of its origin."""
    engine = asked.form.engine
    words = {f"engine/{engine.name}": engine.identity, "origin": origin.model_dump_json()}
    return merge_key(plan, {**digests, **words})
