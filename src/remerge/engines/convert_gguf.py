"""Run in llama.cpp's environment: a merged checkpoint, read tensor by tensor, as a GGUF file.

llama.cpp's converter says which tensors the file has, under which names, and what tokenizer and
metadata; its tensors are lazy, and computed here from rows of the merge. Nothing of it is on disk
before it stands in the file.
"""

# llama.cpp's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import conversion
import gguf
import numpy as np
import torch
from conversion.base import LazyTorchTensor, ModelBase, ModelType, get_model_architecture
from gguf.gguf_writer import WriterState
from tokenizers import Tokenizer

from remerge.engines.calling import Report, answer
from remerge.engines.gguf import GgufOptions
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.errors import BadInput, Unsupported
from remerge.merging.budget import DEFAULT, peak_memory
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.ordered import in_order
from remerge.merging.recipe import Recipe
from remerge.outputs.gguf.choosing import Model, choose
from remerge.outputs.gguf.pre_tokenizers import name_of
from remerge.outputs.gguf.quantiser import Floats, Quantiser, open_quantiser
from remerge.outputs.planning import make_plan, open_inputs
from remerge.sources.ggml_types import FILE_TYPES, TYPES, TensorType

# Values that a thread has at hand at once.
_ELEMENTS = 2**21


@dataclass(frozen=True)
class Piece:
    """A block of rows of one tensor of the file."""

    name: str
    kind: TensorType
    ends: bool
    rows: Callable[[], Floats]


@dataclass
class Conversion:
    """What the converter says of the file: its tensors (shape; lazy values), and which of them are
    tensors of the merge as they are."""

    writer: Any
    model: Model
    lazy: dict[str, Any] = field(default_factory=dict[str, Any])
    same: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(values.shape) for name, values in self.lazy.items()}


def work(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write ``request["target"]``; gives its digest, size and the tensors' types."""
    recipe = Recipe.model_validate(request["recipe"])
    inputs = open_inputs(request["base"], request["adapters"], copy_code=recipe.copy_code)
    plan = make_plan(replace(inputs, original=request["original"]), recipe, DEFAULT)
    if plan.plan_id != request["plan_id"]:
        raise BadInput(
            "The engine's environment plans this merge differently: its remerge or transformers is "
            "another one.",
            hint="Install remerge there as it is here, or leave out --engine-python.",
        )
    form, about = GgufOptions.model_validate(recipe.form), request["about"]
    with plan.open(torch.device("cpu")) as merged, torch.inference_mode():
        found = convert(merged, Path(request["directory"]), about["base"])
        types = choose(found.shapes, found.model, form.file_type, form.tensor_types)
        describe(found.writer, form.file_type, about)
        quantiser = open_quantiser()
        threads = request["threads"] or os.cpu_count() or 1
        sizes = [_nbytes(shape, TYPES[types[name]]) for name, shape in found.shapes.items()]
        total = sum(_aligned(nbytes) for nbytes in sizes)
        done = 0

        def told(nbytes: int, tensor: str) -> None:
            nonlocal done
            done += nbytes
            report(done, total, tensor)

        with Path(request["target"]).open("wb") as stream:
            start = header(found, types)
            stream.write(start)
            digest, size = hashlib.sha256(start), len(start) + total
            write(stream, digest, pieces(found, merged, types), quantiser, threads, told)
            stream.flush()
            if request["target"] != os.devnull:
                os.fsync(stream.fileno())
    tensors = [[name, list(found.shapes[name]), kind] for name, kind in types.items()]
    return {
        "sha256": digest.hexdigest(),
        "size": size,
        "tensors": tensors,
        "notes": [],
        "peak_memory": peak_memory(),
        "versions": {
            "llama.cpp": LLAMA_CPP.sources[0].requirement,
            quantiser.package: version(quantiser.package),
        },
    }


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
    same: dict[str, str] = {}

    def index(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
        found: dict[str, Callable[[], Any]] = {}
        for tensor in merged:
            item = self.filter_tensors((tensor, lambda tensor=tensor: _lazy(merged, tensor)))
            if item is not None:
                found[item[0]] = item[1]
        return found

    def modify(self: Any, values: Any, tensor: str, layer: int | None) -> Iterable[tuple[str, Any]]:
        for new, changed in known.modify_tensors(self, values, tensor, layer):
            if changed is values and isinstance(values, LazyTorchTensor):
                same[new] = values._args[0]
            yield new, changed

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
        "modify_tensors": modify,
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
    _check_vocabulary(model.gguf_writer, directory)
    lazy = {key: info.tensor for key, info in model.gguf_writer.tensors[0].items()}
    return Conversion(model.gguf_writer, _model(model.gguf_writer), lazy, same)


def _reaches_all(tokenizer: str) -> bool:
    """Whether merging gives every word of a tokenizer's vocabulary."""
    model = Tokenizer.from_str(tokenizer).model
    words = json.loads(tokenizer)["model"]["vocab"]
    return all([token.id for token in model.tokenize(word)] == [i] for word, i in words.items())


def _said(error: Exception, directory: Path) -> str:
    """What the converter says, without the folder that is there for its sake."""
    return str(error).replace(f"{directory}/", "").strip().removesuffix(".") + "."


def _check_vocabulary(writer: Any, directory: Path) -> None:
    """Refuse a SentencePiece vocabulary whose scores are made up: it cuts text in other ways."""
    kind = writer.kv_data[0].get("tokenizer.ggml.model")
    if kind is not None and kind.value == "llama" and not (directory / "tokenizer.model").is_file():
        raise Unsupported(
            "The tokenizer is a SentencePiece one without its tokenizer.model.",
            why="tokenizer.json holds no scores, and llama.cpp would cut text differently.",
            hint="Put the model's tokenizer.model beside its tokenizer.json.",
        )


def _lazy(merged: MergedCheckpoint, name: str) -> Any:
    meta = LazyTorchTensor.meta_with_dtype_and_shape(torch.float32, tuple(merged[name].shape))
    return LazyTorchTensor(meta=meta, args=(name,), func=lambda n: merged[n][...].float())


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


def describe(writer: Any, file_type: str, about: Mapping[str, Any]) -> None:
    """The metadata that the merge knows and the converter does not."""
    writer.remove_key("general.file_type")
    writer.add_file_type(FILE_TYPES[file_type].number)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about["base"])
    writer.add_array("remerge.adapters", about["adapters"])
    writer.add_string("remerge.merge_key", about["merge_key"])


def header(found: Conversion, types: Mapping[str, str]) -> bytes:
    """Everything before the tensors, with their places."""
    writer = found.writer
    infos = {name: writer.tensors[0][name] for name in types}
    for name, kind in types.items():
        infos[name].dtype = gguf.GGMLQuantizationType(TYPES[kind].number)
        infos[name].nbytes = _nbytes(found.shapes[name], TYPES[kind])
    writer.tensors[0] = infos
    memory = io.BytesIO()
    writer.fout, writer.state = [memory], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return _padded(memory.getvalue())


def pieces(
    found: Conversion, merged: MergedCheckpoint, types: Mapping[str, str]
) -> Iterator[Piece]:
    """The file's rows in order, a few at a time. What the converter changes is computed whole."""
    for name, kind in types.items():
        shape = found.shapes[name]
        columns = shape[-1] if shape else 1
        count, step = math.prod(shape[:-1]), max(1, _ELEMENTS // max(columns, 1))
        # Leading dimensions are rows of rows: blocks of whole ones are rows of the merge.
        source = merged[found.same[name]] if name in found.same and len(shape) == 2 else None
        whole = None if source is not None else _Whole(found.lazy[name], columns)
        for first in range(0, count, step):
            last = min(first + step, count)
            yield Piece(name, TYPES[kind], last == count, _reader(source or whole, first, last))


def _reader(source: Any, first: int, last: int) -> Callable[[], Floats]:
    return lambda: np.asarray(source[first:last].float())


class _Whole:
    """A tensor that the converter changes: computed at the first read of a row, kept till the
    last."""

    def __init__(self, lazy: Any, columns: int) -> None:
        self._lazy, self._columns = lazy, columns
        self._lock = Lock()
        self._values: torch.Tensor | None = None

    def __getitem__(self, rows: slice) -> torch.Tensor:
        with self._lock:
            if self._values is None:
                eager = _evaluate(self._lazy)
                self._values = torch.from_numpy(eager.reshape(-1, self._columns))
        return self._values[rows]


def _evaluate(lazy: Any) -> Floats:
    """The values of a lazy tensor. Unlike its own way, nothing is kept in it: the writer knows all
    tensors to the end."""
    if isinstance(lazy, gguf.LazyChunkedTensor):
        return np.concatenate([np.asarray(chunk()) for chunk in lazy._chunks])

    def eager(value: Any) -> Any:
        if value._data is not None:
            return value._data
        return value._func(*gguf.LazyBase._recurse_apply(value._args, eager), **value._kwargs)

    return np.asarray(gguf.LazyBase._recurse_apply(lazy, eager))


def write(
    stream: Any,
    digest: Any,
    left: Iterable[Piece],
    quantiser: Quantiser,
    threads: int,
    told: Callable[[int, str], None],
) -> None:
    """Compute the pieces a few at a time and write them in order."""

    def compute(piece: Piece) -> tuple[Piece, bytes]:
        rows = piece.rows()
        if piece.kind.name == "F32":
            return piece, rows.tobytes()
        try:
            return piece, quantiser.quantise(rows, piece.kind).tobytes()
        except BadInput as error:
            raise BadInput(f"{piece.name}: {error}") from error

    size = 0
    for piece, block in in_order(left, compute, threads):
        size += len(block)
        if piece.ends:
            block += bytes(-size % gguf.GGUF_DEFAULT_ALIGNMENT)
            size = 0
        stream.write(block)
        digest.update(block)
        told(len(block), piece.name)


def _padded(block: bytes) -> bytes:
    return block + bytes(-len(block) % gguf.GGUF_DEFAULT_ALIGNMENT)


def _aligned(nbytes: int) -> int:
    return nbytes + -nbytes % gguf.GGUF_DEFAULT_ALIGNMENT


def _nbytes(shape: Sequence[int], kind: TensorType) -> int:
    return math.prod(shape[:-1]) * kind.row_bytes(shape[-1])


if __name__ == "__main__":
    answer(work)
