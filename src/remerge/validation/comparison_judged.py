"""What was asked of all sides, compared: texts, tasks, the first tokens of servers, lm-eval's
figures, and the gates of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from remerge.artefacts.making import Report
from remerge.artefacts.test_result import Differing, LogitsResult, TaskResult
from remerge.engines.scoring import Questions
from remerge.engines.tokenisation import differences, of_composed
from remerge.errors import UsageError
from remerge.validation.asking_sets import Task, Texts
from remerge.validation.comparison_run import Run, Settings
from remerge.validation.gate import logits_gates, of_arithmetic
from remerge.validation.harness import Harness, Side, adapted, run_harness
from remerge.validation.limits import Gate, limit_of, share_gate, tokenisation_gate
from remerge.validation.paired import differing, task_result
from remerge.validation.score_comparison import Comparison, adapter_share, compare
from remerge.validation.served_sides import first_token_kl


def harness_figures(run: Run, settings: Settings, report: Report) -> Harness | None:
    """lm-eval's tasks on all sides."""
    if settings.harness is None:
        return None
    inputs, place = run.compared.inputs, run.compared.artefact.place
    if len(inputs.adapters) != 1:
        raise UsageError("lm-eval compares one adapter.", hint="Leave out --lm-eval.")
    base = inputs.base.path
    adapter = adapted(base, inputs.adapters[0].path, place)
    merged = Side(place)
    endpoints = settings.endpoints
    if "adapter" in endpoints:
        adapter = Side(base, tokenizer=adapter.tokenizer, server=endpoints["adapter"])
    if "merged" in endpoints:
        merged = Side(place if place.is_dir() else base, server=endpoints["merged"])
    below = None if len(endpoints) == 2 else Side(base)
    return run_harness(
        below, adapter, merged, settings.harness, pythons=settings.running.pythons, report=report
    )


def served_gates(run: Run) -> list[Gate]:
    """The first tokens of a server's answers against the reference's probabilities there."""
    found: list[Gate] = []
    limit = run.thresholds.max_kl or of_arithmetic(limit_of(run.form), "bfloat16").kl
    if "adapter" in run.served:
        return found
    scored = {item.ids: item for item in run.sets.items.values() if item.kind == "rows"}
    for task in run.sets.tasks:
        told = run.served["merged"].likeliest[task.questions.name]
        pairs = [
            (scored[ids], likeliest)
            for one, likeliest in zip(task.asked, told, strict=True)
            if one.weighed is None and (ids := run.sets.items[one.items[0]].ids) in scored
        ]
        rows = [run.sides.scores(run.reference, [item]) for item, _ in pairs]
        last = [one.dense(slice(one.rows - 1, one.rows), one.width)[0] for one in rows]
        kl = first_token_kl(last, [likeliest for _, likeliest in pairs], run.tokenizer)
        if kl is None:
            run.notes.append(f"{task.questions.name}: the server tells no probabilities.")
            continue
        measured = f"at least {kl[0]:.2e} over {kl[1]} questions"
        name = f"KL divergence of first tokens, {task.questions.name}"
        found.append(Gate(name, measured, f"{limit:.2e}", kl[0] <= limit))
    return found


def tokens_gate(run: Run, told: Mapping[str, Any]) -> Gate:
    expected = [list(run.tokenizer(text)["input_ids"]) for text in run.texts]
    every = differences(expected, told["tokens"])
    cuts = of_composed(every, run.texts)
    if len(every) > len(cuts):
        run.notes.append(
            "The tokenizer composes Unicode characters (NFC), and the engine takes text as it "
            "comes: letters with marks of their own are cut otherwise."
        )
    run.notes += [f"Cut differently: {cut}" for cut in cuts[:3]]
    return tokenisation_gate(len(run.texts), len(cuts))


def compare_texts(
    run: Run, texts: Texts, side: str = "artefact"
) -> tuple[LogitsResult, list[Gate]]:
    items = [run.sets.items[number] for number in texts.items]
    questions = Questions((), tuple(item.ids for item in items), 0, 0)
    truth = run.sides.scores(run.reference, items)
    engine = run.sides.scores(side, items)
    found = compare(truth, engine, questions)
    noise: Comparison | None = None
    if run.sides.noise:
        noise = compare(truth, run.sides.scores("noise", items), questions)
    form = of_arithmetic(limit_of(run.form), run.sides.running.dtype)
    holds = logits_gates(texts.name, found, form, noise, run.thresholds)
    base = None
    if "base" not in run.sides.refused:
        alone = run.sides.scores("base", items)
        base = compare(truth, alone, questions).perplexity
        share = share_gate(adapter_share(alone, truth, engine))
        if share is None:
            run.notes.append(
                f"{texts.name}: these texts cannot tell whether the adapter is there: it hardly "
                "changes what comes next. Give some of its task with --eval."
            )
        else:
            holds.append(replace(share, name=f"{share.name}, {texts.name}"))
    result = LogitsResult(
        name=texts.name,
        prompts=len(items),
        positions=found.positions,
        vocabulary=found.vocabulary,
        likeliest=found.likeliest,
        differing=found.logits.of,
        difference_mean=found.logits.mean,
        difference_max=found.logits.largest,
        kl_mean=found.kl_mean,
        kl_max=found.kl_max,
        noise_kl=None if noise is None else noise.kl_mean,
        top1=found.top1,
        top5=found.top5,
        perplexity_base=base,
        perplexity_adapter=found.perplexity_reference,
        perplexity_merged=found.perplexity,
    )
    return result, holds


def compare_task(
    run: Run, task: Task, side: str = "artefact"
) -> tuple[TaskResult, tuple[Differing, ...]]:
    name = task.questions.name

    local = "base" in run.sides.told or ("base", task.items[0]) in run.sides.answers
    base = run.answered(task, "base") if local and "base" not in run.sides.refused else None
    if "adapter" in run.served:
        adapter = run.served["adapter"].answers[name]
    else:
        adapter = run.answered(task, run.own[name])
    if "merged" in run.served and side == "artefact":
        merged = run.served["merged"].answers[name]
    else:
        merged = run.answered(task, side)
    result = task_result(
        name,
        task.questions.scorer,
        base=None if base is None else base.scores,
        adapter=adapter.scores,
        merged=merged.scores,
    )
    return result, differing(task.questions, base=base, adapter=adapter, merged=merged)
