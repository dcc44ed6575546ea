"""The models of a comparison, asked: base, adapters on it by PEFT, the merge disturbed, and the
artefact in its own engine. What was answered before is not asked again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from remerge.artefacts.digests import input_digests
from remerge.artefacts.making import Report
from remerge.artefacts.test_result import Cost
from remerge.engines.asking import ask
from remerge.engines.environments import receipt
from remerge.engines.registry import engine_of
from remerge.engines.scorers import SCORERS, Scorer
from remerge.engines.scoring import Answered, Item, Scores, Side, rows_path
from remerge.errors import UsageError
from remerge.merging.budget import DEFAULT
from remerge.merging.recipe import make_recipe
from remerge.outputs.planning import make_plan
from remerge.validation.check import REFERENCE, interpreter
from remerge.validation.compared import Compared
from remerge.validation.remembered_answers import Memory, Remembered
from remerge.version import ALGORITHM, __version__

# Who reads an artefact of each kind unless another engine is asked for.
USUAL = {"checkpoint": "transformers", "gguf": "llama.cpp", "onnx": "onnxruntime"}
_KINDS = {"checkpoint": "checkpoints", "gguf": "GGUF files", "onnx": "ONNX"}


@dataclass(frozen=True)
class Running:
    """How models are run: torch's dtype and device by name, threads, interpreters by engine."""

    dtype: str
    device: str
    threads: int | None
    pythons: Mapping[str, str]


@dataclass
class Sides:
    """The models of one comparison. ``noise`` is the size of the errors that the format makes;
    ``ends`` are the tokens that end an answer."""

    compared: Compared
    scorer: Scorer
    running: Running
    memory: Memory
    noise: float
    ends: Sequence[int]
    work: Path
    answers: dict[tuple[str, int], Answered] = field(
        default_factory=dict[tuple[str, int], Answered]
    )
    told: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    costs: list[Cost] = field(default_factory=list[Cost])
    repairs: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    _folders: dict[str, Remembered] = field(default_factory=dict[str, Remembered])

    def ask(
        self, wanted: Mapping[str, Mapping[int, Item]], texts: Sequence[str], report: Report
    ) -> None:
        """Ask every side its items: ``base``, ``adapter:NAME``, ``merge``, ``noise`` and
        ``artefact``. Those that transformers reads here share one process and one model.
        ``artefact:N`` is it with the tensors that ``repairs`` says put right, read by transformers
        whatever engine it is for."""
        apart = [name for name in wanted if name.startswith("artefact:")]
        here = [n for n in wanted if n not in apart and (n != "artefact" or self._shares)]
        self._ask(here, wanted, REFERENCE, Path(sys.executable), texts, report)
        if "artefact" in wanted and not self._shares:
            python = interpreter(self.scorer, self.compared.artefact, self.running.pythons)
            self._ask(["artefact"], wanted, self.scorer.module, python, texts, report)
        if apart:
            self._ask(apart, wanted, REFERENCE, self.apart_python, (), report)

    @property
    def apart_python(self) -> Path:
        """The interpreter in which transformers takes the artefact apart."""
        return interpreter(SCORERS["transformers"], self.compared.artefact, self.running.pythons)

    def memory_of(self, side: str) -> Remembered:
        """What is known of a side."""
        return self.memory.of(self._identity(side))

    def scores(self, side: str, items: Sequence[Item]) -> Scores:
        """Rows of a side that was asked for them."""
        folder = self._folders[side].place
        name = side.replace(":", "-").replace("/", "-")
        target = self.work / f"{name}-{len(list(self.work.iterdir()))}.npy"
        return Scores.read([rows_path(folder, item) for item in items], target)

    @property
    def folders(self) -> list[Path]:
        return [one.place for one in self._folders.values()]

    @property
    def _shares(self) -> bool:
        """Whether the artefact is read by transformers in remerge's own environment."""
        return self.scorer.name == "transformers" and self.compared.artefact.kind == "checkpoint"

    def _ask(
        self,
        names: Sequence[str],
        wanted: Mapping[str, Mapping[int, Item]],
        module: str,
        python: Path,
        texts: Sequence[str],
        report: Report,
    ) -> None:
        asked: list[Side] = []
        for name in names:
            folder = self._folders[name] = self.memory_of(name)
            known = folder.known(wanted[name])
            self.answers |= {(name, number): answer for number, answer in known.items()}
            side = Side(name, wanted[name], folder.place, frozenset(known))
            if name == "artefact":
                self.told["artefact"] = folder.told
            if side.wanted or (name == "artefact" and not _knows(folder.told, texts)):
                asked.append(side)
            else:
                self.costs.append(self._cost(name, folder.told, len(known), 0))
        if not asked:
            return

        def told(name: str, number: int, answered: Answered) -> None:
            self.answers[name, number] = answered
            self._folders[name].put(wanted[name][number], answered)

        started = time.time()
        cut = texts if any(side.name == "artefact" for side in asked) else ()
        said = ask(python, module, asked, self.request(cut), report, told)
        seconds = time.time() - started
        self.refused |= said.get("refused", {})
        shares: Mapping[str, float] = said.get("seconds", {})
        for side in asked:
            mine = {**said, "texts": list(texts), "seconds": shares.get(side.name, seconds)}
            self._folders[side.name].keep_told(mine)
            self.told[side.name] = mine
            self.costs.append(self._cost(side.name, mine, len(side.known), len(side.wanted)))

    def request(self, texts: Sequence[str]) -> dict[str, Any]:
        """What `remerge.engines.score_transformers` is asked, but for the sides."""
        adapters = self.compared.inputs.adapters
        weights = self.compared.adapter_weights or ()
        every = [(str(a.path), w) for a, w in zip(adapters, weights, strict=False)]
        alone = {
            label: [(str(adapter.path), 1.0)]
            for label, adapter in zip(self.compared.inputs.labels, adapters, strict=True)
        }
        return {
            "merge": self.compared.merge_request,
            "artefact": str(self.compared.artefact.place.absolute()),
            "adapters": {**alone, "": every},
            "noise": self.noise,
            "repairs": {name.partition(":")[2]: list(own) for name, own in self.repairs.items()},
            "ends": list(self.ends),
            "texts": list(texts),
            "dtype": self.running.dtype,
            "device": self.running.device,
            "threads": self.running.threads,
        }

    def _identity(self, side: str) -> dict[str, Any]:
        """All that decides what a side answers."""
        kind, _, which = side.partition(":")
        found: dict[str, Any] = {
            "remerge": [__version__, ALGORITHM],
            "side": side,
            "dtype": self.running.dtype,
            "device": self.running.device,
            "ends": list(self.ends),
            "versions": {name: _version(name) for name in ("torch", "transformers", "peft")},
        }
        if which and kind == "artefact":
            found |= {"side": "repaired", "artefact": self.compared.digest}
            found["repairs"] = sorted(self.repairs[side])
        elif kind == "artefact":
            found["artefact"] = self.compared.digest
            found["engine"] = self.scorer.name
            if self.scorer.engine is not None:
                engine = engine_of(self.scorer.engine)
                found["environment"] = [receipt(engine), self.running.pythons.get(engine.name)]
            return found
        recipe = self.compared.plan.recipe.model_dump(mode="json")
        found["inputs"] = {
            name: digest
            for name, digest in input_digests(self.compared.plan).items()
            if name.startswith("base/") or (kind != "base" and name.startswith("adapter/"))
        }
        found["recipe"] = {"simulate": recipe["simulate"]} if kind == "base" else recipe
        if kind == "noise":
            found["noise"] = self.noise
        if kind == "adapter":
            found["which"] = which
        return found

    def _cost(self, side: str, told: Mapping[str, Any], cached: int, asked: int) -> Cost:
        engine = self.scorer.name if side == "artefact" else "transformers"
        if side.startswith("adapter"):
            engine = "transformers + PEFT"
        return Cost(
            side=side.removesuffix(":"),
            engine=engine,
            seconds=round(float(told.get("seconds", 0.0)) if asked else 0.0, 2),
            peak_memory=int(told.get("peak_memory", 0)),
            asked=asked,
            cached=cached,
        )


def by_method(
    sides: Sides, method: str, items: Mapping[int, Item], report: Report
) -> dict[tuple[str, int], Answered]:
    """What the merge by another method answers, as the side ``method:NAME``; raises `UsageError`
    for one that these adapters cannot be combined by."""
    compared = sides.compared
    kept = {key: getattr(compared.plan.recipe, key) for key in ("simulate", "expert_packing")}
    recipe = make_recipe(compared.inputs.labels, method=method, **kept, dtype="float32")
    other = replace(compared, plan=make_plan(compared.inputs, recipe, DEFAULT))
    asked = replace(sides, compared=other, noise=0.0, answers={}, told={}, repairs={}, _folders={})
    asked.ask({"merge": items}, (), report)
    return {(f"method:{method}", number): answer for (_, number), answer in asked.answers.items()}


def scorer_of(compared: Compared, engine: str | None) -> Scorer:
    """The engine that reads the artefact; raises `UsageError` for one that does not."""
    kind = compared.artefact.kind
    name = engine or USUAL[kind]
    if name not in SCORERS or kind not in SCORERS[name].reads:
        fitting = [s.name for s in SCORERS.values() if kind in s.reads]
        raise UsageError(
            f"{name} does not read {_KINDS[kind]}.", hint=f"Choose --engine {' or '.join(fitting)}."
        )
    return SCORERS[name]


def _knows(told: Mapping[str, Any], texts: Sequence[str]) -> bool:
    """Whether the tokens of these texts were told before."""
    return told.get("texts") == list(texts)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
