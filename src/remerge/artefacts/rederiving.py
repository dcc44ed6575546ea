"""From a manifest back to the merge that it tells of: inputs found, opened, planned and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from remerge.artefacts import user_index
from remerge.artefacts.any_manifest import AnyManifest, DerivedManifest
from remerge.artefacts.digests import adapter_digests, file_digest, small_digests
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.engine_work import key_of
from remerge.artefacts.extraction_manifest import ExtractionManifest
from remerge.artefacts.manifest import PREPARATIONS, InputRecord
from remerge.artefacts.origins import check_input, place_of
from remerge.engines.forms import FORMS, Asked
from remerge.errors import BadInput, IntegrityError, NotReproduced, Unsupported, UsageError
from remerge.merging.plan import Plan, merge_key
from remerge.outputs.planning import Inputs, make_plan, open_references
from remerge.sources.references import Kind, Reference, labels_of, resolve
from remerge.version import ALGORITHM, __version__

# Finds an input of a manifest, a store's for one; None where it is not there.
Elsewhere = Callable[[InputRecord], Reference | None]


def nowhere(record: InputRecord) -> None:
    """Where there is no place but those that the manifest leads to."""


@dataclass(frozen=True)
class Sources:
    """Where the inputs of a manifest lie: any directories, whatever their names. What is None (a
    file: what is not in it) is found by the manifest: by Hub id and commit, else where it was last
    seen, else ``elsewhere``."""

    base: Reference | None = None
    adapters: Sequence[Reference] | None = None
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    elsewhere: Elsewhere = nowhere


def sources_of(
    base: str | Path | None,
    adapters: Sequence[str | Path],
    *,
    copy_code: bool = False,
    progress: bool = True,
) -> Sources:
    """Sources as people name them: directories or Hub ids; none given is none known."""
    return Sources(
        None if base is None else resolve(base, "base", copy_code=copy_code, progress=progress),
        [resolve(adapter, "adapter", progress=progress) for adapter in adapters] or None,
    )


@dataclass(frozen=True)
class Derivation:
    """A merge that was done once, open to be done again.

    ``asked`` is what an engine is to write, ``preparations`` the recorded numbers that another
    machine's LAPACK would round differently.
    """

    manifest: DerivedManifest
    inputs: Inputs
    plan: Plan
    asked: Asked | None
    max_memory: int
    preparations: Path | None

    @property
    def recorded(self) -> dict[str, str]:
        """SHA-256 of every output by name, as the manifest has them."""
        return {record.name: record.sha256 for record in self.manifest.outputs}


def open_again(
    manifest: AnyManifest,
    sources: Sources,
    *,
    max_memory: int,
    preparations: Path | None = None,
    progress: bool = True,
) -> Derivation:
    """Find and open the inputs of a manifest, and plan the merge as it was planned then.

    The adapters and every small file are read and compared with the manifest, of the base only what
    a plan needs: its weights are checked while they are read (`remerge.artefacts.making_again`) or
    by `check_now`. ``progress`` allows the Hub's download bars.

    Raises `BadInput` where an input cannot be found, naming the option that tells, `IntegrityError`
    where one is not the one of the manifest, `NotReproduced` where today's plan is another one.
    """
    if isinstance(manifest, ExtractionManifest):
        raise Unsupported(
            "An extracted adapter cannot be derived again by its manifest.",
            why="It is the source from which merges are made.",
            hint="Extract it again: remerge extract BASE MERGED -o ADAPTER.",
        )
    _check_preparations(manifest, preparations)
    recipe = manifest.recipe
    base, adapters = _references(manifest, sources, progress)
    asked = _asked(manifest, sources.files)
    labels = labels_of([record.name for record in manifest.adapters])
    original = recipe.base_precision == "original"
    try:
        inputs = open_references(base, adapters, labels, original=original)
        for record, opened in zip(manifest.adapters, inputs.adapters, strict=True):
            check_input(record, opened.path, opened.digests(), "adapter")
        plan = make_plan(inputs, recipe, max_memory)
    except BadInput:
        # What cannot be opened or planned may be another input than the manifest's.
        for record, reference in zip(manifest.adapters, adapters, strict=True):
            _check_files(record, reference.path, "adapter")
        _check_files(manifest.base, base.path, "base")
        raise
    if plan.plan_id != manifest.plan_id:
        _check_files(manifest.base, base.path, "base")
        raise NotReproduced(
            f"The merge is planned differently today: its plan id was {manifest.plan_id[:16]}, and "
            f"is {plan.plan_id[:16]}.",
            why=f"It was made with {_versions(manifest.versions)}; this is remerge {__version__}, "
            f"algorithm {ALGORITHM}. If these are the same, transformers is another one, a file "
            "beside the weights came or went, or the manifest was edited.",
            hint=f"Install remerge {manifest.versions.get('remerge', '')} to derive it.",
        )
    check_input(manifest.base, base.path, {**_config(base), **_shards_of(manifest)}, "base")
    return Derivation(manifest, inputs, plan, asked, max_memory, preparations)


def check_now(derivation: Derivation) -> None:
    """Read every byte of every input now, trusting nothing that was remembered, and compare them
    with the manifest.

    Raises `IntegrityError` naming the file that differs, `NotReproduced` where the inputs are the
    manifest's and the engine is another one.
    """
    plan = derivation.plan
    names = [shard.name for shard in plan.base.shards]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = pool.map(file_digest, (shard.path for shard in plan.base.shards))
        found = dict(zip(names, read, strict=True))
    check_inputs(derivation, found)


def check_inputs(derivation: Derivation, shards: Mapping[str, str]) -> None:
    """As `check_now`, with digests of the base's weight files that the caller vouches for, by their
    names."""
    manifest, plan = derivation.manifest, derivation.plan
    own = adapter_digests(plan)
    for number, (record, opened) in enumerate(
        zip(manifest.adapters, plan.adapters, strict=True), 1
    ):
        digests = {name: own[f"adapter/{number}/{name}"] for name in opened.files}
        check_input(record, opened.path, digests, "adapter")
    small = small_digests(plan)
    config = small["base/config.json"]
    check_input(manifest.base, plan.base.path, {**shards, "config.json": config}, "base")
    if isinstance(manifest, EngineManifest) and derivation.asked is not None:
        for option, path in derivation.asked.files.items():
            if file_digest(path) != manifest.files[option].sha256:
                raise _other_file(option, path)
    digests = {f"base/{name}": digest for name, digest in shards.items()}
    digests |= {**own, **small}
    if isinstance(manifest, EngineManifest):
        assert derivation.asked is not None
        key = key_of(plan, digests, derivation.asked, manifest.origin)
    else:
        key = merge_key(plan, digests)
    if key != manifest.merge_key:
        raise _other_key(derivation, small)


def _references(
    manifest: DerivedManifest, sources: Sources, progress: bool
) -> tuple[Reference, tuple[Reference, ...]]:
    """Base and adapters where they lie now, under the names that the manifest has for them."""
    code = manifest.recipe.copy_code

    def found(record: InputRecord, kind: Kind) -> Reference:
        try:
            place = place_of(record, kind)
        except BadInput:
            there = sources.elsewhere(record)
            if there is None:
                raise
            return there
        return resolve(place, kind, copy_code=code and kind == "base", progress=progress)

    base = sources.base or found(manifest.base, "base")
    adapters = sources.adapters
    if adapters is None:
        adapters = [found(record, "adapter") for record in manifest.adapters]
    if len(adapters) != len(manifest.adapters):
        names = ", ".join(record.name for record in manifest.adapters)
        raise UsageError(
            f"Adapters given: {len(adapters)}; adapters in the merge: {len(manifest.adapters)}.",
            hint=f"Give all, in this order: {names}." if names else "Give none.",
        )
    named = [_named(r, record) for r, record in zip(adapters, manifest.adapters, strict=True)]
    return _named(base, manifest.base), tuple(named)


def _named(reference: Reference, record: InputRecord) -> Reference:
    return replace(
        reference, hub_id=record.hub_id, commit=record.commit, subfolder=record.subfolder
    )


def _asked(manifest: DerivedManifest, given: Mapping[str, Path]) -> Asked | None:
    """What an engine was asked for, its files where they lie now."""
    if not isinstance(manifest, EngineManifest):
        return None
    form = FORMS.get(manifest.recipe.format)
    if form is None:
        raise Unsupported(f"This remerge cannot make a {manifest.recipe.format}.")
    files: dict[str, Path] = {}
    for option, record in manifest.files.items():
        folder = user_index.location({record.name: record.sha256})
        path = given.get(option) or (None if folder is None else folder / record.name)
        if path is None or not path.is_file():
            raise BadInput(
                f"The file {record.name} of --{option} is not where it was, or was changed.",
                why="It is an input, and its bytes decide the output's.",
                hint=f"Put it back; remerge reproduce takes --file {option}=PATH.",
            )
        if file_digest(path) != record.sha256:
            raise _other_file(option, path)
        files[option] = path
    return Asked(form, manifest.recipe.form, files)


def _check_preparations(manifest: DerivedManifest, path: Path | None) -> None:
    """Refuse numbers that are not the recorded ones: they would decide the result."""
    if path is None:
        return
    recorded = {record.name: record.sha256 for record in manifest.outputs}
    if file_digest(path) != recorded.get(PREPARATIONS):
        raise IntegrityError(
            f"{path} is not the file that the manifest names.",
            why="It was changed or damaged after the merge.",
        )


def _check_files(record: InputRecord, path: Path, kind: str) -> None:
    """Compare all files of an input that could not be opened with its record."""
    there = [file.name for file in record.files if (path / file.name).is_file()]
    check_input(record, path, {name: file_digest(path / name) for name in there}, kind)


def _config(base: Reference) -> dict[str, str]:
    return {"config.json": file_digest(base.path / "config.json")}


def _shards_of(manifest: DerivedManifest) -> dict[str, str]:
    """The manifest's own digests of the base's weights: these are compared elsewhere."""
    return {file.name: file.sha256 for file in manifest.base.files if file.name != "config.json"}


def _other_file(option: str, path: Path) -> IntegrityError:
    return IntegrityError(
        f"The file {path} of --{option} is not the one that the manifest names.",
        why="It was changed since: its bytes decide the output's.",
        hint="Put it back, or make the output again.",
    )


def _other_key(derivation: Derivation, small: Mapping[str, str]) -> IntegrityError | NotReproduced:
    """Why the merge key is another one, though the weights are those of the manifest."""
    manifest, plan, recorded = derivation.manifest, derivation.plan, derivation.recorded
    beside = {side.name: side.source for side in plan.side_files if side.source is not None}
    if isinstance(manifest, EngineManifest):
        here = _engine_versions(derivation)
        others = {
            name: version
            for name, version in manifest.versions.items()
            if here.get(name, version).partition("+")[0] != version.partition("+")[0]
        }
        if others:
            now = {name: here[name] for name in others}
            return NotReproduced(
                f"It was made with {_versions(others)}; here is {_versions(now)}.",
                why="Another engine may give other bytes.",
            )
    else:
        for name, source in beside.items():
            if recorded.get(name) != small[f"side/{name}"]:
                return IntegrityError(
                    f"{source}, which is carried along, is not the file that the manifest names.",
                    why="It was changed since the merge.",
                    hint="Put it back, or merge again.",
                )
    return IntegrityError(
        f"The merge key of the manifest, {manifest.merge_key[:16]}, is not that of its inputs.",
        why=(
            f"A file beside the base's or adapters' weights was changed since ({', '.join(beside)})"
            if isinstance(manifest, EngineManifest) and beside
            else "The weights are those that it names; it was edited"
        )
        + (", or the engine's environment." if isinstance(manifest, EngineManifest) else "."),
    )


def _engine_versions(derivation: Derivation) -> dict[str, str]:
    """What the engine's packages are pinned at here, as manifests tell versions."""
    assert derivation.asked is not None
    engine = derivation.asked.form.engine
    pins = (line.split("==") for line in (*engine.requirements, *engine.pins) if "==" in line)
    found = {name.strip(): version.split(";")[0].strip() for name, version in pins}
    if engine.sources:
        found[engine.name] = engine.sources[0].requirement
    return {**found, "remerge": __version__, "algorithm": str(ALGORITHM)}


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "no versions"
