"""Making an engine's environment: its own interpreter, pinned packages, and remerge beside them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from remerge.engines.checking import check
from remerge.engines.engine import AlsoNamed, Engine, FromSource
from remerge.engines.environments import (
    RECEIPT,
    alone,
    below,
    count_bytes,
    delete,
    interpreter,
    is_installed,
    packages_folder,
    place_of,
    receipt,
)
from remerge.errors import BadInput, RemergeError, TryAgain
from remerge.sources.storage import cannot_write

Told = Callable[[str], None]

_PACKAGE = Path(__file__).resolve().parents[1]
# What pip says when no index answers it; a version that an index lacks reads otherwise.
_NO_ANSWER = re.compile(
    r"Retrying \(|NewConnectionError|Max retries|timed out|name resolution|Name or service|"
    r"ProxyError|SSLError|Connection (?:refused|reset|aborted)|HTTP error 5\d\d|"
    r"IncompleteRead|ProtocolError"
)
_SETTINGS = (
    "See to the network and to pip's settings (pip config list shows them), and run the same "
    "command again."
)
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_FULL = re.compile(r"No space left on device|Errno 28\b|Disk quota exceeded|Errno 122\b")


def install(engine: Engine, told: Told) -> Path:
    """Make the environment and see that it works; ``told`` hears of each step.

    Whatever ends it, nothing stays that counts. Raises `Locked` while another process makes it,
    `TryAgain` when the disk is too full or a download fails, `BadInput` when something else than
    what is pinned comes, or what came does not work.
    """
    place = place_of(engine)
    with alone(engine) as lock:
        if is_installed(engine):
            return place
        delete(engine)
        _check_space(engine, place)
        try:
            place.mkdir(parents=True)
            _Making(engine, place, lock, told).make()
        except BaseException as error:
            delete(engine)
            if isinstance(error, OSError):
                raise cannot_write(place, error) from error
            raise
    return place


class _Making:
    """One installation: its engine, place, lock and listener."""

    def __init__(self, engine: Engine, place: Path, lock: int, told: Told) -> None:
        self.engine, self.place, self.lock, self.told = engine, place, lock, told

    def make(self) -> None:
        engine, place = self.engine, self.place
        self.told(f"environment in {place}")
        venv.create(place, symlinks=True, with_pip=False)
        self._run(["-m", "ensurepip", "--default-pip"], "ensurepip")
        for source in engine.sources:
            self.told(f"sources of {source.requirement}")
            self._install_from_source(source)
        self.told(", ".join(engine.requirements))
        if engine.lies_over:
            _lay_over(place)
            self._pip(["install", *self._constrained(), *engine.requirements])
        else:
            self._install_pins()
            _link_remerge(place)
        for other in engine.also_named:
            _name(place, other)
        self.told("seeing whether it works")
        found = check(engine, interpreter(place))
        if found.failure is not None:
            raise BadInput(
                f"The engine {engine.name} was installed and does not work: {found.failure}",
                hint="remerge doctor tells what this machine has.",
            )
        told = {**receipt(engine), "bytes": count_bytes(engine)}
        (place / RECEIPT).write_text(json.dumps(told, indent=2) + "\n")

    def _install_pins(self) -> None:
        """All packages at their pinned versions, and no others.

        torch comes first, with what its build needs: which one that is depends on where pip looks.
        """
        if any(pin.startswith("torch==") for pin in self.engine.pins):
            self._pip(["install", *self._constrained(), "torch"])
        self._pip(["install", "--no-deps", "-r", str(self.engine.constraints)])
        # The pins were taken with one Python; others may ask for a package more.
        lacking = sorted(_lacking(self._said(["-m", "pip", "check"])) - set(self.engine.without))
        if lacking:
            self._pip(["install", *self._constrained(), *lacking])

    def _constrained(self) -> list[str]:
        return ["-c", str(self.engine.constraints)] if self.engine.pins else []

    def _install_from_source(self, source: FromSource) -> None:
        with tempfile.TemporaryDirectory(dir=self.place) as folder:
            words = ["download", "--no-deps", "--no-binary", ":all:", "-d", folder]
            self._pip([*words, source.requirement])
            archive = next(Path(folder).iterdir())
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != source.sha256:
                raise BadInput(f"{archive.name} has SHA-256 {found}, not {source.sha256}.")
            shutil.unpack_archive(archive, folder, filter="data")
            root = next(path for path in Path(folder).iterdir() if path.is_dir())
            for part in source.folders:
                self._pip(["install", "--no-deps", str(root / part)])

    def _pip(self, words: Sequence[str]) -> None:
        quiet = ["-q", "--disable-pip-version-check", "--no-input"]
        self._run(["-m", "pip", words[0], *quiet, *words[1:]], f"pip {words[0]}")

    def _run(self, words: Sequence[str], name: str) -> None:
        code, said = self._program(words, subprocess.PIPE)
        if code != 0:
            raise _failure(name, said)

    def _said(self, words: Sequence[str]) -> str:
        return self._program(words, subprocess.STDOUT)[1]

    def _program(self, words: Sequence[str], errors: int) -> tuple[int, str]:
        """Run the environment's interpreter: its exit code, and what it said.

        That is standard error alone, or with ``errors`` as `subprocess.STDOUT` both streams.
        """
        both = errors == subprocess.STDOUT
        # -I would hide the user's settings of pip; paths of the caller's shell must not count.
        hidden = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
        kept = {k: v for k, v in os.environ.items() if k not in hidden}
        with subprocess.Popen(
            [str(interpreter(self.place)), "-P", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if both else subprocess.DEVNULL,
            stderr=errors,
            text=True,
            errors="replace",
            env={**kept, "PIP_USER": "0"},
            # Killed alone, remerge must not be taken for done while pip still writes.
            pass_fds=(self.lock,),
            start_new_session=True,
        ) as process:
            try:
                found = process.communicate()
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        return process.returncode, (found[0] if both else found[1]) or ""


def _lacking(said: str) -> set[str]:
    """The packages that `pip check` misses."""
    return set(re.findall(r"requires (\S+), which is not installed", said))


def _failure(name: str, said: str) -> RemergeError:
    """What went wrong, from what pip said; without addresses, which may hold passwords."""
    said = re.sub(r"\b\w+://\S+", "(an index)", said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-3:] or ["nothing"]
    last = " ".join(errors)[-600:].rstrip(".")
    if _FULL.search(said):
        return TryAgain(
            f"{name} failed: {last}.",
            why="The disk is full: that of the cache directory, or that of TMPDIR.",
            hint="Free some space, or set XDG_CACHE_HOME or TMPDIR, and run the command again.",
        )
    if _NO_ANSWER.search(said):
        return TryAgain(
            f"{name} could not fetch the packages.",
            why="The package index did not answer.",
            hint=_SETTINGS,
        )
    lacking = re.search(r"No matching distribution found for (\S+)", said)
    if lacking:
        what = f"pip finds no {lacking[1]} for Python {_PYTHON} on this machine."
        # Without any version nobody can tell a name that is none from an index that is not there.
        if "from versions: none" in said:
            why = "The package index did not answer, or has nothing for this platform."
            return TryAgain(what, why=why, hint=_SETTINGS)
        return BadInput(what, why="Its package index has other versions only.", hint=_SETTINGS)
    return TryAgain(f"{name} failed: {last}.", hint="Run the same command again.")


def _check_space(engine: Engine, place: Path) -> None:
    """Refuse before the first download what will not fit."""
    status = os.statvfs(place.parent)
    free = status.f_bavail * status.f_frsize
    if free < engine.disk:
        raise TryAgain(
            f"The engine {engine.name} takes {engine.disk / 1e9:.1f} GB, and {place.parent} has "
            f"{free / 1e9:.1f} GB free.",
            hint="Free some space, or set XDG_CACHE_HOME to a larger disk.",
        )


def _lay_over(place: Path) -> None:
    """Let the environment see remerge's own packages, after its own."""
    text = "".join(f"import site; site.addsitedir({path!r})\n" for path in below())
    (_packages(place) / "remerge-below.pth").write_text(text)


def _link_remerge(place: Path) -> None:
    """Let the environment see remerge and nothing else of what lies beside it."""
    (_packages(place) / "remerge").symlink_to(_PACKAGE)


def _name(place: Path, other: AlsoNamed) -> None:
    """Metadata by which programs find a distribution under another name."""
    folder = _packages(place) / f"{other.name}-{other.version}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {other.name}\nVersion: {other.version}\n"
    (folder / "METADATA").write_text(text)
    (folder / "INSTALLER").write_text("remerge\n")


def _packages(place: Path) -> Path:
    found = packages_folder(place)
    assert found is not None
    return found
