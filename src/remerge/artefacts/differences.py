"""What differs between two artefacts: what they were made from, how, and which tensors.

The manifests say the first two. Tensors are compared by their bytes where both sides have them, so
that a file that was changed since it was made shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from remerge.artefacts.evaluations import Evaluation
from remerge.artefacts.manifest_facts import InputTold, Told
from remerge.artefacts.tensor_differences import (
    Contents,
    Report,
    TensorChange,
    TensorDifferences,
    compare_tensors,
    metadata_differences,
    tensors_of,
)
from remerge.errors import BadInput
from remerge.sources.documents import as_object, read_json_object

SETTINGS = ("config.json", "adapter_config.json", "generation_config.json")
_TENSOR_FILES = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Side:
    """An artefact to be compared: what it is called, its manifest if it has one, its files where
    they lie. ``names`` are all that it has, also those whose bytes were collected; ``back`` then is
    the command that makes them again."""

    label: str
    kind: str
    told: Told | None
    contents: Contents
    names: frozenset[str]
    evaluations: tuple[Evaluation, ...] = ()
    back: str | None = None


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same: in which part of the artefacts' making, and what it is on
    either side; None where a side has no such thing."""

    part: str
    what: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Differences:
    """``rows`` are differences in what was asked and used, ``changed``, ``added`` and ``removed``
    files by name; ``tensors`` is None where they could not be compared, and ``notes`` say why."""

    a: str
    b: str
    rows: tuple[Difference, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    tensors: TensorDifferences | None
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs, as far as it was compared."""
        tensors = self.tensors
        whole = tensors is None or not (tensors.changed or tensors.added or tensors.removed)
        return whole and not (self.rows or self.changed or self.added or self.removed)

    def document(self) -> dict[str, Any]:
        """The answer for `--json`."""
        return {"same": self.same, **asdict(self)}


def differences(a: Side, b: Side, report: Report) -> Differences:
    """Compare two artefacts; raises `BadInput` for a file that is damaged."""
    b = _called_alike(a, b)
    rows: list[Difference] = []
    if a.kind != b.kind:
        rows.append(Difference("kind", "kind", a.kind, b.kind))
    if a.told is not None and b.told is not None:
        rows += _of_manifests(a.told, b.told)
    rows += _of_evaluations(a.evaluations, b.evaluations)
    rows += _of_settings(a.contents.files, b.contents.files)
    notes = [
        f"{side.label} has no manifest: what it was made from is not known."
        for side in (a, b)
        if side.told is None and side.kind not in ("adapter", "base")
    ]
    tensors, said = _tensors(a, b, report)
    notes += said
    changed = _changed_files(a.contents, b.contents, tensors)
    rows += _metadata(a, b)
    if _contradict(a, b, changed):
        notes.append(
            "Their manifests name the same bytes: one of them was changed since it was made. "
            "remerge store trace says which."
        )
    return Differences(
        a.label,
        b.label,
        tuple(rows),
        changed,
        tuple(sorted(b.names - a.names)),
        tuple(sorted(a.names - b.names)),
        tensors,
        tuple(notes),
    )


def _called_alike(a: Side, b: Side) -> Side:
    """Of two artefacts that are one file each the name says nothing."""
    if len(a.names) != 1 or len(b.names) != 1 or a.kind != b.kind:
        return b
    (name,), contents = a.names, b.contents
    files = dict(zip((name,), contents.files.values(), strict=False))
    digests = dict(zip((name,), contents.digests.values(), strict=False))
    return replace(b, contents=Contents(files, digests), names=a.names)


# --- what manifests say --------------------------------------------------------------------------


def _of_manifests(a: Told, b: Told) -> list[Difference]:
    rows = _of_base(a.base, b.base)
    rows += _of_adapters(a, b)
    recipes = [{k: v for k, v in told.recipe.items() if k != "weights"} for told in (a, b)]
    rows += _of_fields("recipe", _flat(recipes[0]), _flat(recipes[1]))
    rows += _of_fields("input", _digests(a), _digests(b))
    rows += _of_fields("engine", {"engine": a.says.engine}, {"engine": b.says.engine})
    kept = [None if t.says.retention is None else t.says.retention.overall for t in (a, b)]
    figures = [{} if one is None else one.model_dump(exclude_none=True) for one in kept]
    rows += _of_fields("delta", figures[0], figures[1])
    advice = [t.says.conflicts.advice if t.says.conflicts else None for t in (a, b)]
    rows += _of_fields("conflicts", {"advice": advice[0]}, {"advice": advice[1]})
    rows += _of_fields("versions", a.says.versions, b.says.versions)
    again = [{"reproducible": t.says.reproducible} for t in (a, b)]
    return rows + _of_fields("reproducible", again[0], again[1])


def _digests(told: Told) -> dict[str, str]:
    return {option: file.sha256 for option, file in told.says.files.items()}


def _of_base(a: InputTold, b: InputTold) -> list[Difference]:
    rows: list[Difference] = []
    if a.title != b.title:
        rows.append(Difference("base", "name", a.title, b.title))
    return rows + _of_files("base", "", a, b)


def _of_files(part: str, before: str, a: InputTold, b: InputTold) -> list[Difference]:
    ours = {file.name: file.sha256 for file in a.files}
    theirs = {file.name: file.sha256 for file in b.files}
    if set(ours.values()) == set(theirs.values()):
        return []
    return [
        Difference(part, f"{before}{row.what}", row.a, row.b)
        for row in _of_fields(part, ours, theirs)
    ]


def _of_adapters(a: Told, b: Told) -> list[Difference]:
    """Adapters found again by their bytes, else by their name; then what they weigh, and where in
    the order they stand."""
    pairs, removed, added = _paired(a.adapters, b.adapters)
    rows = [Difference("adapters", "removed", a.adapters[i].title, None) for i in removed]
    rows += [Difference("adapters", "added", None, b.adapters[j].title) for j in added]
    weights = _weights(a), _weights(b)
    for i, j in pairs:
        one, other = a.adapters[i], b.adapters[j]
        name = other.title
        if one.title != other.title:
            rows.append(Difference("adapters", f"{name}: name", one.title, other.title))
        rows += _of_files("adapters", f"{name}: ", one, other)
        rows += [
            Difference("adapters", f"{name}: training run", one.run, other.run)
            for _ in range(one.run != other.run)
        ]
        pair = [w[k] if k < len(w) else None for w, k in zip(weights, (i, j), strict=True)]
        if pair[0] != pair[1]:
            rows.append(Difference("adapters", f"{name}: weight", pair[0], pair[1]))
    order = [j for _, j in sorted(pairs)]
    if order != sorted(order):
        titles = [[one.title for one in told.adapters] for told in (a, b)]
        rows.append(Difference("adapters", "order", titles[0], titles[1]))
    return rows


def _paired(
    a: Sequence[InputTold], b: Sequence[InputTold]
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Which adapters are the same ones, and which only one side has."""
    left, right = list(range(len(a))), list(range(len(b)))
    pairs: list[tuple[int, int]] = []
    keys: tuple[Callable[[InputTold], object], ...] = (
        lambda one: (one.digests, one.title),
        lambda one: one.digests,
        lambda one: (one.hub_id or one.name, one.subfolder),
    )
    for key in keys:
        for i in list(left):
            j = next((j for j in right if key(a[i]) == key(b[j])), None)
            if j is not None:
                pairs.append((i, j))
                left.remove(i)
                right.remove(j)
    return pairs, left, right


def _weights(told: Told) -> list[Any]:
    found = told.recipe.get("weights")
    return found if isinstance(found, list) else []  # pyright: ignore[reportUnknownVariableType]


def _of_fields(part: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    return [
        Difference(part, key, a.get(key), b.get(key))
        for key in dict.fromkeys((*a, *b))
        if a.get(key) != b.get(key)
    ]


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of fields by both names."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        inner = as_object(value)
        if inner is None:
            found[key] = value
        else:
            found |= {f"{key}.{name}": one for name, one in inner.items()}
    return found


def _of_evaluations(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> list[Difference]:
    """The newest of each: verdict and scores."""
    if not a and not b:
        return []
    newest = [one[-1] if one else None for one in (a, b)]
    scores = [
        {} if one is None else {f"{s.name}, {s.metric}": s.merged for s in one.scores}
        for one in newest
    ]
    verdicts = [None if one is None else one.verdict for one in newest]
    rows = _of_fields("evaluation", {"verdict": verdicts[0]}, {"verdict": verdicts[1]})
    return rows + _of_fields("evaluation", scores[0], scores[1])


# --- what files say ------------------------------------------------------------------------------


def _of_settings(a: Mapping[str, Path], b: Mapping[str, Path]) -> list[Difference]:
    """Configurations, key by key."""
    rows: list[Difference] = []
    for name in SETTINGS:
        if name in a and name in b:
            try:
                pair = [read_json_object(side[name]) for side in (a, b)]
            except BadInput:
                continue
            rows += _of_fields(name, _flat(pair[0]), _flat(pair[1]))
    return rows


def _tensors(a: Side, b: Side, report: Report) -> tuple[TensorDifferences | None, list[str]]:
    notes: list[str] = []
    for side in (a, b):
        gone = [n for n in side.names - side.contents.files.keys() if n.endswith(_TENSOR_FILES)]
        if gone:
            way = f" It comes back with: {side.back}." if side.back else ""
            notes.append(
                f"Tensors were not compared: {side.label} has no {', '.join(sorted(gone)[:3])} "
                f"here.{way}"
            )
    if notes:
        return _types(a, b), notes
    of_a, of_b = tensors_of(a.contents), tensors_of(b.contents)
    formats = [{one.file.rpartition(".")[2] for one in of.values()} for of in (of_a, of_b)]
    if not of_a or not of_b:
        whose = " and ".join(s.label for s, of in ((a, of_a), (b, of_b)) if not of)
        return None, [f"Tensors were not compared: those of {whose} lie in no file of tensors."]
    if formats[0].isdisjoint(formats[1]):
        return None, ["Tensors were not compared: the two are written in different formats."]
    return compare_tensors(a.contents, b.contents, of_a, of_b, report), notes


def _types(a: Side, b: Side) -> TensorDifferences | None:
    """By the manifests alone: types and shapes of tensors that an engine wrote."""
    ours = {} if a.told is None else a.told.types
    theirs = {} if b.told is None else b.told.types
    if not ours or not theirs:
        return None
    common = [name for name in ours if name in theirs]
    changed = tuple(
        TensorChange(
            name,
            f"{ours[name].type} {list(ours[name].shape)}",
            f"{theirs[name].type} {list(theirs[name].shape)}",
        )
        for name in common
        if ours[name] != theirs[name]
    )
    if not changed and ours.keys() == theirs.keys():
        return None
    return TensorDifferences(
        compared=0,
        same=0,
        changed=changed,
        added=tuple(sorted(theirs.keys() - ours.keys())),
        removed=tuple(sorted(ours.keys() - theirs.keys())),
    )


def _metadata(a: Side, b: Side) -> list[Difference]:
    """Of one GGUF file on either side: the keys of its metadata that differ."""
    found = [[p for n, p in s.contents.files.items() if n.endswith(".gguf")] for s in (a, b)]
    if not all(len(one) == 1 for one in found):
        return []
    pairs = metadata_differences(found[0][0], found[1][0])
    return [Difference("metadata", key, *pair) for key, pair in pairs.items()]


def _changed_files(a: Contents, b: Contents, tensors: TensorDifferences | None) -> tuple[str, ...]:
    """Files of one name with other bytes. Those whose tensors were read are not read again: of them
    only the headers are compared."""
    read = tensors is not None and tensors.compared > 0
    touched: set[str] = set() if tensors is None else {one.name for one in tensors.changed}
    found: list[str] = []
    for name in sorted(a.files.keys() & b.files.keys()):
        if not read or not name.endswith(_TENSOR_FILES):
            differs = _is_changed(name, a, b)
        else:
            one = Contents({name: a.files[name]}, {})
            tensors_here = tensors_of(one)
            start = min((t.start for t in tensors_here.values()), default=None)
            differs = not touched.isdisjoint(tensors_here) or _is_changed(name, a, b, start)
        found += [name] if differs else []
    return tuple(found)


def _is_changed(name: str, a: Contents, b: Contents, only: int | None = None) -> bool:
    """Whether two files differ, in their first ``only`` bytes where that is given, or in size."""
    known = a.digests.get(name), b.digests.get(name)
    if None not in known:
        return known[0] != known[1]
    one, other = a.files[name], b.files[name]
    if one.samefile(other):
        return False
    if one.stat().st_size != other.stat().st_size:
        return True
    left_to_read = one.stat().st_size if only is None else only
    with one.open("rb") as left, other.open("rb") as right:
        while left_to_read > 0 and (block := left.read(min(2**22, left_to_read))):
            if block != right.read(len(block)):
                return True
            left_to_read -= len(block)
    return False


def _contradict(a: Side, b: Side, changed: Sequence[str]) -> bool:
    if a.told is None or b.told is None:
        return False
    ours, theirs = a.told.outputs, b.told.outputs
    return any(
        name in ours and name in theirs and ours[name].sha256 == theirs[name].sha256
        for name in changed
    )
