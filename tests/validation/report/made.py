"""Outputs with comparisons beside them, as the report finds them: real merges, and figures that are
made up, hostile texts among them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import remerge
from remerge.artefacts.manifest import FileRecord, read_manifest
from remerge.artefacts.test_result import (
    Bisection,
    Cost,
    Differing,
    Figures,
    GateResult,
    HarnessResult,
    Interval,
    LogitsResult,
    Suspect,
    TaskResult,
    TensorResult,
    WeightsResult,
    statement,
    write_test_result,
)
from remerge.validation.formats import FormatRow, FormatTable
from remerge.validation.score_comparison import Comparison

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
HOSTILE = {
    "script": "</script><script>document.title = 'owned'</script>",
    "image": "<img src=x onerror=\"document.title = 'owned'\">",
    "style": "</style><style>* { display: none }</style>",
    "comment": "<!-- <script> -->",
    "bidi": "abc \u202egnirts\u2066 def",
    "nul": "a\x00b\x1b[31mred\x7f",
    "long": "long " * 2000,
    "quotes": "\"'`{{ 7 * 7 }}{% raw %}",
}


def merged(place: Path, *tasks: str) -> Path:
    """A real merge of example adapters, at ``place / merged``."""
    adapters = [EXAMPLES / "adapters" / task for task in tasks or ("sort",)]
    remerge.merge(EXAMPLES / "base", adapters, place / "merged")
    return place / "merged"


def tensor(**changed: Any) -> TensorResult:
    usual: dict[str, Any] = {
        "elements": 16384,
        "touched": True,
        "base_norm": 8.0,
        "delta_norm": 0.5,
        "kept": 1.0004,
        "noise": 0.02,
        "worst": 0.5,
        "mean": 0.25,
        "excess": 1.0,
    }
    return TensorResult(**{**usual, **changed})


def weights(tensors: dict[str, TensorResult]) -> WeightsResult:
    return WeightsResult(
        dtype="BF16",
        measured=len(tensors),
        tensors=tensors,
        worst=max(t.worst or 0.0 for t in tensors.values()),
        worst_tensor=max(tensors, key=lambda name: tensors[name].worst or 0.0),
        mean=0.25,
        kept=0.99,
        noise=0.02,
    )


def of_layers(layers: int, modules: int) -> WeightsResult:
    """A large model, some of whose tensors fail."""
    tensors = {
        f"model.layers.{layer}.block{module % 4}.part_{module}.weight": tensor(
            delta_norm=0.01 * math.exp(4 * abs(math.sin(layer * 0.3 + module))),
            kept=0.0
            if (layer, module) == (layers // 2, 3)
            else 1 + 0.01 * math.sin(layer * module),
            excess=9.0 if (layer, module) == (1, 1) else 1.0,
        )
        for layer in range(layers)
        for module in range(modules)
    }
    tensors["model.embed_tokens.weight"] = tensor(delta_norm=0.3)
    tensors["model.norm.weight"] = tensor(touched=False, delta_norm=None, kept=None, noise=None)
    tensors["lm_head.weight"] = tensor(delta_norm=0.7)
    return weights(tensors)


def interval(value: float, half: float = 0.03) -> Interval:
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def task(name: str, base: float | None, adapter: float, merged: float) -> TaskResult:
    return TaskResult(
        name=name,
        scorer="exact",
        questions=200,
        base=None if base is None else interval(base),
        adapter=interval(adapter),
        merged=interval(merged),
        delta=Interval(value=merged - adapter, low=merged - adapter - 0.02, high=merged - adapter),
        lost=3,
        won=1,
        p_value=0.625,
    )


def differing(text: str, **changed: Any) -> Differing:
    usual: dict[str, Any] = {
        "task": "sort",
        "prompt": text,
        "expected": text,
        "base": None,
        "adapter": text,
        "merged": text,
        "adapter_right": True,
        "merged_right": False,
    }
    return Differing(**{**usual, **changed})


def figures(**changed: Any) -> Figures:
    """All that a comparison may tell, failed by one gate."""
    logits = LogitsResult(
        name="prompts",
        prompts=200,
        positions=4180,
        vocabulary=2048,
        likeliest=None,
        differing="logits",
        difference_mean=0.0021,
        difference_max=0.11,
        kl_mean=3.1e-5,
        kl_max=0.0042,
        noise_kl=2.1e-5,
        top1=0.9978,
        top5=0.9991,
        perplexity_base=9.1,
        perplexity_adapter=3.412,
        perplexity_merged=3.413,
    )
    usual: dict[str, Any] = {
        "started": "2026-11-20T10:11:12+00:00",
        "seconds": 41.2,
        "verdict": "failed",
        "reference": "sort on base, by PEFT",
        "engine": "transformers",
        "format": "bfloat16",
        "device": "cpu",
        "dtype": "float32",
        "nbytes": 5_280_000,
        "command": "remerge compare base sort merged --eval sort=sort.jsonl",
        "gates": (
            GateResult(name="weights", measured="1.02 roundings", limit="at most 2", passed=True),
            GateResult(
                name="score of sort", measured="-2.0 %, p 0.03", limit="-0.1 %", passed=False
            ),
        ),
        "weights": of_layers(4, 7),
        "logits": (logits, logits.model_copy(update={"name": "text", "likeliest": 100})),
        "tasks": (task("sort", 0.02, 0.98, 0.96), task("dates", None, 0.91, 0.915)),
        "harness": (
            HarnessResult(
                task="arc_easy",
                metric="acc_norm",
                base=0.41,
                base_error=0.01,
                adapter=0.44,
                adapter_error=0.01,
                merged=0.439,
                merged_error=None,
            ),
        ),
        "differing": (
            differing(
                "Sort: 3 1 2", expected="1 2 3", base="3 1 2", adapter="1 2 3", merged="1 3 2"
            ),
            differing(
                "Sort: b a", adapter="b a", merged="a b", adapter_right=False, merged_right=True
            ),
        ),
        "bisection": Bisection(
            kl=0.031,
            suspects=(
                Suspect(
                    name="layer 2, block3.part_3",
                    tensors=("model.layers.2.block3.part_3.weight",),
                    kl=0.001,
                    share=0.968,
                ),
                Suspect(name="layer 0", tensors=("a", "b"), kl=0.03, share=0.02),
            ),
            proposal="Keep model.layers.2.block3.part_3.weight in float32.",
            command="remerge merge base sort -o merged2 --keep-float32 '*part_3*'",
            proven=True,
        ),
        "costs": (
            Cost(
                side="adapter on base",
                engine="PEFT",
                seconds=19.5,
                peak_memory=712_000_000,
                asked=400,
                cached=0,
            ),
            Cost(
                side="merged",
                engine="transformers",
                seconds=17.1,
                peak_memory=712_000_000,
                asked=380,
                cached=20,
            ),
        ),
        "notes": ("The chat template was rendered by transformers.",),
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    }
    return Figures(**{**usual, **changed})


def compared(output: Path, found: Figures, *, same_bytes: bool = True) -> Path:
    """Lay a comparison beside an output."""
    records = read_manifest(output).outputs if (output / "remerge.json").is_file() else ()
    if not same_bytes:
        records = tuple(r.model_copy(update={"sha256": "0" * 64}) for r in records)
    questions = FileRecord(name="sort.jsonl", size=1, sha256="ab" * 32)
    return write_test_result(output, statement(found, records, [questions]))


def table() -> FormatTable:
    def row(form: str, nbytes: int, kl: float, top1: float, score: float) -> FormatRow:
        found = Comparison(900, 2048, None, kl, 1.0, kl, 0.4, top1, 3.41, 3.41 + kl)
        return FormatRow(form, nbytes, nbytes * 8 / 2.6e6, 3.2, "llama.cpp", found, score)

    return FormatTable(
        (
            row("safetensors", 5_250_000, 1.4e-5, 0.995, 0.98),
            row("gguf:Q8_0", 2_810_000, 5.3e-4, 0.984, 1.0),
            row("gguf:Q4_K_M", 1_620_000, 6.3e-2, 0.838, 0.98),
            row("gguf:Q2_K", 1_040_000, 0.56, 0.531, 0.3),
            FormatRow("nvfp4", failure="no module fits <b>"),
        ),
        "the merge in float32",
        900,
        3.412,
        50,
        0.98,
        ("Only 8 of 20 prompts were scored.",),
    )


def write_table(path: Path) -> Path:
    path.write_text(json.dumps(asdict(table())))
    return path


def hostile() -> Figures:
    """Every text that others wrote is hostile."""
    cases = tuple(differing(text, task=text) for text in HOSTILE.values())
    script, image = HOSTILE["script"], HOSTILE["image"]
    tensors = {
        f"model.layers.0.{text}.weight": tensor()
        for text in (*HOSTILE.values(), "same", "sa\x00me")
    }
    return figures(
        reference=script,
        engine=image,
        command=script,
        differing=cases,
        notes=tuple(HOSTILE.values()),
        tasks=tuple(task(text, 0.1, 0.2, 0.3) for text in HOSTILE.values()),
        weights=weights(tensors),
        gates=(GateResult(name=script, measured=image, limit=HOSTILE["style"], passed=False),),
        versions={script: image},
        bisection=Bisection(
            kl=1.0,
            suspects=tuple(
                Suspect(name=text, tensors=(text,), kl=0.1, share=0.5) for text in HOSTILE.values()
            ),
            proposal=script,
            command=image,
            proven=False,
        ),
    )
