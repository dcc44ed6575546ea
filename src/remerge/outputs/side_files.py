"""Everything beside the weights: carried byte for byte, or changed in the one key that must."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remerge.adapters.adapter import Adapter
from remerge.errors import BadInput
from remerge.merging.plan import SideFile
from remerge.merging.recipe import Recipe
from remerge.sources.checkpoint import Checkpoint
from remerge.sources.documents import as_object
from remerge.sources.dtypes import torch_dtype
from remerge.sources.reading import unquantised

# A tokenizer is one thing in several files: they are taken together, from one side.
_TOKENIZER = frozenset(
    {
        "added_tokens.json",
        "bpe.codes",
        "chat_template.jinja",
        "chat_template.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "tokenizer_config.json",
        "vocab.bpe",
        "vocab.json",
        "vocab.txt",
    }
)
# Where other tools say how a checkpoint is quantised.
_QUANTISATION = frozenset({"quantize_config.json", "quant_config.json", "hf_quant_config.json"})
_TEMPLATES = frozenset({"chat_template.jinja", "chat_template.json"})
_CARD = "readme.md"
_TEMPLATE_FOLDER = "additional_chat_templates/"


def side_files(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    labels: Sequence[str],
    recipe: Recipe,
    changes: Mapping[str, object],
    unpacked: str | None = None,
    quantisation: Mapping[str, Any] | None = None,
) -> tuple[tuple[SideFile, ...], tuple[str, ...]]:
    """The output's side files, and sentences for the user about them.

    ``changes`` are dotted keys of config.json with their new values; ``unpacked`` is the dtype of
    the output where the base is quantised and the output not as the base; ``quantisation`` is the
    output's own ``quantization_config``.
    """
    notes: list[str] = []
    files: dict[str, SideFile] = {}
    skipped_code: list[str] = []
    for name in base.side_files:
        if name.lower() == _CARD:
            # The base's card speaks of the base; the output has one of its own.
            continue
        if name.endswith(".py") and not recipe.copy_code:
            skipped_code.append(name)
        elif unpacked is None or name not in _QUANTISATION:
            files[name] = SideFile(name, source=base.path / name)
    if skipped_code:
        notes.append(
            f"The base's code ({', '.join(skipped_code)}) was not copied; --copy-code does."
        )
    if base.left_out:
        notes.append(
            f"Left out, as they hold the base's weights in another form: "
            f"{', '.join(base.left_out)}."
        )
    notes += _take_tokenizer(files, _brought(adapters, labels, recipe), recipe)
    document = _changed_config(base.config, recipe, changes, unpacked, quantisation)
    if document is not None:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        files["config.json"] = SideFile("config.json", content=text.encode())
    return tuple(files[name] for name in sorted(files)), tuple(notes)


def carried_tokenizer(
    adapters: Sequence[Adapter], labels: Sequence[str], recipe: Recipe
) -> tuple[SideFile, ...]:
    """The tokenizer that adapters bring, for a new adapter in their place."""
    brought = _brought(adapters, labels, recipe)
    return tuple(SideFile(name, source=path) for name, path in brought.items())


def tokenizer_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The side files of a checkpoint that are its tokenizer's, chat templates included."""
    return tuple(name for name in checkpoint.side_files if is_tokenizer_file(name))


def _brought(adapters: Sequence[Adapter], labels: Sequence[str], recipe: Recipe) -> dict[str, Path]:
    """The tokenizer files to take from an adapter, by name: of the one that brings some.

    Raises `BadInput` where several bring different ones, or the one asked for brings none.
    """
    if recipe.tokenizer == "base":
        return {}
    asked, _, number = recipe.tokenizer.partition(":")
    # With a weight of zero an adapter takes no part.
    taking = [a for a, weight in zip(adapters, recipe.weights, strict=True) if weight != 0.0]
    chosen = [adapters[int(number) - 1]] if number else taking
    found = [files for files in map(_tokenizer_of, chosen) if files]
    if asked == "adapter":
        found = [files for files in found if _is_complete(files)]
        if not found:
            raise BadInput(
                f"--tokenizer {recipe.tokenizer} was asked for, but "
                f"{' and '.join(str(adapter.path) for adapter in chosen)} brings no tokenizer.",
                hint="Use --tokenizer base, or save the tokenizer beside the adapter.",
            )
    for files in found[1:]:
        differing = _differing(found[0], files)
        if differing is not None:
            raise BadInput(
                f"The adapters bring different tokenizers ({differing} differs).",
                hint=f"Say whose to take: --tokenizer base, or --tokenizer {labels[0]}.",
            )
    return found[0] if found else {}


def _tokenizer_of(adapter: Adapter) -> dict[str, Path]:
    return {
        path.relative_to(adapter.path).as_posix(): path
        for path in sorted(adapter.path.rglob("*"))
        if path.is_file() and is_tokenizer_file(path.relative_to(adapter.path).as_posix())
    }


def _is_complete(brought: Mapping[str, Path]) -> bool:
    """Whether it is a whole tokenizer, and not a chat template alone."""
    return any(name not in _TEMPLATES and "/" not in name for name in brought)


def _differing(one: Mapping[str, Path], other: Mapping[str, Path]) -> str | None:
    """The first file in which two tokenizers differ, None where they are the same."""
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            return name
        if one[name].read_bytes() != other[name].read_bytes():
            return name
    return None


def _take_tokenizer(
    files: dict[str, SideFile], brought: Mapping[str, Path], recipe: Recipe
) -> list[str]:
    """Replace the base's tokenizer by the adapter's where it brings one (or was asked for)."""
    if not brought:
        return []
    notes: list[str] = []
    if _is_complete(brought):
        keeps_template = not _has_template(brought)
        for name in [n for n in files if is_tokenizer_file(n)]:
            if not (keeps_template and name in _TEMPLATES):
                del files[name]
        notes.append("The tokenizer is the adapter's (--tokenizer base takes the base's).")
    else:
        notes.append("The chat template is the adapter's; the tokenizer is the base's.")
        for name in _TEMPLATES & files.keys():
            del files[name]
    files.update((name, SideFile(name, source=path)) for name, path in brought.items())
    return notes


def is_tokenizer_file(name: str) -> bool:
    """Whether a side file is a tokenizer's, chat templates included."""
    return name in _TOKENIZER or name.startswith(_TEMPLATE_FOLDER)


def _has_template(brought: Mapping[str, Path]) -> bool:
    if _TEMPLATES & brought.keys():
        return True
    config = brought.get("tokenizer_config.json")
    if config is None:
        return False
    try:
        return bool(json.loads(config.read_bytes()).get("chat_template"))
    except (ValueError, AttributeError):
        return False


def _changed_config(
    config: Mapping[str, Any],
    recipe: Recipe,
    changes: Mapping[str, object],
    unpacked: str | None,
    quantisation: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """A copy of config.json with the changes, or None where nothing changes."""
    kept = unquantised(config) if unpacked is not None else config
    document: dict[str, Any] = json.loads(json.dumps(kept))
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    dtype = unpacked if recipe.dtype == "keep" else recipe.dtype
    if dtype is not None:
        _set_dtype(document, str(torch_dtype(dtype)).removeprefix("torch."))
    if quantisation is not None:
        document["quantization_config"] = dict(quantisation)
    return document if document != config else None


def _set_dtype(document: dict[str, Any], dtype: str) -> None:
    """State the new dtype wherever the configuration states one, sub-models included.

    transformers 5 reads ``dtype``, 4 reads ``torch_dtype``.
    """
    for key in ("dtype", "torch_dtype"):
        if isinstance(document.get(key), str):
            document[key] = dtype
    if "model_type" in document and "dtype" not in document and "torch_dtype" not in document:
        document["torch_dtype"] = dtype
    for value in document.values():
        nested = as_object(value)
        if nested is not None and ("dtype" in nested or "torch_dtype" in nested):
            _set_dtype(nested, dtype)
