"""``remerge store trace``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from remerge.cli.options import json_output, quiet, store, verbose
from remerge.cli.output import print_json, print_table, printable, progress
from remerge.sources.documents import as_object

if TYPE_CHECKING:
    from remerge.artefacts.evaluations import Evaluation
    from remerge.artefacts.manifest_facts import InputTold, Told
    from remerge.artefacts.self_description import Claims
    from remerge.artefacts.traced import Origin, Trace

# What says nothing unless it was asked for.
_USUAL = {
    "method": "sum",
    "format": "safetensors",
    "dtype": "keep",
    "base_precision": "stored",
    "expert_packing": "auto",
}


@click.command("trace")
@click.argument("what", metavar="FILE|DIR|DIGEST|ARTEFACT")
@store
@json_output
@quiet
@verbose
def command(what: str, place: str | None, as_json: bool, quiet: bool, verbose: bool) -> int | None:
    """Say which base, adapter, run, recipe and evaluation made a file found anywhere.

    By a manifest that has its digest, by the store, or by what it says of itself. No store is
    needed, and none is made. Exit code 3: nothing is known. 4: something is not as it was made.
    """
    import remerge

    with progress("reading", quiet=quiet or as_json) as report:
        found = remerge.Store(place).trace(what, report)
    if as_json:
        print_json(found.document())
    else:
        _print(found, verbose=verbose)
    return None if found.intact else remerge.IntegrityError.exit_code


def _print(found: Trace, *, verbose: bool) -> None:
    click.echo(printable(f"{found.asked}: {found.kind}, {found.strength}"))
    rows = [("known by" if not n else "", text) for n, text in enumerate(found.how)]
    for number, origin in enumerate(found.origins, 1):
        several = len(found.origins) > 1
        rows += [("origin", f"{number} of {len(found.origins)}")] if several else []
        rows += _rows(origin, verbose=verbose)
    if found.claims is not None and not found.origins:
        rows += _claimed(found.claims)
    if verbose:
        rows += [("file", f"{sha256}  {name}") for name, sha256 in (found.files or {}).items()]
    print_table([(left, printable(right)) for left, right in rows])
    for line in found.differs:
        click.echo(f"differs: {printable(line)}", err=True)
    for part in found.parts:
        _print(part, verbose=verbose)


def _claimed(claims: Claims) -> list[tuple[str, str]]:
    rows = [("base", name) for name in claims.base]
    rows += [("adapter", name) for name in claims.adapters]
    rows += [("merge key", claims.merge_key)] if claims.merge_key is not None else []
    return rows + [(printable(key), str(value)) for key, value in claims.facts.items()]


def _rows(origin: Origin, *, verbose: bool) -> list[tuple[str, str]]:
    rows = [("name", name) for name in origin.names]
    if origin.artefact is not None:
        gone = ", its bytes collected" if origin.collected else ""
        rows.append(("artefact", f"{origin.artefact[:16]}{gone}"))
    if origin.told is None:
        return [*rows, ("is", origin.title)]
    rows += _made_from(origin.told, verbose=verbose)
    for told in origin.before:
        rows.append(("base made", f"of {told.base.title}"))
        rows += [("  with", one.title) for one in told.adapters]
    if origin.made is not None and origin.made.started is not None:
        rows.append(("made", f"{origin.made.started[:19]}, {origin.made.builder or 'by whom?'}"))
    for one in origin.evaluations:
        rows += _evaluation(one)
    return rows


def _made_from(told: Told, *, verbose: bool) -> list[tuple[str, str]]:
    rows = _input("base", told.base, verbose=verbose)
    for one in told.adapters:
        rows += _input("adapter", one, verbose=verbose)
    if told.says.merged is not None:
        rows += _input("merged", told.says.merged, verbose=verbose)
    rows.append(("recipe", _recipe(told.recipe, len(told.adapters))))
    if told.merge_key is not None:
        rows.append(("merge key", told.merge_key))
    versions = ", ".join(f"{name} {value}" for name, value in sorted(told.says.versions.items()))
    return [*rows, ("versions", versions)]


def _input(part: str, one: InputTold, *, verbose: bool) -> list[tuple[str, str]]:
    run = one.run or {}
    words = [str(run[key]) for key in ("source", "id") if run.get(key)]
    step = f", step {run['step']}" if run.get("step") is not None else ""
    rows = [(part, one.title + (f", run {' '.join(words)}{step}" if words else ""))]
    weights = [f for f in one.files if verbose or f.name.endswith((".safetensors", ".bin"))]
    return rows + [("", f"{file.sha256}  {file.name}") for file in weights]


def _recipe(recipe: Mapping[str, Any], adapters: int) -> str:
    said = [
        f"{key} {_short(value)}"
        for key, value in sorted(recipe.items())
        if value not in (None, [], {}, False, "auto", _USUAL.get(key))
        and not (key == "weights" and adapters < 2 and value == [1.0])
    ]
    method = recipe.get("method")
    return ", ".join([str(method), *said] if method == "sum" else said)


def _short(value: Any) -> str:
    pairs = as_object(value)
    if pairs is None:
        return str(value)
    said = {key: inner for key, inner in pairs.items() if inner not in (None, [], {}, False)}
    return " ".join(f"{key}={inner}" for key, inner in said.items())


def _evaluation(one: Evaluation) -> list[tuple[str, str]]:
    other = "" if one.these_bytes is not False else ", of other bytes than these"
    rows = [("compared", f"{one.date[:19]}, {one.verdict} in {one.engine}{other}")]
    for score in one.scores:
        interval = "" if score.low is None else f" [{score.low:.3f}, {score.high:.3f}]"
        against = "" if score.adapter is None else f", adapter {score.adapter:.3f}"
        rows.append(("", f"{score.name}, {score.metric}: {score.merged:.3f}{interval}{against}"))
    return rows
