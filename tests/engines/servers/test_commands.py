"""What starts each server, word by word."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from remerge.engines.servers.registry import SERVERS, program_of, server_of
from remerge.engines.servers.server import Adapter, Address, Command, Served, Settings
from remerge.engines.servers.vllm import RANKS, rank_slot
from remerge.errors import UsageError

MODEL = Path("/models/merged")
SETTINGS = Settings(context=4096, sequences=8, cache_bytes=2**30, threads=4)


def words_of(
    engine: str,
    *adapters: Adapter,
    settings: Settings = SETTINGS,
    python: Path = Path("/engine/bin/python"),
) -> Command:
    served = Served(MODEL, "mine", adapters)
    return SERVERS[engine].command(python, served, settings, Address("0.0.0.0", 8001))


def after(command: Command, flag: str) -> str:
    return command.words[command.words.index(flag) + 1]


def test_vllm():
    command = words_of("vllm")
    assert command.words[:6] == (
        "/engine/bin/python",
        "-P",
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        "/models/merged",
    )
    assert after(command, "--served-model-name") == "mine"
    assert (after(command, "--host"), after(command, "--port")) == ("0.0.0.0", "8001")
    assert after(command, "--max-model-len") == "4096"
    assert after(command, "--max-num-seqs") == "8"
    assert after(command, "--kv-cache-memory-bytes") == str(2**30)
    assert command.variables["OMP_NUM_THREADS"] == "4"
    assert "--enable-lora" not in command.words


def test_vllm_on_a_gpu_is_given_a_share():
    command = words_of("vllm", settings=Settings(4096, 8, 2**30, threads=4, gpu_fraction=0.85))
    assert after(command, "--gpu-memory-utilization") == "0.85"
    assert "--kv-cache-memory-bytes" not in command.words
    assert "OMP_NUM_THREADS" not in command.variables


def test_vllm_is_run_as_people_run_it_where_it_is(tmp_path: Path):
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    command = words_of("vllm", python=tmp_path / "python")
    assert command.words[:2] == (str(tmp_path / "vllm"), "serve")


def test_vllm_with_adapters():
    odd = Adapter("b", Path("/adapters/a,b"), 9)
    command = words_of("vllm", Adapter("a", Path("/adapters/a=b"), 8), odd)
    assert "--enable-lora" in command.words
    assert after(command, "--max-lora-rank") == "16"
    assert after(command, "--max-loras") == "2"
    first, second = command.words[command.words.index("--lora-modules") + 1 :]
    assert first == "a=/adapters/a=b"
    assert json.loads(second) == {"name": "b", "path": "/adapters/a,b"}


def test_a_step_has_its_size():
    settings = Settings(4096, 8, 2**30, batch=256)
    assert after(words_of("vllm", settings=settings), "--max-num-batched-tokens") == "256"
    assert after(words_of("llama.cpp", settings=settings), "-ub") == "256"
    assert "-ub" not in words_of("llama.cpp").words


def test_ranks_are_rounded_up():
    assert [rank_slot(rank) for rank in (1, 2, 16, 17, 300, 512)] == [1, 8, 16, 32, 320, 512]
    assert all(rank_slot(rank) == rank for rank in RANKS)
    with pytest.raises(UsageError, match="rank 513"):
        rank_slot(513)


def test_llama_cpp():
    command = words_of("llama.cpp", settings=Settings(4096, 8, 2**30, cache_dtype="q8_0"))
    assert command.words[:2] == ("/engine/bin/python", "-P")
    assert after(command, "-m") == "/models/merged"
    assert after(command, "--alias") == "mine"
    # Divided among the requests.
    assert (after(command, "-c"), after(command, "-np")) == ("32768", "8")
    assert after(command, "--cache-type-k") == after(command, "--cache-type-v") == "q8_0"
    for flag, value in (("--cache-ram", "0"), ("--ctx-checkpoints", "0"), ("--fit", "off")):
        assert after(command, flag) == value
    assert "-t" not in command.words


def test_llama_cpp_of_the_users_own():
    command = words_of("llama.cpp", python=Path("/usr/bin/llama-server"))
    assert command.words[:2] == ("/usr/bin/llama-server", "-m")


def test_llama_cpp_has_one_adapter_in_every_answer():
    adapter = Adapter("sort", Path("/adapters/sort.gguf"), 8)
    command = words_of("llama.cpp", adapter)
    assert after(command, "--alias") == "sort"
    assert after(command, "--lora") == "/adapters/sort.gguf"
    with pytest.raises(UsageError, match="adds all adapters"):
        words_of("llama.cpp", adapter, adapter)


def test_transformers():
    command = words_of("transformers", Adapter("sort", Path("/adapters/sort"), 8))
    assert command.words[-3:] == ("--adapter", "sort", "/adapters/sort")
    assert after(command, "--served-model-name") == "mine"


def test_who_runs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program_of(server_of("transformers"), {}) == Path(sys.executable)
    with pytest.raises(UsageError, match="not installed") as caught:
        program_of(server_of("vllm"), {})
    assert "remerge engines install vllm" in str(caught.value.hint)
    with pytest.raises(UsageError, match="not installed"):
        program_of(server_of("llama.cpp"), {})
    own = tmp_path / "llama-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert program_of(server_of("llama.cpp"), {}) == own
    with pytest.raises(UsageError, match="no engine that serves"):
        server_of("openvino")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("box.local", "http://box.local:8000"),
    ],
)
def test_where_clients_find_it(host: str, url: str):
    assert Address(host).url == url
    assert urlsplit(url).port == 8000
