"""What is to be checked: a checkpoint, a GGUF file or an ONNX directory, with the manifest that
says what it was made from, where there is one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.manifest import MANIFEST, InputRecord, parsed
from remerge.errors import BadInput
from remerge.merging.recipe import Recipe
from remerge.sources.documents import as_list, as_object, read_json_object

Kind = Literal["checkpoint", "gguf", "onnx"]
_GENAI = "genai_config.json"
# In a protocol buffer: the attribute "bits" with its value, and a tensor of type FLOAT, named next.
_BITS = re.compile(rb"(?<=\x0a\x04bits\x18)[\x01-\x10]")
_FLOAT = re.compile(rb"\x10\x01\x42")


class Origin(BaseModel):
    """What every manifest of a model says: base, adapters and recipe."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    base: InputRecord
    adapters: tuple[InputRecord, ...]
    recipe: Recipe


class _Form(BaseModel):
    """What a recipe says of how its output is written, whatever kind that is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file_type: str | None = None
    precision: str | None = None


class _Written(BaseModel):
    """A recipe, as far as it says how its output is written."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    form: _Form | None = None


class _Outputs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    recipe: _Written


@dataclass(frozen=True)
class Artefact:
    """``place`` is the file of a GGUF, else the directory; ``manifest`` is None where there is
    none."""

    kind: Kind
    place: Path
    manifest: Path | None

    @cached_property
    def origin(self) -> Origin | None:
        """What it was made from; raises `BadInput` for a manifest of another kind, or none."""
        return None if self.manifest is None else _origin(self.manifest)

    @property
    def format(self) -> str | None:
        """The format whose limits apply, as far as manifest and files tell: a file type of
        llama.cpp, a dtype, or int4, int8, fp8 or fp4. None where they do not."""
        if self.kind == "checkpoint":
            return _checkpoint_format(read_json_object(self.place / "config.json"))
        form = None
        if self.manifest is not None:
            written = parsed(self.manifest, self.manifest.read_bytes(), _Outputs).recipe
            form = written.form
        if self.kind == "gguf":
            return None if form is None else form.file_type
        if form is None or form.precision is None:
            return _onnx_format(self.place)
        return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(
            form.precision, form.precision
        )


def find_artefact(path: Path) -> Artefact:
    """What ``path`` names; raises `BadInput` where that is nothing to be checked."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise BadInput(f"{path} is a file, but none that ends in .gguf.")
        beside = path.with_name(f"{path.name}.{MANIFEST}")
        if not beside.is_file():
            beside = path.with_name(MANIFEST)
            if not _names(beside, path.name):
                beside = None
        return Artefact("gguf", path, beside)
    if not path.is_dir():
        raise BadInput(f"There is nothing at {path}.")
    manifest = path / MANIFEST if (path / MANIFEST).is_file() else None
    if (path / _GENAI).is_file():
        return Artefact("onnx", path, manifest)
    files = sorted(path.glob("*.gguf"))
    if files and not (path / "config.json").is_file():
        if len(files) > 1:
            named = ", ".join(file.name for file in files[:5])
            raise BadInput(f"{path} holds several GGUF files: {named}.", hint="Name one of them.")
        return Artefact("gguf", files[0], manifest)
    if (path / "config.json").is_file():
        return Artefact("checkpoint", path, manifest)
    raise BadInput(
        f"{path} is no model: it has neither config.json nor {_GENAI}, nor a GGUF file.",
    )


def _names(manifest: Path, file: str) -> bool:
    """Whether a manifest is there and is about this file."""
    if not manifest.is_file():
        return False
    outputs = as_list(read_json_object(manifest).get("outputs")) or []
    return any((as_object(record) or {}).get("name") == file for record in outputs)


def _origin(manifest: Path) -> Origin:
    content = manifest.read_bytes()
    try:
        kind = json.loads(content).get("format", "")
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{manifest} is not a valid manifest.") from error
    if str(kind).startswith(("remerge-adapter/", "remerge-extraction/", "remerge-combined/")):
        raise BadInput(
            f"{manifest.parent} holds an adapter, not a model.",
            hint=f"Merge it first: remerge merge BASE {manifest.parent} -o OUT.",
        )
    return parsed(manifest, content, Origin)


def _checkpoint_format(config: dict[str, Any]) -> str | None:
    """By config.json: how it says that its weights are quantised, else their dtype."""
    text = as_object(config.get("text_config")) or {}
    quantised = as_object(config.get("quantization_config"))
    quantised = quantised or as_object(config.get("compression_config"))
    if quantised:
        return _quantised_format(quantised)
    for key in ("dtype", "torch_dtype"):
        found = config.get(key, text.get(key))
        if isinstance(found, str):
            return found.removeprefix("torch.")
    return "float32"


def _quantised_format(quantised: dict[str, Any]) -> str | None:
    method = str(quantised.get("quant_method", "")).lower()
    if method == "bitsandbytes":
        return "int4" if quantised.get("load_in_4bit") else "int8"
    if method in ("gptq", "awq"):
        return f"int{quantised.get('bits', 4)}"
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method == "mxfp4":
        return "fp4"
    groups = as_object(quantised.get("config_groups")) or {}
    found: set[str] = set()
    for group in groups.values():
        weights = as_object((as_object(group) or {}).get("weights")) or {}
        bits = weights.get("num_bits")
        kind = "fp" if weights.get("type") == "float" else "int"
        found.add(f"{kind}{bits}")
    # The coarsest of several decides.
    return min(found, key=lambda name: (name[-1:], name)) if found else None


def _onnx_format(place: Path) -> str:
    """By its graph, whose weights lie in another file: the fewest bits of a quantised product, else
    float16 where no tensor is float32."""
    found: set[int] = set()
    wide = False
    for file in sorted(place.glob("*.onnx")):
        with file.open("rb") as stream:
            while block := stream.read(2**26):
                found |= {bits[0][0] for bits in _BITS.finditer(block)}
                wide = wide or _FLOAT.search(block) is not None
    if found:
        return f"int{min(found)}"
    return "float32" if wide else "float16"
