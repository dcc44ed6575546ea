"""The mergekit side: run by the Python of its own environment, answering one request a line."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mergekit.merge_methods import merge_tensors
from mergekit.scripts.run_yaml import main as command


def merge(
    inputs: list[str],
    method: str,
    base: int | None,
    parameters: dict[str, Any],
    seed: int,
    output: str,
) -> None:
    """Merge checkpoints of one ``model.safetensors`` each, in the dtype that they have, tensor by
    tensor; ``base`` is the place of the base model in ``inputs``, where the method knows one."""
    torch.manual_seed(seed)
    models = [load_file(f"{path}/model.safetensors") for path in inputs]
    merged = {
        name: merge_tensors(
            [model[name] for model in models],
            method,
            parameters=parameters,
            base_index=base,
            name=name,
        )
        for name in sorted(models[0])
    }
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, output)


def run(arguments: list[str]) -> None:
    """``mergekit-yaml`` without starting Python again."""
    command(arguments, standalone_mode=False)


def main() -> None:
    # The answers have standard output for themselves.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            name, request = json.loads(line)
            {"merge": merge, "run": run}[name](**request)
            answer: dict[str, str] = {}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
