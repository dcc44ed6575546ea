"""What is to be checked: a checkpoint, a GGUF file or an ONNX directory, with the manifest that
says what it was made from, where there is one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.manifest import MANIFEST, InputRecord, parsed
from remerge.errors import BadInput
from remerge.merging.recipe import Recipe
from remerge.sources.documents import as_list, as_object, read_json_object

Kind = Literal["checkpoint", "gguf", "onnx"]
_GENAI = "genai_config.json"


class Origin(BaseModel):
    """What every manifest of a model says: base, adapters and recipe."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    base: InputRecord
    adapters: tuple[InputRecord, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Artefact:
    """``place`` is the file of a GGUF, else the directory; ``origin`` is None where there is no
    manifest."""

    kind: Kind
    place: Path
    origin: Origin | None

    @property
    def format(self) -> str | None:
        """The format whose limits apply, as far as manifest and files tell: a file type of
        llama.cpp, a dtype, or int4, int8, fp8 or fp4. None where they do not."""
        if self.kind == "gguf":
            return None if self.origin is None else self.origin.recipe.form.get("file_type")
        if self.kind == "onnx":
            return _onnx_format(self.place)
        return _checkpoint_format(read_json_object(self.place / "config.json"))


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
        return Artefact("gguf", path, None if beside is None else _origin(beside))
    if not path.is_dir():
        raise BadInput(f"There is nothing at {path}.")
    manifest = path / MANIFEST
    origin = _origin(manifest) if manifest.is_file() else None
    if (path / _GENAI).is_file():
        return Artefact("onnx", path, origin)
    files = sorted(path.glob("*.gguf"))
    if files and not (path / "config.json").is_file():
        if len(files) > 1:
            named = ", ".join(file.name for file in files[:5])
            raise BadInput(f"{path} holds several GGUF files: {named}.", hint="Name one of them.")
        return Artefact("gguf", files[0], origin)
    if (path / "config.json").is_file():
        return Artefact("checkpoint", path, origin)
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
    """By the operators that its graph names: weights of four bits have one of their own."""
    for file in sorted(place.glob("*.onnx")):
        with file.open("rb") as stream:
            while block := stream.read(2**24):
                if b"MatMulNBits" in block or b"GatherBlockQuantized" in block:
                    return "int4"
    return "float32"
