"""llama.cpp itself, from the package that carries it compiled: the few functions of its C interface
that reading a vocabulary and computing logits take.

Structures that pass by value are declared longer than they are, so that fields added at their ends
do no harm; what stands before is checked against the defaults that the library fills in.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remerge.errors import BadInput, Unsupported

_PACKAGES = ("xllamacpp",)
_SPARE = ("spare", ctypes.c_ubyte * 256)
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
# GGML_LOG_LEVEL_ERROR of ggml.h.
_ERROR = 4
F32 = 0


class ModelParameters(ctypes.Structure):
    """``llama_model_params`` of llama.h."""

    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int32),
        ("load_mode", ctypes.c_int32),
        ("lazy_mode", ctypes.c_int32),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
        _SPARE,
    )


class ContextParameters(ctypes.Structure):
    """``llama_context_params`` of llama.h."""

    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("n_rs_seq", ctypes.c_uint32),
        ("n_outputs_max", ctypes.c_uint32),
        ("n_outputs_max_per_seq", ctypes.c_uint32),
        ("n_threads", ctypes.c_int32),
        ("n_threads_batch", ctypes.c_int32),
        ("ctx_type", ctypes.c_int32),
        ("rope_scaling_type", ctypes.c_int32),
        ("pooling_type", ctypes.c_int32),
        ("attention_type", ctypes.c_int32),
        ("flash_attn_type", ctypes.c_int32),
        ("rope_freq_base", ctypes.c_float),
        ("rope_freq_scale", ctypes.c_float),
        ("yarn_ext_factor", ctypes.c_float),
        ("yarn_attn_factor", ctypes.c_float),
        ("yarn_beta_fast", ctypes.c_float),
        ("yarn_beta_slow", ctypes.c_float),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        # A field that the published header does not have yet; zero by default.
        ("newer", ctypes.c_void_p),
        ("embeddings", ctypes.c_bool),
        ("offload_kqv", ctypes.c_bool),
        ("no_perf", ctypes.c_bool),
        ("op_offload", ctypes.c_bool),
        ("swa_full", ctypes.c_bool),
        ("kv_unified", ctypes.c_bool),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", ctypes.c_void_p),
        _SPARE,
    )


class Batch(ctypes.Structure):
    """``llama_batch`` of llama.h."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


# Fields whose defaults are known and not zero, or that stand behind everything that could have
# grown: if these are where they should be, so is what lies between them.
_MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
}


@dataclass(frozen=True)
class LlamaLibrary:
    """The library's functions, and the errors that it logged."""

    functions: Any
    errors: list[str] = field(default_factory=list[str])
    _kept: list[Any] = field(default_factory=list[Any])

    @property
    def said(self) -> str:
        """The first error since a model was loaded."""
        return self.errors[0].rstrip(".") if self.errors else "it does not say why"

    def metadata(self, model: Any, key: str) -> str | None:
        """A value of the file's metadata as text; None where it has none."""
        found = ctypes.create_string_buffer(256)
        size = self.functions.llama_model_meta_val_str(model, key.encode(), found, 256)
        return None if size < 0 else found.value.decode("utf-8", "replace")

    @contextmanager
    def model(self, file: Path, *, vocab_only: bool = False) -> Generator[Any]:
        """A GGUF file loaded, or its vocabulary alone; raises `BadInput` where it cannot be."""
        wanted: Any = self.functions.llama_model_default_params()
        wanted.vocab_only, wanted.check_tensors = vocab_only, not vocab_only
        del self.errors[:]
        found = self.functions.llama_model_load_from_file(str(file).encode(), wanted)
        if not found:
            raise BadInput(f"llama.cpp cannot load {file}: {self.said}.")
        try:
            yield found
        finally:
            self.functions.llama_model_free(found)

    def tokens(self, model: Any, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text; with ``special``, the ones put before or after it as well.

        Names of special tokens in the text are read as these, as Hugging Face's tokenizers do.
        """
        vocabulary = self.functions.llama_model_get_vocab(model)
        raw = text.encode()
        room = len(raw) + 16
        while True:
            found = (ctypes.c_int32 * room)()
            count = self.functions.llama_tokenize(
                vocabulary, raw, len(raw), found, room, special, True
            )
            if count >= 0:
                return list(found[:count])
            if -count <= room:
                raise BadInput("llama.cpp cannot cut a text into tokens.")
            room = -count


def open_library() -> LlamaLibrary:
    """The first package's library; raises `Unsupported` where there is none, or another version's.

    Runs in llama.cpp's environment.
    """
    for path in _libraries():
        library: Any = ctypes.CDLL(str(path))
        if hasattr(library, "llama_model_load_from_file"):
            break
    else:
        raise Unsupported(
            f"There is no {' or '.join(_PACKAGES)} here, which carries llama.cpp.",
            hint="Run: remerge engines install llama.cpp",
        )
    found = LlamaLibrary(_typed(library))
    _check(library.llama_model_default_params(), _MODEL_DEFAULTS)
    _check(library.llama_context_default_params(), _CONTEXT_DEFAULTS)

    def log(level: int, text: bytes | None, _: Any) -> None:
        if level == _ERROR and text and text.strip():
            found.errors.append(text.decode("utf-8", "replace").strip())

    callback = _LOG(log)
    found._kept.append(callback)  # pyright: ignore[reportPrivateUsage]
    library.llama_log_set(callback, None)
    library.llama_backend_init()
    return found


def _libraries() -> Iterator[Path]:
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield from sorted(Path(folder).rglob("*.so"))


def _check(found: Any, expected: dict[str, Any]) -> None:
    other = [name for name, value in expected.items() if getattr(found, name) != value]
    if other:
        raise Unsupported(
            f"This llama.cpp is another version: its {type(found).__name__} differ in {other[0]}.",
            hint="Run: remerge engines install llama.cpp, and leave out --engine-python.",
        )


def _typed(library: Any) -> Any:
    pointer, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    ids = ctypes.POINTER(number)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_log_set": (None, [_LOG, pointer]),
        "llama_model_default_params": (ModelParameters, []),
        "llama_context_default_params": (ContextParameters, []),
        "llama_model_load_from_file": (pointer, [text, ModelParameters]),
        "llama_model_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_model_meta_val_str": (number, [pointer, text, text, ctypes.c_size_t]),
        "llama_init_from_model": (pointer, [pointer, ContextParameters]),
        "llama_free": (None, [pointer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_decode": (number, [pointer, Batch]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_vocab_get_add_bos": (ctypes.c_bool, [pointer]),
        "llama_vocab_get_add_eos": (ctypes.c_bool, [pointer]),
        "llama_tokenize": (
            number,
            [pointer, text, number, ids, number, ctypes.c_bool, ctypes.c_bool],
        ),
    }
    for name, (result, parameters) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, parameters
    return library
