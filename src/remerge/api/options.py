"""What the public functions take: sources, options of a plan, resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from remerge.artefacts.digests import file_digest
from remerge.engines.forms import OPTIONS, Asked, read_form
from remerge.errors import UsageError
from remerge.merging.budget import DEFAULT, SMALLEST
from remerge.merging.plan import Plan
from remerge.merging.recipe import make_recipe, parse_size
from remerge.outputs.planning import Inputs, make_plan, open_inputs
from remerge.outputs.training_runs import with_runs
from remerge.sources.references import labels_of

Source = str | Path


def silent(done: int, total: int, tensor: str) -> None:
    pass


def unheard(text: str) -> None:
    pass


class PlanOptions(TypedDict, total=False):
    """What decides a merge besides its inputs.

    ``method`` combines several adapters (docs/several.md), with ``weights`` (one number, or one for
    each) and the method's own ``parameters`` by name; ``prefer`` (``[PATTERN=]ADAPTER``) says whose
    values to take where several adapters replace the same ones.
    ``dtype``: keep, bfloat16, float16 or float32; ``keep_float32``: patterns of tensors to write in
    float32. ``base_precision`` (``dequantized`` or ``original=BASE``), ``simulate`` (``nf4``) and
    ``requantize`` (``same``): what a quantised base is taken for and written as.
    ``expert_packing``: auto, rank-major or expert-major. ``max_shard_size`` in bytes or as ``5GB``;
    ``tokenizer``: auto, base, adapter, or one of several by name; ``copy_code``: carry the base's
    .py files. ``to``: safetensors, a scheme (fp8, fp8-block, w8a8, nvfp4), adapter for `combine`,
    or for `export` what an engine writes (``gguf:Q4_K_M``, ``onnx:int4``, ``gptq``). A scheme
    quantises linear layers, but for ``ignore`` (names of modules, or ``re:`` and an expression),
    and experts that transformers cannot read only with ``quantize_experts``. GGUF takes
    ``tensor_type`` (``PATTERN=TYPE``), ``via`` (bfloat16: quantise what a checkpoint of that dtype
    holds), ``imatrix`` (a file) and ``allow_token_differences``; what is calibrated takes
    ``calibration`` (a file of samples), ``calibration_samples`` and ``calibration_length`` (how
    many, and of how many tokens) and ``group_size``. ``run_id`` (``[ADAPTER=]ID``, one or several)
    names the run that trained an adapter, which is otherwise read from what lies beside it; it goes
    into the manifest and changes no byte of the model. Nor does ``max_memory``;
    ``progress`` allows the Hub's download bars, which appear on a terminal only.
    """

    method: str
    weights: Sequence[float] | float | None
    parameters: Mapping[str, Any]
    prefer: Sequence[str]
    dtype: str
    keep_float32: Sequence[str]
    base_precision: str | None
    simulate: str | None
    requantize: str | None
    expert_packing: str
    max_shard_size: int | str | None
    tokenizer: str
    copy_code: bool
    to: str
    tensor_type: Sequence[str]
    via: str | None
    imatrix: Source | None
    allow_token_differences: bool
    ignore: Sequence[str]
    quantize_experts: bool
    calibration: Source | None
    calibration_samples: int | None
    calibration_length: int | None
    group_size: int | None
    run_id: str | Sequence[str] | None
    max_memory: int | str
    progress: bool


@dataclass(frozen=True)
class Planned:
    """Inputs and plan, the memory budget in bytes, and what an engine is to write."""

    inputs: Inputs
    plan: Plan
    budget: int
    asked: Asked | None


def planned_of(base: Source | None, named: Sequence[Source], options: PlanOptions) -> Planned:
    asked: dict[str, Any] = dict(options)
    given = {option: asked.pop(option) for option in OPTIONS if option in asked}
    budget = budget_of(asked.pop("max_memory", DEFAULT))
    opening = {
        "base_precision": asked.pop("base_precision", None),
        "copy_code": asked.get("copy_code", False),
        "progress": asked.pop("progress", True),
    }
    run_id = asked.pop("run_id", None)
    form = read_form(asked.get("to", "safetensors"), given, file_digest)
    if form is not None:
        asked |= _engine_words(form, asked.get("dtype", "keep"))
    recipe = make_recipe(labels_of(named), **asked)
    inputs = with_runs(open_inputs(base, named, **opening), run_id)
    return Planned(inputs, make_plan(inputs, recipe, budget), budget, form)


def _engine_words(asked: Asked, dtype: str) -> dict[str, Any]:
    """What an engine's form says in the terms of a recipe; ``dtype`` is what was given besides."""
    form = asked.form
    if dtype != "keep":
        instead = f"write --via {dtype}" if "via" in form.takes else "leave out --dtype"
        raise UsageError(
            f"--dtype {dtype} means nothing with --to {form.name}.",
            hint=f"To quantise what a checkpoint of {dtype} holds, {instead}.",
        )
    return {"to": form.name, "form": asked.options, "dtype": form.dtype(asked.options)}


def several(adapters: Source | Sequence[Source]) -> Sequence[Source]:
    found = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    if not found:
        raise UsageError("There is no adapter to merge.", hint="Name at least one.")
    return found


def budget_of(max_memory: int | str) -> int:
    budget = parse_size(max_memory, "--max-memory")
    if budget < SMALLEST:
        raise UsageError(
            f"--max-memory {max_memory} is too little.",
            why="Python and torch alone take most of 512 MiB.",
            hint="Give at least 512MiB.",
        )
    return budget


def device_of(device: str) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    if device.split(":")[0] != "cuda":
        raise UsageError(f"Unknown device {device!r}.", hint="Choose cpu or cuda.")
    if not torch.cuda.is_available():
        raise UsageError(
            "There is no CUDA device that this torch can use.",
            hint="Leave out --device; the CPU gives the same bytes.",
        )
    return torch.device(device)
