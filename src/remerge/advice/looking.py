"""Reading what base and adapters add to the facts: headers, configurations and a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from remerge.adapters.adapter import Adapter, open_adapter
from remerge.advice.facts import Facts
from remerge.advice.looked import Copy, Looked, Named
from remerge.advice.obstacles import obstacles_of, obstacles_of_base
from remerge.artefacts.digests import file_digest
from remerge.artefacts.engine_recording import weights_in
from remerge.engines.forms import read_form
from remerge.errors import Unsupported
from remerge.merging.budget import DEFAULT
from remerge.merging.plan import Plan
from remerge.merging.recipe import make_recipe
from remerge.outputs.planning import make_plan, open_inputs
from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.references import labels_of, not_fetched, resolve


def look(base: Named | None, adapters: Sequence[Named], facts: Facts, *, progress: bool) -> Looked:
    """Read headers and configurations of what is given; weights of a base are neither read nor
    fetched. Raises `BadInput` for what cannot be read or does not fit."""
    opened = [open_adapter(resolve(a, "adapter", progress=progress).path) for a in adapters]
    found = tuple(dict.fromkeys(name for adapter in opened for name in obstacles_of(adapter)))
    notes = [note for adapter in opened for note in adapter.notes]
    facts = replace(
        facts,
        variants=facts.variants or (len(opened) or None),
        obstacles=found,
        adapter_bytes=max(map(_served, opened), default=None),
    )
    if base is None:
        base, note = _named_here(opened)
        notes += [note] if note else []
    nbytes = tuple(adapter.nbytes for adapter in opened)
    looked = Looked(facts, base, adapters_bytes=nbytes, notes=tuple(notes))
    if base is None:
        return looked
    announced = not_fetched(base, progress=progress)
    if announced is not None:
        return _announced(looked, str(base), announced)
    return _planned(looked, base, adapters, progress=progress)


def _planned(looked: Looked, base: Named, adapters: Sequence[Named], *, progress: bool) -> Looked:
    facts, notes = looked.facts, list(looked.notes)
    checkpoint = open_checkpoint(resolve(base, "base", progress=progress).path)
    base_bytes = sum(shard.size for shard in checkpoint.shards)
    facts = replace(
        facts,
        served_base_bytes=base_bytes,
        obstacles=(*facts.obstacles, *(obstacles_of_base(checkpoint.config) if adapters else ())),
    )
    copies: list[Copy] = []
    # One variant of several adapters is a merge of them all.
    together = [tuple(adapters)] if facts.variants == 1 else [(a,) for a in adapters] or [()]
    try:
        for group in together:
            plan = _plan(base, group, facts.quantize, progress=progress)
            copies.append(_copy(plan, facts.quantize))
            notes += plan.notes
    except Unsupported as error:
        if facts.quantize not in (None, "none"):
            # Is it the format alone that cannot be? Then that is to be said, and no advice.
            plain = replace(looked, facts=replace(looked.facts, quantize=None))
            if _planned(plain, base, adapters, progress=progress).facts.unmergeable is None:
                raise
        copies = []
        facts = replace(facts, unmergeable=f"{error.what} {error.why or ''}".strip())
    if copies:
        facts = replace(facts, copy_bytes=max(copy.nbytes for copy in copies))
    if copies and facts.quantize not in (None, "none"):
        # An adapter would be served on the base in the same form.
        facts = replace(facts, served_base_bytes=facts.copy_bytes)
    return replace(
        looked,
        facts=facts,
        base_bytes=base_bytes,
        copies=tuple(copies),
        notes=tuple(dict.fromkeys(notes)),
    )


def _plan(base: Named, adapters: Sequence[Named], quantize: str | None, *, progress: bool) -> Plan:
    to = "safetensors" if quantize in (None, "none") else quantize
    # What an engine writes has its size from the number of weights alone.
    to = "safetensors" if read_form(to, {}, file_digest) is not None else to
    recipe = make_recipe(labels_of(adapters), to=to)
    return make_plan(open_inputs(base, adapters, progress=progress), recipe, DEFAULT)


def _copy(plan: Plan, quantize: str | None) -> Copy:
    weights = weights_in(plan)
    form = None if quantize in (None, "none") else read_form(quantize, {}, file_digest)
    nbytes = plan.bytes_to_write
    if form is not None:
        nbytes = int(weights * form.form.bytes_per_weight(form.options))
    return Copy(nbytes, plan.bytes_to_read, 2 * weights)


def _announced(looked: Looked, base: str, nbytes: int) -> Looked:
    """Sizes of a base on the Hub, which is not fetched to answer a question."""
    quantize = looked.facts.quantize
    # Taken for 16 bits: nearly every base on the Hub is.
    copy = Copy(nbytes, nbytes + max(looked.adapters_bytes, default=0), nbytes)
    if quantize not in (None, "none"):
        form = read_form(quantize, {}, file_digest)
        share = form.form.bytes_per_weight(form.options) if form is not None else 1.0
        copy = replace(copy, nbytes=int(nbytes / 2 * share))
    facts = replace(looked.facts, copy_bytes=copy.nbytes, served_base_bytes=copy.nbytes)
    note = (
        f"{base} was not fetched: its size is as the Hub announces it, taken for 16 bits a weight, "
        "and whether the adapter fits was not looked at."
    )
    told = (*looked.notes, note)
    return replace(looked, facts=facts, base_bytes=nbytes, copies=(copy,), notes=told)


def _named_here(adapters: Sequence[Adapter]) -> tuple[str | None, str | None]:
    """The base that the adapters' configurations name, if it is a directory here."""
    names = {str(a.config.get("base_model_name_or_path") or "") for a in adapters} - {""}
    if len(names) != 1:
        return None, None
    name = names.pop()
    if Path(name).expanduser().is_dir():
        return name, None
    return None, f"The adapter names its base {name}, which was not looked for: give it as --base."


def _served(adapter: Adapter) -> int:
    """What an adapter takes beside its base: its values in 16 bits."""
    return 2 * sum(math.prod(tensor.shape) for tensor in adapter.tensors.values())
