"""ggml's quantisers by way of files: cyllama hides the functions, and quantises whole models.

A block of rows becomes the one tensor of a model, which llama.cpp's own `llama_model_quantize`
writes again in the type that is asked for: the bytes are those of the functions themselves.
"""

# Both packages lie in an engine's environment.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cyllama.llama.llama_cpp as llama
import gguf
import numpy as np

from remerge.errors import TryAgain, Unsupported
from remerge.outputs.gguf.quantiser import Bytes, Floats, not_finite
from remerge.sources.ggml_types import FILE_TYPES, TensorType

# Of each tensor type a file type whose tensors are of it where no rule asks for another.
_NUMBERS = {kind.default: kind.number for kind in FILE_TYPES.values()}
# It has rules for most names; none where all tensors are to be of the default type.
_TENSOR = "blk.0.attn_q.weight"


@dataclass(frozen=True)
class FileQuantiser:
    """cyllama's quantiser of files, fed with blocks of rows."""

    package: str

    def quantise(self, rows: Floats, kind: TensorType, imatrix: Floats | None = None) -> Bytes:
        """As `Quantiser`; raises `Unsupported` for weights of columns, which it does not take."""
        if imatrix is not None:
            raise Unsupported(
                f"{self.package} cannot take an importance matrix.",
                hint="Run: remerge engines install llama.cpp",
            )
        if not np.isfinite(rows).all():
            raise not_finite(kind)
        count, columns = rows.shape
        llama.disable_logging()
        with tempfile.TemporaryDirectory(prefix="remerge-") as place:
            source, target = Path(place, "in.gguf"), Path(place, "out.gguf")
            # One row alone would pass for a vector, which is never quantised.
            _write(source, np.ascontiguousarray(np.resize(rows, (max(count, 2), columns))))
            asked = llama.LlamaModelQuantizeParams()
            # All processors (0): it lets one call run at a time.
            asked.ftype, asked.nthread, asked.pure = _NUMBERS[kind.name], 0, True
            try:
                llama.model_quantize(str(source), str(target), asked)
            except RuntimeError as error:
                # Scales are of 16 bits, and values below their largest never too large for them.
                if np.abs(rows).max() > np.finfo(np.float16).max:
                    raise not_finite(kind) from error
                raise TryAgain(
                    f"{self.package} failed: {error}.", why="Often for want of space in TMPDIR."
                ) from error
            (tensor,) = gguf.GGUFReader(target).tensors
            found = np.array(tensor.data).view(np.uint8).reshape(max(count, 2), -1)[:count]
        expected = (count, kind.row_bytes(columns))
        if tensor.tensor_type.name != kind.name or found.shape != expected:
            raise Unsupported(
                f"{self.package} gave {tensor.tensor_type.name} where {kind.name} was asked for.",
                hint="Run: remerge engines install llama.cpp",
            )
        return found


def _write(path: Path, rows: Floats) -> None:
    """A model of one tensor, with the numbers that llama.cpp will not load one without."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(1)
    writer.add_embedding_length(rows.shape[1])
    writer.add_feed_forward_length(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(1)
    writer.add_tensor(_TENSOR, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
