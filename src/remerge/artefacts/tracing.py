"""From a file or a directory found anywhere back to what made it.

Asked in this order: a manifest beside it that has its digest, a store that knows its digest, what
the file says of itself, what lies beside it. The first two prove it; the others are claims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from remerge.artefacts.found_files import (
    Report,
    digests_now,
    is_weights,
    manifest_at,
    manifests_near,
    unheard,
    weights_below,
)
from remerge.artefacts.manifest_facts import Told
from remerge.artefacts.records import MANIFEST, PROVENANCE
from remerge.artefacts.self_description import Claims, claims_of_directory, claims_of_file
from remerge.artefacts.traced import Kept, Library, Strength, Trace
from remerge.artefacts.tracing_origins import origin_of, origin_of_kept, same_manifest
from remerge.errors import BadInput

_NOT_OURS = "It was not made by remerge, as far as its files say."


def trace(path: Path, library: Library | None = None, *, report: Report = unheard) -> Trace:
    """Where a file, a directory or a manifest came from.

    Every file of weights is read. Raises `BadInput` for what nothing is known of, saying what was
    tried.
    """
    if path.is_dir():
        return _directory(path, library, report)
    if not path.is_file():
        raise BadInput(f"{path} is neither a file nor a directory.")
    if path.name == PROVENANCE or path.name.endswith(f".{PROVENANCE}"):
        # It tells of what its manifest tells of.
        manifest = path.with_name(path.name.removesuffix(PROVENANCE) + MANIFEST)
        path = manifest if manifest.is_file() else path
    if path.name == MANIFEST or path.name.endswith(f".{MANIFEST}"):
        return _manifest(path, library, report)
    return _file(path, library, report)


def trace_digest(digest: str, library: Library) -> Trace:
    """Where the file of a digest came from, or what has a merge key; raises `BadInput` for one that
    the store does not know."""
    kept, what = library.with_file(digest), "The store has a file of this SHA-256"
    if not kept:
        kept, what = library.with_merge_key(digest), "The store has a merge of this key"
    if not kept:
        raise BadInput(
            f"Nothing is known of {digest}.",
            why="It is neither the SHA-256 of a file in the store, nor a merge key there.",
            hint="Name another store with --store DIR, or give the file itself.",
        )
    names = [name for one in kept for name, sha256 in one.files.items() if sha256 == digest]
    called = f", {names[0]}" if names else ""
    how = (f"{what}{called}.",)
    return _of_kept(digest, kept, library, how, frozenset({digest}))


def trace_kept(asked: str, kept: Kept, library: Library) -> Trace:
    """Where an artefact of a store came from; ``asked`` is what it was called by."""
    how = ("It is in the store.",)
    return _of_kept(asked, [kept], library, how, frozenset(kept.files.values()))


def _of_kept(
    asked: str,
    kept: Sequence[Kept],
    library: Library,
    how: tuple[str, ...],
    digests: frozenset[str],
) -> Trace:
    origins = tuple(origin_of_kept(one, library, digests) for one in kept)
    return Trace(asked, origins[0].kind, "store", "proven", how, origins)


# --- one file ------------------------------------------------------------------------------------


def _file(path: Path, library: Library | None, report: Report) -> Trace:
    digest = digests_now([path], report)[path]
    files = {path.name: digest}
    stale: tuple[Told, Path] | None = None
    for told, manifest, name in manifests_near(path):
        record = told.by_digest.get(digest)
        if record is not None:
            how = f"{manifest.name} has this SHA-256"
            how += "." if record.name == name else f", as {record.name}: the file was renamed."
            output = path if manifest.name != MANIFEST else manifest.parent
            origin, differs = origin_of(told, manifest, output, library, [digest])
            return Trace(
                str(path), told.kind, "manifest", "proven", (how,), (origin,), None, differs, files
            )
        if name in told.outputs and stale is None:
            stale = told, manifest
    changed = _changed(path.name, stale)
    kept = () if library is None else library.with_file(digest)
    if library is not None and kept:
        found = _of_kept(str(path), kept, library, (_in_store(digest, kept),), frozenset({digest}))
        return replace(found, differs=changed, files=files)
    return _claimed_by_file(path, files, stale, library, changed)


def _claimed_by_file(
    path: Path,
    files: dict[str, str],
    stale: tuple[Told, Path] | None,
    library: Library | None,
    changed: tuple[str, ...],
) -> Trace:
    """A file whose bytes nobody knows: what it says, and what is said of it."""
    tried = ["No manifest beside it has its digest."]
    tried.append("No store was asked." if library is None else "The store has no such file.")
    try:
        claims = claims_of_file(path)
    except BadInput as error:
        claims = None
        tried.append(error.what)
    if claims is not None and claims.merge_key is not None:
        kept = () if library is None else library.with_merge_key(claims.merge_key)
        if library is not None and kept:
            origins = tuple(origin_of_kept(one, library, [*files.values()]) for one in kept)
            how = ("Its metadata has the merge key of what the store has.",)
            differs = (*changed, _other_bytes(path.name, kept[0]))
            return Trace(
                str(path), claims.kind, "metadata", "claimed", how, origins, claims, differs, files
            )
    if stale is not None:
        told, manifest = stale
        output = path if manifest.name != MANIFEST else manifest.parent
        origin, more = origin_of(told, manifest, output, library, [*files.values()])
        how = (f"{manifest.name} names it, but has another SHA-256.",)
        differs = (*changed, *more)
        return Trace(
            str(path), told.kind, "manifest", "claimed", how, (origin,), claims, differs, files
        )
    if claims is not None and claims.says_something:
        how = ("Its own metadata say so; nothing proves them.",)
        how += () if claims.merge_key or claims.adapters else (_NOT_OURS,)
        return Trace(str(path), claims.kind, "metadata", "claimed", how, claims=claims, files=files)
    around = claims_of_directory(path.parent) if is_weights(path.name) else None
    if around is not None:
        how = ("The configuration beside it says so; nothing proves it.", _NOT_OURS)
        kind = claims.kind if claims is not None else around.kind
        return Trace(str(path), kind, "configuration", "claimed", how, claims=around, files=files)
    tried.append("It says nothing of where it came from.")
    raise _unknown(path, tried)


def _changed(name: str, stale: tuple[Told, Path] | None) -> tuple[str, ...]:
    if stale is None:
        return ()
    return (f"{name} is not the file that {stale[1].name} names: it was changed or replaced.",)


def _other_bytes(name: str, kept: Kept) -> str:
    return (
        f"{name} is not, byte for byte, what {_called(kept)} is: metadata or weights were changed "
        "since it was made."
    )


# --- a manifest ----------------------------------------------------------------------------------


def _manifest(path: Path, library: Library | None, report: Report) -> Trace:
    """A manifest: with its files, if they lie beside it, else alone."""
    told = manifest_at(path)
    if told is None:
        raise BadInput(f"{path} is no manifest of remerge.")
    single = path.name.removesuffix(f".{MANIFEST}")
    if path.name != MANIFEST and (path.parent / single).is_file():
        return _file(path.parent / single, library, report)
    if path.name == MANIFEST and any((path.parent / name).is_file() for name in told.outputs):
        return _directory(path.parent, library, report)
    output = path.parent if path.name == MANIFEST else path.with_name(single)
    digests = [file.sha256 for file in told.outputs.values()]
    origin, differs = origin_of(told, path, output, library, digests)
    asked, how = str(path), ("A manifest alone: none of its files is beside it.",)
    if same_manifest(told, library):
        how = (*how, "The store has the very same.")
        return Trace(asked, told.kind, "store", "proven", how, (origin,), differs=differs)
    return Trace(asked, told.kind, "manifest", "claimed", how, (origin,), differs=differs)


# --- a directory ---------------------------------------------------------------------------------


def _directory(path: Path, library: Library | None, report: Report) -> Trace:
    told = manifest_at(path / MANIFEST)
    weights = weights_below(path)
    if told is None and not weights:
        described = claims_of_directory(path)
        if described is None:
            raise _unknown(path, ["It has no manifest, no weights, and no configuration."])
        return _described(path, described, {})
    named = {} if told is None else told.outputs
    # A file with a manifest of its own is an artefact of its own.
    apart = [name for name in weights if name not in named and _stands_alone(path / name, told)]
    parts = tuple(_part(path / name, library, report) for name in apart)
    looked = sorted({*weights, *named} - set(apart))
    there = [name for name in looked if (path / name).is_file()]
    digests = digests_now([path / name for name in there], report)
    files = {name: digests[path / name] for name in there}
    if told is not None:
        expected = {name: file.sha256 for name, file in told.outputs.items()}
        differs = _differences(expected, files, library)
        origin, more = origin_of(told, path / MANIFEST, path, library, [*files.values()])
        strength = _strength(expected, files, differs)
        matching = _matching(expected, files)
        how = (f"{MANIFEST} has the SHA-256 of {matching} of its {len(expected)} files.",)
        differs += more
        return Trace(
            str(path), told.kind, "manifest", strength, how, (origin,), None, differs, files, parts
        )
    if not files and parts:
        return parts[0] if len(parts) == 1 else _several(path, parts)
    known = _from_store(path, files, library, parts)
    if known is not None:
        return known
    claims = claims_of_directory(path)
    if claims is None:
        if parts:
            return replace(_several(path, parts), files=files)
        tried = ["It has no manifest and no configuration."]
        tried.append("No store was asked." if library is None else "The store has no such files.")
        raise _unknown(path, tried)
    return _claimed_by_directory(path, claims, files, library, parts)


def _stands_alone(path: Path, told: Told | None) -> bool:
    if path.suffix == ".gguf" and told is None:
        return True
    return path.with_name(f"{path.name}.{MANIFEST}").is_file()


def _part(path: Path, library: Library | None, report: Report) -> Trace:
    try:
        return _file(path, library, report)
    except BadInput as error:
        return Trace(
            str(path), "unknown", "metadata", "claimed", (str(error),),
            differs=(f"Nothing is known of {path.name}.",),
        )  # fmt: skip


def _several(path: Path, parts: tuple[Trace, ...]) -> Trace:
    how = (f"It holds {len(parts)} files, each for itself.",)
    weakest: Strength = "proven" if all(p.strength == "proven" for p in parts) else "claimed"
    return Trace(str(path), "directory", parts[0].known_by, weakest, how, parts=parts)


def _from_store(
    path: Path, files: dict[str, str], library: Library | None, parts: tuple[Trace, ...]
) -> Trace | None:
    """A directory without a manifest whose files a store has."""
    if library is None:
        return None
    holders: dict[str, Kept] = {}
    counts: Counter[str] = Counter()
    for digest in files.values():
        for kept in library.with_file(digest):
            holders[kept.artefact] = kept
            counts[kept.artefact] += 1
    if not counts:
        return None
    most = max(counts.values())
    best = [holders[artefact] for artefact, count in counts.items() if count == most]
    # Of those that share what is here, the one that has no more than this.
    weights = {one.artefact: sum(map(is_weights, one.files)) for one in best}
    best = [one for one in best if weights[one.artefact] == min(weights.values())]
    expected = {name: sha for name, sha in best[0].files.items() if _is_looked_at(name, path)}
    present = {name: path / name for name in expected if (path / name).is_file()}
    digests = digests_now([file for name, file in present.items() if name not in files], unheard)
    looked = files | {name: digests[file] for name, file in present.items() if file in digests}
    differs = _differences(expected, looked, library)
    how = (f"The store has {most} of its {len(files)} files of weights.",)
    origins = tuple(origin_of_kept(one, library, [*looked.values()]) for one in best)
    # Of an adapter or a base only its configuration tells more.
    claims = claims_of_directory(path) if best[0].manifest is None else None
    strength: Strength = "partly proven" if most < len(files) else "proven"
    strength = "partly proven" if differs else strength
    return Trace(
        str(path), origins[0].kind, "store", strength, how, origins, claims, differs, looked, parts
    )


def _claimed_by_directory(
    path: Path,
    claims: Claims,
    files: dict[str, str],
    library: Library | None,
    parts: tuple[Trace, ...],
) -> Trace:
    kept: Sequence[Kept] = ()
    if claims.merge_key is not None and library is not None:
        kept = library.with_merge_key(claims.merge_key)
    if library is None or not kept:
        return replace(_described(path, claims, files), parts=parts)
    origins = tuple(origin_of_kept(one, library, [*files.values()]) for one in kept)
    how = ("Its model card has the merge key of what the store has.",)
    differs = tuple(_other_bytes(name, kept[0]) for name in files)
    return Trace(
        str(path), origins[0].kind, "metadata", "claimed", how, origins, claims, differs, files,
        parts,
    )  # fmt: skip


def _described(path: Path, claims: Claims, files: dict[str, str]) -> Trace:
    how = ("Its configuration and model card say so; nothing proves them.",)
    how += () if claims.merge_key else (_NOT_OURS,)
    return Trace(
        str(path), claims.kind, "configuration", "claimed", how, claims=claims, files=files
    )


def _is_looked_at(name: str, path: Path) -> bool:
    """Whether a file that the store has of an artefact belongs to what is compared: its manifest
    may be gone, weights may not."""
    return is_weights(name) or (path / name).is_file()


def _differences(
    expected: Mapping[str, str], files: Mapping[str, str], library: Library | None
) -> tuple[str, ...]:
    """What is missing, changed or too much, each with what it is instead where that is known."""
    found: list[str] = []
    names = {sha256: name for name, sha256 in expected.items()}
    there = set(files.values())
    for name, sha256 in expected.items():
        if name not in files:
            if sha256 in there:
                now = next(other for other, digest in files.items() if digest == sha256)
                found.append(f"{name} is called {now} now.")
            else:
                found.append(f"{name} is missing.")
        elif files[name] != sha256:
            told = f"{name} is not as it was made: it was changed or replaced."
            found.append(f"{told}{_instead(files[name], names, library)}")
    for name, digest in files.items():
        if name not in expected and digest not in names:
            told = f"{name} is a file of weights that was not made with the others."
            found.append(f"{told}{_instead(digest, names, library)}")
    return tuple(found)


def _instead(digest: str, names: Mapping[str, str], library: Library | None) -> str:
    if digest in names:
        return f" It is {names[digest]}."
    kept = () if library is None else library.with_file(digest)
    if not kept:
        return ""
    name = next((name for name, sha256 in kept[0].files.items() if sha256 == digest), None)
    return f" It is {'' if name is None else f'{name} of '}{_called(kept[0])}."


def _strength(
    expected: Mapping[str, str], files: Mapping[str, str], differs: tuple[str, ...]
) -> Strength:
    if not differs:
        return "proven"
    weights = {name: sha256 for name, sha256 in expected.items() if is_weights(name)}
    return "partly proven" if _matching(weights, files) else "claimed"


def _matching(expected: Mapping[str, str], files: Mapping[str, str]) -> int:
    there = set(files.values())
    return sum(sha256 in there for sha256 in expected.values())


def _in_store(digest: str, kept: Sequence[Kept]) -> str:
    names = {n for one in kept for n, sha256 in one.files.items() if sha256 == digest}
    called = ", ".join(sorted(names)[:3])
    several = f", which {len(kept)} artefacts have alike" if len(kept) > 1 else ""
    return f"The store has this SHA-256, as {called or 'what came with it'}{several}."


def _called(kept: Kept) -> str:
    return kept.names[0] if kept.names else f"{kept.title} ({kept.artefact[:12]})"


def _unknown(path: Path, tried: Sequence[str]) -> BadInput:
    return BadInput(
        f"Nothing is known of where {path} came from.",
        why=" ".join(tried),
        hint="Name a store that may know it with --store DIR, or put its manifest beside it.",
    )
