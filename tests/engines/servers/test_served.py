"""Real servers answer the client of OpenAI, know their models and adapters by name, and end."""

from __future__ import annotations

import json
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import remerge
from remerge.engines.servers.registry import program_of, server_of
from remerge.engines.servers.running import free_port, running, start, wait_healthy
from remerge.engines.servers.server import Address, Command, Served, Settings
from remerge.errors import BadInput
from remerge.serving.named import Found
from remerge.serving.targets import Target, served_of
from tests.engines.places import needs, python_of
from tests.engines.servers.programs import is_alive

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SORT = EXAMPLES / "adapters" / "sort"
PYTHONS = {name: str(python_of(name)) for name in ("llama.cpp", "vllm")}
SETTINGS = Settings(context=256, sequences=2, cache_bytes=2**26, dtype="float32", threads=2)
llama_cpp = [*needs("llama.cpp"), pytest.mark.xdist_group("llama.cpp server")]
vllm = [*needs("vllm"), pytest.mark.xdist_group("vllm server")]


def rows(count: int) -> list[dict[str, str]]:
    lines = (EXAMPLES / "eval" / "sort.jsonl").read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


def target(*adapters: Path, model: Path = EXAMPLES / "base") -> Target:
    return Target(Found(model, "base"), tuple(Found(path, path.name) for path in adapters))


def command(engine: str, served: Served, *extra: str) -> tuple[Command, Address]:
    server, address = server_of(engine), Address(port=free_port())
    found = server.command(program_of(server, PYTHONS), served, SETTINGS, address)
    return Command((*found.words, *extra), found.variables), address


@contextmanager
def served_by(engine: str, served: Served, log: Path, *extra: str) -> Generator[Any]:
    """A client of OpenAI for a server; in the end no process of it is left."""
    openai = pytest.importorskip("openai")
    started, address = command(engine, served, *extra)
    with running(started, address, log=log, timeout=300) as server:
        yield openai.OpenAI(base_url=f"{address.url}/v1", api_key="none", max_retries=0)
        found = server.processes
        server.send(signal.SIGTERM)
        assert server.wait(30) in (0, 128 + signal.SIGTERM)
    assert not any(map(is_alive, found))


def right(client: Any, model: str, count: int = 12) -> int:
    found = 0
    for row in rows(count):
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": row["prompt"]}],
            max_tokens=12,
            temperature=0,
        )
        found += reply.choices[0].message.content == row["expected"]
    return found


def streamed(client: Any, model: str) -> str:
    parts = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": rows(1)[0]["prompt"]}],
        max_tokens=12,
        temperature=0,
        stream=True,
    )
    return "".join(p.choices[0].delta.content or "" for p in parts if p.choices)


def names(client: Any) -> set[str]:
    return {model.id for model in client.models.list()}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "merged"
    remerge.merge(EXAMPLES / "base", SORT, out)
    return out


@pytest.fixture(scope="module", autouse=False)
def gguf(merged: Path) -> Path:
    file = merged.with_name("merged.gguf")
    remerge.export(merged, file, to="gguf:F16", engine_python=PYTHONS)
    return file


class TestLlamaCpp:
    pytestmark = llama_cpp

    def test_a_merged_file(self, gguf: Path, tmp_path: Path):
        with served_by("llama.cpp", Served(gguf, "mine"), tmp_path / "log") as client:
            assert names(client) == {"mine"}
            assert right(client, "mine") >= 10
            assert streamed(client, "mine") == rows(1)[0]["expected"]

    def test_base_and_adapter(self, tmp_path: Path):
        """Both become GGUF files by themselves; a request may still ask for the base."""
        served = served_of(target(SORT), "llama.cpp", pythons=PYTHONS)
        with served_by("llama.cpp", served, tmp_path / "log") as client:
            assert names(client) == {"sort"}
            assert right(client, "sort") >= 10
            plain = client.chat.completions.create(
                model="sort",
                messages=[{"role": "user", "content": rows(1)[0]["prompt"]}],
                max_tokens=12,
                temperature=0,
                extra_body={"lora": [{"id": 0, "scale": 0.0}]},
            )
            assert plain.choices[0].message.content != rows(1)[0]["expected"]
        # Made once.
        made = served.model.stat().st_mtime_ns, served.adapters[0].path.stat().st_mtime_ns
        again = served_of(target(SORT), "llama.cpp", pythons=PYTHONS)
        assert again == served
        assert (again.model.stat().st_mtime_ns, again.adapters[0].path.stat().st_mtime_ns) == made

    def test_rslora_keeps_its_scale(self, tmp_path: Path):
        """The converter knows alpha alone: the same product must come of either spelling."""
        adapter = tmp_path / "sort"
        adapter.mkdir()
        for file in SORT.iterdir():
            (adapter / file.name).write_bytes(file.read_bytes())
        config = json.loads((adapter / "adapter_config.json").read_text())
        # alpha / sqrt(r), where plain LoRA has alpha / r = 2.
        config |= {"use_rslora": True, "lora_alpha": 2 * config["r"] ** 0.5}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        served = served_of(target(adapter), "llama.cpp", pythons=PYTHONS)
        with served_by("llama.cpp", served, tmp_path / "log") as client:
            assert right(client, "sort") >= 10

    def test_a_damaged_file(self, gguf: Path, tmp_path: Path):
        damaged = tmp_path / "damaged.gguf"
        damaged.write_bytes(gguf.read_bytes()[: gguf.stat().st_size // 2])
        started, address = command("llama.cpp", Served(damaged, "m"))
        with (
            pytest.raises(BadInput, match=r"The server ended"),
            running(started, address, log=tmp_path / "log", timeout=100),
        ):
            pass

    def test_told_to_end_while_it_loads(self, gguf: Path, tmp_path: Path):
        started, address = command("llama.cpp", Served(gguf, "m"))
        server = start(started, address, log=tmp_path / "log")
        server.stop()
        assert not server.is_alive and server.processes == []


class TestVllm:
    pytestmark = vllm

    def test_base_and_adapter(self, tmp_path: Path):
        served = served_of(target(SORT), "vllm", pythons=PYTHONS)
        with served_by("vllm", served, tmp_path / "log", "--enforce-eager") as client:
            assert names(client) == {"base", "sort"}
            assert right(client, "sort") >= 10
            assert right(client, "base") <= 2
            assert streamed(client, "sort") == rows(1)[0]["expected"]

    def test_a_merged_directory(self, merged: Path, tmp_path: Path):
        with served_by(
            "vllm", Served(merged, "mine"), tmp_path / "log", "--enforce-eager"
        ) as client:
            assert names(client) == {"mine"}
            assert right(client, "mine") >= 10

    def test_a_broken_model(self, merged: Path, tmp_path: Path):
        """A tensor too few, which nothing but the engine would see."""
        broken = tmp_path / "broken"
        broken.mkdir()
        for file in merged.iterdir():
            if file.is_file():
                (broken / file.name).write_bytes(file.read_bytes())
        config = json.loads((broken / "config.json").read_text())
        config["hidden_size"] *= 2
        (broken / "config.json").write_text(json.dumps(config))
        started, address = command("vllm", Served(broken, "m"), "--enforce-eager")
        server = start(started, address, log=tmp_path / "log")
        try:
            with pytest.raises(BadInput, match=r"The server ended.*Error"):
                wait_healthy(server, address, timeout=200)
        finally:
            server.stop()
        assert server.processes == []


class TestTransformers:
    def test_base_and_adapter(self, tmp_path: Path):
        pytest.importorskip("uvicorn")
        served = served_of(target(SORT), "transformers", pythons=PYTHONS)
        with served_by("transformers", served, tmp_path / "log") as client:
            assert names(client) == {"base", "sort"}
            assert right(client, "sort", 4) >= 3
            assert right(client, "base", 4) <= 1
            assert streamed(client, "sort") == rows(1)[0]["expected"]
            with pytest.raises(Exception, match="404"):
                client.chat.completions.create(model="other", messages=[], max_tokens=1)
