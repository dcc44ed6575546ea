"""What an artefact is compared with: the merge in float32, or a checkpoint given in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remerge.artefacts.making import write_side_file
from remerge.artefacts.origins import adapters_of, base_digests, check_input, place_of
from remerge.errors import UsageError
from remerge.merging.plan import Plan
from remerge.merging.recipe import Recipe
from remerge.outputs.planning import Inputs, make_plan, open_inputs
from remerge.sources.documents import as_object, read_json_object
from remerge.validation.artefact import Artefact, find_artefact


@dataclass(frozen=True)
class Settings:
    """How much is asked of an engine: prompts, tokens of each, answers and their tokens."""

    prompts: int = 8
    tokens: int = 128
    answers: int = 3
    answer_tokens: int = 24


@dataclass(frozen=True)
class Reference:
    """What an artefact is compared with: a request for `score_transformers`, and its words."""

    request: Mapping[str, Any]
    words: str
    tokenizer: Path
    config: Mapping[str, Any]
    elements: int | None
    has_base: bool
    notes: tuple[str, ...] = ()


def reference_of(
    output: Path,
    artefact: Artefact,
    given: Path | None,
    base: str | Path | None,
    adapters: Sequence[str | Path],
    work: Path,
    max_memory: int,
) -> Reference:
    """What to compare with: the directory given, the merge of the manifest (or of base and adapters
    given), or a checkpoint itself."""
    if given is not None:
        if base is not None or adapters:
            raise UsageError("--reference is a checkpoint: leave out --base and --adapter.")
        found = find_artefact(given)
        if found.kind != "checkpoint":
            raise UsageError(f"--reference {given} is no checkpoint.")
        return _stored(given, f"{given}, in float32")
    if artefact.origin is None and base is None and not adapters:
        if artefact.kind == "checkpoint":
            note = "There is no manifest: it is compared with itself, and says nothing of a merge."
            return replace(_stored(output, f"{output} itself, in float32"), notes=(note,))
        raise UsageError(
            f"It is not known what {output} was made from: it has no manifest.",
            hint="Give --base and --adapter, or --reference with a checkpoint.",
        )
    inputs, plan = _merge(artefact, base, adapters, max_memory)
    directory = work / "tokenizer"
    directory.mkdir()
    for side in plan.side_files:
        if not side.name.endswith((".safetensors", ".py", ".index.json")):
            write_side_file(directory, side)
    merge = {
        "base": str(inputs.base.path),
        "original": inputs.original,
        "adapters": [str(adapter.path) for adapter in inputs.adapters],
        "recipe": plan.recipe.model_dump(mode="json"),
    }
    elements = sum(tensor.elements for tensor in plan.tensors.values())
    words = "the merge, rounded once to float32"
    return Reference({"merge": merge}, words, directory, plan.config, elements, True)


def _merge(
    artefact: Artefact, base: str | Path | None, adapters: Sequence[str | Path], max_memory: int
) -> tuple[Inputs, Plan]:
    """The artefact's merge, opened and planned in float32; the inputs are the manifest's own."""
    origin = artefact.origin
    if origin is None:
        if base is None or not adapters:
            raise UsageError("Without a manifest, --base and --adapter are needed, both.")
        inputs = open_inputs(base, adapters, progress=False)
        weights = (1.0,) * len(inputs.adapters)
        return inputs, make_plan(inputs, Recipe(dtype="F32", weights=weights), max_memory)
    inputs = open_inputs(
        base or place_of(origin.base, "base"),
        adapters_of(origin.adapters, adapters),
        progress=False,
    )
    inputs = replace(inputs, original=origin.recipe.base_precision == "original")
    asked = origin.recipe
    # What decides the values; how they are written is what is being checked.
    recipe = Recipe(
        method=asked.method,
        weights=asked.weights,
        parameters=asked.parameters,
        prefer=asked.prefer,
        dtype="F32",
        simulate=asked.simulate,
        expert_packing=asked.expert_packing,
        tokenizer=asked.tokenizer,
    )
    plan = make_plan(inputs, recipe, max_memory)
    for record, opened in zip(origin.adapters, inputs.adapters, strict=True):
        check_input(record, opened.path, opened.digests(), "adapter")
    check_input(origin.base, plan.base.path, base_digests(plan), "base")
    return inputs, plan


def _stored(directory: Path, words: str) -> Reference:
    config = read_json_object(directory / "config.json")
    place = directory.absolute()
    return Reference({"directory": str(place)}, words, place, config, None, False)


def prompt_length(config: Mapping[str, Any], settings: Settings) -> int:
    """How many tokens of a prompt the model has positions for, answers included."""
    places = positions_of(config)
    if places is None:
        return settings.tokens
    return max(2, min(settings.tokens, places - settings.answer_tokens))


def positions_of(config: Mapping[str, Any]) -> int | None:
    """How many positions a model has, None where its configuration does not say."""
    text = as_object(config.get("text_config")) or config
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        places = text.get(key)
        if isinstance(places, int) and places > 0:
            return places
    return None
