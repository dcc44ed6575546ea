"""What an artefact must pass before a name is moved to it, each step a function of what is under
way. A step that finds fault raises, or says with its findings why it refuses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remerge.artefacts.adapter_manifest import is_combined
from remerge.artefacts.store import blobs, checking, describing
from remerge.artefacts.store.lending import lent_inputs
from remerge.artefacts.store.rebuilding import proof_of
from remerge.artefacts.store.records import Record, StoredFile
from remerge.artefacts.store.words import a
from remerge.artefacts.test_result import TESTS, Figures
from remerge.engines.servers.registry import usual_engine
from remerge.errors import BadInput, IntegrityError, NotReproduced, UsageError
from remerge.merging.budget import DEFAULT
from remerge.serving.laid_out import lay_out_artefact
from remerge.serving.promotion import Found, Report, Work

if TYPE_CHECKING:
    from remerge.serving.earlier_comparison import Earlier
    from remerge.validation.comparison_asked import Asked


def verify(work: Work, report: Report) -> Found:
    """Every byte by its digest, then all of it derived again from base and adapters."""
    record, state = work.record, work.state
    checked = checking.verify(
        work.store, [work.artefact], lambda done, total, file: report(done, total, "bytes")
    )
    if checked.damage:
        first = checked.damage[0]
        raise IntegrityError(
            first.what,
            why=f"{len(checked.damage)} of its files are not what they were when it was stored.",
            hint=first.hint,
        )
    shown = {"files": checked.files, "bytes": checked.nbytes}
    started = time.monotonic()
    try:
        laid = lay_out_artefact(work.store, record, state, work.name, work.place, work.means)
    except (BadInput, IntegrityError) as error:
        # There is no option that names an input: the store is where it is kept.
        hint = "Keep base and adapters in the store: remerge store add PATH; then the same again."
        raise type(error)(error.what, why=error.why, hint=hint) from error
    work.laid = laid
    if laid.made_again:
        summary = f"it was collected; {len(record.files)} files, every byte as derived again"
        proof = proof_of(time.monotonic() - started)
        restored = tuple(_restored(record, laid.output))
        shown["derived"] = True
        return Found(summary, shown=shown, proof=proof, restored=restored)
    bytes_alone = f"{checked.files} files, every byte by its digest"
    if not record.derived and not is_combined(laid.output):
        return Found(f"{bytes_alone}; {_source(record)}", shown={**shown, "derived": False})
    # It always imports torch, which takes seconds.
    from remerge.validation import verify as verifying

    with lent_inputs(work.store.root) as elsewhere:
        found = verifying.verify(
            laid.output,
            base=laid.base,
            adapters=laid.adapters,
            max_memory=DEFAULT,
            threads=work.means.threads,
            device=work.means.device,
            pythons=work.means.pythons,
            report=lambda done, total, tensor: report(done, total, "bytes"),
            elsewhere=elsewhere,
        )
    how = "every byte as derived again"
    if not found.derived:
        how = "as their manifest has them: the engine that wrote them may write others each time"
    return Found(
        f"{found.files} files, {how}",
        findings=replace(found, output=Path(work.name)),
        shown={**shown, "derived": found.derived},
        proof=proof_of(time.monotonic() - started) if found.derived else None,
    )


def plan_verify(work: Work) -> str:
    record, state = work.record, work.state
    read = f"read {len(record.files) + len(state.attached)} files"
    if not record.derived:
        return f"{read} by their digests; {_source(record)}"
    if state.collected is not None:
        return "make it again from base and adapters: its files were collected"
    return f"{read} by their digests, and derive it again from base and adapters"


def compare(work: Work, report: Report) -> Found:
    """The adapters on their base against the artefact, judged; or that this was recorded."""
    record = work.record
    if not record.derived:
        return Found(_nothing_to_compare(record), "skipped")
    from remerge.validation import comparison_asked
    from remerge.validation.gate import not_held

    laid = work.lying
    asked = comparison_asked.Asked(
        base=laid.base,
        adapters=laid.adapters,
        output=laid.output,
        known_as=work.name,
        gate=work.asking.gate,
        form=work.asking.form,
        device=work.means.device.type,
        threads=work.means.threads,
        pythons=work.means.pythons,
    )
    earlier = _earlier(work, asked)
    if earlier is not None:
        figures = earlier.statement.predicate.figures
        return Found(
            f"compared on {figures.started[:19]} in {figures.engine}: {_in_short(figures)}; "
            f"report {earlier.sha256[:12]}",
            "reused",
            shown={"report": earlier.sha256, "reused": True, **_figures(figures)},
        )
    found = comparison_asked.run(asked, report)
    shown = replace(found, output=Path(work.name), written=None)
    refused = not_held(
        found.figures.gates,
        f"See where it hurts: remerge store materialize {work.name} -o OUT, then remerge compare "
        "OUT --bisect.",
    )
    if refused is not None:
        return Found(_in_short(found.figures), "failed", shown, refused=refused)
    attached = _attached(work)
    own = [staged for file, staged in attached if found.written and _is(file, found.written)]
    return Found(
        _in_short(found.figures),
        findings=shown,
        shown={"report": own[0].sha256 if own else None, **_figures(found.figures)},
        attached=attached,
    )


def plan_compare(work: Work) -> str:
    record = work.record
    if not record.derived:
        return _nothing_to_compare(record)
    from remerge.validation.comparison_asked import Asked

    asked = Asked(None, (), Path(work.name), gate=work.asking.gate, form=work.asking.form)
    names = ", ".join(one.name for one in asked.asking.evaluations) or "probabilities alone"
    # Raises for a gate that is none, before anything is run.
    _ = asked.thresholds
    for one in asked.asking.evaluations:
        if not one.path.is_file():
            raise UsageError(f"--eval {one.path} is no file.", hint="Give a file of questions.")
    tests = any(f"{TESTS}/" in file.name for file in work.state.attached)
    recorded = "take a recorded comparison that says as much, else " if tests else ""
    recorded = "" if work.asking.anew else recorded
    return (
        f"{recorded}run the adapters on their base and the artefact on the same prompts ({names})"
    )


def check(work: Work, report: Report) -> Found:
    """The artefact loaded in the engine that will serve it."""
    record = work.record
    if record.kind == "adapter":
        return Found(_NO_ENGINE, "skipped")
    from remerge.validation.check import check as checked_in
    from remerge.validation.check import document
    from remerge.validation.gate import not_held
    from remerge.validation.references import Settings

    laid = work.lying
    engine = work.asking.engine or _engine_for(laid.output, work.means.pythons)
    found = checked_in(
        laid.output,
        engine,
        base=laid.base,
        adapters=laid.adapters,
        form=work.asking.form,
        settings=Settings(),
        pythons=work.means.pythons,
        threads=work.means.threads,
        max_memory=DEFAULT,
        report=report,
    )
    shown = replace(found, output=Path(work.name))
    summary = f"{found.word} in {engine}"
    summary += f" {version}" if (version := _version(engine, found.versions)) else ""
    if found.comparison is not None:
        summary += f", KL {found.comparison.kl_mean:.2e}"
    refused = None
    if not found.passed:
        refused = not_held(
            found.gates,
            f"See what it says: remerge store materialize {work.name} -o OUT, then remerge check "
            f"OUT --engine {engine}.",
        )
        assert refused is not None
        refused = NotReproduced(
            refused.what,
            why=f"{engine} does not serve what was merged.",
            hint=refused.hint,
        )
    content = blobs.stage_bytes(work.place, _json(document(shown)))
    return Found(
        summary,
        "failed" if refused else "passed",
        shown,
        shown={
            "report": content.sha256,
            "engine": engine,
            "versions": dict(found.versions),
            "word": found.word,
        },
        documents=(content,),
        refused=refused,
    )


def plan_check(work: Work) -> str:
    record = work.record
    if record.kind == "adapter":
        return _NO_ENGINE
    if work.asking.engine is not None:
        from remerge.validation.check import check_engine_name

        check_engine_name(work.asking.engine)
    engine = work.asking.engine or "the engine that serves such artefacts"
    return f"load it in {engine}, and compare its probabilities with the merge in float32"


_NO_ENGINE = "does not apply to an adapter: an engine loads it beside its base"


def _nothing_to_compare(record: Record) -> str:
    return f"does not apply to {a(record.kind)}: no merge is to be held to it"


def _source(record: Record) -> str:
    return f"{a(record.kind)} is a source, and derived from nothing"


def _restored(record: Record, output: Path) -> Iterator[tuple[StoredFile, Path]]:
    folder = output if record.single is None else output.parent
    for file in record.files:
        if file.derived:
            (folder / file.name).chmod(0o444)
            yield file, folder / file.name


def _earlier(work: Work, asked: Asked) -> Earlier | None:
    if work.asking.anew:
        return None
    from remerge.serving.earlier_comparison import earlier_comparison
    from remerge.validation.artefact import find_artefact
    from remerge.validation.sides import USUAL

    artefact = find_artefact(asked.output)
    form = asked.form or artefact.format or "unknown"
    engine = USUAL[artefact.kind]
    return earlier_comparison(work.store, work.record, work.state, asked, form, engine)


def _attached(work: Work) -> tuple[tuple[StoredFile, blobs.Staged], ...]:
    """What the comparison left beside the artefact: its result, and the card with it."""
    known = {file.name: file.sha256 for file in work.state.attached}
    found: list[tuple[StoredFile, blobs.Staged]] = []
    output = work.lying.output
    for file in describing.describe(output).attached:
        staged = blobs.stage(work.place, file.path, None)
        if known.get(file.name) != staged.sha256:
            kept = StoredFile(name=file.name, size=staged.size, sha256=staged.sha256)
            found.append((kept, staged))
    return tuple(found)


def _is(file: StoredFile, written: Path) -> bool:
    return file.name.rpartition("/")[2] == written.name


def _figures(figures: Figures) -> dict[str, Any]:
    """What a comparison measured, for the log."""
    return {
        "started": figures.started,
        "engine": figures.engine,
        "versions": figures.versions,
        "scores": {
            task.name: {
                "adapter": task.adapter.value,
                "merged": task.merged.value,
                "questions": task.questions,
            }
            for task in figures.tasks
        },
        "kl": {one.name: one.kl_mean for one in figures.logits},
    }


def _in_short(figures: Figures) -> str:
    scores = [
        f"{task.name} {task.adapter.value:.3f} to {task.merged.value:.3f}" for task in figures.tasks
    ]
    kl = [f"KL of {one.name} {one.kl_mean:.2e}" for one in figures.logits]
    held = sum(gate.passed for gate in figures.gates)
    return ", ".join([*scores, *kl, f"{held} of {len(figures.gates)} gates hold"])


def _engine_for(output: Path, pythons: Mapping[str, str]) -> str:
    """Who serves such an artefact; what no server takes is loaded by who scores it."""
    from remerge.validation.artefact import find_artefact
    from remerge.validation.sides import USUAL

    kind = find_artefact(output).kind
    if kind in ("checkpoint", "gguf"):
        return usual_engine(pythons, is_gguf=kind == "gguf")
    return USUAL[kind]


def _version(engine: str, versions: Mapping[str, str]) -> str | None:
    return next((text for name, text in versions.items() if name.startswith(engine)), None)


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, default=str) + "\n").encode()
