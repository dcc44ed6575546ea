"""mergekit as a tool: its merge methods through the driver, and its command."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.tiny import read_tensors

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv-mergekit" / "bin"
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


class Mergekit:
    """One process of mergekit's environment: importing it takes longer than a merge."""

    def __init__(self, place: Path) -> None:
        assert (BIN / "python").exists(), "mergekit is not installed: make mergekit-test does it"
        self._place = place
        self._process = subprocess.Popen(
            [BIN / "python", "-P", Path(__file__).with_name("driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **OFFLINE},
        )

    def merge(
        self,
        inputs: Sequence[Path],
        method: str,
        *,
        base: int | None = 0,
        seed: int = 0,
        **parameters: Any,
    ) -> dict[str, torch.Tensor]:
        """Every tensor of the merge of ``inputs``, of which the one at ``base`` is the base."""
        output = self._place / "merged.safetensors"
        request = {
            "inputs": [str(path) for path in inputs],
            "method": method,
            "base": base,
            "parameters": parameters,
            "seed": seed,
            "output": str(output),
        }
        self._ask("merge", request)
        # Read whole: the next merge is written to the same file.
        merged = load_file(output)
        output.unlink()
        return merged

    def run(self, recipe: Path, output: Path) -> dict[str, torch.Tensor]:
        """What ``mergekit-yaml`` writes for a recipe: the command's own function is called."""
        self._ask("run", {"arguments": [str(a) for a in _arguments(recipe, output)]})
        return read_tensors(output)

    def _ask(self, name: str, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, request]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def mergekit_yaml(recipe: Path, output: Path) -> dict[str, torch.Tensor]:
    """The same by the installed command, started as a user does."""
    done = subprocess.run(
        [BIN / "mergekit-yaml", *_arguments(recipe, output)],
        env={**os.environ, **OFFLINE},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return read_tensors(output)


def _arguments(recipe: Path, output: Path) -> list[str | Path]:
    options = ["--quiet", "--no-copy-tokenizer", "--lora-merge-cache"]
    return [recipe, output, *options, output.with_name("cache")]
