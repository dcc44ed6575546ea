"""A model of transformers is asked: batches of like length, in an order that depends on the
questions alone, so that a run that was cut off and one that was not compute the same."""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from remerge.engines.scoring import Answered, Item, Side, followed, rows_path, write_rows

# Logits of a batch, in elements, and prompts of one.
_LOGITS = 2**26
_PROMPTS = 64

Give = Callable[[int, Answered], None]


def ask_model(model: Any, side: Side, ends: Collection[int], give: Give) -> None:
    """Score and answer the items of a side that are not known yet."""
    text = model.config.get_text_config()
    width = int(getattr(text, "vocab_size", 0) or model.get_output_embeddings().weight.shape[0])
    for batch in _batches(side.of_kind("rows", "followed"), width, pad=True):
        if batch.keys() & side.wanted:
            _score(model, batch, side, give)
    stateful = bool(getattr(model, "_is_stateful", False))
    for batch in _batches(side.of_kind("answer"), 1, pad=not stateful):
        if batch.keys() & side.wanted:
            _answer(model, batch, ends, give)


def _batches(items: Mapping[int, Item], width: int, *, pad: bool) -> list[dict[int, Item]]:
    """Items by length (and length of answer), so that little of a batch is padding: none of it
    unless ``pad``."""
    order = sorted(items, key=lambda number: (items[number].tokens, len(items[number].ids), number))
    found: list[dict[int, Item]] = []
    for number in order:
        item = items[number]
        batch = found[-1] if found else {}
        first = next(iter(batch.values()), None)
        fits = (
            first is not None
            and len(batch) < _PROMPTS
            and first.tokens == item.tokens
            and (pad or len(first.ids) == len(item.ids))
            and (len(batch) + 1) * len(item.ids) * width <= _LOGITS
        )
        if fits:
            batch[number] = item
        else:
            found.append({number: item})
    return found


def _score(model: Any, batch: Mapping[int, Item], side: Side, give: Give) -> None:
    # Padding comes after all that is asked for, which cannot see it.
    ids = _padded([item.ids for item in batch.values()], left=False)
    logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    for (number, item), rows in zip(batch.items(), logits, strict=True):
        known = rows[: len(item.ids)].float().cpu().numpy()
        if item.kind == "rows":
            write_rows(rows_path(side.folder, item), known)
            give(number, Answered())
        else:
            give(number, Answered(followed=followed(known, item.ids)))


def _answer(model: Any, batch: Mapping[int, Item], ends: Collection[int], give: Give) -> None:
    """Greedy answers, by a configuration that takes nothing from the model's own."""
    from transformers import GenerationConfig

    prompts = [item.ids for item in batch.values()]
    ids = _padded(prompts, left=True)
    longest = ids.shape[1]
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    tokens = next(iter(batch.values())).tokens
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=sorted(ends) or None, pad_token_id=0
    )
    model.generation_config = GenerationConfig()
    found = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=greedy,
    )
    for number, row in zip(batch, found[:, longest:].tolist(), strict=True):
        give(number, Answered(answer=until_end(row, ends)))


def until_end(tokens: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """An answer to its first end token, which is part of it."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: place + 1])
    return tuple(tokens)


def _padded(prompts: Sequence[Sequence[int]], *, left: bool) -> torch.Tensor:
    longest = max(map(len, prompts))
    rows = []
    for prompt in prompts:
        filling = [0] * (longest - len(prompt))
        rows.append([*filling, *prompt] if left else [*prompt, *filling])
    return torch.tensor(rows)
