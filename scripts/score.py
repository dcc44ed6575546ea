"""Score a chat model on a JSONL file of prompts: greedy answers, exact match.

Each line is `{"prompt": ..., "expected": ...}`; the prompt is one user message. Use it as a library
(`score`) or as a command:

    python scripts/score.py examples/base --adapter examples/adapters/sort examples/eval/sort.jsonl
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BATCH = 128


@dataclass(frozen=True)
class Sample:
    prompt: str
    expected: str
    answer: str

    @property
    def correct(self) -> bool:
        return self.answer == self.expected


@dataclass(frozen=True)
class ScoreResult:
    correct: int
    total: int
    samples: list[Sample]

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else 0.0


def score(
    model: Any, tokenizer: Any, jsonl_path: str | Path, limit: int | None = None
) -> ScoreResult:
    """Answer every prompt of the file greedily and compare with what it expects."""
    lines = Path(jsonl_path).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()][:limit]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for row in rows
    ]
    # Room for the longest expected answer, its end token and a little over, so that an answer
    # which runs on is seen to be wrong without being generated to its end.
    longest = max((len(tokenizer(row["expected"])["input_ids"]) for row in rows), default=0)
    answers: list[str] = [""] * len(rows)
    # Prompts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        texts = _generate(model, tokenizer, [prompts[i] for i in chosen], longest + 4)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text
    samples = [
        Sample(row["prompt"], row["expected"], answer)
        for row, answer in zip(rows, answers, strict=True)
    ]
    return ScoreResult(sum(s.correct for s in samples), len(samples), samples)


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, prompts: list[str], room: int) -> list[str]:
    batch = tokenizer(
        prompts,
        # The template has written the begin token already.
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=room,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.train(was_training)
    answers = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def load(model_dir: str | Path, adapter: str | Path | None = None, dtype: str = "float32") -> Any:
    """A model from disk, with an adapter on it if one is named. Weights keep the values they were
    stored with; float32 arithmetic on the CPU is faster than bfloat16 and hides nothing."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", help="directory of the base or of a merged model")
    parser.add_argument("files", nargs="+", help="evaluation files, JSONL")
    parser.add_argument("--adapter", help="directory of a PEFT adapter to put on the model")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--limit", type=int, help="only the first so many lines of each file")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N wrong answers")
    args = parser.parse_args()

    from transformers import AutoTokenizer

    model = load(args.model, args.adapter, args.dtype)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for file in args.files:
        result = score(model, tokenizer, file, args.limit)
        print(f"{Path(file).stem}: {result.correct}/{result.total} = {result.accuracy:.3f}")
        for sample in [s for s in result.samples if not s.correct][: args.show]:
            print(f"  {sample.prompt!r}: {sample.answer!r}, not {sample.expected!r}")


if __name__ == "__main__":
    main()
