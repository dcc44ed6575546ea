"""Scored by transformers: a merge before it exists, its base, adapters on it by PEFT, and what was
made of it.

Weights and arithmetic are float32 unless asked otherwise, whatever they are stored as. The merge is
also scored with random errors of a format's size in its weights: what these do to the very model at
hand tells what to expect of an artefact.
"""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

# OpenMP reads it when torch is loaded. Threads that spin while they wait for each other take five
# times as long where another process wants the processor, and gain nothing where none does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from remerge.engines.adapted_model import put_on
from remerge.engines.asked_model import ask_model
from remerge.engines.calling import Teller, answer
from remerge.engines.repaired_model import RepairedModel
from remerge.engines.scoring import Answered, Side
from remerge.engines.shared_model import SharedModel, stored_model
from remerge.engines.tokenisation import tokens_of
from remerge.errors import Unsupported, UsageError
from remerge.merging.budget import DEFAULT, peak_memory
from remerge.merging.plan import Plan
from remerge.merging.recipe import Recipe
from remerge.outputs.planning import Inputs, make_plan, open_inputs

# Quantisers scale blocks of this many weights of a row, or more.
_BLOCK = 32


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Ask the sides, in their order. ``base``, ``merge``, ``noise`` (``noise`` of the request, as
    a share of the weights' own size) and ``adapter`` are those of ``merge`` (base, adapters,
    recipe); ``artefact`` lies at a path, ``directory`` is a checkpoint of its own. Sides whose name
    goes on after a colon are several of a kind: adapters, or ``artefact:N`` with the merge's values
    in those of its tensors that ``repairs`` of the request says.

    Of an artefact also its own tokenizer's ids are given, and of a side that cannot be
    (an adapter that PEFT does not know, a base of another shape) why.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    if request.get("threads"):
        torch.set_num_threads(request["threads"])
    sides = [Side.of(side) for side in request["sides"]]
    total, done = sum(len(side.wanted) for side in sides), 0
    models = _Models(request)
    refused: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for side in sides:

        def give(number: int, answered: Answered, side: Side = side) -> None:
            nonlocal done
            done += number in side.wanted
            tell.part({"side": side.name, "item": number, **answered.document()})
            tell(done, total, "prompts")

        if not side.wanted:
            continue
        started = time.time()
        try:
            model = models.become(side.name)
            _check_tokens(model, side)
        except Unsupported as error:
            if side.name.partition(":")[0] not in ("adapter", "base"):
                raise
            refused[side.name] = error.what
            continue
        ends = request.get("ends")
        ask_model(model, side, _ends(model) if ends is None else ends, give)
        del model
        models.release()
        seconds[side.name] = time.time() - started
    artefact, texts = request.get("artefact"), request["texts"]
    return {
        "tokens": [] if artefact is None or not texts else tokens_of(Path(artefact), texts),
        "refused": refused,
        "seconds": seconds,
        "notes": [] if models.plan is None else list(models.plan.notes),
        "peak_memory": peak_memory(),
        "versions": _versions(),
    }


class _Models:
    """The sides' models: of one merge one after the other in the same memory, or single ones."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._dtype = getattr(torch, request.get("dtype") or "float32")
        self._device = _device(request.get("device") or "cpu")
        self.plan: Plan | None = None
        self._shared: SharedModel | None = None
        self._repaired: RepairedModel | None = None
        if request.get("merge"):
            inputs, self.plan = planned(request["merge"])
            self._shared = SharedModel(inputs, self.plan, self._dtype, self._device)

    def become(self, side: str) -> Any:
        kind, _, which = side.partition(":")
        if self._shared is None or self.plan is None:
            place = self._request.get("artefact" if kind == "artefact" else "directory")
            if place is None:
                raise Unsupported(f"There is no {kind}.")
            model = stored_model(Path(place), self._dtype).to(self._device)
            if kind == "noise":
                disturb(model, self._request["noise"])
            return model
        if kind == "base":
            return self._shared.base()
        if kind == "artefact":
            place = Path(self._request["artefact"])
            if which:
                return self._apart(place).repair(self._request["repairs"][which])
            return self._shared.artefact(place)
        if kind == "adapter":
            chosen = self._request["adapters"][which]
            adapters = [(Path(path), weight) for path, weight in chosen]
            return put_on(self._shared.adapted(), adapters, self.plan.config)
        if kind == "noise":
            model = self._shared.disturbed()
            disturb(model, self._request["noise"])
            return model
        return self._shared.merge()

    def _apart(self, place: Path) -> RepairedModel:
        """The artefact's model, taken apart; loaded once, or again where too much of it went."""
        assert self._shared is not None and self.plan is not None
        if self._repaired is None or self._repaired.spent:
            self._repaired = None
            self._repaired = RepairedModel(self._shared.artefact(place, decode=True), self.plan)
        return self._repaired

    def release(self) -> None:
        if self._shared is not None:
            self._shared.release()


def planned(merge: Mapping[str, Any]) -> tuple[Inputs, Plan]:
    """The merge of a request, opened and planned again."""
    recipe = Recipe.model_validate(merge["recipe"])
    inputs = open_inputs(merge["base"], merge["adapters"], progress=False)
    inputs = replace(inputs, original=merge["original"])
    return inputs, make_plan(inputs, recipe, DEFAULT)


def _device(name: str) -> str:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device that this torch can use.")
    return name


def _check_tokens(model: Any, side: Side) -> None:
    largest = max(max(item.ids) for item in side.items.values())
    known = model.get_input_embeddings().weight.shape[0]
    if largest >= known:
        raise Unsupported(f"it has {known} tokens, and the prompts hold token {largest}.")


def _ends(model: Any) -> set[int]:
    found = getattr(model.config.get_text_config(), "eos_token_id", None)
    every = found if isinstance(found, list) else [found]
    return {token for token in every if token is not None}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("transformers", "torch", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
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
            errors = torch.randn(part.shape, generator=generator).to(part.device, part.dtype)
            part.add_(errors.mul_(scale))


if __name__ == "__main__":
    answer(work)
