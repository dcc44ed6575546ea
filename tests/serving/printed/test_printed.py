"""Printed forms: read back by the libraries of their readers, and held to what they promise."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from remerge.engines.servers.server import Adapter, Address, Command, Served, Settings
from remerge.errors import UsageError
from remerge.outputs.gguf.ollama import Marks, modelfile
from remerge.serving.printed.form import Printing
from remerge.serving.printed.names import cluster_name
from remerge.serving.printed.registry import FORMS, form
from remerge.serving.printed.sampling import modelfile_beside, sampling_of, stops_of

_SETTINGS = Settings(4096, 8, 2**30, threads=2, batch=512)
_ADAPTER = Adapter("sort", Path("/srv/adapters/sort it"), 8)
_VLLM = (
    "/opt/vllm/bin/vllm",
    "serve",
    "/srv/My model",
    "--served-model-name",
    "My model",
    "--host",
    "127.0.0.1",
    "--port",
    "8000",
    "--max-model-len",
    "4096",
)
_LLAMA = (
    "/opt/llama/bin/python",
    "-P",
    "/opt/server.py",
    "-m",
    "/srv/m.gguf",
    "--alias",
    "m",
    "--host",
    "127.0.0.1",
    "--port",
    "8000",
    "-c",
    "32768",
)


def _vllm(**changes: Any) -> Printing:
    served = Served(Path("/srv/My model"), "My model")
    command = Command(_VLLM, {"HF_HUB_OFFLINE": "1"})
    found = Printing(
        "vllm", served, _SETTINGS, Address(), command, 4 * 2**30, ("Because.\nkind: Secret",)
    )
    return replace(found, **changes)


def _llama(**changes: Any) -> Printing:
    served = Served(Path("/srv/m.gguf"), "m")
    found = Printing("llama.cpp", served, _SETTINGS, Address(), Command(_LLAMA), 2**30)
    return replace(found, **changes)


def _on_gpu(printing: Printing) -> Printing:
    return replace(printing, settings=replace(_SETTINGS, gpu_fraction=0.9, threads=None))


def _service(printing: Printing, name: str = "compose") -> dict[str, Any]:
    services = yaml.safe_load(form(name).write(printing))["services"]
    return next(iter(services.values()))


def _manifests(printing: Printing) -> tuple[dict[str, Any], dict[str, Any]]:
    return tuple(yaml.safe_load_all(form("kubernetes").write(printing)))


def test_the_command_is_what_a_shell_runs() -> None:
    text = form("command").write(_vllm())
    assert all(line.startswith("# ") for line in text.splitlines()[:1])
    code = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert shlex.split(code.replace("\\\n", " ")) == ["HF_HUB_OFFLINE=1", *_VLLM]


def test_reasons_stay_comments() -> None:
    """A line in a reason must not become a line of the document."""
    for name in FORMS:
        text = form(name).write(_vllm())
        assert text.startswith("# Because. kind: Secret\n")


def test_compose_of_vllm() -> None:
    service = _service(_vllm())
    assert service["image"].endswith(":v0.32.0")
    assert service["entrypoint"] == ["vllm", "serve"]
    target = service["volumes"][0]["target"]
    assert service["volumes"][0]["source"] == "/srv/My model"
    assert service["volumes"][0]["read_only"] is True
    words = service["command"]
    assert words[0] == target
    assert words[words.index("--served-model-name") + 1] == "My model"
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert words[words.index("--port") + 1] == "8000"
    assert service["deploy"]["resources"]["limits"] == {"memory": str(4 * 2**30), "cpus": "2"}
    assert service["healthcheck"]["test"][-1] == "http://127.0.0.1:8000/health"


def test_compose_of_llama_cpp() -> None:
    service = _service(_llama(address=Address("0.0.0.0", 9000)))
    assert service["entrypoint"] == ["/app/llama-server"]
    assert service["command"][:2] == ["-m", "/models/m.gguf"]
    assert service["ports"] == ["9000:8080"]
    assert service["command"][service["command"].index("--port") + 1] == "8080"


def test_compose_of_tgi() -> None:
    words = _service(_on_gpu(_vllm()), "compose-tgi")["command"]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert flags["--max-total-tokens"] == "4096"
    assert flags["--max-input-tokens"] == "4095"
    # Its launcher refuses a smaller batch than one prompt.
    assert int(flags["--max-batch-prefill-tokens"]) >= 4095
    assert flags["--max-batch-total-tokens"] == str(8 * 4096)
    assert flags["--cuda-memory-fraction"] == "0.9"
    assert "intel-cpu" in _service(_vllm(), "compose-tgi")["image"]
    narrow = _vllm(settings=replace(_SETTINGS, cache_dtype="fp8"))
    assert "fp8_e4m3fn" in _service(narrow, "compose-tgi")["command"]


def test_compose_does_not_expand_dollars() -> None:
    path = Path("/srv/$HOME")
    served = Served(path, "m")
    words = ("vllm", "serve", str(path), "--served-model-name", "$(m) ${m}")
    service = _service(_vllm(served=served, command=Command(words)))
    assert service["volumes"][0]["source"] == "/srv/$$HOME"
    assert service["command"][-1] == "$$(m) $${m}"


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("printing", [_vllm(), _llama()], ids=["vllm", "llama.cpp"])
def test_kubernetes_by_its_schema(printing: Printing, gpu: bool) -> None:
    printing = _on_gpu(printing) if gpu else printing
    for document in _manifests(printing):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_fits_together() -> None:
    deployment, service = _manifests(_vllm(address=Address(port=80)))
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    chosen = deployment["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["selector"] == chosen
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert service["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert ports == {"http": int(container["args"][container["args"].index("--port") + 1])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert {m["name"] for m in container["volumeMounts"]} == {
        v["name"] for v in pod["spec"]["volumes"]
    }
    assert pod["spec"]["volumes"][0]["hostPath"] == {"path": "/srv/My model", "type": "Directory"}
    assert container["resources"]["limits"] == {"memory": str(4 * 2**30)}
    assert pod["spec"]["terminationGracePeriodSeconds"] >= 30
    gpu = _manifests(_on_gpu(_vllm()))[0]["spec"]["template"]["spec"]["containers"][0]
    assert gpu["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_adapters_are_mounted_and_named() -> None:
    served = Served(Path("/srv/My model"), "My model", (_ADAPTER,))
    command = Command((*_VLLM, "--lora-modules", f"sort={_ADAPTER.path}"))
    service = _service(_vllm(served=served, command=command))
    assert service["volumes"][1]["source"] == str(_ADAPTER.path)
    assert service["command"][-1] == f"sort={service['volumes'][1]['target']}"
    words = _service(_vllm(served=served, command=command), "compose-tgi")["command"]
    assert words[words.index("--lora-adapters") + 1] == "sort=/models/adapters/sort"


def test_modelfile(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    (model / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": true, "eos_token_id": [7, 9]}'
    )
    (model / "tokenizer.json").write_text(
        '{"added_tokens": [{"id": 7, "content": "<|end|>"}, {"id": 8, "content": "<x>"}]}'
    )
    assert stops_of(model) == ("<|end|>",)
    served = Served(model, "m", (_ADAPTER,))
    printing = _vllm(served=served, sampling=sampling_of(model), stops=stops_of(model))
    text = form("modelfile").write(printing)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        f'FROM "{model}"',
        'ADAPTER "/srv/adapters/sort it"',
        "PARAMETER num_ctx 4096",
        "PARAMETER temperature 0.6",
        "PARAMETER top_k 20",
        "PARAMETER top_p 0.9",
        'PARAMETER stop "<|end|>"',
    ]


def test_a_modelfile_that_came_with_a_gguf_file_is_taken_over(tmp_path: Path) -> None:
    marks = Marks(None, ("<u>", "\n"), ("<a>", "\n"), "", "<a>")
    file = tmp_path / "m.gguf"
    own = modelfile("m.gguf", marks, ["<|end|>"], {"temperature": 0.5}, 512)
    (tmp_path / "Modelfile").write_text(own)
    served = Served(file, "m")
    text = form("modelfile").write(_llama(served=served, beside=modelfile_beside(file)))
    lines = [line for line in text.split("\n") if not line.startswith("#")]
    # Only where it is, and the context that it was sized for, are others.
    assert lines[0] == f'FROM "{file}"'
    template = own.split("\n")[1:-2]
    assert lines[1:-1] == [*template, "PARAMETER num_ctx 4096"]
    assert marks.template() in text and 'PARAMETER stop "<|end|>"' in lines
    assert modelfile_beside(tmp_path / "another.gguf") == ()
    assert modelfile_beside(tmp_path / "none" / "m.gguf") == ()


def test_a_greedy_models_modelfile() -> None:
    printing = _llama(sampling={"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1})
    text = form("modelfile").write(printing)
    assert "PARAMETER temperature 0\n" in text
    assert "0.7" not in text
    assert "PARAMETER repeat_penalty 1.1" in text


@pytest.mark.parametrize(
    ("name", "printing"),
    [
        ("compose-tgi", _llama()),
        ("compose", _llama(engine="vllm")),
        ("compose", _vllm(engine="llama.cpp")),
        ("kubernetes", _vllm(engine="transformers")),
        ("compose-tgi", _vllm(settings=replace(_SETTINGS, dtype="float32"))),
        ("modelfile", _vllm(served=Served(Path("/m"), "m", (_ADAPTER, _ADAPTER)))),
        ("modelfile", _vllm(served=Served(Path('/m"""x'), "m"))),
    ],
)
def test_what_a_form_cannot_say_is_refused(name: str, printing: Printing) -> None:
    with pytest.raises(UsageError) as caught:
        form(name).write(printing)
    assert caught.value.hint


def test_what_stands_twice_is_written_twice() -> None:
    """An anchor would have people edit the Deployment's labels and the pods' with them."""
    for name in ("compose", "kubernetes"):
        assert not re.search(r"[&*]id\d", form(name).write(_vllm()))


def test_unknown_forms_are_refused() -> None:
    with pytest.raises(UsageError, match="helm"):
        form("helm")


@given(st.text(max_size=100))
def test_cluster_names(name: str) -> None:
    found = cluster_name(name)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", found)
    assert len(found) <= 50


def test_cluster_names_differ_where_names_do() -> None:
    names = ["a.b", "a-b", "a_b", "A-b", "x" * 60, "x" * 61, "é", "日本", ""]
    assert len({cluster_name(name) for name in names}) == len(names)
    assert cluster_name("llama-3") == "llama-3"
