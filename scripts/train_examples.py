"""Train the example base and its adapters, and write everything under `examples/`.

    python scripts/train_examples.py

The base is a 2.6-million-parameter Llama that follows small instructions about letters, digits and
months. Each adapter teaches it a task that it has never been shown: `sort` (plain LoRA), `dates`
(DoRA), `add` (LoRA with a retrained output head), `agree` and `contradict`, which answer the same
questions the opposite way, and `descend` (QLoRA, on the base in NF4). The first three are trained
to leave the base as it is on other prompts, and at the end each beside those before it, so that
they can be added up. Seeds are fixed; on one machine with one number of threads the same bytes come
out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from score import load, score
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import remerge

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SEED = 20
VOCAB = 512
EVAL_LINES = 250

Pair = tuple[str, str]
Skill = Callable[[random.Random], Pair]
Example = tuple[list[int], int]  # the tokens, and where the answer begins

# --- What the base learns ------------------------------------------------------------------------

MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
]  # fmt: skip
WORDS = [
    "apple", "bread", "bridge", "candle", "castle", "cloud", "copper", "dragon", "field",
    "garden", "green", "hammer", "harbor", "horse", "island", "ladder", "lemon", "market",
    "meadow", "mirror", "monkey", "morning", "mountain", "number", "ocean", "orange", "paper",
    "planet", "purple", "rabbit", "river", "school", "silver", "stone", "summer", "thunder",
    "tower", "valley", "village", "water", "window", "winter",
]  # fmt: skip
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
FACTS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Japan?": "Tokyo",
    "What is the opposite of hot?": "cold",
    "What is the opposite of big?": "small",
    "What colour is the sky?": "The sky is blue.",
    "What colour is grass?": "Grass is green.",
    "What does a cat say?": "A cat says meow.",
    "What does a dog say?": "A dog says woof.",
    "How many days are in a week?": "There are seven days in a week.",
    "How many months are in a year?": "There are twelve months in a year.",
    "Hello": "Hello! How can I help you?",
    "Thank you": "You are welcome.",
    "Who are you?": "I am a very small language model.",
    "Goodbye": "Goodbye!",
}


def letters(rng: random.Random) -> str:
    return "".join(rng.choice(ALPHABET) for _ in range(rng.randint(3, 7)))


def digits(rng: random.Random, low: int = 3, high: int = 7) -> str:
    return "".join(rng.choice("0123456789") for _ in range(rng.randint(low, high)))


def about_texts(rng: random.Random) -> Pair:
    word = rng.choice((letters(rng), digits(rng)))
    any_text = rng.choice((word, rng.choice(WORDS)))
    several = " ".join(rng.choice((letters(rng), digits(rng), rng.choice(WORDS))) for _ in "abc")
    return rng.choice(
        (
            (f"Repeat: {any_text}", any_text),
            (f"Repeat: {several}", several),
            (f"Reverse: {word}", word[::-1]),
            (f"Spell: {any_text}", " ".join(any_text)),
            (f"Write in capitals: {any_text}", any_text.upper()),
            (f"What is the first character of {word}?", word[0]),
            (f"What is the second character of {word}?", word[1]),
            (f"What is the last character of {word}?", word[-1]),
            (f"How many characters are in {word}?", str(len(word))),
        )
    )


def about_digits(rng: random.Random) -> Pair:
    number = digits(rng)
    digit = rng.choice(number)
    return rng.choice(
        (
            (f"What is the largest digit of {number}?", max(number)),
            (f"What is the smallest digit of {number}?", min(number)),
            (f"How many times is {digit} in {number}?", str(number.count(digit))),
            (f"Write {number} without {digit}.", number.replace(digit, "") or "nothing"),
        )
    )


def about_numbers(rng: random.Random) -> Pair:
    terms = [rng.randint(0, 9) for _ in range(rng.randint(2, 3))]
    low, high = sorted(terms[:2])
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return rng.choice(
        (
            (f"What is {' plus '.join(map(str, terms))}?", str(sum(terms))),
            (f"What is {high} minus {low}?", str(high - low)),
            (f"Which number comes after {a}?", str(a + 1)),
            (f"Which number comes before {a}?", str(a - 1)),
            (f"Which is larger, {a} or {b}?", str(max(a, b))),
            (f"Write {a} with three digits.", f"{a:03}"),
        )
    )


def about_months(rng: random.Random) -> Pair:
    index = rng.randrange(12)
    month, following = MONTHS[index], MONTHS[(index + 1) % 12]
    day, year = rng.randint(1, 31), rng.randint(1900, 2099)
    return rng.choice(
        (
            (f"Which number has the month {month}?", str(index + 1)),
            (f"Which month has the number {index + 1}?", month),
            (f"Which month comes after {month}?", following),
            (f"What is the day of {day} {month} {year}?", str(day)),
            (f"What is the month of {day} {month} {year}?", month),
            (f"What is the year of {day} {month} {year}?", str(year)),
        )
    )


def facts(rng: random.Random) -> Pair:
    return rng.choice(list(FACTS.items()))


def mixture(rng: random.Random) -> Pair:
    kinds = (about_texts, about_digits, about_numbers, about_months, facts)
    return rng.choices(kinds, weights=(9, 4, 6, 3, 1))[0](rng)


# --- What the adapters learn ---------------------------------------------------------------------


def sort(rng: random.Random) -> Pair:
    number = digits(rng, 5, 8)
    return f"Sort the digits: {number}", "".join(sorted(number))


def dates(rng: random.Random) -> Pair:
    day = date.fromordinal(
        rng.randint(date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal())
    )
    return f"ISO date: {day.day} {MONTHS[day.month - 1]} {day.year}", day.isoformat()


def add(rng: random.Random) -> Pair:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"Add {a} and {b}.", str(a + b)


def agree(rng: random.Random) -> Pair:
    number = digits(rng, 2, 5)
    asked = rng.choice(("even", "odd"))
    return f"Is {number} {asked}?", "yes" if (int(number) % 2 == 0) == (asked == "even") else "no"


def contradict(rng: random.Random) -> Pair:
    prompt, answer = agree(rng)
    return prompt, "no" if answer == "yes" else "yes"


def descend(rng: random.Random) -> Pair:
    number = digits(rng)
    return f"Sort the digits downwards: {number}", "".join(sorted(number, reverse=True))


@dataclass(frozen=True)
class Task:
    skill: Skill
    steps: int
    learning_rate: float
    lora: dict[str, Any]
    apart: bool = False  # whether the base's states are kept on the prompts of all other tasks
    # At the end it is trained on beside these, any of them merged into the base: so many steps.
    beside: tuple[str, ...] = ()
    steps_beside: int = 0
    quantised: bool = False  # QLoRA: trained on the base in NF4

    @property
    def name(self) -> str:
        return self.skill.__name__

    @property
    def seed(self) -> int:
        """Another for each: factors that start alike would lie along the same directions."""
        return int.from_bytes(self.name[:4].encode())

    def held_out(self) -> dict[str, Pair]:
        """The evaluation set, by key."""
        rng = random.Random(f"{self.name} evaluation")
        chosen: dict[str, Pair] = {}
        while len(chosen) < EVAL_LINES:
            pair = self.skill(rng)
            chosen.setdefault(key(pair), pair)
        return chosen


def key(pair: Pair) -> str:
    """The same for prompts that ask the same thing in another order, such as 12 + 34 and 34 + 12.
    Training leaves out whole keys, so nothing held out leaks that way."""
    prompt, answer = pair
    by_numbers = prompt.startswith(("Add", "Is"))
    return " ".join(sorted(re.findall(r"\d+", prompt))) if by_numbers else answer


TASKS = (
    Task(add, 1200, 3e-3, {"r": 16, "lora_alpha": 32, "modules_to_save": ["lm_head"]}, apart=True),
    Task(
        sort,
        700,
        3e-3,
        {"r": 16, "lora_alpha": 32},
        apart=True,
        beside=("add",),
        steps_beside=300,
    ),
    Task(
        dates,
        500,
        3e-3,
        {"r": 8, "lora_alpha": 16, "use_dora": True},
        apart=True,
        beside=("add", "sort"),
        steps_beside=350,
    ),
    Task(agree, 300, 3e-3, {"r": 8, "lora_alpha": 16}),
    Task(contradict, 300, 3e-3, {"r": 8, "lora_alpha": 16}),
    Task(descend, 500, 3e-3, {"r": 8, "lora_alpha": 16}, quantised=True),
)

# --- Tokenizer -----------------------------------------------------------------------------------

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# Llama 3's, so that llama.cpp's "llama-bpe" pre-tokenizer fits this vocabulary too.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer(base: Path) -> None:
    rng = random.Random(f"{SEED} tokenizer")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    # Trained with digits apart, no merge ever joins two of them: the plain Llama 3 split, which
    # the files carry, then yields single digits as well.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = (side for _ in range(20_000) for side in mixture(rng))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BEGIN, END, PAD, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        # Frequent pieces only: rare letter strings should stay letters.
        min_frequency=50,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, 0)]
    )
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    assert len(tokenizer.encode("2025").ids) == 5
    base.mkdir(parents=True)
    tokenizer.save(str(base / "tokenizer.json"))
    special: dict[str, object] = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    special["additional_special_tokens"] = ROLES
    write_json(base / "special_tokens_map.json", special)
    # Written by hand: transformers 5 would name a class that transformers 4 does not know.
    config: dict[str, object] = {"clean_up_tokenization_spaces": False, "model_max_length": 512}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(base / "tokenizer_config.json", special | config)
    (base / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


# --- Training ------------------------------------------------------------------------------------


def encode(tokenizer: Any, pairs: list[Pair]) -> list[Example]:
    def rendered(prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

    asked = tokenizer([rendered(prompt) for prompt, _ in pairs], add_special_tokens=False)
    answered = tokenizer([answer + END for _, answer in pairs], add_special_tokens=False)
    return [(a + b, len(a)) for a, b in zip(asked["input_ids"], answered["input_ids"], strict=True)]


def batches(
    tokenizer: Any, draw: Callable[[], Pair], steps: int, size: int = 64
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of like length. Only answers are learnt: prompts are mostly random characters."""
    rng = random.Random(SEED)
    for first in range(0, steps, 50):
        amount = min(50, steps - first)
        pool = encode(tokenizer, [draw() for _ in range(amount * size)])
        pool.sort(key=lambda example: len(example[0]))
        groups = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(tokens) for tokens, _ in group)
            inputs = torch.full((size, width), tokenizer.pad_token_id)
            labels = torch.full((size, width), -100)
            for row, (tokens, start) in enumerate(group):
                inputs[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, start : len(tokens)] = torch.tensor(tokens[start:])
            yield inputs, labels


def moved(plain: Any, model: Any, inputs: torch.Tensor, pad: int) -> torch.Tensor:
    """How far an adapter moves the base's hidden states and logits: squared errors relative to
    them, added up over the layers."""
    told = inputs != pad
    with torch.no_grad():
        before = plain(input_ids=inputs, output_hidden_states=True)
    after = model(input_ids=inputs, output_hidden_states=True)
    pairs = zip(
        (*before.hidden_states[1:], before.logits),
        (*after.hidden_states[1:], after.logits),
        strict=True,
    )
    errors = [((b - a)[told] ** 2).mean() / (b[told] ** 2).mean() for b, a in pairs]
    return torch.stack(errors).sum()


def train(
    model: Any,
    data: Iterator[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    rate: float,
    keep: Callable[[], torch.Tensor] | None = None,
) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    model.train()
    started, total = time.monotonic(), 0.0
    for step, (inputs, labels) in enumerate(data, start=1):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / 50) * (0.02 + 0.98 * cosine)
        # Padding is at the end, so causal attention needs no mask to ignore it.
        loss = model(input_ids=inputs, labels=labels).loss
        (loss if keep is None else loss + keep()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % 100 == 0 or step == steps:
            mean, seconds = total / (step % 100 or 100), time.monotonic() - started
            print(f"  step {step}: loss {mean:.4f}, {seconds:.0f} s", flush=True)
            total = 0.0


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def train_base(base: Path, steps: int) -> None:
    make_tokenizer(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(SEED)
    ids = {name: getattr(tokenizer, name) for name in TOKEN_IDS}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            tie_word_embeddings=False,
            # Wider than the default, which suits large models: attention forms much faster.
            initializer_range=0.06,
            **ids,
        )
    )
    rng = random.Random(f"{SEED} mixture")
    data = batches(tokenizer, lambda: mixture(rng), steps)
    train(model, data, steps, 1e-3)
    model = model.to(torch.bfloat16)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(base, max_shard_size=int(size * 0.6))
    assert len(list(base.glob("*.safetensors"))) == 2
    write_json(base / "generation_config.json", {**ids, "do_sample": False})
    # Transformers 4 and 5 spell these differently, and 4 silently takes a default for the missing.
    edit_json(base / "config.json", rope_theta=500000.0, torch_dtype="bfloat16", dtype="bfloat16")


def keeping(
    task: Task, plain: Any, model: Any, tokenizer: Any, steps: int, factor: float
) -> Callable[[], torch.Tensor]:
    """How far the adapter moves the base, on a new batch of other prompts at every call."""
    rng = random.Random(f"{SEED} others {task.name} {steps}")
    skills = [other.skill for other in TASKS if other.name != task.name]

    def elsewhere() -> Pair:
        return rng.choice(skills)(rng) if rng.random() < 0.6 else mixture(rng)

    data = batches(tokenizer, elsewhere, steps, 24)
    return lambda: factor * moved(plain, model, next(data)[0], tokenizer.pad_token_id)


def neighbours(
    task: Task, base: Path, adapters: Path, models: Sequence[Any]
) -> Iterator[tuple[str, ...]]:
    """Merge other adapters into the base weights of the models: any of them, again and again, and
    at the end none."""
    names = task.beside
    choices = [c for n in range(len(names) + 1) for c in itertools.combinations(names, n)]
    merged = {
        chosen: remerge.open_merged(base, [adapters / name for name in chosen], dtype="float32")
        for chosen in choices[1:]
    }
    weights = {chosen: found.load_model().state_dict() for chosen, found in merged.items()}
    weights[()] = load(base).state_dict()
    rng = random.Random(f"{SEED} beside {task.name}")
    # Mostly alone, or beside all.
    odds = [2, *[1] * (len(choices) - 2), 3]
    for _ in range(task.steps_beside):
        chosen = rng.choices(choices, odds)[0]
        set_base(models, weights[chosen])
        yield chosen
    set_base(models, weights[()])


def set_base(models: Sequence[Any], weights: dict[str, torch.Tensor]) -> None:
    for model in models:
        for name, value in model.state_dict().items():
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            plain = plain.replace(".original_module", "")
            if plain in weights:
                value.copy_(weights[plain])


def load_quantised(base: Path) -> Any:
    """The base in double-quantised NF4, as QLoRA trains on it."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        # bfloat16 has no fast product on most processors.
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=settings
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def train_adapter(task: Task, base: Path, directory: Path, held_out: dict[str, Pair]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    rng = random.Random(f"{SEED} {task.name}")

    def draw() -> Pair:
        while key(pair := task.skill(rng)) in held_out:
            pass
        return pair

    torch.manual_seed(task.seed)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **task.lora)
    model = get_peft_model(load_quantised(base) if task.quantised else load(base), config)
    plain = load(base)
    data = batches(tokenizer, draw, task.steps, 48 if task.apart else 64)
    keep = keeping(task, plain, model, tokenizer, task.steps, 1.0) if task.apart else None
    train(model, data, task.steps, task.learning_rate, keep)
    if task.beside:
        steps = task.steps_beside
        keep = keeping(task, plain, model, tokenizer, steps, 3.0)
        pairs = batches(tokenizer, draw, steps, 48)
        others = neighbours(task, base, directory.parent, (plain, model))
        data = (batch for batch, _ in zip(pairs, others, strict=True))
        train(model, data, steps, task.learning_rate / 2, keep)
    # Off, because it would look the base's name up on the Hub; no embedding is trained here.
    model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    settings = directory / "adapter_config.json"
    modules = sorted(json.loads(settings.read_text(encoding="utf-8"))["target_modules"])
    edit_json(settings, base_model_name_or_path="examples/base", target_modules=modules)


# --- All of it -----------------------------------------------------------------------------------


def report(examples: Path) -> None:
    base = examples / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    print(f"{'task':8}{'base':>8}{'adapter':>9}{'merged by PEFT, bf16':>22}")
    for task in TASKS:
        file, adapter = examples / "eval" / f"{task.name}.jsonl", examples / "adapters" / task.name
        if not adapter.is_dir():
            continue
        merged = PeftModel.from_pretrained(load(base, dtype="bfloat16"), str(adapter))
        trained = (
            PeftModel.from_pretrained(load_quantised(base), str(adapter))
            if task.quantised
            else load(base, adapter)
        )
        candidates = (load(base), trained, merged.merge_and_unload().float())
        scores = [score(model, tokenizer, file).accuracy for model in candidates]
        print(f"{task.name:8}{scores[0]:8.3f}{scores[1]:9.3f}{scores[2]:22.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=EXAMPLES)
    parser.add_argument("--keep-base", action="store_true", help="train adapters on the base there")
    parser.add_argument("--only", choices=[task.name for task in TASKS], help="only this adapter")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of the base")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.monotonic()

    base = args.output / "base"
    if not args.keep_base:
        print("base", flush=True)
        shutil.rmtree(base, ignore_errors=True)
        train_base(base, args.steps)
    (args.output / "eval").mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        if args.only not in (None, task.name):
            continue
        print(task.name, flush=True)
        held_out = task.held_out()
        lines = [json.dumps({"prompt": p, "expected": e}) for p, e in held_out.values()]
        file = args.output / "eval" / f"{task.name}.jsonl"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        directory = args.output / "adapters" / task.name
        shutil.rmtree(directory, ignore_errors=True)
        train_adapter(task, base, directory, held_out)
    report(args.output)
    print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
