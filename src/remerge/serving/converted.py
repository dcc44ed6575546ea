"""GGUF files of checkpoints and adapters for llama.cpp, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from remerge.artefacts.digests import file_digest
from remerge.artefacts.making import Report
from remerge.artefacts.making_by_engine import make_by_engine
from remerge.engines.calling import call
from remerge.engines.environments import python_of
from remerge.engines.forms import read_form
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.errors import UsageError
from remerge.merging.budget import DEFAULT
from remerge.merging.recipe import make_recipe
from remerge.outputs.planning import make_plan, open_inputs
from remerge.serving.kept import place_for
from remerge.serving.named import Found
from remerge.sources.documents import read_json_object

_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def own_type(checkpoint: Path) -> str:
    """``gguf:TYPE`` that holds what a checkpoint holds: nobody asked for other numbers."""
    config = read_json_object(checkpoint / "config.json")
    stated = config.get("dtype") or config.get("torch_dtype")
    return f"gguf:{_TYPES.get(str(stated), 'BF16')}"


def gguf_of(
    model: Found, to: str | None, pythons: Mapping[str, str], threads: int | None, report: Report
) -> Path:
    """A checkpoint directory as a GGUF file, by the existing export; made again only where the
    checkpoint or ``to`` changed. Raises as `remerge.export`."""
    to = to or own_type(model.path)
    if not to.startswith("gguf:"):
        raise UsageError(f"--to {to} is not what llama.cpp reads.", hint="Choose gguf:Q4_K_M, say.")
    asked = read_form(to, {}, file_digest)
    assert asked is not None
    out = (
        place_for("gguf", str(model.path.resolve()))
        / f"{model.path.name}.{asked.form.title(asked.options)}.gguf"
    )
    recipe = make_recipe((), to="gguf", form=asked.options, dtype=asked.form.dtype(asked.options))
    inputs = open_inputs(model.path, ())
    plan = make_plan(inputs, recipe, DEFAULT)
    made = make_by_engine(
        inputs,
        plan,
        asked,
        out,
        threads=threads,
        pythons=pythons,
        started=time.time(),
        overwrite=True,
        report=report,
    )
    return made.output


def gguf_adapter_of(adapter: Found, base: Path, pythons: Mapping[str, str]) -> Path:
    """A PEFT LoRA as a GGUF file for a base, whose configuration is all that is read of it.

    Raises `Unsupported` for an adapter that llama.cpp's converter does not take.
    """
    sources = [*sorted(adapter.path.glob("adapter_*")), base / "config.json"]
    state = [
        f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sources
    ]
    out = place_for("adapters", LLAMA_CPP.identity, *state) / "adapter.gguf"
    if not out.exists():
        partial = out.with_name(f".{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}.gguf")
        try:
            convert_adapter(adapter.path, base, partial, pythons)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    return out


def convert_adapter(adapter: Path, base: Path, target: Path, pythons: Mapping[str, str]) -> None:
    """Write a PEFT LoRA as llama.cpp reads it, by its own converter. Raises `Unsupported` for one
    that it does not take."""
    python = python_of(LLAMA_CPP, pythons)
    request = {"adapter": str(adapter), "base": str(base), "target": str(target)}
    call(python, "remerge.engines.convert_lora", request, lambda done, total, name: None)
