"""What the cards and configurations of base and adapters say that holds of the output as well.

They are anyone's files: read in part and bounded, and only plain values are taken from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.card.escaping import clean
from remerge.artefacts.card.front_matter import read_keys
from remerge.artefacts.manifest import CARD, MANIFEST, read_manifest
from remerge.errors import BadInput
from remerge.sources.documents import as_list, read_json_object

# A card is a page of text.
LARGEST = 2**20
_MOST = 100
_KEYS = frozenset(
    {
        "datasets",
        "language",
        "library_name",
        "license",
        "license_link",
        "license_name",
        "pipeline_tag",
        "tags",
    }
)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_FILE = re.compile(r".*\.(jsonl?|csv|tsv|txt|parquet|arrow|zip|gz|zst|md|ya?ml)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,95}")
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Where trainers keep models: paths of their machines, and nobody's names on the Hub.
_FOLDERS = frozenset(
    {"base", "checkpoints", "ckpt", "data", "examples", "home", "input", "inputs", "local", "mnt"}
    | {"model", "models", "output", "outputs", "results", "root", "runs", "tmp", "weights"}
)


class Said(BaseModel):
    """What one input says of itself: ``found`` is False where it does not lie here any more.

    ``trained_on`` is the id on the Hub that an adapter's configuration names (or that a base's
    says it was loaded from), ``ancestors`` are those that a base was merged of; ``architecture`` is
    the class of a base, ``method`` the kind of an adapter, ``note`` why its card was passed over.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    found: bool = True
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library_name: str | None = None
    trained_on: str | None = None
    trained_revision: str | None = None
    ancestors: tuple[str, ...] = ()
    architecture: str | None = None
    diffusers: bool = False
    method: str | None = None
    note: str | None = None


UNKNOWN = Said(found=False)


def said_by(place: Path | None, kind: Literal["base", "adapter"]) -> Said:
    """Read what an input says; nothing where it is not there, or says nothing that can be read."""
    if place is None or not place.is_dir():
        return UNKNOWN
    values, note = _card(place / CARD)
    found = {
        "license": _plain(values.get("license"), _NAME),
        "license_name": _plain(values.get("license_name"), _NAME),
        "license_link": _link(values.get("license_link")),
        "language": _all_plain(values.get("language"), _NAME),
        "datasets": _datasets(values),
        "pipeline_tag": _plain(values.get("pipeline_tag"), _NAME),
        "library_name": _plain(values.get("library_name"), _NAME),
        "note": note,
    }
    told = _of_base(place) if kind == "base" else _of_adapter(place)
    return Said.model_validate({**found, **told})


def is_hub_id(name: object) -> bool:
    """Whether a name is one on the Hub, and no path of somebody's machine."""
    if not isinstance(name, str) or _ID.fullmatch(name) is None or "--" in name or ".." in name:
        return False
    owner, _, model = name.partition("/")
    if owner.lower() in _FOLDERS or model.startswith("checkpoint-") or Path(name).exists():
        return False
    return not name.endswith((".git", ".safetensors", ".bin", ".gguf"))


def _card(path: Path) -> tuple[dict[str, Any], str | None]:
    if not path.is_file():
        return {}, None
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        return {}, f"it cannot be read ({error.strerror})"
    if len(content) > LARGEST:
        return {}, f"it has more than {LARGEST:,} bytes"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return {}, "it is not UTF-8"
    return read_keys(text, _KEYS)


def _of_base(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with suppress(BadInput):
        config = read_json_object(place / "config.json")
        diffusers = config.get("_class_name")
        named = next(iter(as_list(config.get("architectures")) or ()), diffusers)
        found["architecture"] = _plain(named, _CLASS)
        found["diffusers"] = diffusers is not None
        loaded = config.get("_name_or_path")
        found["trained_on"] = loaded if is_hub_id(loaded) else None
    if (place / MANIFEST).is_file():
        with suppress(BadInput):
            made = read_manifest(place)
            records = (made.base, *made.adapters)
            found["ancestors"] = tuple(r.hub_id for r in records if r.hub_id is not None)
    return found


def _of_adapter(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with suppress(BadInput):
        config = read_json_object(place / "adapter_config.json")
        method = _plain(config.get("peft_type"), _NAME)
        if method is not None:
            found["method"] = "dora" if config.get("use_dora") is True else method.lower()
        named = config.get("base_model_name_or_path")
        if is_hub_id(named):
            found["trained_on"] = named
            found["trained_revision"] = _plain(config.get("revision"), _NAME)
    return found


def _plain(value: object, pattern: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _all_plain(value: object, pattern: re.Pattern[str]) -> tuple[str, ...]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    found = (_plain(one, pattern) for one in values[:_MOST])
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _datasets(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of data sets, which trainers also write as tags; files of somebody's machine are none."""
    tagged = [
        tag.removeprefix("dataset:")
        for tag in _all_plain(values.get("tags"), re.compile(r"dataset:.{1,200}"))
    ]
    found = (*_all_plain(values.get("datasets"), _DATASET), *_all_plain(tagged, _DATASET))
    local = {name for name in found if _FILE.fullmatch(name) or name.partition("/")[0] in _FOLDERS}
    return tuple(name for name in dict.fromkeys(found) if name not in local)


def _link(value: object) -> str | None:
    """An address, or a file of the base's own directory."""
    if not isinstance(value, str) or clean(value) != value or " " in value:
        return None
    if value.startswith(("https://", "http://")):
        return value
    is_file = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", value)
    return value if is_file else None
