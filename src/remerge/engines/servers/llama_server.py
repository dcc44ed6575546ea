"""llama.cpp's server by the words of its own `llama-server`, of which no wheel has the program: the
library in xllamacpp is the very server. Run by the engine's interpreter, as a file.

It takes the options that `remerge serve` writes and those that people add most often; others are
refused by name.
"""

# Its package has no types, and lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any


def _read(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama_server.py", allow_abbrev=False)
    add = parser.add_argument
    add("-m", "--model", required=True)
    add("-a", "--alias", default="")
    add("-c", "--ctx-size", type=int, default=0)
    add("-np", "--parallel", type=int, default=1)
    add("-n", "--predict", "--n-predict", type=int)
    add("-b", "--batch-size", type=int)
    add("-ub", "--ubatch-size", type=int)
    add("-ctk", "--cache-type-k", default="f16")
    add("-ctv", "--cache-type-v", default="f16")
    add("-cram", "--cache-ram", type=int, help="MiB")
    add("-ctxcp", "--ctx-checkpoints", type=int)
    add("-fit", "--fit", choices=("on", "off"), default="on")
    add("-t", "--threads", type=int)
    add("-tb", "--threads-batch", type=int)
    add("-ngl", "--gpu-layers", "--n-gpu-layers", type=int)
    add("--lora", action="append", default=[])
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8080)
    add("--api-key", default=os.environ.get("LLAMA_API_KEY"))
    add("--chat-template")
    add("-lv", "--verbosity", type=int)
    add("--metrics", action="store_true")
    add("--no-warmup", action="store_true")
    return parser.parse_args(words)


def _params(asked: argparse.Namespace) -> Any:
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = asked.model
    params.model_alias = {name for name in asked.alias.split(",") if name}
    params.n_ctx, params.n_parallel = asked.ctx_size, asked.parallel
    params.cache_type_k = _kind(llama, asked.cache_type_k)
    params.cache_type_v = _kind(llama, asked.cache_type_v)
    params.hostnames, params.port = [asked.host], asked.port
    params.warmup = not asked.no_warmup
    params.endpoint_metrics = asked.metrics
    params.fit_params = asked.fit == "on"
    given = {
        "n_predict": asked.predict,
        "n_batch": asked.batch_size,
        "n_ubatch": asked.ubatch_size,
        "cache_ram_mib": asked.cache_ram,
        "n_ctx_checkpoints": asked.ctx_checkpoints,
        "n_gpu_layers": asked.gpu_layers,
        "verbosity": asked.verbosity,
        "chat_template": asked.chat_template,
        "api_keys": [asked.api_key] if asked.api_key else None,
    }
    for name, value in given.items():
        if value is not None:
            setattr(params, name, value)
    if asked.threads is not None:
        params.cpuparams.n_threads = asked.threads
    if asked.threads_batch or asked.threads:
        params.cpuparams_batch.n_threads = asked.threads_batch or asked.threads
    adapters = []
    for path in asked.lora:
        adapter = llama.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, 1.0
        adapters.append(adapter)
    params.lora_adapters = adapters
    return params


def _kind(llama: Any, name: str) -> Any:
    found = getattr(llama.ggml_type, f"GGML_TYPE_{name.upper()}", None)
    if found is None:
        sys.exit(f"error: {name} is no type of keys and values.")
    return found


def main() -> None:
    asked = _read(sys.argv[1:])
    import xllamacpp as llama

    # Until it is up, and afterwards: nothing is to be saved, and its threads would be waited for.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    server = llama.Server(_params(asked))
    print(f"server is listening on {server.listening_address}", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
