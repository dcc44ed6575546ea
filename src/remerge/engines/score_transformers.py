"""Scored by transformers: a merge before it exists (the reference of a check), or a checkpoint.

Weights and arithmetic are float32 whatever they are stored as. The reference is also scored with
the adapter left out, and with random errors of a format's size in its weights: what these do to the
very model at hand tells what to expect of an artefact.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from remerge.engines.calling import Report, answer
from remerge.engines.scoring import Questions, ScoreFile
from remerge.engines.tokenisation import split, tokens_of
from remerge.errors import BadInput, Unsupported
from remerge.merging.budget import DEFAULT, peak_memory
from remerge.merging.plan import Plan
from remerge.merging.recipe import Recipe
from remerge.outputs.planning import make_plan, open_inputs
from remerge.sources.documents import as_object

# Quantisers scale blocks of this many weights of a row, or more.
_BLOCK = 32


def work(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Score ``merge`` (base, adapters, recipe), or ``directory`` or ``artefact`` as it lies there.

    Writes ``scores`` and, where asked, ``base_scores`` and ``noise_scores`` (with ``noise``,
    relative to the weights' own size). Of an artefact also its own tokenizer's ids are given.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    questions = Questions.of(request)
    asked = [key for key in ("scores", "noise_scores", "base_scores") if request.get(key)]
    total = len(asked) * len(questions.prompts)
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        report(done, total, "prompts")

    plan = _plan(request["merge"]) if request.get("merge") else None
    artefact = None if request.get("artefact") is None else Path(request["artefact"])
    model = _merged(plan) if plan is not None else _stored(artefact or Path(request["directory"]))
    _score(model, questions, Path(request["scores"]), told)
    answers = _answers(model, questions)
    if request.get("noise_scores"):
        disturb(model, request["noise"])
        _score(model, questions, Path(request["noise_scores"]), told)
    compares_base = False
    if request.get("base_scores") and plan is not None:
        del model
        gc.collect()
        base = _without_adapters(plan)
        compares_base = base is not None
        if base is not None:
            _score(_merged(base), questions, Path(request["base_scores"]), told)
    tokens = [] if artefact is None else tokens_of(artefact, questions.texts)
    return {
        "tokens": tokens,
        "answers": answers,
        "compares_base": compares_base,
        "notes": [] if plan is None else list(plan.notes),
        "peak_memory": peak_memory(),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }


def _plan(merge: Mapping[str, Any]) -> Plan:
    recipe = Recipe.model_validate(merge["recipe"])
    inputs = open_inputs(merge["base"], merge["adapters"], progress=False)
    return make_plan(replace(inputs, original=merge["original"]), recipe, DEFAULT)


def _merged(plan: Plan) -> Any:
    with plan.open(torch.device("cpu")) as merged:
        return _checked(merged.load_model(dtype=torch.float32))


def _without_adapters(plan: Plan) -> Plan | None:
    """The same model with the base's own weights; None where its tensors are of other shapes."""
    tensors = {
        name: replace(tensor, change=None) if tensor.change is not None else tensor
        for name, tensor in plan.tensors.items()
    }
    comparable = all(
        tensor.compares for tensor in plan.tensors.values() if tensor.change is not None
    )
    return replace(plan, tensors=tensors) if comparable else None


def _stored(place: Path) -> Any:
    """A checkpoint's model, or a GGUF file's, with its weights as stored, in float32; raises
    `BadInput` where tensors of it are missing, which transformers would make up."""
    import transformers

    auto: Any = transformers.AutoConfig
    directory, form = split(place)
    try:
        config = auto.from_pretrained(str(directory), local_files_only=True, **form)
        names: list[str] = list(config.architectures or [""])
        kind: Any = getattr(transformers, names[0], None) or transformers.AutoModelForCausalLM
        model, found = kind.from_pretrained(
            str(directory),
            config=config,
            dtype=_arithmetic(config),
            local_files_only=True,
            output_loading_info=True,
            **form,
        )
    except ImportError as error:
        said = " ".join(str(error).split())[:300]
        raise Unsupported(f"transformers lacks what this checkpoint needs: {said}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"transformers cannot load {place}: {said}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise BadInput(f"{place} lacks {len(missing)} tensors, first {missing[0]}.")
    return _checked(model)


def _arithmetic(config: Any) -> torch.dtype:
    """float32, but for packed 4-bit floats: compressed-tensors decodes these to the checkpoint's
    own dtype, whatever the rest is loaded in."""
    stated = as_object(getattr(config, "quantization_config", None)) or {}
    if "nvfp4" in str(stated.get("format", "")):
        return getattr(config, "dtype", None) or torch.bfloat16
    return torch.float32


def _checked(model: Any) -> Any:
    name = type(model).__name__
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise Unsupported(f"{name} does not predict next tokens: there is nothing to score.")
    return model.eval()


def _score(model: Any, questions: Questions, path: Path, told: Any) -> None:
    file = ScoreFile(path, questions.rows)
    for prompt in questions.prompts:
        found = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
        file.put(found.float().numpy())
        told()
    file.close()


def _answers(model: Any, questions: Questions) -> list[list[int]]:
    """Greedy answers, by a loop that nothing in a generation configuration changes."""
    ends = getattr(model.config.get_text_config(), "eos_token_id", None)
    stop = set(ends) if isinstance(ends, list) else {ends}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    found: list[list[int]] = []
    for prompt in questions.prompts[: questions.answers]:
        ids, cache = torch.tensor([prompt]), None
        tokens: list[int] = []
        while len(tokens) < questions.answer_tokens:
            told = model(input_ids=ids, past_key_values=cache, use_cache=True)
            token = int(told.logits[0, -1].argmax())
            tokens.append(token)
            if token in stop:
                break
            ids, cache = torch.tensor([[token]]), told.past_key_values
        found.append(tokens)
    return found


def disturb(model: Any, size: float) -> None:
    """Add normal errors to every matrix of a model, in place: ``size`` relative to the root mean
    square of each block of weights in a row. The same errors for the same model."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            continue
        columns = parameter.shape[-1]
        block = _BLOCK if columns % _BLOCK == 0 else columns
        rows = parameter.data.reshape(-1, block)
        for part in rows.split(max(1, 2**24 // block)):
            scale = part.pow(2).mean(dim=1, keepdim=True).sqrt_().mul_(size)
            part.add_(torch.randn(part.shape, generator=generator).mul_(scale))


if __name__ == "__main__":
    answer(work)
