"""Commands of pages that are not run, each with its reason and with what is looked at instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Exempt:
    """A command that is not run. ``instead`` looks at what it would have been given."""

    pattern: str
    reason: str
    instead: Callable[[str, Path], None]


def exempt(command: str) -> Exempt | None:
    return next((one for one in EXEMPT if re.match(one.pattern, command)), None)


def _compose(command: str, place: Path) -> None:
    found = re.search(r"-f (\S+)", command)
    document = yaml.safe_load((place / (found[1] if found else "compose.yaml")).read_text())
    assert document["services"]
    for service in document["services"].values():
        assert service["image"]


def _kubernetes(command: str, place: Path) -> None:
    found = re.search(r"-f (\S+)", command)
    assert found is not None
    documents = list(yaml.safe_load_all((place / found[1]).read_text()))
    assert documents
    assert all({"apiVersion", "kind", "metadata", "spec"} <= d.keys() for d in documents)


def _modelfile(command: str, place: Path) -> None:
    found = re.search(r"-f (\S+)", command)
    assert found is not None
    file = place / found[1]
    source = re.search(r"^FROM (\S+)$", file.read_text(), re.M)
    assert source is not None
    assert (file.parent / source[1]).is_file()


def _created(command: str, place: Path) -> None:
    """A model of Ollama's is asked by the name under which a command before created it."""


def _made(command: str, place: Path) -> None:
    target = command.split()[1]
    makefile = Path(__file__).parents[2] / "Makefile"
    assert re.search(rf"^{target}:", makefile.read_text(), re.M), target


EXEMPT = (
    Exempt(r"docker compose ", "starts containers of images that a test cannot fetch", _compose),
    Exempt(r"kubectl apply ", "needs a cluster", _kubernetes),
    Exempt(r"ollama create ", "Ollama is no Python package and is not installed", _modelfile),
    Exempt(r"ollama run ", "Ollama is no Python package and is not installed", _created),
    Exempt(r"make (demo|test|bench)\b", "runs for minutes, and its parts are tested", _made),
)
