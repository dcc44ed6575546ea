"""Looking at what is there: does it fit, is it what it should be, does it do what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remerge.api.making import export
from remerge.api.options import Source, budget_of, device_of, several, silent
from remerge.artefacts.conflicting import Conflicts, find_conflicts
from remerge.artefacts.making import MergeResult, Report
from remerge.artefacts.store.lending import lent_inputs
from remerge.errors import UsageError
from remerge.merging.budget import DEFAULT
from remerge.outputs.planning import open_inputs
from remerge.validation import reproduce as reproducing
from remerge.validation import verify as verifying
from remerge.validation.inspecting import Inspection, inspect_adapter, inspect_path
from remerge.validation.reproduce import Reproduced
from remerge.validation.verify import VerifyReport

if TYPE_CHECKING:
    from remerge.artefacts.making_by_engine import EngineResult
    from remerge.validation.check import CheckReport
    from remerge.validation.compare import CompareReport
    from remerge.validation.formats import FormatTable
    from remerge.validation.report.writing import Written


def inspect(path: Source, adapter: Source | None = None) -> Inspection:
    """What a path is; with an adapter, whether it fits this base, naming every misfit."""
    return inspect_path(path) if adapter is None else inspect_adapter(path, adapter)


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
    named = several(adapters)
    if len(named) < 2:
        raise UsageError("One adapter has no conflicts.", hint="Name at least two.")
    return find_conflicts(open_inputs(base, named, progress=progress), threads)


def verify(
    output: Source,
    *,
    base: Source | None = None,
    adapter: Source | Sequence[Source] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    max_memory: int | str = DEFAULT,
    engine_python: Mapping[str, str] | None = None,
    report: Report = silent,
) -> VerifyReport:
    """Derive every file of ``output`` again and compare bytes, writing nothing.

    Raises `IntegrityError` when a file differs from its manifest, `NotReproduced` when the
    derivation differs from the file.
    """
    with lent_inputs() as stored:
        return verifying.verify(
            Path(output),
            base=base,
            adapters=() if adapter is None else several(adapter),
            max_memory=budget_of(max_memory),
            threads=threads,
            device=device_of(device),
            pythons=engine_python or {},
            report=report,
            elsewhere=stored,
        )


def reproduce(
    source: Source,
    output: Source | None = None,
    *,
    base: Source | None = None,
    adapter: Source | Sequence[Source] | None = None,
    files: Mapping[str, Source] | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    max_memory: int | str = DEFAULT,
    engine_python: Mapping[str, str] | None = None,
    report: Report = silent,
    progress: bool = True,
) -> Reproduced:
    """Derive again what a manifest tells of, from the inputs that it names, and compare every
    digest (docs/reproduce.md).

    ``source`` is an output, or a manifest found anywhere. Inputs are fetched from the Hub at the
    manifest's commits, else read where they were last seen, else in the user's store, or where
    ``base``, ``adapter`` and ``files`` (by option: ``imatrix``, ``calibration``) say. With
    ``output`` the artefact is written there whole, or not at all.

    Raises `BadInput` where an input is not known, `IntegrityError` where one is not the manifest's
    or ``source`` itself is damaged, `NotReproduced` where a byte differs.
    """
    with lent_inputs() as stored:
        return reproducing.reproduce(
            Path(source),
            None if output is None else Path(output),
            base=base,
            adapters=() if adapter is None else several(adapter),
            files={option: Path(path) for option, path in (files or {}).items()},
            overwrite=overwrite,
            max_memory=budget_of(max_memory),
            threads=threads,
            device=device_of(device),
            pythons=engine_python or {},
            report=report,
            progress=progress,
            elsewhere=stored,
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
    report: Report = silent,
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
        adapters=() if adapter is None else several(adapter),
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
    report: Report = silent,
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
        device=str(device_of(device)),
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
    report: Report = silent,
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
