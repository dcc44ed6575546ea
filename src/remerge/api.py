"""The public functions: what the command line calls, and nothing it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import torch

from remerge.artefacts.conflicting import Conflicts, find_conflicts
from remerge.artefacts.digests import file_digest
from remerge.artefacts.extraction_manifest import ExtractionOptions
from remerge.artefacts.making import Judge, MergeResult, Report, make
from remerge.engines.calling import Note
from remerge.engines.forms import OPTIONS, Asked, read_form
from remerge.errors import NotReproduced, UsageError
from remerge.merging.budget import DEFAULT, SMALLEST, Resources
from remerge.merging.extraction import LARGEST_RANK
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.plan import Plan
from remerge.merging.recipe import make_recipe, parse_dtype, parse_size
from remerge.merging.recipes.registry import read_recipe as read_recipe
from remerge.outputs.planning import Inputs, make_plan, open_inputs
from remerge.sources.references import labels_of, resolve
from remerge.validation import verify as verifying
from remerge.validation.inspecting import Inspection, inspect_adapter, inspect_path
from remerge.validation.verify import VerifyReport

if TYPE_CHECKING:
    from remerge.artefacts.extracting import ExtractionResult
    from remerge.artefacts.making_adapter import AdapterResult
    from remerge.artefacts.making_by_engine import EngineResult
    from remerge.validation.check import CheckReport
    from remerge.validation.compare import CompareReport
    from remerge.validation.formats import FormatTable
    from remerge.validation.report.writing import Written

Source = str | Path
# Told of the comparison that decides whether an output is published.
Judged = Callable[["CompareReport"], None]


def _silent(done: int, total: int, tensor: str) -> None:
    pass


def _unheard(text: str) -> None:
    pass


def _unjudged(report: CompareReport) -> None:
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
    many, and of how many tokens) and ``group_size``. ``max_memory`` changes no byte;
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
    max_memory: int | str
    progress: bool


def plan(
    base: Source | None, adapters: Source | Sequence[Source], **options: Unpack[PlanOptions]
) -> Plan:
    """The whole merge before it is done, from headers and configurations.

    ``base`` and ``adapters``, one or several, are directories or Hub ids
    (``org/name[@revision]``); without ``base`` the adapters' configurations name it. Raises
    `BadInput` for whatever would merge wrong.
    """
    return _planned(base, _several(adapters), options).plan


@dataclass(frozen=True)
class _Planned:
    """Inputs and plan, the memory budget in bytes, and what an engine is to write."""

    inputs: Inputs
    plan: Plan
    budget: int
    asked: Asked | None


def _planned(base: Source | None, named: Sequence[Source], options: PlanOptions) -> _Planned:
    asked: dict[str, Any] = dict(options)
    given = {option: asked.pop(option) for option in OPTIONS if option in asked}
    budget = _budget(asked.pop("max_memory", DEFAULT))
    opening = {
        "base_precision": asked.pop("base_precision", None),
        "copy_code": asked.get("copy_code", False),
        "progress": asked.pop("progress", True),
    }
    form = read_form(asked.get("to", "safetensors"), given, file_digest)
    if form is not None:
        asked |= _engine_words(form, asked.get("dtype", "keep"))
    recipe = make_recipe(labels_of(named), **asked)
    inputs = open_inputs(base, named, **opening)
    return _Planned(inputs, make_plan(inputs, recipe, budget), budget, form)


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


def _several(adapters: Source | Sequence[Source]) -> Sequence[Source]:
    found = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    if not found:
        raise UsageError("There is no adapter to merge.", hint="Name at least one.")
    return found


def merge(
    base: Source | None,
    adapters: Source | Sequence[Source],
    output: Source,
    *,
    retention: Literal["sample", "full"] = "sample",
    overwrite: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    report: Report = _silent,
    gate: Mapping[str, Any] | None = None,
    judged: Judged = _unjudged,
    **options: Unpack[PlanOptions],
) -> MergeResult:
    """Merge one adapter or several into one base and write the checkpoint to ``output``.

    ``output`` is complete or as it was: it never holds half a merge. ``device``, ``threads`` and
    ``max_memory`` change no byte of it. ``report`` is told bytes done, bytes in all and the tensor
    at hand, from any thread. ``retention`` says on how much of the tensors is measured what the
    output keeps of the delta. With a ``gate`` (as of `compare`, where an empty one has its
    defaults) it is compared with the adapters on the base before it is published, which it is only
    if it passes; ``judged`` is told either way. Raises `NotReproduced` where it does not.
    """
    started = time.time()
    if retention not in ("sample", "full"):
        raise UsageError(f"retention {retention!r} is not known.", hint="Choose sample or full.")
    where = _device(device)
    planned = _planned(base, _several(adapters), options)
    if planned.plan.recipe.format != "safetensors":
        call = "combine" if planned.asked is None else "export"
        raise UsageError("merge writes checkpoints alone.", hint=f"Call remerge.{call}.")
    return _make(
        planned,
        output,
        threads,
        where,
        started,
        overwrite=overwrite,
        retention=retention,
        report=report,
        judge=_judge(planned, base, _several(adapters), output, gate, judged, device, threads, {}),
    )


def _judge(
    planned: _Planned,
    base: Source | None,
    named: Sequence[Source],
    output: Source,
    gate: Mapping[str, Any] | None,
    judged: Judged,
    device: str,
    threads: int | None,
    pythons: Mapping[str, str],
) -> Judge | None:
    """What is to look at an output before it is published; None without a gate."""
    if gate is None:
        return None
    original = planned.inputs.original
    source = planned.inputs.base.path if base is None or original else base

    def judge(place: Path) -> None:
        # It always imports transformers, which takes seconds; most merges can do without.
        from remerge.validation import comparison_asked

        asked = comparison_asked.Asked(
            base=source,
            adapters=named,
            output=place,
            known_as=Path(output).name,
            gate=gate,
            device=device,
            threads=threads,
            pythons=pythons,
        )
        found = comparison_asked.run(asked, _silent)
        judged(found)
        failed = [one for one in found.figures.gates if not one.passed]
        if failed:
            first = failed[0]
            raise NotReproduced(
                f"The gate failed: {first.name} is {first.measured}, and {first.limit} is asked "
                f"({len(failed)} of {len(found.figures.gates)} do not hold).",
                why="The merged model does not do what the adapter on its base does.",
                hint="Merge without --gate, and see where it hurts: remerge compare --bisect.",
            )

    return judge


def _make(
    planned: _Planned,
    output: Source,
    threads: int | None,
    device: torch.device,
    started: float,
    *,
    overwrite: bool,
    retention: Literal["sample", "full"],
    report: Report,
    judge: Judge | None = None,
) -> MergeResult:
    made = planned.plan
    return make(
        planned.inputs,
        made,
        Path(output),
        Resources.of(planned.budget, threads, quantised=made.decodes, combines=made.combines),
        device=device,
        started=started,
        overwrite=overwrite,
        retention=retention,
        report=report,
        judge=judge,
    )


def combine(
    base: Source | None,
    adapters: Source | Sequence[Source],
    output: Source,
    *,
    overwrite: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    report: Report = _silent,
    **options: Unpack[PlanOptions],
) -> AdapterResult:
    """Combine adapters into one new PEFT adapter for their base, and write it to ``output``.

    Options are those of `merge` that make sense for it; ``dtype`` is that of the factors (float32
    for keep). Products of factors (``sum``, ``linear``, ``cat``, ``svd``, ...) stay exact but for
    that dtype, unless a smaller ``parameters["svd_rank"]`` is asked for; anything else is
    decomposed, to the adapters' largest rank by default, and what is missed is stated.
    """
    # It always imports transformers, which takes seconds; most merges can do without.
    from remerge.artefacts.making_adapter import make_adapter

    started = time.time()
    where = _device(device)
    planned = _planned(base, _several(adapters), {**options, "to": "adapter"})
    return make_adapter(
        planned.inputs,
        planned.plan,
        Path(output),
        max_memory=planned.budget,
        threads=threads,
        device=where,
        started=started,
        overwrite=overwrite,
        report=report,
    )


def export(
    source: Source | None,
    output: Source,
    *,
    adapters: Source | Sequence[Source] = (),
    overwrite: bool = False,
    prove: bool = False,
    threads: int | None = None,
    engine_python: Mapping[str, str] | None = None,
    report: Report = _silent,
    note: Note = _unheard,
    gate: Mapping[str, Any] | None = None,
    judged: Judged = _unjudged,
    **options: Unpack[PlanOptions],
) -> EngineResult | MergeResult:
    """Write a checkpoint, or base and adapters, in the form ``to`` says, in one pass.

    ``source`` is a checkpoint, merged before or not; with ``adapters`` these are merged into it
    on the way. Options are those of `merge`. What an engine writes (``gguf:Q4_K_M``) is done in
    its environment (``remerge engines install llama.cpp``), or by the interpreter that
    ``engine_python`` names for it; anything else is a checkpoint again. ``prove`` has the engine
    write twice, and records whether both are the same. ``note`` is told what is
    worth knowing before it ends, such as a forecast. ``gate`` and ``judged`` are those of `merge`.
    """
    started = time.time()
    named = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    if not named and source is None:
        raise UsageError("There is nothing to export.", hint="Name a checkpoint, or an adapter.")
    planned = _planned(source, named, options)
    if planned.plan.recipe.format == "adapter":
        raise UsageError("An adapter comes of several.", hint="Call remerge.combine.")
    own = engine_python or {}
    judge = _judge(planned, source, named, output, gate, judged, "cpu", threads, own)
    if planned.asked is None:
        if prove:
            raise UsageError("prove is for what engines write; verify derives a checkpoint again.")
        return _make(
            planned,
            output,
            threads,
            torch.device("cpu"),
            started,
            overwrite=overwrite,
            retention="sample",
            report=report,
            judge=judge,
        )
    # It needs engines, and most merges none.
    from remerge.artefacts.making_by_engine import make_by_engine

    return make_by_engine(
        planned.inputs,
        planned.plan,
        planned.asked,
        Path(output),
        threads=threads,
        pythons=own,
        started=started,
        overwrite=overwrite,
        prove=prove,
        report=report,
        note=note,
        judge=judge,
    )


def verify(
    output: Source,
    *,
    base: Source | None = None,
    adapter: Source | Sequence[Source] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    max_memory: int | str = DEFAULT,
    engine_python: Mapping[str, str] | None = None,
    report: Report = _silent,
) -> VerifyReport:
    """Derive every file of ``output`` again and compare bytes, writing nothing.

    Raises `IntegrityError` when a file differs from its manifest, `NotReproduced` when the
    derivation differs from the file.
    """
    return verifying.verify(
        Path(output),
        base=base,
        adapters=() if adapter is None else _several(adapter),
        max_memory=_budget(max_memory),
        threads=threads,
        device=_device(device),
        pythons=engine_python or {},
        report=report,
    )


def check(
    output: Source,
    engine: str,
    *,
    base: Source | None = None,
    adapter: Source | Sequence[Source] | None = None,
    reference: Source | None = None,
    prompts: Source | None = None,
    form: str | None = None,
    max_prompts: int = 8,
    max_tokens: int = 128,
    answers: int = 3,
    engine_python: Mapping[str, str] | None = None,
    threads: int | None = None,
    report: Report = _silent,
) -> CheckReport:
    """Load ``output`` in a real engine and compare it with the merge in float32 (docs/check.md).

    ``engine``: transformers, llama.cpp, vllm, onnxruntime, or statically tgi and tensorrt-llm. The
    first ``max_tokens`` tokens of the first ``max_prompts`` prompts (of a file, or built in) are
    scored by both. The merge is the manifest's, of ``base`` and ``adapter`` where these moved, or
    ``reference`` takes its place. ``passed`` and ``gates`` of the report tell what held.
    """
    # It always imports transformers, which takes seconds; most commands can do without.
    from remerge.validation import check as checking
    from remerge.validation.references import Settings

    return checking.check(
        Path(output),
        engine,
        base=base,
        adapters=() if adapter is None else _several(adapter),
        reference=None if reference is None else Path(reference),
        prompts=None if prompts is None else Path(prompts),
        form=form,
        settings=Settings(max_prompts, max_tokens, answers),
        pythons=engine_python or {},
        threads=threads,
        max_memory=DEFAULT,
        report=report,
    )


def compare(
    base: Source | None,
    adapters: Source | Sequence[Source],
    output: Source,
    *,
    gate: Mapping[str, Any] | None = None,
    bisect: bool = False,
    engine: str | None = None,
    form: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    max_tokens: int = 512,
    answer_tokens: int | None = None,
    chat: bool = True,
    endpoint: Sequence[str] = (),
    lm_eval: Sequence[str] = (),
    lm_eval_include: Path | None = None,
    recipe_options: Mapping[str, Any] | None = None,
    record: bool = True,
    remember: bool = True,
    engine_python: Mapping[str, str] | None = None,
    threads: int | None = None,
    report: Report = _silent,
) -> CompareReport:
    """Compare ``output`` with the adapters on their base, which PEFT runs, and judge
    (docs/compare.md).

    ``gate`` says what is asked (``evaluations``: ``[NAME=]FILE`` each, ``scorer``, ``text``,
    ``prompts``, ``limit``) and allowed (``max_drop``, ``max_kl``, ``min_agreement``). Without
    ``base`` and ``adapters`` the manifest's are taken; ``recipe_options`` say how they were merged
    where there is no manifest. The result is written beside ``output`` unless ``record`` is false,
    and what models answer is remembered unless ``remember`` is. ``passed`` of the report is the
    verdict.
    """
    # It always imports transformers, which takes seconds; most commands can do without.
    from remerge.validation import comparison_asked

    own = dict(engine_python or {})

    def make(source: Path, paths: Sequence[Path], how: Mapping[str, Any], place: Path) -> Path:
        made = export(source, place, adapters=paths, threads=threads, engine_python=own, **how)
        return made.output

    named = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    asked = comparison_asked.Asked(
        base=base,
        adapters=named,
        output=Path(output),
        gate=dict(gate or {}),
        bisect=bisect,
        engine=engine,
        form=form,
        dtype=dtype,
        device=str(_device(device)),
        max_tokens=max_tokens,
        answer_tokens=answer_tokens,
        chat=chat,
        endpoints=tuple(endpoint),
        lm_eval=tuple(lm_eval),
        lm_eval_include=lm_eval_include,
        recipe_options=dict(recipe_options or {}),
        record=record,
        remember=remember,
        pythons=own,
        threads=threads,
        make=make,
    )
    return comparison_asked.run(asked, report)


def formats(
    base: Source,
    adapters: Source | Sequence[Source],
    forms: Sequence[str] = (),
    *,
    prompts: Source | None = None,
    evaluation: Source | None = None,
    questions: int = 50,
    keep: Path | None = None,
    max_prompts: int = 8,
    max_tokens: int = 128,
    engine_python: Mapping[str, str] | None = None,
    threads: int | None = None,
    report: Report = _silent,
) -> FormatTable:
    """Formats of one model side by side: size, divergence from the merge in float32, perplexity,
    right answers, and the time to make each.

    ``forms`` are named as after ``--to``; by default those that the engines installed here can
    make. ``prompts`` and ``evaluation`` are files, of texts and of questions with their answers.
    What is made is deleted unless ``keep`` names a new directory.
    """
    # It always imports transformers, which takes seconds; most commands can do without.
    from remerge.validation.formats import compare_formats, usual_forms
    from remerge.validation.references import Settings

    own = engine_python or {}
    named = [adapters] if isinstance(adapters, str | Path) else list(adapters)

    def make(form: str, place: Path) -> EngineResult | MergeResult:
        return export(
            base, place, adapters=named, to=form, threads=threads, engine_python=own, report=report
        )

    return compare_formats(
        make,
        forms or usual_forms(own),
        prompts=None if prompts is None else Path(prompts),
        evaluation=None if evaluation is None else Path(evaluation),
        keep=keep,
        settings=Settings(max_prompts, max_tokens, 0),
        questions=questions,
        pythons=own,
        threads=threads,
        max_memory=DEFAULT,
        report=report,
    )


def report(
    output: Source,
    path: Source | None = None,
    formats: Sequence[Source] = (),
    *,
    overwrite: bool = False,
) -> Written:
    """One page of HTML on ``output``: origin, weights, scores, formats and cost (docs/report.md).

    It is written to ``path``, by default ``OUT-report.html`` beside the output; a file there that
    is no report is only replaced with ``overwrite``. ``formats`` are files of ``remerge formats
    --json``. Needs the extra ``remerge[report]``.
    """
    from remerge.validation.report.writing import write_report

    return write_report(
        Path(output),
        None if path is None else Path(path),
        [Path(file) for file in formats],
        overwrite=overwrite,
    )


def open_merged(
    base: Source | None,
    adapters: Source | Sequence[Source],
    *,
    device: str = "cpu",
    **options: Unpack[PlanOptions],
) -> MergedCheckpoint:
    """The merged checkpoint as a mapping ``name -> lazy tensor``, before anything is written.

    Each tensor has ``.shape``, ``.dtype`` and ``[rows]``, computed on read;
    ``load_model()`` gives a transformers model with the merged weights.
    """
    where = _device(device)
    return plan(base, adapters, **options).open(where)


def conflicts(
    base: Source | None,
    adapters: Sequence[Source],
    *,
    threads: int | None = None,
    progress: bool = True,
) -> Conflicts:
    """Do these adapters get along? Measured on their factors, without merging anything.

    Every pair is compared, module by module; the report says which combine method suits, or that
    they are better kept separate, and why. ``threads`` changes no figure.
    """
    named = _several(adapters)
    if len(named) < 2:
        raise UsageError("One adapter has no conflicts.", hint="Name at least two.")
    return find_conflicts(open_inputs(base, named, progress=progress), threads)


def inspect(path: Source, adapter: Source | None = None) -> Inspection:
    """What a path is; with an adapter, whether it fits this base, naming every misfit."""
    return inspect_path(path) if adapter is None else inspect_adapter(path, adapter)


def extract(
    base: Source,
    merged: Source,
    output: Source,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "float32",
    modules_to_save: bool = True,
    strict: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    max_memory: int | str = DEFAULT,
    report: Report = _silent,
    progress: bool = True,
) -> ExtractionResult:
    """Find the LoRA adapter that leads from ``base`` to ``merged`` and write it for PEFT.

    ``rank`` is the most that a tensor may take; with ``energy`` each takes the smallest rank that
    explains this share of its change. What low-rank factors cannot say (norms, biases, a grown
    vocabulary) goes in whole, unless ``modules_to_save`` is false or ``strict`` refuses it.
    """
    # It always imports transformers, which takes seconds; most merges can do without.
    from remerge.artefacts import extracting

    started = time.time()
    options = ExtractionOptions(
        rank=_rank(rank, energy),
        energy=energy,
        dtype=_factor_dtype(dtype),
        modules_to_save=modules_to_save,
        strict=strict,
    )
    budget = _budget(max_memory)
    return extracting.extract(
        resolve(base, "base", progress=progress),
        resolve(merged, "base", progress=progress),
        Path(output),
        options,
        max_memory=budget,
        threads=threads,
        started=started,
        overwrite=overwrite,
        report=report,
    )


def _rank(rank: int | None, energy: float | None) -> int:
    if rank is None and energy is None:
        raise UsageError("How large may the adapter be?", hint="Give --rank 16, or --energy 0.99.")
    if rank is not None and rank < 1:
        raise UsageError(f"--rank {rank} is no rank.", hint="Give at least 1.")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"--energy {energy} is no share.", hint="Give one above 0, at most 1.")
    return LARGEST_RANK if rank is None else rank


def _factor_dtype(dtype: str) -> Literal["F32", "F16", "BF16"]:
    parsed = parse_dtype(dtype)
    if parsed == "keep":
        raise UsageError("--dtype keep means nothing for factors.", hint="Choose float32.")
    return parsed


def _budget(max_memory: int | str) -> int:
    budget = parse_size(max_memory, "--max-memory")
    if budget < SMALLEST:
        raise UsageError(
            f"--max-memory {max_memory} is too little.",
            why="Python and torch alone take most of 512 MiB.",
            hint="Give at least 512MiB.",
        )
    return budget


def _device(device: str) -> torch.device:
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
