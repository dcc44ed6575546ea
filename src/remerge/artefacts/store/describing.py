"""What a path holds that a store can keep: an adapter, a base, a merge, what an engine wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from remerge.adapters.adapter import open_adapter
from remerge.artefacts.adapter_manifest import AdapterManifest
from remerge.artefacts.any_manifest import read_any_manifest
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.extraction_manifest import ExtractionManifest
from remerge.artefacts.manifest import (
    CARD,
    MANIFEST,
    PREPARATIONS,
    PROVENANCE,
    FileRecord,
    InputRecord,
    Manifest,
)
from remerge.artefacts.names import name_of_merge
from remerge.artefacts.store.records import Kind, Source
from remerge.artefacts.test_result import TESTS
from remerge.errors import BadInput
from remerge.outputs.single_file import manifest_beside
from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.documents import digest_of
from remerge.sources.hub import adapter_files
from remerge.sources.references import Reference, resolve

_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data", ".bin", ".xml")
# Smaller files that are no weights cost nothing, and stay to say what an artefact was.
_LARGE = 2**20


@dataclass(frozen=True)
class Found:
    """A file to be kept: its name in the artefact, where it lies, the digest that it should have
    (None: whatever it has), whether it can be derived again."""

    name: str
    path: Path
    sha256: str | None = None
    derived: bool = False


@dataclass(frozen=True)
class Described:
    """What is to be kept, in ``folder``. ``name`` and ``version`` are an adapter's or a base's,
    ``title`` is that of a merge. ``inputs`` are the files by which a manifest knows it that was
    made from it; ``sources`` are the adapters that it was made of; ``left`` are files that are not
    taken."""

    kind: Kind
    folder: Path
    files: tuple[Found, ...]
    name: str = ""
    version: str | None = None
    title: str | None = None
    inputs: tuple[str, ...] = ()
    form: str | None = None
    single: str | None = None
    manifest: str | None = None
    merge_key: str | None = None
    base: Source | None = None
    adapters: tuple[Source, ...] = ()
    sources: tuple[InputRecord, ...] = ()
    attached: tuple[Found, ...] = ()
    left: tuple[str, ...] = ()


def describe(path: Path) -> Described:
    """Look at a path; raises `BadInput` for what a store cannot keep."""
    if path.is_file() and path.suffix == ".gguf":
        beside = manifest_beside(path)
        if not beside.is_file():
            raise BadInput(
                f"{path} has no manifest beside it.",
                why="It was not made by remerge, or was moved without it.",
                hint=f"Put {beside.name} beside it, or make it again: remerge export.",
            )
        return _single(path, beside)
    if path.is_file() and path.name == MANIFEST:
        path = path.parent
    if (path / MANIFEST).is_file():
        return _made(path)
    if not path.exists() and ":" not in str(path):
        raise BadInput(f"There is nothing at {path}.")
    if not (path / "adapter_config.json").is_file() and (path / "config.json").is_file():
        return _base(path)
    if path.is_dir() and not _holds_adapter(path):
        raise BadInput(
            f"{path} holds nothing that a store keeps.",
            why=f"It has no {MANIFEST}, adapter_config.json or config.json.",
            hint="Give an output of remerge, an adapter or a base.",
        )
    return _adapter(resolve(path, "adapter"), None)


def _holds_adapter(path: Path) -> bool:
    """Whether there may be an adapter, of whatever trainer, here or below."""
    return any(path.glob("*.safetensors")) or any(path.rglob("adapter_config.json"))


def describe_adapter(path: Path, record: InputRecord) -> Described:
    """The adapter of a manifest, where it lies now; raises `BadInput` where it is another one."""
    found = _adapter(Reference(path, record.hub_id, record.commit, record.subfolder), record)
    expected = {file.name: file.sha256 for file in record.files}
    if not set(expected) <= {file.name for file in found.files}:
        raise BadInput(f"{path} is not the adapter {record.name} that the manifest names.")
    return found


def input_digest(files: dict[str, str]) -> str:
    """What manifests and the user's index call an input by: names with their SHA-256."""
    return digest_of(files)


def _made(path: Path) -> Described:
    manifest = read_any_manifest(path / MANIFEST)
    if isinstance(manifest, AdapterManifest | ExtractionManifest):
        return _adapter(resolve(path, "adapter"), None)
    files = [_found(path / record.name, record) for record in manifest.outputs]
    files.append(Found(MANIFEST, path / MANIFEST))
    return _described(manifest, tuple(files), MANIFEST, None, path)


def _single(path: Path, beside: Path) -> Described:
    manifest = read_any_manifest(beside)
    if not isinstance(manifest, EngineManifest) or len(manifest.outputs) != 1:
        raise BadInput(f"{beside} is not the manifest of one file.")
    # The file may have been renamed since; its digest says whether it is the one.
    output = manifest.outputs[0]
    name = manifest_beside(Path(output.name)).name
    files = (_found(path, output), Found(name, beside))
    attached = _attached(path.parent, path.name + ".", output.name + ".")
    return _described(manifest, files, name, output.name, path.parent, attached)


def _described(
    manifest: Manifest | EngineManifest,
    files: tuple[Found, ...],
    manifest_name: str,
    single: str | None,
    folder: Path,
    attached: tuple[Found, ...] | None = None,
) -> Described:
    base = _source(manifest.base)
    adapters = tuple(_source(record) for record in manifest.adapters)
    form = _form(manifest)
    title = name_of_merge(
        (base.name, base.version), [(one.name, one.version) for one in adapters], form
    )
    loaded = [f.name for f in files if "/" not in f.name and f.name.endswith(".safetensors")]
    attached = _attached(folder, "", "") if attached is None else attached
    taken = {file.path for file in (*files, *attached)}
    return Described(
        kind="exported" if isinstance(manifest, EngineManifest) else "merged",
        folder=folder,
        title=title,
        files=files,
        inputs=() if isinstance(manifest, EngineManifest) else (*loaded, "config.json"),
        form=form,
        single=single,
        manifest=manifest_name,
        merge_key=manifest.merge_key,
        base=base,
        adapters=adapters,
        sources=manifest.adapters,
        attached=attached,
        left=() if single is not None else _left(folder, taken),
    )


def _adapter(reference: Reference, record: InputRecord | None) -> Described:
    path = reference.path
    adapter = open_adapter(path.absolute())
    names = [file.name for file in path.iterdir() if file.is_file()]
    attached = _attached(path, "", "")
    apart = {file.name for file in attached}
    wanted = sorted({*adapter.files, *adapter_files(names, "")} - apart)
    expected = {} if record is None else {file.name: file.sha256 for file in record.files}
    files = tuple(Found(name, path / name, expected.get(name)) for name in wanted)
    name = reference.hub_id or path.resolve().name if record is None else record.name
    has_manifest = (path / MANIFEST).is_file()
    return Described(
        kind="adapter",
        folder=path,
        name=name,
        version=_commit(reference),
        files=files,
        inputs=adapter.files,
        manifest=MANIFEST if has_manifest else None,
        attached=attached,
        left=_left(path, {file.path for file in (*files, *attached)}),
    )


def _base(path: Path) -> Described:
    reference = resolve(path, "base")
    checkpoint = open_checkpoint(path.absolute())
    shards = [shard.name for shard in checkpoint.shards]
    index = [] if checkpoint.index is None else [checkpoint.index]
    files = tuple(
        Found(name, path / name) for name in sorted({*shards, *index, *checkpoint.side_files})
    )
    name = reference.hub_id or path.resolve().name
    return Described(
        kind="base",
        folder=path,
        name=name,
        version=_commit(reference),
        files=files,
        inputs=(*shards, "config.json"),
        left=_left(path, {file.path for file in files}),
    )


def _found(path: Path, record: FileRecord) -> Found:
    weights = record.name.endswith(_WEIGHTS) or record.size >= _LARGE
    derived = weights and record.name != PREPARATIONS
    return Found(record.name, path, record.sha256, derived)


def _attached(folder: Path, prefix: str, named: str) -> tuple[Found, ...]:
    """What came with an artefact and may change; of a single file with its name before theirs."""
    names = [f"{prefix}{name}" for name in (CARD, PROVENANCE)]
    tests = sorted((folder / f"{prefix}{TESTS}").glob("*.json"))
    paths = [folder / name for name in names if (folder / name).is_file()] + tests
    return tuple(
        Found(named + path.relative_to(folder).as_posix().removeprefix(prefix), path)
        for path in paths
    )


def _left(folder: Path, taken: set[Path]) -> tuple[str, ...]:
    """Files of a directory that are not kept."""
    there = {path for path in folder.rglob("*") if path.is_file()}
    return tuple(sorted(path.relative_to(folder).as_posix() for path in there - taken))


def _commit(reference: Reference) -> str | None:
    return None if reference.commit is None else reference.commit[:8]


def _source(record: InputRecord) -> Source:
    digest = input_digest({file.name: file.sha256 for file in record.files})
    return Source(name=record.name, version=(record.commit or digest)[:8], digest=digest)


def _form(manifest: Manifest | EngineManifest) -> str | None:
    """The form of the output, where it is no plain checkpoint."""
    recipe = manifest.recipe
    if recipe.format == "safetensors":
        return recipe.quantize
    kind = recipe.form.get("file_type") or recipe.form.get("precision")
    return recipe.format if kind is None else f"{recipe.format}:{kind}"
