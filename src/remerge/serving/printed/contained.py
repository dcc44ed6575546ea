"""A server's command as it runs in a container: the same words, with the paths it has there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from remerge.errors import UsageError
from remerge.serving.printed.form import Printing
from remerge.serving.printed.names import cluster_name

_ROOT = PurePosixPath("/models")


@dataclass(frozen=True)
class Mount:
    """A file or directory of this machine, and where a container has it."""

    source: Path
    target: str
    is_file: bool


@dataclass(frozen=True)
class Container:
    """``program`` and ``words`` start the server, which listens on ``port``."""

    image: str
    image_note: str
    program: tuple[str, ...]
    words: tuple[str, ...]
    variables: Mapping[str, str]
    port: int
    mounts: tuple[Mount, ...]
    fetches: tuple[str, ...]

    def asks(self, path: str) -> list[str]:
        """A command in the container that ends with 0 where this path answers 200."""
        return [*self.fetches, f"http://127.0.0.1:{self.port}{path}"]


# Tags that were published; the engines that remerge installs are of these versions, or close.
_IMAGES = {
    ("vllm", True): ("vllm/vllm-openai:v0.32.0", "vLLM's own, the version that was sized for"),
    ("vllm", False): (
        "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0",
        "vLLM's own for processors, the version that was sized for",
    ),
    ("llama.cpp", True): (
        "ghcr.io/ggml-org/llama.cpp:server-cuda-b11243",
        "llama.cpp's own, of autumn 2026",
    ),
    ("llama.cpp", False): (
        "ghcr.io/ggml-org/llama.cpp:server-b11176",
        "llama.cpp's own, of autumn 2026",
    ),
}
_PROGRAMS = {"vllm": ("vllm", "serve"), "llama.cpp": ("/app/llama-server",)}
_PORTS = {"vllm": 8000, "llama.cpp": 8080}
# For an image that has Python, and need have no curl.
_PYTHON = (
    "python3",
    "-c",
    "import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)",
)


def contained(printing: Printing) -> Container:
    """The server of this engine in its own image; raises `UsageError` for one that has none."""
    image = _IMAGES.get((printing.engine, printing.on_gpu))
    if image is None:
        raise UsageError(
            f"{printing.engine} has no image of a server.",
            why="It serves for trying out, on this machine.",
            hint="Print it for another engine: --engine vllm, or llama.cpp for a GGUF file.",
        )
    if (printing.served.model.suffix == ".gguf") != (printing.engine == "llama.cpp"):
        raise UsageError(
            f"{printing.engine} does not serve {printing.served.model.name}.",
            why="llama.cpp serves GGUF files, and vLLM checkpoints.",
            hint="remerge export SOURCE -o model.gguf --to gguf:Q8_0 makes a GGUF file of one.",
        )
    port = _PORTS[printing.engine]
    return Container(
        image=image[0],
        image_note=image[1],
        program=_PROGRAMS[printing.engine],
        words=_words(printing, port),
        variables=dict(printing.command.variables),
        port=port,
        mounts=mounts_of(printing),
        fetches=_PYTHON if printing.engine == "vllm" else ("curl", "-fsS"),
    )


def mounts_of(printing: Printing) -> tuple[Mount, ...]:
    """The model, and each adapter, under names of their own."""
    model = printing.served.model
    found = [_mount(model, cluster_name(printing.served.name))]
    for adapter in printing.served.adapters:
        found.append(_mount(adapter.path, f"adapters/{cluster_name(adapter.name)}"))
    return tuple(found)


def _mount(path: Path, name: str) -> Mount:
    is_file = path.suffix == ".gguf"
    # A relative source would be a volume's name.
    return Mount(path.absolute(), str(_ROOT / (name + (".gguf" if is_file else ""))), is_file)


def _words(printing: Printing, port: int) -> tuple[str, ...]:
    """The command's arguments: behind `serve` for vLLM, from the model on for llama.cpp."""
    words = list(printing.command.words)
    marks = ("serve",) if printing.engine == "vllm" else ("-m", "--model")
    start = next((n for n, word in enumerate(words) if word in marks), 0)
    words = words[start + (printing.engine == "vllm") :]
    pairs = [
        (str(path), mount.target)
        for path, mount in zip(
            (printing.served.model, *(a.path for a in printing.served.adapters)),
            mounts_of(printing),
            strict=True,
        )
    ]
    found: list[str] = []
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        if before == "--host":
            found.append("0.0.0.0")
        elif before == "--port":
            found.append(str(port))
        elif before in ("--served-model-name", "--alias"):
            found.append(word)
        else:
            found.append(_moved(word, pairs))
    return tuple(found)


def _moved(word: str, pairs: list[tuple[str, str]]) -> str:
    for source, target in pairs:
        if word == source:
            return target
        # NAME=PATH, or JSON that holds the path.
        if word.endswith(f"={source}"):
            return word.removesuffix(source) + target
        if word.startswith("{") and f'"{source}"' in word:
            return word.replace(f'"{source}"', f'"{target}"')
    return word
