"""Reading what sizes are reckoned from: a model's headers, adapters' headers, this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from remerge.engines.machine import cores, gpus, instructions
from remerge.engines.machine import memory as machine_memory
from remerge.engines.servers.server import Adapter
from remerge.errors import UsageError
from remerge.serving.sizing.adapters import AdapterFacts
from remerge.serving.sizing.asked import Asked, Memory, Sized
from remerge.serving.sizing.config_shape import shape_of
from remerge.serving.sizing.gguf_shape import shape_of_gguf
from remerge.serving.sizing.rates import Rates, rates_of
from remerge.serving.sizing.shape import Shape
from remerge.serving.sizing.size import size
from remerge.serving.sizing.weights import Weights, weights_of, weights_of_gguf
from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.documents import as_object
from remerge.sources.gguf_header import is_gguf, read_gguf_header
from remerge.sources.header import read_header

# What vLLM takes of a GPU unless told (config/cache.py, gpu_memory_utilization).
_OF_GPU = 0.92


@dataclass(frozen=True)
class Model:
    """What of a model is needed to size a server of it."""

    shape: Shape
    weights: Weights


def read_model(path: Path) -> Model:
    """A checkpoint directory, or a GGUF file, by its headers; raises `BadInput`."""
    if path.is_file() and is_gguf(path):
        header = read_gguf_header(path)
        chosen = _chosen_of_gguf(header.metadata)
        return Model(shape_of_gguf(header), weights_of_gguf(header, chosen=chosen))
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    return Model(
        shape_of(config, with_defaults(config)), weights_of(checkpoint, chosen=_chosen(config))
    )


def read_memory(given: int | None = None, *, gpu: bool | None = None) -> Memory:
    """The memory there is: of the first GPU where there is one (or ``gpu`` says so), else of this
    machine; ``given`` bytes of it where that is said."""
    found = gpus() if gpu is not False else []
    if found:
        total = found[0].memory
        own = int(total * _OF_GPU)
        source = f"{_OF_GPU:.0%} of the {found[0].name}'s memory" if given is None else "as given"
        return Memory(given or own, source, found[0].name, total, cores())
    source = "this machine's, less what it uses by itself" if given is None else "as given"
    return Memory(given or _available(), source, threads=cores())


def size_of(
    path: Path,
    engine: str,
    asked: Asked,
    memory: Memory,
    *,
    adapters: Sequence[Adapter] = (),
    rates: Rates | None = None,
) -> Sized:
    """Read, measure the machine, and size. Raises what `read_model` and `size` raise."""
    model = read_model(path)
    check_cache_dtype(engine, asked, memory)
    read = [read_adapter(adapter) for adapter in adapters]
    rates = rates or rates_of(memory)
    return size(model.shape, model.weights, memory, asked, engine, rates, adapters=read)


def check_cache_dtype(engine: str, asked: Asked, memory: Memory) -> None:
    """Refuse what this processor cannot compute with: vLLM would fail as it starts."""
    narrow = asked.cache_dtype.startswith("fp8")
    can = instructions()
    if engine != "vllm" or memory.gpu_name is not None or not narrow or can is None:
        return
    # vllm/v1/attention/backends/cpu_attn.py.
    if not can & {"avx512f", "amx_tile"}:
        raise UsageError(
            f"vLLM keeps no {asked.cache_dtype} keys and values on this processor.",
            why="It needs AVX-512 or AMX for them.",
            hint="Leave --cache-dtype out.",
        )


def read_adapter(adapter: Adapter) -> AdapterFacts:
    """By its headers; raises `BadInput`."""
    if adapter.path.is_file():
        tensors = read_gguf_header(adapter.path).tensors.values()
        elements = sum(math.prod(tensor.shape) for tensor in tensors)
        return AdapterFacts(adapter.rank, elements, adapter.path.stat().st_size)
    headers = [read_header(file) for file in sorted(adapter.path.glob("*.safetensors"))]
    infos = [info for header in headers for info in header.tensors.values()]
    elements = sum(math.prod(info.shape) for info in infos)
    return AdapterFacts(adapter.rank, elements, sum(info.nbytes for info in infos))


def _available() -> int:
    """Nine tenths of what is free now, or can be freed, within a container's limit."""
    limit = machine_memory()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError):
        free = limit * 3 // 4
    return min(limit, free) * 9 // 10


def with_defaults(config: Mapping[str, Any]) -> object:
    """The configuration with its class's defaults; None for a type that is not known."""
    from transformers import AutoConfig

    make = cast("Any", AutoConfig).for_model
    known = {key: value for key, value in config.items() if key != "model_type"}
    # Classes refuse what they do not expect by exceptions of any kind.
    try:
        return make(config["model_type"], **known).get_text_config(decoder=True)
    except Exception:
        return None


def _chosen(config: Mapping[str, Any]) -> float:
    """The share of experts that a token uses."""
    inner = as_object(config.get("text_config")) or {}
    found: dict[str, Any] = {**config, **inner}
    used = found.get("num_experts_per_tok") or found.get("moe_topk")
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    total = next((found[name] for name in names if found.get(name)), None)
    return _share(used, total)


def _chosen_of_gguf(metadata: Mapping[str, Any]) -> float:
    name = metadata.get("general.architecture")
    return _share(metadata.get(f"{name}.expert_used_count"), metadata.get(f"{name}.expert_count"))


def _share(used: object, total: object) -> float:
    if isinstance(used, int) and isinstance(total, int) and 0 < used < total:
        return used / total
    return 1.0
