"""What the card tells people: what this is, how to load it, how to make it again."""

from __future__ import annotations

from collections.abc import Sequence

from remerge.artefacts.card.escaping import block, code, prose
from remerge.artefacts.card.inherited import Said
from remerge.artefacts.card.made import OUT, Made
from remerge.artefacts.card.metadata import Sources, base_id
from remerge.artefacts.card.scores import scores
from remerge.artefacts.manifest import FileRecord, InputRecord
from remerge.artefacts.test_result import Figures

_SHOWN = 4
_WEIGHTS = (".safetensors", ".bin", ".pt", ".npz")
_WITNESS = {
    "adapter": "the adapter's configuration, which names what it was trained on",
    "base": "the base's configuration, which names what it was loaded from",
}
_AUTO = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}


def body(
    made: Made,
    sources: Sources,
    figures: Figures | None,
    moment: str,
    task_type: str | None,
) -> list[str]:
    """Lines of Markdown. ``moment`` is that of the comparison, ``task_type``
    an adapter's in PEFT's words."""
    lines = [_opening(made), "", "## What was merged", ""]
    if made.merged is not None:
        lines[2] = "## What was compared"
    lines += [*_inputs(made, sources), "", "## How", ""]
    lines += [f"- {label}: {prose(value)}" for label, value in made.facts]
    if made.key is not None:
        lines.append(f"- merge key: {code(made.key)}")
    if figures is not None:
        lines += ["", "## Scores", "", *scores(figures, moment)]
    lines += ["", "## Use", "", *_use(made, sources, task_type)]
    lines += ["", "## Reproduce", "", *_reproduce(made)]
    notes = [*_licences(made, sources), *_passed_over(made, sources), *map(prose, made.notes)]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return lines


def _opening(made: Made) -> str:
    by = f"remerge {prose(made.version)}".strip()
    if made.merged is not None:
        return f"The LoRA adapter that leads from one checkpoint to another, found by {by}."
    if made.is_adapter:
        return f"Several adapters combined into one, by {by}."
    what = {0: "A checkpoint in another form", 1: "A base model with a LoRA adapter merged into it"}
    return f"{what.get(len(made.adapters), 'A base model with several adapters in it')}, by {by}."


def _inputs(made: Made, sources: Sources) -> list[str]:
    lines = ["| | name | revision | SHA-256 |", "|---|---|---|---|"]
    named = [("base", made.base)]
    if made.merged is not None:
        named.append(("merged model", made.merged))
    named += [
        ("adapter" if len(made.adapters) == 1 else f"adapter {number}", record)
        for number, record in enumerate(made.adapters, 1)
    ]
    for role, record in named:
        name = code(record.name) + (f" ({code(record.subfolder)})" if record.subfolder else "")
        lines.append(f"| {role} | {name} | {_revision(record)} | {_digests(record.files)} |")
    known = base_id(made, sources)
    if made.base.hub_id is None:
        lines.append("")
        if known.ids and known.read_from in _WITNESS:
            lines.append(f"The base is {code(known.ids[0])} by {_WITNESS[known.read_from]}.")
        elif known.ids:
            lines.append(f"The base was itself made of {', '.join(map(code, known.ids))}.")
        elif not known.ids:
            lines.append("The base was a directory, and no name of it on the Hub is known.")
    return lines


def _revision(record: InputRecord) -> str:
    return "" if record.commit is None else code(record.commit)


def _digests(files: Sequence[FileRecord]) -> str:
    weights = [file for file in files if file.name.endswith(_WEIGHTS)] or list(files)
    shown = [f"{code(file.name)} {code(file.sha256)}" for file in weights[:_SHOWN]]
    if len(weights) > _SHOWN:
        shown.append(f"and {len(weights) - _SHOWN} more, in remerge.json")
    return "<br>".join(shown)


def _reproduce(made: Made) -> list[str]:
    lines = [*block(made.command, "sh"), ""]
    if made.merged is None:
        lines.append(
            f"`remerge verify {OUT}` derives every byte again and compares; "
            f"`remerge reproduce {OUT}` fetches the inputs and makes it anew."
        )
    lines.append("All inputs and outputs are in `remerge.json`, with sizes and SHA-256.")
    return lines


def _use(made: Made, sources: Sources, task_type: str | None) -> list[str]:
    place = f'"{OUT}"'
    if made.is_adapter:
        kind = _AUTO.get(task_type or "", "AutoPeftModel")
        code_lines = [
            f"from peft import {kind}",
            "",
            f"model = {kind}.from_pretrained({place})",
        ]
        return block("\n".join(code_lines), "python")
    if made.form == "gguf":
        return _use_gguf(made)
    if made.form == "onnx":
        lines = ["import onnxruntime_genai", "", f"model = onnxruntime_genai.Model({place})"]
        return block("\n".join(lines), "python")
    if made.form == "openvino":
        lines = ["import openvino_genai", "", f'pipe = openvino_genai.LLMPipeline({place}, "CPU")']
        return block("\n".join(lines), "python")
    return _use_checkpoint(made, sources.base, place)


def _use_checkpoint(made: Made, base: Said, place: str) -> list[str]:
    kind = base.architecture or "AutoModel"
    if base.diffusers:
        lines = [f"from diffusers import {kind}", "", f"model = {kind}.from_pretrained({place})"]
        return block("\n".join(lines), "python")
    has_tokenizer = any(record.name.startswith("tokenizer") for record in made.outputs)
    imported = f"AutoTokenizer, {kind}" if has_tokenizer and kind > "AutoT" else kind
    if has_tokenizer and imported == kind:
        imported = f"{kind}, AutoTokenizer"
    lines = [f"from transformers import {imported}", ""]
    lines.append(f'model = {kind}.from_pretrained({place}, dtype="auto")')
    if has_tokenizer:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({place})")
    shown = block("\n".join(lines), "python")
    if kind.endswith("ForCausalLM") and has_tokenizer:
        shown += ["", f"Or serve it: `vllm serve {OUT}`."]
    return shown


def _use_gguf(made: Made) -> list[str]:
    file = next((r.name for r in made.outputs if r.name.endswith(".gguf")), None)
    if file is None:
        return []
    lines = [f"llama-server -m {file}"]
    if any(record.name == "Modelfile" for record in made.outputs):
        lines.append("ollama create my-model -f Modelfile")
    return block("\n".join(lines), "sh")


def _licences(made: Made, sources: Sources) -> list[str]:
    """Where base and adapters are not under one licence, all are named."""
    stated = [("the base", sources.base)]
    stated += [
        (f"adapter {code(record.name)}", said)
        for record, said in zip(made.adapters, sources.adapters, strict=True)
    ]
    if made.merged is not None and sources.merged is not None:
        stated.append(("the merged model", sources.merged))
    known = [(who, said.license_name or said.license) for who, said in stated if said.license]
    if len({licence for _, licence in known}) < 2:
        return []
    said = ", ".join(f"{who} {code(licence or '')}" for who, licence in known)
    return [f"The inputs state different licences: {said}. Whoever passes this on must keep all."]


def _passed_over(made: Made, sources: Sources) -> list[str]:
    said = [(made.base, sources.base), *zip(made.adapters, sources.adapters, strict=True)]
    return [
        f"The card of {code(record.name)} was passed over: {prose(one.note)}."
        for record, one in said
        if one.note is not None
    ]
