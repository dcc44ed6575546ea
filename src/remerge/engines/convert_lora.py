"""Run in llama.cpp's environment: a PEFT LoRA as a GGUF file, by llama.cpp's own converter."""

# llama.cpp's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import logging
import math
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remerge.engines.calling import Report, answer
from remerge.errors import Unsupported

_HINT = "Merge it instead: remerge merge BASE ADAPTER -o OUT.gguf --to gguf:F16."


def work(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write the adapter in ``request["adapter"]`` for the checkpoint in ``request["base"]`` to
    ``request["target"]``, in float32."""
    adapter, said = Path(request["adapter"]), _Said()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for file in adapter.iterdir():
            (place / file.name).symlink_to(file.resolve())
        _write_scale(adapter / "adapter_config.json", place / "adapter_config.json")
        sys.argv = [
            "convert_lora_to_gguf.py",
            *("--base", request["base"], "--outfile", request["target"], "--outtype", "f32"),
            str(place),
        ]
        logging.getLogger().addHandler(said)
        try:
            runpy.run_module("convert_lora_to_gguf", run_name="__main__")
        except SystemExit as error:
            if error.code:
                raise _refused(adapter, said.last) from error
        except (ValueError, NotImplementedError, AssertionError, KeyError, TypeError) as error:
            raise _refused(adapter, str(error) or said.last) from error
    return {}


def _write_scale(source: Path, target: Path) -> None:
    """The converter divides alpha by the rank whatever the configuration says: rsLoRA's is told to
    it as the alpha that gives the same."""
    config = json.loads(source.read_text())
    if config.get("use_rslora"):
        if config.get("rank_pattern"):
            raise Unsupported(
                "llama.cpp has one alpha for all modules, and this rsLoRA would need several.",
                hint=_HINT,
            )
        config["lora_alpha"] = config["lora_alpha"] * math.sqrt(config["r"])
        config["use_rslora"] = False
    target.unlink()
    target.write_text(json.dumps(config))


class _Said(logging.Handler):
    """The converter's last complaint."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = "it does not say why"

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


def _refused(adapter: Path, said: str) -> Unsupported:
    return Unsupported(
        f"llama.cpp's converter does not take the adapter {adapter.name}.",
        why=f"It says: {said.rstrip('.')}.",
        hint=_HINT,
    )


if __name__ == "__main__":
    answer(work)
