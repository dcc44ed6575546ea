"""Run in llama.cpp's environment: what its converter makes of a merged checkpoint.

It says which tensors the file has, under which names and in which shapes, and what tokenizer and
metadata; its tensors are lazy, and read from the merge when they are written.
"""

# llama.cpp's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conversion
import gguf
from conversion.base import ModelBase, ModelType, get_model_architecture
from tokenizers import Tokenizer

from remerge.engines.gguf_values import lazy_tensor
from remerge.errors import BadInput, Unsupported
from remerge.merging.merged import MergedCheckpoint
from remerge.outputs.gguf.choosing import Model
from remerge.outputs.gguf.pre_tokenizers import name_of


@dataclass(frozen=True)
class Conversion:
    """What the converter says of the file: its writer with names and metadata, what decides types,
    and the tensors' lazy values."""

    writer: Any
    model: Model
    lazy: Mapping[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(values.shape) for name, values in self.lazy.items()}


def convert(merged: MergedCheckpoint, directory: Path, name: str) -> Conversion:
    """Have the converter name and shape the file's tensors; ``directory`` holds configuration and
    tokenizer. Raises `Unsupported` for what it does not know."""
    hparams = ModelBase.load_hparams(directory, False)
    architecture = get_model_architecture(hparams, ModelType.TEXT)
    try:
        known = conversion.get_model_class(architecture)
    except NotImplementedError as error:
        raise Unsupported(
            f"llama.cpp's converter does not know {architecture}.",
            hint="Write a checkpoint instead (leave out --to).",
        ) from error

    def index(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
        found: dict[str, Callable[[], Any]] = {}
        for tensor in merged:
            item = self.filter_tensors((tensor, lambda tensor=tensor: lazy_tensor(merged, tensor)))
            if item is not None:
                found[item[0]] = item[1]
        return found

    def pre_tokenizer(self: Any, tokenizer: Any) -> str:
        try:
            return known.get_vocab_base_pre(self, tokenizer)
        except NotImplementedError:
            content = (directory / "tokenizer.json").read_text()
            found = name_of(json.loads(content), reaches_all=_reaches_all(content))
            if found is None:
                raise
            # By this name llama.cpp would put it there unless told otherwise.
            ids = tokenizer.encode("a")
            starts = bool(ids) and ids[0] == tokenizer.bos_token_id
            self.gguf_writer.add_add_bos_token(starts)
            return found

    methods = {
        "index_tensors": index,
        "get_vocab_base_pre": pre_tokenizer,
        "model_arch": known.model_arch,
    }
    model: Any = type(known.__name__, (known,), methods)(
        directory, gguf.LlamaFileType.ALL_F32, directory / "none", model_name=name
    )
    try:
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
    except NotImplementedError as error:
        raise Unsupported(
            f"llama.cpp's converter refuses this model: {_said(error, directory)}",
            why="Often a tokenizer whose way of cutting words it does not know.",
            hint="Write a checkpoint instead (leave out --to).",
        ) from error
    except (AssertionError, LookupError, TypeError, ValueError, FileNotFoundError) as error:
        missing = "tokenizer.model" in str(error)
        raise BadInput(
            f"llama.cpp's converter refuses this model: {_said(error, directory)}",
            hint="Put the model's tokenizer.model beside its tokenizer.json." if missing else None,
        ) from error
    _check_scores(model.gguf_writer, directory)
    lazy = {key: info.tensor for key, info in model.gguf_writer.tensors[0].items()}
    return Conversion(model.gguf_writer, _model(model.gguf_writer), lazy)


def _reaches_all(tokenizer: str) -> bool:
    """Whether merging gives every word of a tokenizer's vocabulary."""
    model = Tokenizer.from_str(tokenizer).model
    words = json.loads(tokenizer)["model"]["vocab"]
    return all([token.id for token in model.tokenize(word)] == [i] for word, i in words.items())


def _said(error: Exception, directory: Path) -> str:
    """What the converter says, without the folder that is there for its sake."""
    return str(error).replace(f"{directory}/", "").strip().removesuffix(".") + "."


def _check_scores(writer: Any, directory: Path) -> None:
    """Refuse a SentencePiece vocabulary whose scores are made up: it cuts text in other ways."""
    kind = writer.kv_data[0].get("tokenizer.ggml.model")
    if kind is not None and kind.value == "llama" and not (directory / "tokenizer.model").is_file():
        raise Unsupported(
            "The tokenizer is a SentencePiece one without its tokenizer.model.",
            why="tokenizer.json holds no scores, and llama.cpp would cut text differently.",
            hint="Put the model's tokenizer.model beside its tokenizer.json.",
        )


def _model(writer: Any) -> Model:
    """What the choice of types asks, from the file's own metadata."""
    values = {key: value.value for key, value in writer.kv_data[0].items()}

    def number(key: str) -> int:
        found = values.get(f"{writer.arch}.{key}", 0)
        return int(found[0]) if isinstance(found, Sequence) else int(found)

    heads = number("attention.head_count")
    return Model(
        writer.arch,
        number("block_count"),
        heads,
        number("attention.head_count_kv") or heads,
        number("expert_count"),
    )
