"""An artefact in the real engine against the merge in float32: the same prompts, the probabilities
of what comes next at every position, and a verdict.

Engine and reference are processes of their own, one after the other: never are two models in
memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from remerge.artefacts.making import Report
from remerge.engines.asking import ask, collect
from remerge.engines.environments import python_of
from remerge.engines.registry import engine_of
from remerge.engines.scorers import SCORERS, Scorer
from remerge.engines.scoring import Answered, Questions, Scores, rows_path
from remerge.engines.tokenisation import TEXTS, Difference, differences, of_composed, open_tokenizer
from remerge.errors import UsageError
from remerge.sources.ggml_types import FILE_TYPES
from remerge.validation.artefact import Artefact, find_artefact
from remerge.validation.limits import (
    Gate,
    gates,
    kl_limit,
    limit_of,
    server_gate,
    share_gate,
    tokenisation_gate,
)
from remerge.validation.memory import check_elements
from remerge.validation.prompts import built_in, cut, read_prompts
from remerge.validation.references import (
    Settings,
    prompt_length,
    reference_of,
)
from remerge.validation.score_comparison import (
    Comparison,
    Share,
    adapter_share,
    compare,
    likeliest_difference,
)
from remerge.validation.static_checks import STATIC, check_statically

Word = Literal["served", "scored", "loaded", "statically checked"]

ENGINES = (*SCORERS, *STATIC)
REFERENCE = "remerge.engines.score_transformers"


@dataclass(frozen=True)
class Answer:
    """What engine and reference go on with, greedily. Shown, and never judged: where two tokens are
    nearly as likely, rounding decides, and all that follows differs."""

    prompt: str
    engine: str
    reference: str


@dataclass(frozen=True)
class CheckReport:
    """What a check found. ``word`` says how far it went: *served* (the engine's own server or loop
    answered, and its log-probabilities were compared), *scored* (a reference reader's were),
    *loaded* (it loaded, and no more) or *statically checked* (files and configuration were read).
    """

    output: Path
    engine: str
    word: Word
    passed: bool
    format: str | None
    reference: str
    gates: tuple[Gate, ...]
    comparison: Comparison | None = None
    noise: Comparison | None = None
    share: Share | None = None
    tokenisation: tuple[Difference, ...] = ()
    answers: tuple[Answer, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0
    peak_memory: int = 0


def check_engine_name(engine: str) -> None:
    """Raises `UsageError` for an engine that there is not."""
    if engine not in ENGINES:
        raise UsageError(f"There is no engine {engine!r}.", hint=f"Choose {', '.join(ENGINES)}.")


def check(
    output: Path,
    engine: str,
    *,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    reference: Path | None = None,
    prompts: Path | None = None,
    form: str | None = None,
    settings: Settings,
    pythons: Mapping[str, str],
    threads: int | None = None,
    max_memory: int,
    report: Report,
) -> CheckReport:
    """Load ``output`` in ``engine`` and compare it with the merge in float32, or ``reference``.

    Raises `UsageError` for an engine that is missing or does not read this kind of artefact, and
    where there is nothing to compare with; what an engine cannot load raises `BadInput`. A gate
    that does not hold raises nothing: the report says so.
    """
    started = time.time()
    check_engine_name(engine)
    artefact = find_artefact(output)
    if engine in STATIC:
        return _static(output, engine, artefact, started)
    scorer = SCORERS[engine]
    if artefact.kind not in scorer.reads:
        fitting = [s.name for s in SCORERS.values() if artefact.kind in s.reads]
        raise UsageError(
            f"{engine} does not read {_KINDS[artefact.kind]}.",
            hint=f"Choose --engine {' or '.join(fitting)}.",
        )
    if form is not None:
        limit_of(form)
    python = interpreter(scorer, artefact, pythons)
    with tempfile.TemporaryDirectory(prefix="remerge-check-") as folder:
        work = Path(folder)
        against = reference_of(output, artefact, reference, base, adapters, work, max_memory)
        if against.elements is not None:
            check_elements(against.elements)
        tokenizer = open_tokenizer(against.tokenizer)
        asked = built_in() if prompts is None else read_prompts(prompts, tokenizer)
        length = prompt_length(against.config, settings)
        chosen = cut(asked, tokenizer, settings.prompts, length)
        texts = tuple(dict.fromkeys((*TEXTS, *chosen.texts)))
        questions = Questions(texts, chosen.prompts, settings.answers, settings.answer_tokens)
        request = {
            "artefact": str(artefact.place.absolute()),
            "texts": list(questions.texts),
            "threads": threads,
        }
        found: dict[tuple[str, int], Answered] = {}
        engine_side = questions.side("artefact", work)
        told = ask(python, scorer.module, [engine_side], request, report, collect(found))
        form = form or artefact.format or _told_format(told)
        limit = limit_of(form or "unknown")
        expected = [list(tokenizer(text)["input_ids"]) for text in texts]
        every = differences(expected, told["tokens"])
        cuts = of_composed(every, texts)
        facts: dict[str, Any] = {
            "output": output,
            "engine": engine,
            "format": form,
            "reference": against.words,
            "tokenisation": tuple(cuts),
        }
        holds = [tokenisation_gate(len(texts), len(cuts))]
        notes = [*against.notes, *chosen.notes, *told["notes"]]
        if len(every) > len(cuts):
            notes.append(
                "The tokenizer composes Unicode characters (NFC), and the engine takes text as it "
                "comes: letters with marks of their own are cut otherwise."
            )
        if told.get("loaded_only"):
            notes.append(f"It loaded, and could not be scored: {told['loaded_only']}")
            holds.append(Gate("scores", "none", "some", False))
            return CheckReport(
                **facts,
                word="loaded",
                passed=False,
                gates=tuple(holds),
                notes=tuple(notes),
                versions=told["versions"],
                seconds=time.time() - started,
                peak_memory=told["peak_memory"],
            )
        folders = {name: work / name for name in ("merge", "base", "noise")}
        for folder in folders.values():
            folder.mkdir()
        names = ["merge"]
        names += ["base"] if against.has_base else []
        names += ["noise"] if limit.noise else []
        sides = [questions.side(name, folders[name], answers=name == "merge") for name in names]
        wanted = {**against.request, "noise": limit.noise, "threads": threads}
        said = ask(Path(sys.executable), REFERENCE, sides, wanted, report, collect(found))

        def read(name: str) -> Scores:
            folder = folders.get(name, work)
            rows = engine_side.of_kind("rows").values()
            return Scores.read([rows_path(folder, item) for item in rows], work / f"{name}.npy")

        scores, truth = read("artefact"), read("merge")
        comparison = compare(truth, scores, questions)
        noise = compare(truth, read("noise"), questions) if limit.noise else None
        holds += gates(comparison, limit, noise)
        share = None
        if against.has_base and "base" not in said["refused"]:
            share = adapter_share(read("base"), truth, scores)
            gate = share_gate(share)
            if gate is None:
                notes.append(
                    "These prompts cannot tell whether the adapter is there: it hardly changes "
                    "what comes next. Give some of its task with --prompts."
                )
            else:
                holds.append(gate)
        if told.get("served"):
            holds.append(server_gate(_served_apart(told["served"], scores, questions)))
        if comparison.vocabulary != truth.width or (
            scores.ids is None and scores.width != truth.width
        ):
            notes.append(
                f"The engine has {scores.width} tokens, the reference {truth.width}: the first "
                f"{comparison.vocabulary} were compared."
            )
        answers = [
            Answer(*(tokenizer.decode(ids) for ids in three))
            for three in (
                (item.ids, found["artefact", n].answer, found["merge", n].answer)
                for n, item in engine_side.of_kind("answer").items()
            )
        ]
        return CheckReport(
            **facts,
            word=scorer.word,
            passed=all(gate.passed for gate in holds),
            gates=tuple(holds),
            comparison=comparison,
            noise=noise,
            share=share,
            answers=tuple(answers),
            notes=tuple(notes),
            versions={**said["versions"], **told["versions"]},
            seconds=time.time() - started,
            peak_memory=max(told["peak_memory"], said["peak_memory"]),
        )


_KINDS = {
    "checkpoint": "a directory of safetensors",
    "gguf": "GGUF files",
    "onnx": "a directory of ONNX",
}


def _static(output: Path, engine: str, artefact: Artefact, started: float) -> CheckReport:
    if artefact.kind != "checkpoint":
        raise UsageError(f"{engine} does not read {_KINDS[artefact.kind]}.")
    holds, notes = check_statically(engine, artefact.place)
    return CheckReport(
        output,
        engine,
        "statically checked",
        all(gate.passed for gate in holds),
        artefact.format,
        "what its loader reads, by its documentation",
        tuple(holds),
        notes=tuple(notes),
        seconds=time.time() - started,
    )


def interpreter(scorer: Scorer, artefact: Artefact, pythons: Mapping[str, str]) -> Path:
    """The interpreter to score with; transformers reads GGUF files with a package of llama.cpp's
    environment."""
    name = scorer.engine or ("llama.cpp" if artefact.kind == "gguf" else None)
    return Path(sys.executable) if name is None else python_of(engine_of(name), pythons)


def _told_format(told: Mapping[str, Any]) -> str | None:
    number = told.get("file_type")
    return next((kind.name for kind in FILE_TYPES.values() if kind.number == number), None)


def _served_apart(
    served: Sequence[Mapping[str, float]], scores: Scores, questions: Questions
) -> float:
    """The largest difference between what a server told of the likeliest tokens after a prompt, and
    what was scored there."""
    worst, end = 0.0, 0
    for told, prompt in zip(served, questions.prompts, strict=False):
        end += len(prompt)
        row = scores.values[end - 1].astype("float64")
        worst = max(worst, likeliest_difference({int(i): float(v) for i, v in told.items()}, row))
    return worst


def document(report: CheckReport) -> dict[str, Any]:
    """A report as JSON data."""
    found = asdict(report)
    found["output"] = str(report.output)
    if report.comparison is not None:
        found["comparison"]["perplexity_ratio"] = report.comparison.perplexity_ratio
    if report.format is not None and report.comparison is not None:
        found["kl_limit"] = kl_limit(limit_of(report.format), report.noise)
    return found
