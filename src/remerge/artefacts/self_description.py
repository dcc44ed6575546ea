"""What files say of themselves: a GGUF file's metadata, an adapter's or a base's configuration, a
model card. Anybody may have written that; it is a claim, and no proof.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from remerge.adapters.training_run import training_run
from remerge.errors import BadInput
from remerge.outputs.directory import CARD
from remerge.sources.documents import as_list, as_object, read_json_object
from remerge.sources.gguf_header import read_gguf_header
from remerge.sources.header import Header, read_header
from remerge.sources.references import hub_origin

_MAX_CARD = 2**20
_LONGEST = 500
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_KEY_IN_CARD = re.compile(r"merge[ _-]?key\W{1,20}([0-9a-f]{64})\b", re.IGNORECASE)
_FACTOR = re.compile(r"lora_[AB]\.|lora_(up|down)\.|lora_embedding_|lora_magnitude|\.hada_|\.lokr_")


@dataclass(frozen=True)
class Claims:
    """What was read: ``kind`` in a word, the ``merge_key`` that remerge wrote, names of the base
    (as it is called, or as its repository is) and of adapters, and other ``facts`` to show."""

    kind: str
    merge_key: str | None = None
    base: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def says_something(self) -> bool:
        """Whether it tells where the file came from, at least in part."""
        return bool(self.merge_key or self.base or self.adapters or self.facts.get("repository"))


def claims_of_file(path: Path) -> Claims | None:
    """What one file of weights says; None for a file of a format that says nothing. Raises
    `BadInput` for a damaged one."""
    if path.suffix == ".gguf" or _begins(path, b"GGUF"):
        return _gguf(path)
    if path.suffix == ".safetensors":
        return _safetensors(read_header(path))
    return None


def claims_of_directory(path: Path) -> Claims | None:
    """What a directory's configuration and model card say; None where it has neither."""
    card = _card(path / CARD)
    facts: dict[str, Any] = {}
    if (origin := hub_origin(path)) is not None:
        facts |= {"repository": origin.hub_id, "commit": origin.commit}
    adapter, config = _json(path / "adapter_config.json"), _json(path / "config.json")
    if adapter is not None:
        named = _short(adapter.get("base_model_name_or_path"))
        revision = _short(adapter.get("revision"))
        base = (f"{named}@{revision}" if revision else named,) if named else card.base
        keys = ("peft_type", "task_type", "r", "lora_alpha")
        facts |= {key: adapter[key] for key in keys if isinstance(adapter.get(key), str | int)}
        if (run := training_run(path).run) is not None:
            facts["run"] = {key: value for key, value in asdict(run).items() if value is not None}
        return Claims("adapter", card.merge_key, base, facts=facts)
    if config is not None:
        named = _short(config.get("_name_or_path"))
        classes = as_list(config.get("architectures")) or []
        facts |= {"model type": _short(config.get("model_type"))}
        facts |= {"architecture": _short(classes[0] if classes else None)}
        facts |= {"called": named if named and not Path(named).is_absolute() else None}
        facts = {key: value for key, value in facts.items() if value}
        return Claims("checkpoint", card.merge_key, card.base, facts=facts)
    if card.says_something or facts:
        return Claims("directory", card.merge_key, card.base, facts=facts)
    return None


def _gguf(path: Path) -> Claims:
    header = read_gguf_header(path)
    count = header.metadata.get("general.base_model.count")
    several = range(min(count, 16)) if type(count) is int else range(0)
    base: list[str] = []
    for number in several:
        url = header.text(f"general.base_model.{number}.repo_url")
        name = header.text(f"general.base_model.{number}.name")
        found = url.removeprefix("https://huggingface.co/") if url else name
        base += [found[:_LONGEST]] if found else []
    facts = {
        "called": _short(header.text("general.name")),
        "architecture": _short(header.text("general.architecture")),
        "tensors": len(header.tensors),
    }
    return Claims(
        "gguf",
        _key(header.text("remerge.merge_key")),
        tuple(base),
        tuple(name[:_LONGEST] for name in header.texts("remerge.adapters")),
        {key: value for key, value in facts.items() if value is not None},
    )


def _safetensors(header: Header) -> Claims:
    factors = any(_FACTOR.search(name) for name in header.tensors)
    dtypes = sorted({info.dtype for info in header.tensors.values()})
    kind = "adapter's weights" if factors else "weights"
    # Trainers of image models write what they know into the file itself.
    keys = ("modelspec.title", "ss_base_model_version", "ss_sd_model_name", "ss_output_name")
    said = {key: _short(header.metadata.get(key)) for key in keys}
    facts = {"tensors": len(header.tensors), "dtypes": ", ".join(dtypes)}
    return Claims(kind, facts=facts | {key: value for key, value in said.items() if value})


def _card(path: Path) -> Claims:
    """``base_model`` of the card's metadata, and the merge key that a card of remerge shows."""
    text = _text(path)
    key = _KEY_IN_CARD.search(text)
    front = _FRONT.match(text)
    data: dict[str, Any] = {}
    if front is not None:
        try:
            data = as_object(yaml.safe_load(front[1])) or {}
        except (yaml.YAMLError, ValueError, RecursionError):
            data = {}
    stated = data.get("base_model")
    names = [stated] if isinstance(stated, str) else as_list(stated) or []
    base = tuple(name[:_LONGEST] for name in names[:16] if isinstance(name, str))
    return Claims("card", _key(key[1]) if key else None, base)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as stream:
            return stream.read(_MAX_CARD).decode("utf-8", "replace")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path) if path.is_file() else None
    except BadInput:
        return None


def _begins(path: Path, mark: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(mark)) == mark


def _key(text: str | None) -> str | None:
    return text if text is not None and re.fullmatch(r"[0-9a-f]{64}", text) else None


def _short(value: Any) -> str | None:
    return value[:_LONGEST] if isinstance(value, str) and value else None
