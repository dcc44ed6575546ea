"""What is compared: base and adapters, the merge that they make, and the artefact that claims to be
it; whether its bytes are what its manifest says is found out first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.manifest import CARD, MANIFEST, PROVENANCE, FileRecord, parsed
from remerge.artefacts.origins import adapters_of, base_digests, check_input, place_of
from remerge.artefacts.recording import file_record
from remerge.artefacts.test_result import TESTS
from remerge.errors import BadInput, IntegrityError, UsageError
from remerge.merging.plan import Plan
from remerge.merging.recipe import Recipe, make_recipe
from remerge.outputs.planning import Inputs, make_plan, open_inputs
from remerge.validation.artefact import Artefact, find_artefact
from remerge.validation.limits import Gate

# Of a recipe, what decides values; the rest says how they are written.
DECIDES = (
    "method",
    "weights",
    "parameters",
    "prefer",
    "simulate",
    "expert_packing",
    "tokenizer",
)
# Methods that add deltas up by weight, which adapters side by side in PEFT do as well.
_SUMS = ("sum", "cat", "linear")


class _Outputs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    outputs: tuple[FileRecord, ...]


@dataclass(frozen=True)
class Compared:
    """``plan`` is the merge, rounded once to float32; ``files`` are the artefact's own, by their
    bytes; ``gates`` say whether these are the manifest's and whether it names these inputs."""

    artefact: Artefact
    inputs: Inputs
    plan: Plan
    files: tuple[FileRecord, ...]
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the whole artefact: names and digests of its files."""
        return digest_of_files(self.files)

    @property
    def nbytes(self) -> int:
        return sum(record.size for record in self.files)

    @property
    def merge_request(self) -> dict[str, Any]:
        """The merge for `remerge.engines.score_transformers`."""
        return {
            "base": str(self.inputs.base.path),
            "original": self.inputs.original,
            "adapters": [str(adapter.path) for adapter in self.inputs.adapters],
            "recipe": self.plan.recipe.model_dump(mode="json"),
        }

    @property
    def adapter_weights(self) -> tuple[float, ...] | None:
        """How PEFT is to weigh the adapters side by side; None for a method that is no sum."""
        recipe = self.plan.recipe
        if recipe.method not in _SUMS:
            return None
        total = sum(recipe.weights) if recipe.method == "linear" else 1.0
        return tuple(weight / total for weight in recipe.weights)


def open_compared(
    base: str | Path | None,
    adapters: Sequence[str | Path],
    output: Path,
    options: Mapping[str, Any],
    max_memory: int,
) -> Compared:
    """Open everything; what is not given is what the manifest names.

    The recipe is that of the artefact's manifest; without one, what ``options`` (of `remerge.plan`)
    say. Raises what opening raises; a manifest that other bytes lie under raises nothing: a gate
    fails.
    """
    artefact = find_artefact(output)
    origin = artefact.origin
    if origin is None and not adapters:
        raise UsageError(
            f"It is not known what {output} was made from: it has no manifest.",
            hint="Name base and adapter: remerge compare BASE ADAPTER OUT.",
        )
    if origin is not None and not adapters:
        try:
            base = base or place_of(origin.base, "base")
            adapters = adapters_of(origin.adapters, ())
        except BadInput as error:
            hint = "Name them: remerge compare BASE ADAPTER OUT."
            raise BadInput(error.what, why=error.why, hint=hint) from error
    inputs = open_inputs(
        base,
        adapters,
        base_precision=None if origin is not None else options.get("base_precision"),
        progress=False,
    )
    if origin is not None:
        inputs = replace(inputs, original=origin.recipe.base_precision == "original")
        kept = {key: getattr(origin.recipe, key) for key in DECIDES}
        recipe = Recipe(**kept, dtype="F32")
    else:
        kept = {key: options[key] for key in DECIDES if key in options}
        recipe = make_recipe(inputs.labels, **kept, dtype="float32")
    files = files_of(artefact)
    gates: list[Gate] = []
    notes: list[str] = []
    if origin is None:
        notes.append("There is no manifest: the recipe is taken from the command line.")
    else:
        gates.append(_bytes_gate(artefact, files))
    if origin is not None and len(origin.adapters) != len(inputs.adapters):
        named = ", ".join(record.name for record in origin.adapters)
        gates.append(_inputs_gate(f"{len(inputs.adapters)} adapters given; it was made of {named}"))
        recipe = make_recipe(inputs.labels, dtype="float32")
    plan = make_plan(inputs, recipe, max_memory)
    if origin is not None and len(gates) == 1:
        wrong = ""
        try:
            for record, opened in zip(origin.adapters, inputs.adapters, strict=True):
                check_input(record, opened.path, opened.digests(), "adapter")
            check_input(origin.base, plan.base.path, base_digests(plan), "base")
        except IntegrityError as error:
            wrong = error.what.rstrip(".")
        gates.append(_inputs_gate(wrong))
    return Compared(artefact, inputs, plan, files, tuple(gates), tuple(notes))


def files_of(artefact: Artefact) -> tuple[FileRecord, ...]:
    """The artefact's files by their bytes, now; without the manifest, times, card and test
    results, which are about it."""
    if artefact.place.is_file():
        return (file_record(artefact.place, artefact.place.name),)
    found: list[FileRecord] = []
    for path in sorted(artefact.place.rglob("*")):
        name = path.relative_to(artefact.place).as_posix()
        beside = name in (CARD, MANIFEST, PROVENANCE) or name.startswith((f"{TESTS}/", "."))
        if path.is_file() and not beside:
            found.append(file_record(path, name))
    return tuple(found)


def digest_of_files(files: Sequence[FileRecord]) -> str:
    """One digest for several files, by names and contents."""
    lines = "".join(f"{record.sha256}  {record.name}\n" for record in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _bytes_gate(artefact: Artefact, files: Sequence[FileRecord]) -> Gate:
    assert artefact.manifest is not None
    content = artefact.manifest.read_bytes()
    recorded = parsed(artefact.manifest, content, _Outputs).outputs
    there = {record.name: record.sha256 for record in files}
    if artefact.kind == "gguf" and artefact.place.is_file() and len(recorded) == 1:
        # A file that was renamed is still that file.
        there[recorded[0].name] = files[0].sha256
    elif artefact.kind == "gguf":
        # Of a directory that was written for it, what lies beside the file.
        for record in recorded:
            beside = artefact.place.with_name(record.name)
            if record.name not in there and beside.is_file():
                there[record.name] = file_record(beside, record.name).sha256
    changed = [record.name for record in recorded if there.get(record.name) != record.sha256]
    measured = f"{len(changed)} differ, first {changed[0]}" if changed else "as recorded"
    return Gate("digests", measured, f"{len(recorded)} files of the manifest", not changed)


def _inputs_gate(wrong: str) -> Gate:
    measured = wrong or "base and adapters of the manifest"
    return Gate("made from", measured, "these inputs", not wrong)
