"""Which training run made an adapter, as far as the files beside it tell without a guess.

Trackers leave a folder where training was started: wandb's ``wandb/run-<date>-<id>``, MLflow's
``mlruns/<experiment>/<run>``; both keep the trainer's ``output_dir``. transformers' Trainer leaves
``trainer_state.json``, and TRL's model card links the run. The files are somebody else's: read with
a limit, taken apart as text, never followed out of their folder. Of all that they hold only a
run's id and its step are taken: an address holds a name, and a configuration may hold secrets.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from remerge.errors import BadInput
from remerge.sources.documents import read_json_object
from remerge.sources.links import check_inside

Source = Literal["given", "wandb", "mlflow", "trainer"]

STATE = "trainer_state.json"
# How many folders above the adapter are looked at.
LEVELS = 2
# Of a folder no more entries are looked at, of a file no more bytes.
_MOST_ENTRIES = 1000
_MOST_BYTES = 2**18
_MOST_STATE = 2**26

RUN_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_WANDB_FOLDER = re.compile(rf"(?:offline-)?run-\d{{8}}_\d{{6}}-({RUN_ID})")
_WANDB_FILE = re.compile(rf"run-({RUN_ID})\.wandb")
_WANDB_LINK = re.compile(
    # TRL's badge may link to a server of one's own.
    r"(?:https?://(?:[\w-]+\.)*wandb\.ai|Visualize in Weights & Biases\"[^\]\n]{0,200}\]\(https?://[^/\s)]+)"
    rf"/[^/\s)]+/[^/\s)]+/runs/({RUN_ID})"
)
# As wandb writes its config.yaml: the value is two lines below at most.
_WANDB_OUTPUT = re.compile(
    r"^output_dir:[ \t]*\n(?:[ \t]+desc:.*\n)?[ \t]+value:(.+)$", re.MULTILINE
)
_MLFLOW_ID = re.compile(rf"^run_id:[ \t]*['\"]?({RUN_ID})['\"]?[ \t]*$", re.MULTILINE)
_MLFLOW_DELETED = re.compile(r"^lifecycle_stage:[ \t]*deleted", re.MULTILINE)
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")


@dataclass(frozen=True)
class TrainingRun:
    """A run: who knows it by which id, and how far it was when it saved the adapter.

    ``given`` is an id that the user named without saying whose. ``trainer`` has no id: the trainer
    tells only its step, its epoch, and its best metric.
    """

    source: Source
    id: str | None = None
    step: int | None = None
    epoch: float | None = None
    best_metric: float | None = None


@dataclass(frozen=True)
class Found:
    """The run where one is known, else the ids among which nothing tells."""

    run: TrainingRun | None
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A run of a tracker, and the directory that it wrote to where it says so."""

    source: Literal["wandb", "mlflow"]
    id: str
    output: str | None = None


def training_run(adapter: Path, *, top: Path | None = None) -> Found:
    """The run that made the adapter in a directory, from what lies there and up to two folders
    above, but not above ``top``.

    A sign that names the adapter counts before one that merely lies near: the adapter among the
    run's own files; the link in its card; a run that wrote to this directory; one that wrote to the
    folder of the trainer in which it lies; the only runs of the nearest folder that has any. Where
    the best sign fits several runs, none is taken.
    """
    levels = _levels(adapter, top)
    state = _state(levels)
    for sign in _signs(levels):
        named = {f"{one.source}:{one.id}": one for one in sign}
        if len(named) > 1:
            return Found(_of_trainer(state), tuple(sorted(named)))
        for one in named.values():
            return Found(TrainingRun(one.source, one.id, *state))
    return Found(_of_trainer(state))


_State = tuple[int | None, float | None, float | None]


def _of_trainer(state: _State) -> TrainingRun | None:
    return None if state[0] is None else TrainingRun("trainer", None, *state)


def _levels(adapter: Path, top: Path | None) -> Sequence[Path]:
    here = adapter.resolve()
    above = here.parents[:LEVELS]
    if top is not None:
        above = [folder for folder in above if folder.is_relative_to(top.resolve())]
    return (here, *above)


def _signs(levels: Sequence[Path]) -> Iterator[Sequence[_Candidate]]:
    """Candidates by what speaks for them, the strongest first."""
    yield list(_containing(levels))
    own = _own(levels)
    yield [_Candidate("wandb", run_id) for folder in own for run_id in _linked(folder)]
    near = {folder: [*_wandb(folder), *islice(_mlflow(folder), _MOST_ENTRIES)] for folder in levels}
    every = [(folder, one) for folder, found in near.items() for one in found]
    yield [one for folder, one in every if _wrote_to(one, folder, own)]
    trainers = [folder for folder in levels[1:] if folder not in own and _is_trainers(folder)]
    yield [one for folder, one in every if _wrote_to(one, folder, trainers)]
    # A run that says that it wrote elsewhere is none of this adapter's.
    for found in near.values():
        yield [one for one in found if one.output is None]


def _containing(levels: Sequence[Path]) -> Iterator[_Candidate]:
    """The run whose folder the adapter lies in."""
    for folder in levels:
        found = _WANDB_FOLDER.fullmatch(folder.name)
        if found is not None and folder.parent.name == "wandb":
            yield _Candidate("wandb", found[1])
        run_id = _mlflow_id(folder)
        if run_id is not None and run_id == folder.name:
            yield _Candidate("mlflow", run_id)


def _own(levels: Sequence[Path]) -> Sequence[Path]:
    """The adapter's directory, and where that is a checkpoint, or in one, the run's."""
    for depth, folder in enumerate(levels[:2]):
        if _CHECKPOINT.fullmatch(folder.name):
            return levels[: depth + 2]
    return levels[:1]


def _is_trainers(folder: Path) -> bool:
    """Whether a Trainer wrote here, and so whatever lies below."""
    names = [path.name for path in _entries(folder)]
    return STATE in names or any(_CHECKPOINT.fullmatch(name) for name in names)


def _wrote_to(run: _Candidate, tracked: Path, folders: Sequence[Path]) -> bool:
    """Whether a run's output is one of these: as a path from where it was started, which is the
    folder that it is tracked in, or by its name where there is nothing, as all may have moved."""
    if run.output is None:
        return False
    path = Path(os.path.normpath(tracked / run.output))
    if os.path.lexists(path):
        return path in folders
    return any(path.name == folder.name for folder in folders)


# --- what lies there -----------------------------------------------------------------------------


def _linked(folder: Path) -> Iterable[str]:
    text = _text(folder / "README.md", folder)
    found = () if text is None else _WANDB_LINK.finditer(text)
    return dict.fromkeys(link[1].rstrip(".") for link in found)


def _wandb(folder: Path) -> Iterator[_Candidate]:
    place = folder / "wandb"
    runs = [path for path in _folders(place) if _WANDB_FOLDER.fullmatch(path.name)]
    for path in runs:
        name = _WANDB_FOLDER.fullmatch(path.name)
        assert name is not None
        yield _Candidate("wandb", name[1], _wandb_output(path, folder))
    latest = place / "latest-run"
    if not runs and _is_inside(latest, folder):
        # Copied without its links, the folder is named by the file in it.
        for path in _entries(latest):
            named = _WANDB_FILE.fullmatch(path.name)
            if named is not None:
                yield _Candidate("wandb", named[1], _wandb_output(latest, folder))


def _wandb_output(run: Path, folder: Path) -> str | None:
    text = _text(run / "files" / "config.yaml", folder)
    found = None if text is None else _WANDB_OUTPUT.search(text)
    return None if found is None else _plain(found[1])


def _mlflow(folder: Path) -> Iterator[_Candidate]:
    for experiment in _folders(folder / "mlruns"):
        for run in _folders(experiment):
            run_id = _mlflow_id(run)
            if run_id is not None:
                output = _text(run / "params" / "output_dir", folder)
                yield _Candidate("mlflow", run_id, None if output is None else _plain(output))


def _mlflow_id(run: Path) -> str | None:
    text = _text(run / "meta.yaml", run)
    found = None if text is None else _MLFLOW_ID.search(text)
    return None if found is None or text is None or _MLFLOW_DELETED.search(text) else found[1]


def _state(levels: Sequence[Path]) -> _State:
    """Step, epoch and best metric of the nearest state, if it is of this very adapter."""
    for folder in levels:
        path = folder / STATE
        if not path.is_file():
            continue
        with suppress(BadInput, OSError):
            check_inside(path, folder)
            if path.stat().st_size > _MOST_STATE:
                continue
            document = read_json_object(path)
            step = document.get("global_step")
            if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**53:
                continue
            saved = [m for at in levels[:2] if (m := _CHECKPOINT.fullmatch(at.name))]
            if saved and int(saved[0][1]) != step:
                return (None, None, None)
            return (step, _number(document.get("epoch")), _number(document.get("best_metric")))
    return (None, None, None)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def _plain(text: str) -> str | None:
    found = text.strip().strip("'\"")
    usable = found and found != "null" and found.isprintable() and len(found) < 4096
    return found if usable else None


def _folders(place: Path) -> list[Path]:
    """The folders in one, none that is a link."""
    if place.is_symlink():
        return []
    return [path for path in _entries(place) if path.is_dir() and not path.is_symlink()]


def _entries(place: Path) -> list[Path]:
    try:
        return sorted(islice(place.iterdir(), _MOST_ENTRIES))
    except OSError:
        return []


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):
        return False


def _text(path: Path, folder: Path) -> str | None:
    """The beginning of a file below a folder; None where there is none, or it links elsewhere."""
    try:
        if not path.is_file() or not _is_inside(path.parent, folder):
            return None
        check_inside(path, path.parent)
        with path.open("rb") as stream:
            return stream.read(_MOST_BYTES).decode("utf-8", "replace")
    except (BadInput, OSError, ValueError, RuntimeError):
        return None
