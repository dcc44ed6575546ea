"""Writing an output's card: gathered from manifest, inputs and comparisons, then put in place."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from remerge.artefacts import user_index
from remerge.artefacts.any_manifest import AnyManifest
from remerge.artefacts.card.body import body
from remerge.artefacts.card.escaping import prose
from remerge.artefacts.card.inherited import LARGEST, Said, said_by
from remerge.artefacts.card.made import Made, made_of, read_made
from remerge.artefacts.card.metadata import Sources, metadata
from remerge.artefacts.card.scores import newest
from remerge.artefacts.card.updating import as_mapping, composed, read_card
from remerge.artefacts.manifest import CARD, InputRecord
from remerge.errors import BadInput, RemergeError, UsageError
from remerge.outputs.directory import write_durably
from remerge.outputs.planning import Inputs
from remerge.sources.documents import read_json_object


@dataclass(frozen=True)
class WrittenCard:
    """A card: where it lies, its metadata, and whether a single byte of it changed."""

    path: Path
    metadata: dict[str, Any]
    changed: bool


def write_card(output: Path, path: Path | None) -> WrittenCard:
    """Write or update the card of an output; ``path`` says where, needed for one file.

    Raises `BadInput` where remerge did not make the output or the card there cannot be read,
    `UsageError` for a place that is none.
    """
    made = read_made(output)
    place = _place(output, path)
    text = _read(place)
    sources = _remembered(text, made) or _located(made)
    return _put(place, text, made, sources, output)


def refresh_card(output: Path) -> None:
    """Bring a card up to date that remerge wrote into an output, where there is one. A card that
    cannot be read is left as it is: `write_card` says why."""
    with suppress(RemergeError, OSError):
        path = output / CARD
        text = _read(path) if path.is_file() else None
        if text is not None and read_card(text).is_ours:
            write_card(output, path)


def card_to_keep(out: Path) -> str | None:
    """The card of an output that is to be replaced, if remerge wrote in it: what its user added is
    kept. Raises `BadInput`, before any work, where it cannot be read."""
    path = out / CARD
    text = _read(path) if path.is_file() else None
    return text if text is not None and _parsed(path, text) else None


def write_new_card(
    work: Path, manifest: AnyManifest, inputs: Inputs, kept: str | None = None
) -> None:
    """The card of an output that is being made in ``work``; ``kept`` is what it replaces."""
    places = [adapter.path for adapter in inputs.adapters]
    sources = Sources(
        said_by(inputs.base.path, "base"), tuple(said_by(p, "adapter") for p in places)
    )
    _put(work / CARD, kept, made_of(manifest), sources, work)


def write_extracted_card(
    work: Path, manifest: AnyManifest, base: Path, merged: Path, kept: str | None
) -> None:
    """The same for an adapter that was extracted."""
    sources = Sources(said_by(base, "base"), (), said_by(merged, "base"))
    _put(work / CARD, kept, made_of(manifest), sources, work)


def _put(place: Path, text: str | None, made: Made, sources: Sources, output: Path) -> WrittenCard:
    figures = newest(output, made.outputs)
    found = metadata(made, sources, figures)
    moment = "" if figures is None else _moment(figures.started)
    lines = body(made, sources, figures, moment, _task_type(output))
    memory = {
        "identity": made.identity,
        "base": _dumped(sources.base),
        "adapters": [_dumped(said) for said in sources.adapters],
        "merged": None if sources.merged is None else _dumped(sources.merged),
    }
    try:
        card = composed(text, prose(made.title), found, lines, memory)
        held = dict(read_card(card).front.metadata)
    except ValueError as error:
        raise _unreadable(place, str(error)) from error
    content = card.encode("utf-8", "surrogateescape")
    changed = text != card
    if changed:
        write_durably(place, content)
    return WrittenCard(place, held, changed)


def _place(output: Path, path: Path | None) -> Path:
    if path is None:
        if not output.is_dir():
            raise UsageError(
                f"{output} is one file, and a card is called {CARD}.",
                why="Beside it there may be other models' files.",
                hint=f"Say where to write it: remerge card {output} -o {CARD}.",
            )
        path = output / CARD
    if path.is_dir():
        raise UsageError(f"{path} is a directory.", hint=f"Name a file: -o {path / CARD}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path.parent} is no directory.", hint="Choose another -o.")
    if path.suffix.lower() != ".md":
        raise UsageError(
            f"{path.name} is not the name of a card.", hint="Name a file that ends in .md."
        )
    return path


def _read(path: Path) -> str | None:
    """What stands in a card's place, every byte of it; None where nothing does."""
    if not path.exists():
        return None
    if not path.is_file():
        raise BadInput(f"{path} is not a regular file.")
    with path.open("rb") as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise BadInput(
            f"{path} has more than {LARGEST:,} bytes: it is no card.",
            hint="Move it away, or write the card elsewhere with -o.",
        )
    return content.decode("utf-8", "surrogateescape")


def _parsed(path: Path, text: str) -> bool:
    """Whether remerge has written in this card."""
    try:
        return read_card(text).is_ours
    except ValueError as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> BadInput:
    return BadInput(
        f"The metadata of {path} are not valid YAML: {reason}.",
        why="What you wrote there is kept, and so must be understood.",
        hint="Correct what stands between the lines of dashes, or move the file away.",
    )


def _remembered(text: str | None, made: Made) -> Sources | None:
    """What the inputs said when the card of these very bytes was written."""
    if text is None:
        return None
    try:
        memory = read_card(text).memory
        if memory.get("identity") != made.identity:
            return None
        base = Said.model_validate(as_mapping(memory.get("base")))
        adapters = tuple(Said.model_validate(one) for one in memory.get("adapters") or ())
        merged = memory.get("merged")
        found = Sources(base, adapters, None if merged is None else Said.model_validate(merged))
    except (ValueError, ValidationError, TypeError):
        return None
    complete = len(found.adapters) == len(made.adapters)
    every = (found.base, *found.adapters)
    return found if complete and all(said.found for said in every) else None


def _located(made: Made) -> Sources:
    """What the inputs say where they still lie on this machine; nothing is fetched."""
    merged = None if made.merged is None else said_by(_where(made.merged), "base")
    adapters = tuple(said_by(_where(record), "adapter") for record in made.adapters)
    return Sources(said_by(_where(made.base), "base"), adapters, merged)


def _where(record: InputRecord) -> Path | None:
    if record.hub_id is None:
        return user_index.location({file.name: file.sha256 for file in record.files})
    from huggingface_hub import try_to_load_from_cache

    folder = f"{record.subfolder}/" if record.subfolder else ""
    for file in record.files:
        found = try_to_load_from_cache(
            record.hub_id, f"{folder}{file.name}", revision=record.commit
        )
        if isinstance(found, str):
            return Path(found).parent
    return None


def _dumped(said: Said) -> dict[str, Any]:
    """Without what is as usual: a card is for people, too."""
    return said.model_dump(mode="json", exclude_defaults=True)


def _task_type(output: Path) -> str | None:
    with suppress(BadInput):
        if (output / "adapter_config.json").is_file():
            value = read_json_object(output / "adapter_config.json").get("task_type")
            return value if isinstance(value, str) else None
    return None


def _moment(started: str) -> str:
    try:
        found = datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{found.astimezone(UTC) if found.tzinfo else found:%Y-%m-%d %H:%M} UTC"
