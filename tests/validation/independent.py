"""What `remerge compare` should find, by transformers, PEFT, torch and scipy alone.

Written from the words of docs/compare.md before the code of the comparison was read, and without
any of it: an oracle that shares a mistake with what it judges is none.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

#: Bits of the significand, the hidden one apart, and the exponent of the smallest normal number.
_FORMATS = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126)}


@dataclass(frozen=True)
class Logits:
    """Figures over all positions of all prompts; KL in nats, adapter from merged."""

    mean_difference: float
    max_difference: float
    mean_kl: float
    max_kl: float
    top_1: float
    top_5: float
    adapter_perplexity: float
    merged_perplexity: float
    positions: int


@dataclass(frozen=True)
class Paired:
    """Right or wrong on the same questions, and how probable the difference is by chance."""

    adapter: list[bool]
    merged: list[bool]
    lost: int
    won: int
    p: float


def adapter_on_base(base: Path, adapter: Path) -> Any:
    """The base in float32 with its adapter, by PEFT and not merged."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def adapters_on_base(base: Path, adapters: dict[str, Path], weights: list[float]) -> Any:
    """The sum of several adapters, by PEFT's own ``cat``."""
    names = list(adapters)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapters[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(adapters[name]), adapter_name=name)
    model.add_weighted_adapter(names, weights, "all_of_them", combination_type="cat")
    model.set_adapter("all_of_them")
    return model.eval()


def plain(directory: Path) -> Any:
    """A checkpoint in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def questions(file: Path, limit: int | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    return lines if limit is None else lines[:limit]


def token_ids(directory: Path, prompts: list[str]) -> list[list[int]]:
    """Each prompt as one message of a user where there is a chat template, else as it stands."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    if tokenizer.chat_template is None:
        return [tokenizer(prompt)["input_ids"] for prompt in prompts]
    found: list[list[int]] = []
    for prompt in prompts:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


@torch.no_grad()
def logits(model: Any, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits after every token: a matrix [tokens, vocabulary] in float64 for each prompt."""
    return [model(input_ids=torch.tensor([ids])).logits[0].double() for ids in prompts]


def _perplexity(of: list[torch.Tensor], prompts: list[list[int]]) -> float:
    total, count = 0.0, 0
    for rows, ids in zip(of, prompts, strict=True):
        following = torch.tensor(ids[1:])
        likely = rows[:-1].log_softmax(-1).gather(1, following[:, None])
        total -= float(likely.sum())
        count += len(following)
    return math.exp(total / count)


def compare_logits(
    adapter: list[torch.Tensor], merged: list[torch.Tensor], prompts: list[list[int]]
) -> Logits:
    """Both sides' logits of the same prompts, with the same vocabulary."""
    differences: list[torch.Tensor] = []
    divergences: list[torch.Tensor] = []
    first: list[torch.Tensor] = []
    five: list[torch.Tensor] = []
    for left, right in zip(adapter, merged, strict=True):
        differences.append((left - right).abs().flatten())
        p, q = left.log_softmax(-1), right.log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1))
        first.append(left.argmax(-1) == right.argmax(-1))
        theirs, ours = left.topk(5).indices, right.topk(5).indices
        shared = (theirs[:, :, None] == ours[:, None, :]).any(-1)
        five.append(shared.double().mean(-1))
    difference, kl = torch.cat(differences), torch.cat(divergences)
    return Logits(
        float(difference.mean()),
        float(difference.max()),
        float(kl.mean()),
        float(kl.max()),
        float(torch.cat(first).double().mean()),
        float(torch.cat(five).mean()),
        _perplexity(adapter, prompts),
        _perplexity(merged, prompts),
        len(kl),
    )


@torch.no_grad()
def answers(
    model: Any, directory: Path, prompts: list[list[int]], max_new_tokens: int = 24
) -> list[str]:
    """Greedy answers, one prompt at a time."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    found: list[str] = []
    for ids in prompts:
        given = torch.tensor([ids])
        out = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        found.append(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    return found


def exact(answered: list[str], asked: list[dict[str, Any]]) -> list[bool]:
    """White space around either never counts."""
    right: list[bool] = []
    for answer, question in zip(answered, asked, strict=True):
        expected = question["expected"]
        texts = [expected] if isinstance(expected, str) else expected
        right.append(answer.strip() in [text.strip() for text in texts])
    return right


def paired(adapter: list[bool], merged: list[bool]) -> Paired:
    """McNemar's exact test, two-sided."""
    lost = sum(a and not m for a, m in zip(adapter, merged, strict=True))
    won = sum(m and not a for a, m in zip(adapter, merged, strict=True))
    p = float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
    return Paired(adapter, merged, lost, won, p)


def choice_scores(
    model: Any, directory: Path, question: dict[str, Any]
) -> tuple[list[float], list[int]]:
    """The sum of log-probabilities of every choice's tokens after a chat, and its bytes."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    message = [{"role": "user", "content": question["prompt"]}]
    head = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    sums: list[float] = []
    for choice in question["choices"]:
        before = tokenizer(head, add_special_tokens=False)["input_ids"]
        ids = tokenizer(head + choice, add_special_tokens=False)["input_ids"]
        if ids[: len(before)] != before:
            raise ValueError(f"{choice!r} merges with what stands before it")
        rows = logits(model, [ids])[0].log_softmax(-1)
        sums.append(sum(float(rows[i - 1, ids[i]]) for i in range(len(before), len(ids))))
    return sums, [len(choice.encode()) for choice in question["choices"]]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def exact_merge(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The tensors that a LoRA or DoRA of linear layers changes, in float64 and never rounded."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ValueError("one rank and one alpha for all is what this oracle computes")
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
    given, own = tensors(adapter), tensors(base)
    found: dict[str, torch.Tensor] = {}
    for key, a in given.items():
        module = key.removeprefix("base_model.model.")
        if module.endswith(".lora_A.weight"):
            name = module.removesuffix(".lora_A.weight") + ".weight"
            b = given[key.replace("lora_A", "lora_B")]
            wide = own[name].double() + scale * (b.double() @ a.double())
            magnitude = given.get(key.replace("lora_A.weight", "lora_magnitude_vector"))
            if magnitude is not None:
                wide *= (magnitude.double() / wide.norm(dim=1))[:, None]
            found[name] = wide
        elif "lora_" not in module:
            found[module] = a.double()
    return found


def units(got: torch.Tensor, exactly: torch.Tensor) -> torch.Tensor:
    """How far each element is from the exact one, in units in the last place of its dtype there."""
    digits, smallest = _FORMATS[got.dtype]
    # frexp's fraction is in [1/2, 1): the exponent of the leading bit is one less.
    _, exponent = torch.frexp(exactly)
    unit = torch.ldexp(torch.ones_like(exactly), (exponent - 1).clamp(min=smallest) - digits)
    return (got.double() - exactly).abs() / unit


def weight_errors(base: Path, adapter: Path, merged: Path) -> tuple[float, float, str]:
    """Worst and mean over all touched elements, and the tensor that has the worst."""
    out = tensors(merged)
    total, count, worst, where = 0.0, 0, 0.0, ""
    for name, exactly in exact_merge(base, adapter).items():
        off = units(out[name], exactly)
        total += float(off.sum())
        count += off.numel()
        if float(off.max()) > worst:
            worst, where = float(off.max()), name
    return worst, total / count, where
