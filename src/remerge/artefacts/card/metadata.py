"""The card's metadata, as the Hub indexes it: only what the manifest or an input says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from remerge.artefacts.card.inherited import Said
from remerge.artefacts.card.made import Made
from remerge.artefacts.card.scores import model_index
from remerge.artefacts.test_result import Figures

_LIBRARIES = {"gguf": "gguf", "onnx": "onnx", "openvino": "openvino", "adapter": "peft"}
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Sources:
    """What the inputs say, in the manifest's order; ``merged`` that of which an adapter was
    extracted."""

    base: Said
    adapters: tuple[Said, ...]
    merged: Said | None = None

    def of_adapters(self, name: str) -> tuple[Any, ...]:
        """The different values that adapters have under a name, without None."""
        values = (getattr(said, name) for said in self.adapters)
        return tuple(dict.fromkeys(value for value in values if value is not None))


@dataclass(frozen=True)
class BaseId:
    """The base on the Hub: ids, and where they were read: ``manifest``, ``adapter`` (what it was
    trained on) or ``base`` (what its configuration was loaded from)."""

    ids: tuple[str, ...]
    read_from: str


def metadata(made: Made, sources: Sources, figures: Figures | None) -> dict[str, Any]:
    """Keys and values, in the order in which they are written."""
    licence = licence_of(made, sources)
    language = sources.base.language or sources.of_adapters("language")[:1]
    pipeline = sources.base.pipeline_tag or next(iter(sources.of_adapters("pipeline_tag")), None)
    models = base_models(made, sources)
    found: dict[str, Any] = {
        "base_model": models[0] if len(models) == 1 else models,
        "base_model_relation": relation(made, models) if models else None,
        "library_name": _library(made, sources),
        "pipeline_tag": pipeline,
        "tags": tags(made, sources),
        **licence,
        "language": _one_or_list(_flat(language)),
        "datasets": _datasets(made, sources),
    }
    if figures is not None:
        found["model-index"] = model_index(made.title, figures, pipeline)
    return {key: value for key, value in found.items() if value not in (None, [], ())}


def base_id(made: Made, sources: Sources) -> BaseId:
    """What the base is on the Hub: as it was fetched, else as those say who know it."""
    if made.base.hub_id is not None:
        return BaseId((made.base.hub_id,), "manifest")
    if sources.base.ancestors:
        return BaseId(sources.base.ancestors, "manifest")
    # A model on the Hub often says in its configuration what it was itself tuned from, so that the
    # adapter is the better witness.
    trained_on = sources.of_adapters("trained_on")
    if len(trained_on) == 1:
        return BaseId(trained_on, "adapter")
    if not trained_on and sources.base.trained_on is not None:
        return BaseId((sources.base.trained_on,), "base")
    return BaseId((), "")


def base_models(made: Made, sources: Sources) -> list[str]:
    """Ids of what the output derives from: the base, and of a merge the adapters on the Hub."""
    ids = list(base_id(made, sources).ids)
    if not made.is_adapter:
        ids += [record.hub_id for record in made.adapters if record.hub_id is not None]
    return list(dict.fromkeys(ids))


def relation(made: Made, models: Sequence[str]) -> str:
    """How the Hub's tree of models hangs this one below its bases. What is written as GGUF counts
    as quantised there whatever its types."""
    if made.is_adapter:
        return "adapter"
    if made.variant is not None or made.form == "gguf":
        return "quantized"
    return "merge" if len(models) > 1 or len(made.adapters) > 1 else "finetune"


def tags(made: Made, sources: Sources) -> list[str]:
    """remerge, what was done, and the format."""
    found = ["remerge"]
    if made.adapters:
        found.append("merge")
    found += sources.of_adapters("method")
    if made.is_adapter and made.merged is not None:
        found.append("lora")
    if made.method is not None:
        found.append(made.method)
    if made.form not in ("safetensors", "adapter"):
        found.append(made.form)
    if made.variant is not None:
        found.append(re.sub(r"[^a-z0-9._]+", "-", made.variant.lower()).strip("-"))
    return list(dict.fromkeys(tag for tag in found if tag != "the-base-s-own-format"))


def licence_of(made: Made, sources: Sources) -> dict[str, str]:
    """The licence that the metadata states: a model's is its base's; an adapter's own is what it
    was made of says, where all say the same."""
    if not made.is_adapter:
        return _licence(made, sources.base)
    if sources.merged is not None:
        return _licence(made, sources.merged)
    stated = [said for said in sources.adapters if said.license is not None]
    same = len({(said.license, said.license_name) for said in stated}) == 1
    return _licence(made, stated[0]) if same and len(stated) == len(made.adapters) else {}


def _licence(made: Made, said: Said) -> dict[str, str]:
    link = said.license_link
    if link is not None and "://" not in link:
        carried = any(record.name == link for record in made.outputs)
        if not carried:
            base = made.base
            known = base.hub_id is not None and said.license is not None and not made.is_adapter
            place = f"{_HUB}/{base.hub_id}/blob/{base.commit or 'main'}/{link}"
            link = place if known else None
    values = {
        "license": said.license,
        "license_name": said.license_name,
        "license_link": link,
    }
    return {key: value for key, value in values.items() if value is not None}


def _library(made: Made, sources: Sources) -> str:
    known = _LIBRARIES.get(made.form)
    if known is not None:
        return known
    if sources.base.library_name is not None:
        return sources.base.library_name
    return "diffusers" if sources.base.diffusers else "transformers"


def _datasets(made: Made, sources: Sources) -> list[str]:
    """What it was tuned on: the adapters' sets, not those that the base knows."""
    trained = [sources.merged] if sources.merged is not None else sources.adapters
    return list(dict.fromkeys(name for said in trained for name in said.datasets))


def _flat(values: Iterable[Any]) -> list[str]:
    found: list[str] = []
    for value in values:
        found += [value] if isinstance(value, str) else value
    return found


def _one_or_list(values: list[str]) -> str | list[str] | None:
    return values[0] if len(values) == 1 else values or None
