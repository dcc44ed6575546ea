"""Servers at the limits of what they were sized to: they start, every sequence fills its context,
and no more memory is taken than was given. One engine's own allocator is asked as well."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
import transformers

import remerge
from remerge.engines.servers.registry import server_of
from remerge.engines.servers.running import free_port, start, wait_healthy
from remerge.engines.servers.server import Address, Served
from remerge.serving.sizing.asked import Asked, Sized
from remerge.serving.sizing.cache import Layout, cache_bytes
from remerge.serving.sizing.reading import read_memory, read_model, size_of
from remerge.serving.sizing.shape import Attention, Layer, Shape
from tests.engines.llama_models import train_sentencepiece
from tests.engines.places import needs, python_of
from tests.engines.process_trees import Watched, watched

_BASE = Path(__file__).parents[2] / "examples" / "base"


def _marked(engine: str) -> Callable[[Any], Any]:
    """A test that needs this engine, and no other."""

    def mark(test: Any) -> Any:
        for one in needs(engine):
            test = one(test)
        return test

    return mark


@dataclass
class Started:
    url: str
    log: Path
    memory: Watched


@contextmanager
def _running(engine: str, model: Path, sized: Sized, log: Path) -> Generator[Started]:
    """By the command that `remerge serve` runs."""
    address = Address(port=free_port())
    served = Served(model, "model")
    command = server_of(engine).command(python_of(engine), served, sized.settings, address)
    if engine == "llama.cpp":
        # Buffers and their sizes are told to those who ask.
        command = replace(command, words=(*command.words, "--verbosity", "5"))
    server = start(command, address, log=log)
    try:
        while not server.processes:
            assert server.is_alive
            time.sleep(0.01)
        with watched(server.processes[0]) as memory:
            wait_healthy(server, address, timeout=300)
            yield Started(address.url, log, memory)
    finally:
        server.stop()


def _fill(started: Started, sized: Sized) -> None:
    """As many requests at once as there are sequences, each of the full context."""
    context, draw = sized.settings.context, random.Random(0)

    def ask(_: int) -> int:
        prompt = [draw.randrange(5, 500) for _ in range(context - 16)]
        asked: dict[str, Any] = {"prompt": prompt, "max_tokens": 15, "temperature": 0.7}
        asked |= {"model": "model", "ignore_eos": True}
        answer = httpx.post(f"{started.url}/v1/completions", json=asked, timeout=600)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["total_tokens"]

    with ThreadPoolExecutor(sized.settings.sequences) as pool:
        totals = list(pool.map(ask, range(sized.settings.sequences)))
    assert set(totals) == {context - 1}


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 58M parameters, with the tokenizer of the small one."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=512,
        num_hidden_layers=8,
        intermediate_size=1408,
        vocab_size=32_000,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    path = tmp_path_factory.mktemp("larger") / "model"
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(_BASE / file, path)
    return path


def _gguf(checkpoint: Path, out: Path) -> Path:
    python = {"llama.cpp": str(python_of("llama.cpp"))}
    remerge.export(checkpoint, out, to="gguf:F16", engine_python=python)
    return out


@_marked("llama.cpp")
@pytest.mark.parametrize(
    ("which", "given", "asked"),
    [
        ("base", 140 * 10**6, Asked()),
        ("larger", 300 * 10**6, Asked(context=512)),
        ("larger", 320 * 10**6, Asked(context=1000, cache_dtype="q8_0", sequences=2)),
    ],
)
def test_llama_cpp_at_its_limits(
    which: str, given: int, asked: Asked, larger: Path, tmp_path: Path
) -> None:
    model = _gguf(_BASE if which == "base" else larger, tmp_path / "model.gguf")
    sized = size_of(model, "llama.cpp", asked, read_memory(given, gpu=False))
    with _running("llama.cpp", model, sized, tmp_path / "log") as started:
        _fill(started, sized)
    assert 0 < started.memory.peak <= given
    buffers = re.findall(r"KV buffer size = +([\d.]+) MiB", started.log.read_text(errors="replace"))
    assert sum(map(float, buffers)) * 2**20 == pytest.approx(sized.settings.cache_bytes, abs=8192)


_TINY: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
_LATENT = {"kv_lora_rank": 64, "q_lora_rank": 64, "qk_rope_head_dim": 32, "v_head_dim": 32}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_KINDS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: transformers.Qwen3Config(**_TINY, head_dim=64),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_TINY, head_dim=64, sliding_window=600, bos_token_id=1, eos_token_id=2
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_TINY, **_EXPERTS, head_dim=64, sliding_window=600
    ),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(
        **{**_TINY, "num_key_value_heads": 4},
        **_LATENT,
        qk_nope_head_dim=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **_TINY, layer_types=["conv", "full_attention"] * 4, block_auto_adjust_ff_dim=False
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        vocab_size=2048,
        hidden_size=256,
        num_hidden_layers=4,
        num_heads=8,
        head_dim=64,
        state_size=32,
        n_groups=1,
    ),
}


@_marked("llama.cpp")
@pytest.mark.parametrize("kind", _KINDS)
def test_caches_of_all_kinds_against_llama_cpps_own(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tmp_path / "base"
    transformers.AutoModelForCausalLM.from_config(_KINDS[kind]()).save_pretrained(base)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(_BASE / file, base)
    if kind == "gemma3":
        train_sentencepiece(python_of("llama.cpp"), base / "tokenizer.model")
        (base / "tokenizer.json").unlink()
        (base / "special_tokens_map.json").unlink()
        named = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "bos_token": "<s>"}
        named |= {"eos_token": "</s>", "unk_token": "<unk>"}
        (base / "tokenizer_config.json").write_text(json.dumps(named))
    model = _gguf(base, tmp_path / "model.gguf")
    sized = size_of(
        model, "llama.cpp", Asked(context=2000, sequences=2), read_memory(10**9, gpu=False)
    )
    with _running("llama.cpp", model, sized, tmp_path / "log") as started:
        log = started.log.read_text(errors="replace")
    # What is tried without memory first is said as well.
    said = log[log.rindex("llama_context: n_ctx ") :]
    found = [float(size) for size in re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", said)]
    assert found
    assert sum(found) * 2**20 == pytest.approx(sized.settings.cache_bytes, abs=10_500 * len(found))
    (computing,) = re.findall(r"CPU compute buffer size = +([\d.]+) MiB", said)
    assert float(computing) * 2**20 < sized.parts.compute


@_marked("vllm")
@pytest.mark.parametrize(
    ("which", "given", "asked"),
    [
        ("base", 2_100 * 10**6, Asked()),
        ("larger", 2_500 * 10**6, Asked(context=1024, sequences=4)),
    ],
)
def test_vllm_at_its_limits(
    which: str, given: int, asked: Asked, larger: Path, tmp_path: Path
) -> None:
    model = _BASE if which == "base" else larger
    sized = size_of(model, "vllm", asked, read_memory(given, gpu=False))
    with _running("vllm", model, sized, tmp_path / "log") as started:
        _fill(started, sized)
    assert 0 < started.memory.peak <= given
    said = re.search(r"KV cache size: ([\d,]+) tokens", started.log.read_text(errors="replace"))
    assert said is not None
    token = sum(2 * a.elements for a in read_model(model).shape.attentions)
    assert int(said[1].replace(",", "")) == sized.settings.cache_bytes // token
    assert sized.settings.cache_bytes // token >= sized.settings.sequences * sized.settings.context


@_marked("vllm")
def test_mixed_layers_against_vllms_own_allocator() -> None:
    draw, cases = random.Random(1), []
    for _ in range(200):
        windows = draw.sample([None, 512, 1024, 4096], draw.choice([1, 2, 3]))
        kinds = [[draw.choice([1, 2, 8]), draw.choice([64, 128, 256]), w] for w in windows]
        if draw.random() < 0.5:
            kinds = [[*kinds[0][:2], window] for window in windows]
        cases.append(
            {
                "layers": [kinds[n % len(kinds)] for n in range(draw.randrange(1, 50))],
                "context": draw.randrange(1, 20_000),
                "batch": draw.choice([128, 512, 2048]),
                "block": draw.choice([16, 128]),
            }
        )
    program = Path(__file__).with_name("vllm_cache_groups.py")
    done = subprocess.run(
        [python_of("vllm"), "-P", program],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    for case, theirs in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        layers = tuple(Layer(Attention(h, w, w, window)) for h, w, window in case["layers"])
        shape = Shape("llama", layers, 1, 1, 1, 1, None)
        layout = Layout("vllm", Fraction(2), case["block"], case["batch"])
        one, two = (cache_bytes(shape, layout, case["context"], n) for n in (1, 2))
        assert two - one == theirs, case
