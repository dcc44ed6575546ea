"""What each arm runs, in the form that its engine reads: merged here where it was not before, the
base in the format of the merge, the adapter as llama.cpp has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from remerge.adapters.adapter import Adapter, open_adapter
from remerge.advice.obstacles import obstacle_to
from remerge.artefacts.digests import file_digest
from remerge.errors import BadInput, Unsupported, UsageError
from remerge.serving.bench.hosts import Models
from remerge.serving.bench.made_of import check_made_of
from remerge.serving.converted import convert_adapter, own_type
from remerge.sources.documents import as_object, read_json_object
from remerge.sources.ggml_types import FILE_TYPES
from remerge.sources.gguf_header import read_gguf_header
from remerge.sources.references import Reference
from remerge.validation.artefact import Artefact, find_artefact

# Writes what a source (a checkpoint, or a base with adapters) gives in a form, to a place.
Make = Callable[[Path, Sequence[Path], str, Path], Any]

_READS = {"vllm": "checkpoint", "transformers": "checkpoint", "llama.cpp": "gguf"}


@dataclass(frozen=True)
class Sources:
    """Base, adapter, and what was merged of them before (None: it is merged for the benchmark);
    ``notes`` are what is to be said of that."""

    base: Reference
    adapter: Reference
    output: Artefact | None
    opened: Adapter
    notes: tuple[str, ...] = ()


def find_sources(base: Reference, adapter: Reference, output: Path | None) -> Sources:
    """Open what is to be measured; raises `BadInput`, also where ``output`` was made of others."""
    opened = open_adapter(adapter.path)
    if output is None:
        return Sources(base, adapter, None, opened)
    artefact = find_artefact(output)
    return Sources(base, adapter, artefact, opened, check_made_of(base, opened, artefact))


def check_engine(engine: str, sources: Sources) -> None:
    """Raises `UsageError` for an engine that does not read what was merged, `Unsupported` for an
    adapter that it does not serve unmerged."""
    output = sources.output
    if output is not None and output.kind == "onnx":
        raise UsageError(
            f"{output.place} is ONNX, of which no engine here runs the adapter unmerged.",
            hint="Name a checkpoint or a GGUF file.",
        )
    if output is not None and output.kind == "gguf" and _READS[engine] != "gguf":
        raise UsageError(
            f"{engine} is not measured with GGUF files.", hint="Take --engine llama.cpp."
        )
    if engine == "transformers" and find_spec("peft") is None:
        raise UsageError(
            "transformers runs an adapter unmerged by PEFT, which is not here.",
            hint="Install it: pip install 'remerge[peft]'.",
        )
    config = read_json_object(sources.base.path / "config.json")
    obstacle = obstacle_to(engine, sources.opened, config)
    if obstacle is not None:
        nowhere = obstacle_to("transformers", sources.opened, config) is not None
        raise Unsupported(
            f"{engine} does not serve {sources.adapter.name} unmerged: {obstacle.says}",
            why=f"{obstacle.source.rstrip('.')}.",
            hint="There is nothing to compare with: merge it."
            if nowhere
            else "--engine transformers runs it through PEFT.",
        )


def prepare(
    engine: str, sources: Sources, work: Path, make: Make, pythons: Mapping[str, str]
) -> Models:
    """All that the engine reads; what is not there is made in ``work``."""
    base, adapter = sources.base.path, sources.opened.path
    if _READS[engine] == "gguf":
        return _as_gguf(sources, work, make, pythons)
    merged = work / "merged"
    if sources.output is None:
        make(base, [adapter], "safetensors", merged)
        return Models(merged, base, adapter, sources.opened.rank)
    scheme = _scheme(sources.output)
    if scheme is not None:
        # A merge in eight bits is faster for that alone.
        base = work / "base"
        make(sources.base.path, (), scheme, base)
    return Models(sources.output.place, base, adapter, sources.opened.rank)


def _as_gguf(sources: Sources, work: Path, make: Make, pythons: Mapping[str, str]) -> Models:
    base, adapter, output = sources.base.path, sources.opened.path, sources.output
    merged = work / "merged.gguf"
    if output is None:
        form = own_type(base)
        make(base, [adapter], form, merged)
    elif output.kind == "gguf":
        merged = output.place
        form = f"gguf:{_type_of(merged)}"
    else:
        form = own_type(output.place)
        make(output.place, (), form, merged)
    make(base, (), form, work / "base.gguf")
    convert_adapter(adapter, base, work / "adapter.gguf", pythons)
    return Models(merged, work / "base.gguf", work / "adapter.gguf", sources.opened.rank)


def _type_of(file: Path) -> str:
    number = read_gguf_header(file).metadata.get("general.file_type")
    found = next((kind.name for kind in FILE_TYPES.values() if kind.number == number), None)
    if found is None:
        raise BadInput(
            f"{file} does not say of which type it is, so that no base can be made like it.",
            hint="Make it with remerge merge --to gguf:TYPE.",
        )
    return found


def _scheme(output: Artefact) -> str | None:
    """The quantised format in which the merge was written, where a base can be written in it too
    without more data."""
    origin = output.origin
    return None if origin is None else origin.recipe.quantize


def differing_formats(engine: str, sources: Sources) -> str | None:
    """What to say where merge and base are not in one format."""
    output = sources.output
    if _READS[engine] == "gguf" or output is None or _scheme(output) is not None:
        return None
    merged, base = output.format, find_artefact(sources.base.path).format
    if merged == base:
        return None
    return (
        f"The merge is in {merged} and the base in {base}: the figures tell what serving either "
        "takes, and not what merging alone gains."
    )


def shape_of(sources: Sources) -> dict[str, Any]:
    """The model in numbers, and what tells where it came from: digests, and no path."""
    config = read_json_object(sources.base.path / "config.json")
    text: dict[str, Any] = as_object(config.get("text_config")) or config
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    shape: dict[str, Any] = {"model_type": config.get("model_type")}
    shape |= {name: text[name] for name in names if isinstance(text.get(name), int)}
    if sources.base.hub_id is not None:
        shape["base"] = f"{sources.base.hub_id}@{sources.base.commit}"
    values = sum(math.prod(tensor.shape) for tensor in sources.opened.tensors.values())
    folder = sources.opened.path
    shape["adapter"] = {
        "rank": sources.opened.rank,
        "values": values,
        "files": {name: file_digest(folder / name) for name in sources.opened.files},
    }
    output = sources.output
    if output is not None:
        shape["merged"] = {"kind": output.kind, "format": output.format}
        if output.manifest is not None:
            shape["merged"]["merge_key"] = read_json_object(output.manifest).get("merge_key")
    return shape
