"""Whether what was merged is of the base and the adapter that it is measured against."""

from __future__ import annotations

from remerge.adapters.adapter import Adapter
from remerge.artefacts.digests import file_digest, weight_digests
from remerge.artefacts.manifest import InputRecord
from remerge.artefacts.origins import check_input
from remerge.errors import BadInput, IntegrityError
from remerge.sources.references import Reference
from remerge.validation.artefact import Artefact

_CONFIG = "config.json"


def check_made_of(base: Reference, adapter: Adapter, output: Artefact) -> tuple[str, ...]:
    """What to say of what it was made of. A merge of others shows nothing of these two.

    Raises `BadInput` where its manifest names another base, other adapters, or the base alone.
    """
    origin = output.origin
    if origin is None:
        return (
            f"{output.place.name} has no manifest: whether it was made of this base and this "
            "adapter is not known.",
        )
    if not origin.adapters:
        return _of_a_checkpoint(base, origin.base, output)
    named = ", ".join(record.name for record in origin.adapters)
    own = adapter.digests()
    if not any(_is(record, adapter, own) for record in origin.adapters):
        raise BadInput(
            f"{output.place} was not merged of the adapter {adapter.path}.",
            why=f"Its manifest names {named}, by other files.",
            hint="Name the adapter that it was made of, or leave OUT away: it is then merged now.",
        )
    try:
        check_input(origin.base, base.path, _of_base(origin.base, base), "base")
    except IntegrityError as error:
        raise BadInput(
            f"{output.place} was not merged onto the base {base.path}.",
            why=error.what,
            hint="Name the base that it was made of, or leave OUT away: it is then merged now.",
        ) from error
    if len(origin.adapters) == 1:
        return ()
    return (
        f"It was made of {named}, and {adapter.path.name} alone ran unmerged: what all of them "
        "take is not what was measured.",
    )


def _of_a_checkpoint(base: Reference, source: InputRecord, output: Artefact) -> tuple[str, ...]:
    """Of an export, whose manifest ends at the checkpoint that was merged before."""
    try:
        check_input(source, base.path, _of_base(source, base), "base")
    except IntegrityError:
        return (
            f"{output.place.name} was exported from the checkpoint {source.name}: whether that was "
            "made of this base and this adapter is not known.",
        )
    raise BadInput(
        f"{output.place} holds the base {base.path} itself, without an adapter.",
        hint="Name what was merged, or leave OUT away: it is then merged now.",
    )


def _is(record: InputRecord, adapter: Adapter, own: dict[str, str]) -> bool:
    try:
        check_input(record, adapter.path, own, "adapter")
    except IntegrityError:
        return False
    return True


def _of_base(record: InputRecord, base: Reference) -> dict[str, str]:
    """Digests of the files that the manifest names, as far as they are there; weights are not read
    again that were read before."""
    there = [file.name for file in record.files if (base.path / file.name).is_file()]
    weights = weight_digests([base.path / name for name in there if name != _CONFIG])
    found = {name: weights[base.path / name] for name in there if name != _CONFIG}
    return found | {name: file_digest(base.path / name) for name in there if name == _CONFIG}
