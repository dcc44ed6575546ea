"""The options of outputs that engines write, and what the commands that make them share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import click

from remerge.cli.options import engine_python
from remerge.cli.output import print_json, print_notes, progress

F = TypeVar("F", bound=Callable[..., Any])

TO = (
    "safetensors: a checkpoint. fp8, fp8-block, w8a8, nvfp4: the checkpoint with its linear layers "
    "quantised as compressed-tensors does, for vLLM and transformers (docs/quantised.md). "
    "gguf:TYPE: one quantised file for llama.cpp, e.g. gguf:Q4_K_M or gguf:F16 (OUT is the file "
    "where it ends in .gguf, else a directory). gptq, awq and gptqmodel: an int4 checkpoint for "
    "vLLM and others, calibrated. onnx[:int4|int8|fp16] and openvino[:fp32|int8|int4]: a directory "
    "for ONNX Runtime or OpenVINO."
)
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--ignore",
        metavar="MODULE",
        multiple=True,
        help="With fp8 and its like: a module not to quantise, or 're:' and a regular expression, "
        "as llm-compressor takes them, e.g. 're:.*down_proj'; repeatable.",
    ),
    click.option(
        "--quantize-experts",
        is_flag=True,
        help="With fp8-block, w8a8 and nvfp4: quantise experts too, which vLLM reads and "
        "transformers does not.",
    ),
    click.option(
        "--tensor-type",
        metavar="PATTERN=TYPE",
        multiple=True,
        help="With gguf: the type of tensors whose names match, e.g. attn_v=Q8_0; repeatable.",
    ),
    click.option(
        "--via",
        metavar="DTYPE",
        help="With gguf: quantise what a checkpoint of this dtype holds (bfloat16: as merging, "
        "converting and quantising one after the other gives) instead of float32.",
    ),
    click.option(
        "--imatrix",
        metavar="FILE",
        help="With gguf: llama.cpp's importance matrix, which says what columns of weights count.",
    ),
    click.option(
        "--allow-token-differences",
        is_flag=True,
        help="With gguf: write the file though llama.cpp cuts test texts otherwise than the "
        "checkpoint's tokenizer.",
    ),
    click.option(
        "--calibration",
        metavar="FILE",
        help="With gptq, awq and gptqmodel: samples to calibrate on, one a line: text, or JSON "
        "with text, prompt or messages. Without it, generic ones.",
    ),
    click.option("--calibration-samples", type=int, metavar="N", help="How many; 128."),
    click.option("--calibration-length", type=int, metavar="N", help="Tokens of each; 512."),
    click.option(
        "--group-size", type=int, metavar="N", help="With these: columns of a scale; 128."
    ),
    click.option(
        "--prove",
        is_flag=True,
        help="Have the engine write twice, and record whether both are the same.",
    ),
    engine_python,
)
# What an engine does not ask for.
_CHECKPOINTS_OWN = ("retention", "device", "max_memory")


def form_options(command: F) -> F:
    """Add every option that belongs to a form."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def is_engine_made(options: Mapping[str, Any]) -> bool:
    """Whether ``--to`` names what an engine writes."""
    from remerge.engines.forms import FORMS

    return str(options.get("to", "")).partition(":")[0] in FORMS


def refuse_checkpoints_own(to: str, given: Collection[str]) -> None:
    """Raise `click.UsageError` for options that mean nothing to an engine."""
    for option in _CHECKPOINTS_OWN:
        if option in given:
            name = to.partition(":")[0]
            raise click.UsageError(f"--{option.replace('_', '-')} means nothing with --to {name}.")


def refuse_prove(options: Mapping[str, Any], *, prove: bool) -> None:
    """Raise `click.UsageError` where there is no engine that could write twice."""
    if prove and not is_engine_made(options):
        raise click.UsageError("--prove is for what engines write; remerge verify derives again.")


def write_by_engine(
    source: str | None,
    adapters: Sequence[str],
    output: str,
    labels: Sequence[str],
    notes: Sequence[str],
    options: Mapping[str, Any],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Have an engine write the output, and print what became of it."""
    import remerge
    from remerge.artefacts.making_by_engine import EngineResult
    from remerge.cli.engine_report import engine_document, print_engine_made

    with progress("writing", quiet=quiet or as_json) as report:
        result = remerge.export(
            source,
            output,
            adapters=adapters,
            report=report,
            note=lambda text: None if quiet or as_json else print_notes((text,)),
            **options,
        )
    assert isinstance(result, EngineResult)
    if as_json:
        print_json(engine_document(result, labels, notes))
    elif not quiet:
        print_notes((*notes, *result.manifest.notes))
        print_engine_made(result, labels)
