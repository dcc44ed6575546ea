"""Runs of the adapters of a merge: named by the user, else found beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from remerge.adapters.training_run import RUN_ID, Found, Source, TrainingRun, training_run
from remerge.errors import UsageError
from remerge.merging.asked import find_adapter
from remerge.outputs.planning import Inputs
from remerge.sources.references import Reference

_GIVEN = re.compile(rf"(?:(wandb|mlflow):)?({RUN_ID})")
_PAGE = re.compile(
    rf"https?://[^/\s]+/(?:.*/)?(?:#/)?(?P<place>[^/\s]+/[^/\s]+)/runs/(?P<id>{RUN_ID})(?:[/?#].*)?"
)
_SHOWN = 4


def with_runs(inputs: Inputs, run_id: str | Sequence[str] | None) -> Inputs:
    """The inputs with the run of each adapter where it is known.

    ``run_id`` is ``[ADAPTER=]ID``, one or several; an id may say whose it is (``wandb:ID``,
    ``mlflow:ID``, or the run's page, of which the id is kept). Raises `UsageError` for what is no
    id, and for an adapter that is not there.
    """
    given = _given(run_id, inputs.labels)
    runs: list[TrainingRun | None] = []
    notes: list[str] = []
    for number, label in enumerate(inputs.labels, 1):
        reference = inputs.adapter_references[number - 1]
        found = training_run(inputs.adapters[number - 1].path, top=_top(reference))
        named = given.get(number)
        if named is not None:
            runs.append(_named(named, found))
            continue
        runs.append(found.run)
        if found.undecided:
            notes.append(_undecided(label, found.undecided, several=len(inputs.labels) > 1))
    return replace(inputs, runs=tuple(runs), runs_given=bool(given), notes=(*inputs.notes, *notes))


def _given(run_id: str | Sequence[str] | None, labels: Sequence[str]) -> Mapping[int, TrainingRun]:
    texts = [run_id] if isinstance(run_id, str) else list(run_id or ())
    found: dict[int, TrainingRun] = {}
    for text in texts:
        adapter, _, rest = text.partition("=")
        # An address may hold an equals sign as well.
        named = rest and "://" not in adapter
        if not labels:
            raise UsageError("--run-id names an adapter's run, and there is no adapter.")
        if not named and len(labels) > 1:
            raise UsageError(
                f"--run-id {text!r} does not say of which adapter.",
                hint=f"Write --run-id {labels[0]}=ID.",
            )
        number = find_adapter(adapter, labels, "--run-id") if named else 1
        if number in found:
            raise UsageError(f"--run-id names two runs of {labels[number - 1]}.")
        found[number] = _read(rest if named else text)
    return found


def _read(text: str) -> TrainingRun:
    page, plain = _PAGE.fullmatch(text), _GIVEN.fullmatch(text)
    if page is not None:
        tracker = "mlflow" if page["place"].startswith("experiments/") else "wandb"
        return TrainingRun(tracker, page["id"])
    if plain is None:
        raise UsageError(
            f"--run-id {text!r} is no id of a run.",
            why="It is published with the model: letters, digits, dots, dashes and underscores.",
            hint="Give the id alone, e.g. 1a2b3c4d, or wandb:1a2b3c4d.",
        )
    trackers: dict[str | None, Source] = {"wandb": "wandb", "mlflow": "mlflow"}
    return TrainingRun(trackers.get(plain[1], "given"), plain[2])


def _named(named: TrainingRun, found: Found) -> TrainingRun:
    """The run that was named, with the step that lies beside the adapter, and with the tracker
    whose run that is."""
    source = named.source
    beside = [*found.undecided, *([f"{found.run.source}:{found.run.id}"] if found.run else [])]
    if source == "given" and f"wandb:{named.id}" in beside:
        source = "wandb"
    elif source == "given" and f"mlflow:{named.id}" in beside:
        source = "mlflow"
    return replace(found.run or named, source=source, id=named.id)


def _undecided(label: str, runs: Sequence[str], *, several: bool) -> str:
    more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
    option = f"{label}=ID" if several else "ID"
    return (
        f"Which training run made {label} is not recorded: {', '.join(runs[:_SHOWN])}{more} lie "
        f"beside it. Name it with --run-id {option}."
    )


def _top(reference: Reference) -> Path | None:
    """Of what came from the Hub only the repository's own files are looked at."""
    if reference.hub_id is None:
        return None
    depth = 0 if reference.subfolder is None else len(Path(reference.subfolder).parts)
    return reference.path.parents[depth - 1] if depth else reference.path
