"""A base checkpoint as named tensors, shards and side files, known from its headers alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from remerge.errors import BadInput
from remerge.sources.documents import as_object, read_json_object
from remerge.sources.header import Header, read_header
from remerge.sources.links import check_inside
from remerge.sources.pickled import PickledFile, open_pickled

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# A component of a diffusers pipeline.
_COMPONENT_INDEX = "diffusion_pytorch_model.safetensors.index.json"
COMPONENT = "diffusion_pytorch_model.safetensors"
_PICKLED = "pytorch_model.bin"
_PICKLED_INDEX = "pytorch_model.bin.index.json"

# Weights in other formats would still be the base's: a copy of them beside merged weights is how
# a server ends up serving the wrong model.
_OTHER_WEIGHTS = re.compile(
    r".*\.(safetensors|gguf|onnx|onnx_data|h5|msgpack|tflite|ckpt|pth|mlmodel|ot|index\.json)"
    r"|(pytorch_model|model|consolidated|diffusion_pytorch_model|openvino_model).*\.(bin|pt)"
    r"|(optimizer|scheduler|scaler|rng_state).*\.(bin|pt|pth)"
)
# What remerge wrote of this checkpoint, or of a file beside it, is not true of what is made of it.
_ABOUT = re.compile(
    r"remerge\.json|provenance\.json|remerge\.preparations|remerge\.tests/.*"
    r"|[^/]+\.gguf\.((remerge|provenance)\.json|remerge\.tests/.*)"
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor on disk: bytes ``[start, stop)`` of the shard's file."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Shard:
    """One weight file: its name in the checkpoint, where it lies, its size and header.

    ``pickled`` is set for an old ``.bin`` file, which is read as the safetensors file it would be.
    """

    name: str
    path: Path
    size: int
    header: Header
    pickled: PickledFile | None = None

    @property
    def safetensors_name(self) -> str:
        """The name under which the shard is written."""
        if self.pickled is None:
            return self.name
        return self.name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A base: headers read, no weight read yet."""

    path: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    tensors: Mapping[str, StoredTensor]
    index: str | None
    side_files: tuple[str, ...]
    left_out: tuple[str, ...]

    def shard(self, name: str) -> Shard:
        return next(shard for shard in self.shards if shard.name == name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint directory's configuration and headers.

    Raises `BadInput` when it is no such directory or its files contradict each other.
    """
    if not path.is_dir():
        raise BadInput(f"{path} is not a directory.", hint="Give the checkpoint's directory.")
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        trained_on = read_json_object(path / "adapter_config.json").get("base_model_name_or_path")
        raise BadInput(
            f"{path} is an adapter, not a base checkpoint.",
            why=f"It was trained on {trained_on}." if trained_on else None,
            hint=f"The base comes first: remerge merge {trained_on or 'BASE'} ADAPTER -o OUT.",
        )
    if not (path / "config.json").exists():
        raise BadInput(
            f"{path} has no config.json.",
            why="It is not a Hugging Face checkpoint, or its download is incomplete.",
        )
    config = read_json_object(path / "config.json")
    index, names, weight_map = _shard_names(path)
    shards = tuple(_open_shard(path, name) for name in names)
    tensors = _tensors(path, shards, weight_map)
    side, left_out = _side_files(path, {*names, *([index] if index else [])})
    return Checkpoint(path, config, shards, tensors, index, side, left_out)


def _shard_names(path: Path) -> tuple[str | None, list[str], dict[str, str] | None]:
    """The weight files as transformers finds them: the single file, else the index."""
    for single in (SINGLE, COMPONENT):
        if os.path.lexists(path / single):
            return None, [single], None
    found = sorted(p.name for p in path.iterdir() if p.suffix == ".safetensors")
    index = INDEX
    if not (path / INDEX).exists() and (path / _COMPONENT_INDEX).exists():
        index = _COMPONENT_INDEX
    elif not (path / INDEX).exists():
        if len(found) == 1:
            return None, found, None
        if not found and os.path.lexists(path / _PICKLED):
            return None, [_PICKLED], None
        index = _PICKLED_INDEX
    if not (path / index).exists():
        ggufs = sorted(p.name for p in path.glob("*.gguf"))
        if ggufs and not found:
            raise BadInput(
                f"{path} holds {ggufs[0]}, a GGUF file, and no safetensors.",
                hint="Merge into the Hugging Face checkpoint that it was converted from.",
            )
        raise BadInput(
            f"{path} has neither {SINGLE} nor {INDEX}"
            + (f", but {len(found)} safetensors files." if found else "."),
            why="The download is incomplete." if not found else "The index is missing.",
        )
    entries = as_object(read_json_object(path / index, unique=True).get("weight_map"))
    if not entries:
        raise BadInput(f"{path / index} has no weight_map.")
    for tensor, file in entries.items():
        if not isinstance(file, str) or file != PurePosixPath(file).name or file in ("", ".", ".."):
            raise BadInput(
                f"{path / index} puts tensor {tensor!r} in {file!r}, which is not a plain file "
                f"name of that directory."
            )
    return index, sorted(set(entries.values())), entries


def _open_shard(path: Path, name: str) -> Shard:
    file = path / name
    if not file.exists():
        raise BadInput(
            f"{file} is missing.",
            why="The index names it; the download is incomplete or the link is dangling.",
        )
    check_inside(file, path)
    if name.endswith(".bin"):
        pickled = open_pickled(file)
        return Shard(name, file, file.stat().st_size, pickled.header, pickled)
    header = read_header(file)
    return Shard(name, file, file.stat().st_size, header)


def _tensors(
    path: Path, shards: tuple[Shard, ...], weight_map: dict[str, str] | None
) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        offset = shard.header.data_offset
        for name, info in shard.header.tensors.items():
            if name in tensors:
                raise BadInput(
                    f"{path}: tensor {name!r} stands in both {tensors[name].shard} and "
                    f"{shard.name}.",
                    why="One of the two copies is stale; which one counts cannot be known.",
                )
            if weight_map is not None and weight_map.get(name) != shard.name:
                said = weight_map.get(name)
                raise BadInput(
                    f"{path / INDEX} "
                    + (f"puts tensor {name!r} in {said}" if said else f"does not list {name!r}")
                    + f", but {shard.name} holds it.",
                    why="Index and shards come from different saves.",
                )
            tensors[name] = StoredTensor(
                name, shard.name, info.dtype, info.shape, offset + info.start, offset + info.stop
            )
    for name, file in (weight_map or {}).items():
        # A pickled shard may hold a tensor under two names, of which one was kept.
        if name not in tensors and not file.endswith(".bin"):
            raise BadInput(
                f"{path / INDEX} lists tensor {name!r} in {file}, which does not hold it.",
                why="Index and shards come from different saves.",
            )
    return tensors


def _side_files(path: Path, weights: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Everything else: what is carried along, and what is left out because it holds weights."""
    kept: list[str] = []
    left_out: list[str] = []
    modules = _sentence_transformer_folders(path)
    for folder, folders, files in os.walk(path):
        relative = Path(folder).relative_to(path)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            name = (relative / file).as_posix()
            if name in weights or file.startswith(".") or _ABOUT.fullmatch(name):
                continue
            if not name.isprintable():
                raise BadInput(f"{path} holds a file with an unreadable name, {name!r}.")
            if not (Path(folder) / file).is_file():
                raise BadInput(f"{path / name} is not a regular file.")
            check_inside(path / name, path)
            carried = relative.parts[:1] in modules if relative.parts else False
            other = _OTHER_WEIGHTS.fullmatch(file) is not None
            (left_out if other and not carried else kept).append(name)
    return tuple(kept), tuple(left_out)


def _sentence_transformer_folders(path: Path) -> set[tuple[str, ...]]:
    """Sub-folders that sentence-transformers lists: their weights are part of the model."""
    try:
        modules = json.loads((path / "modules.json").read_bytes())
        return {PurePosixPath(module["path"]).parts[:1] for module in modules if module["path"]}
    except (OSError, ValueError, TypeError, KeyError):
        return set()
