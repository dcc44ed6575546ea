"""Making a plan: the names of things resolved, headers read, everything refusable refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remerge.adapters.adapter import Adapter, check_finite, open_adapter
from remerge.adapters.lora.packing import stating
from remerge.adapters.training_run import TrainingRun
from remerge.errors import BadInput, UsageError
from remerge.merging.opening import asked_dtype, hint_of, plan_tensors, read_changes
from remerge.merging.plan import OutputFile, Plan, SideFile
from remerge.merging.preparations import check_memory, decomposes
from remerge.merging.quantising import quantised
from remerge.merging.recipe import Recipe
from remerge.merging.replacements import copies_of
from remerge.merging.several import combine
from remerge.merging.simulation import simulated
from remerge.merging.tensor_plan import usual_dtype
from remerge.outputs.safetensors import index_document, lay_out
from remerge.outputs.side_files import carried_tokenizer, side_files
from remerge.sources.checkpoint import Checkpoint, open_checkpoint
from remerge.sources.reading import DecodedBase, decoded
from remerge.sources.references import Reference, labels_of, resolve


@dataclass(frozen=True)
class Inputs:
    """Base and adapters, opened, with where they came from.

    ``original`` says that the base is the 16-bit original of the one that was named. ``runs`` are
    the adapters' training runs as far as known (`remerge.outputs.training_runs`), ``runs_given``
    says that the user named some: they are recorded, and decide no byte.
    """

    base: Checkpoint
    base_reference: Reference
    adapters: tuple[Adapter, ...]
    adapter_references: tuple[Reference, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    original: bool = False
    runs: tuple[TrainingRun | None, ...] = ()
    runs_given: bool = False

    @property
    def paths(self) -> list[Path]:
        return [self.base.path, *(adapter.path for adapter in self.adapters)]


def open_inputs(
    base: str | Path | None,
    adapters: Sequence[str | Path],
    *,
    base_precision: str | None = None,
    copy_code: bool = False,
    progress: bool = True,
) -> Inputs:
    """Resolve and open base and adapters; without ``base`` the adapters' configurations name it.

    ``base_precision`` is ``dequantized`` or ``original=BASE``, which puts the original in the
    place of the quantised base after comparing their tensors' names and shapes.

    ``progress`` allows the Hub's download bars, which appear on a terminal only.

    Raises `BadInput` when either cannot be found or is damaged, `TryAgain` when the Hub cannot be
    reached.
    """
    references = tuple(resolve(adapter, "adapter", progress=progress) for adapter in adapters)
    opened = _opened(references)
    if base is None:
        base = _named_base(opened)
    base_reference = resolve(base, "base", copy_code=copy_code, progress=progress)
    inputs = _inputs(base_reference, references, opened, labels_of(adapters))
    original = _original(base_precision)
    if original is None:
        return inputs
    base_reference = resolve(original, "base", copy_code=copy_code, progress=progress)
    opened_base = open_checkpoint(base_reference.path.absolute())
    _check_original(inputs.base, opened_base)
    note = (
        f"Merged into the original {base_reference.name}, not into the quantised "
        "base whose rounded weights training saw."
    )
    return replace(
        inputs,
        base=opened_base,
        base_reference=base_reference,
        notes=(*inputs.notes, note),
        original=True,
    )


def open_references(
    base: Reference, adapters: Sequence[Reference], labels: Sequence[str], *, original: bool
) -> Inputs:
    """Open inputs that were found before; ``original`` as of `Inputs`. Raises `BadInput`."""
    references = tuple(adapters)
    inputs = _inputs(base, references, _opened(references), tuple(labels))
    return replace(inputs, original=original)


def _opened(references: Sequence[Reference]) -> tuple[Adapter, ...]:
    return tuple(open_adapter(reference.path.absolute()) for reference in references)


def _inputs(
    base: Reference,
    references: tuple[Reference, ...],
    adapters: tuple[Adapter, ...],
    labels: tuple[str, ...],
) -> Inputs:
    notes = _other_bases(adapters, base)
    opened = open_checkpoint(base.path.absolute())
    return Inputs(opened, base, adapters, references, labels, notes)


def _original(base_precision: str | None) -> str | None:
    """The base that ``original=`` names, None for any other precision; raises `UsageError`."""
    if base_precision is None or base_precision == "dequantized":
        return None
    kind, _, named = base_precision.partition("=")
    if kind != "original" or not named:
        raise UsageError(
            f"--base-precision {base_precision!r} is not known.",
            hint="Choose dequantized, or original=ORG/NAME (a directory or Hub id).",
        )
    return named


def _check_original(quantised: Checkpoint, original: Checkpoint) -> None:
    """Refuse an original that is another model, or is quantised itself."""
    there, here = decoded(quantised).tensors, decoded(original)
    if here.codecs:
        raise BadInput(
            f"{original.path} is quantised itself, so it is not the original of {quantised.path}.",
            hint="Give the 16-bit checkpoint with --base-precision original=ORG/NAME.",
        )
    for name, tensor in there.items():
        found = here.tensors.get(name)
        if found is None or tuple(found.shape) != tuple(tensor.shape):
            shape = "no such tensor" if found is None else f"shape {tuple(found.shape)}"
            raise BadInput(
                f"{original.path} is not the original of {quantised.path}: {name} has shape "
                f"{tuple(tensor.shape)} there, and {shape} here.",
                hint="Give the checkpoint that was quantised.",
            )


def _other_bases(adapters: Sequence[Adapter], base: Reference) -> tuple[str, ...]:
    """A sentence for each base, other than this one, that adapters name by a Hub id."""
    named = [adapter.config.get("base_model_name_or_path") for adapter in adapters]
    others = [
        name
        for name in named
        if base.hub_id is not None
        and isinstance(name, str)
        and name.count("/") == 1
        and not Path(name).exists()
        and name != base.hub_id
    ]
    return tuple(
        f"The adapter was trained on {name}, and is merged into {base.hub_id}."
        for name in dict.fromkeys(others)
    )


def _named_base(adapters: Sequence[Adapter]) -> str:
    """The base that the adapters' configurations name; raises `BadInput` where they do not, or
    name several."""
    bases = [_stated_base(adapter) for adapter in adapters]
    if len(set(bases)) > 1:
        raise BadInput(
            f"The adapters were trained on several bases: {', '.join(dict.fromkeys(bases))}.",
            hint="Name the one to merge into: remerge merge BASE ADAPTER ADAPTER -o OUT.",
        )
    return bases[0]


def _stated_base(adapter: Adapter) -> str:
    named = adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise BadInput(
            f"{adapter.path} does not say which base it was trained on.",
            hint="Name it: remerge merge BASE ADAPTER -o OUT.",
        )
    revision = adapter.config.get("revision")
    if isinstance(revision, str) and revision and not Path(named).exists():
        return f"{named}@{revision}"
    return named


def make_plan(inputs: Inputs, recipe: Recipe, max_memory: int) -> Plan:
    """The whole merge from headers and configurations; reads no weight of the base, but where two
    adapters replace the same ones.

    Raises `BadInput` for anything that would merge wrong: leftovers, misfits, values that are not
    finite. Raises `UsageError` when the memory budget is too small for the method.
    """
    base = inputs.base
    readable = decoded(base)
    adapters = tuple(_for_base(adapter, readable, recipe) for adapter in inputs.adapters)
    recipe = recipe.model_copy(update={"base_precision": _precision(inputs, readable)})
    if recipe.requantize is not None and not readable.codecs:
        raise UsageError(
            f"--requantize same was asked for, but {base.path} is not quantised.",
            hint="Leave it out; the output keeps the base's dtype.",
        )
    found = [read_changes(readable, adapter) for adapter in adapters]
    for adapter in adapters:
        check_finite(adapter)

    def dtype(name: str, kept: str) -> str:
        return asked_dtype(recipe, base.config, name, kept, packed=name in readable.codecs)

    changes = combine(found, inputs.labels, recipe, dtype, copies_of(base, readable))
    if recipe.simulate is not None:
        readable = simulated(readable, hint_of(adapters[0].config if adapters else {}))
    tensors = plan_tensors(base, readable, changes, recipe)
    scheme = None
    if recipe.quantize is not None:
        scheme = quantised(
            readable, tensors, hint_of(adapters[0].config if adapters else {}), recipe
        )
        tensors = dict(scheme.tensors)
    for change in changes.tensors.values():
        check_memory(change, max_memory)
    files: tuple[OutputFile, ...] = ()
    notes: tuple[str, ...] = ()
    if recipe.format == "adapter":
        side = carried_tokenizer(adapters, inputs.labels, recipe)
    else:
        files = lay_out(base, tensors, recipe.max_shard_size)
        # A quantisation that config.json states and no tensor has is taken out as well.
        stated = readable.config != base.config
        unpacked = (readable.codecs or stated) and recipe.requantize is None
        side, notes = side_files(
            base,
            adapters,
            inputs.labels,
            recipe,
            changes.config,
            unpacked=usual_dtype(tensors) if unpacked else None,
            quantisation=None if scheme is None else scheme.stated,
        )
        notes = notes if scheme is None else (*notes, *scheme.notes)
        index = index_document(base, files)
        if index is not None:
            side = (*side, SideFile(index[0], content=index[1]))
    told = [note for adapter in adapters for note in adapter.notes]
    return Plan(
        recipe=recipe,
        base=base,
        adapters=adapters,
        config=_merged_config(base.config, side),
        tensors=tensors,
        files=files,
        side_files=tuple(sorted(side, key=lambda file: file.name)),
        notes=tuple(dict.fromkeys((*inputs.notes, *told, *changes.notes, *notes))),
        formats=Counter(codec.format for codec in readable.codecs.values()),
        reproducible=(
            "same-stack" if any(map(decomposes, changes.tensors.values())) else "everywhere"
        ),
        own=tuple(found),
    )


def _for_base(adapter: Adapter, readable: DecodedBase, recipe: Recipe) -> Adapter:
    """The adapter in PEFT's terms, with what the recipe says of its experts."""
    adapter = adapter.for_base(readable)
    return replace(adapter, config=stating(adapter.config, recipe.expert_packing))


def _precision(inputs: Inputs, readable: DecodedBase) -> str:
    if inputs.original:
        return "original"
    return "dequantized" if readable.codecs else "stored"


def _merged_config(config: Mapping[str, Any], side: tuple[SideFile, ...]) -> Mapping[str, Any]:
    written = next((f.content for f in side if f.name == "config.json" and f.content), None)
    return config if written is None else json.loads(written)
