"""What is left of an artefact's divergence with a part of it put right: the same prompts, the same
reference, one model in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from remerge.artefacts.making import Report
from remerge.artefacts.test_result import Cost
from remerge.engines.asking import ask
from remerge.engines.scoring import Answered, Item, Scores, Side, rows_path
from remerge.errors import Unsupported
from remerge.validation.check import REFERENCE
from remerge.validation.model_parts import Part
from remerge.validation.remembered_answers import Remembered
from remerge.validation.score_comparison import mean_kl
from remerge.validation.sides import Sides

# Positions that are scored again for every part: enough that the mean's standard error over prompts
# is a tenth, and no more than these.
_LEAST, _MOST, _STABLE = 128, 1024, 0.1
_PROMPTS = 4


@dataclass
class Probes:
    """``items`` are the prompts, rows of which ``reference`` was asked for. Divergences are
    remembered like answers; rows are deleted as soon as they are compared."""

    sides: Sides
    reference: str
    items: Mapping[int, Item]
    report: Report
    seconds: float = 0.0
    peak_memory: int = 0
    asked: int = 0
    cached: int = 0
    _found: dict[tuple[str, ...], dict[int, float]] = field(
        default_factory=dict[tuple[str, ...], dict[int, float]]
    )

    def choose(self) -> None:
        """Keep as few of the prompts as make a mean stable, by what the artefact's own engine gave
        for them; the first ones where it told only the likeliest tokens."""
        truth, own = (self.sides.memory_of(side).place for side in (self.reference, "artefact"))
        kept: dict[int, Item] = {}
        values: list[float] = []
        for number, item in _first(self.items, _MOST).items():
            kept[number] = item
            enough = sum(len(i.ids) for i in kept.values()) >= _LEAST and len(kept) >= _PROMPTS
            with suppress(Unsupported):
                rows = [_rows(rows_path(place, item)) for place in (truth, own)]
                values.append(mean_kl(*rows))
            stable = len(values) < 2 or _error(values) <= _STABLE * float(np.mean(values))
            if enough and stable:
                break
        self.items = kept

    def left(self, parts: Sequence[Part]) -> list[float]:
        """The mean divergence over all positions, in nats, with each of these parts put right
        alone."""
        wanted = list(dict.fromkeys(part.tensors for part in parts))
        fresh = [tensors for tensors in wanted if tensors not in self._found]
        if fresh:
            self._ask(fresh)
        return [self._mean(part.tensors) for part in parts]

    @property
    def positions(self) -> int:
        return sum(len(item.ids) for item in self.items.values())

    @property
    def cost(self) -> Cost:
        return Cost(
            side="bisection",
            engine="transformers",
            seconds=round(self.seconds, 2),
            peak_memory=self.peak_memory,
            asked=self.asked,
            cached=self.cached,
        )

    def _mean(self, tensors: tuple[str, ...]) -> float:
        found = self._found[tensors]
        summed = math.fsum(found[n] * len(item.ids) for n, item in self.items.items())
        return summed / self.positions

    def _ask(self, groups: Sequence[tuple[str, ...]]) -> None:
        started = time.time()
        truth = self.sides.memory_of(self.reference).place
        folders: dict[str, Remembered] = {}
        kls: dict[str, dict[str, float]] = {}
        asked: list[Side] = []
        names: dict[str, tuple[str, ...]] = {}
        self.sides.repairs.clear()
        for number, tensors in enumerate(groups):
            name = f"artefact:part{number}"
            names[name] = self.sides.repairs[name] = tensors
            folder = folders[name] = self.sides.memory_of(name)
            known = kls[name] = dict(folder.told.get("kl", {}))
            mine = self._found.setdefault(tensors, {})
            for n, item in self.items.items():
                if _key(truth.name, item) in known:
                    mine[n] = known[_key(truth.name, item)]
            self.cached += len(mine)
            if len(mine) < len(self.items):
                asked.append(Side(name, self.items, folder.place, frozenset(mine)))

        def told(name: str, number: int, answered: Answered) -> None:
            item, folder = self.items[number], folders[name]
            path = rows_path(folder.place, item)
            kl = mean_kl(_rows(rows_path(truth, item)), _rows(path))
            path.unlink(missing_ok=True)
            self._found[names[name]][number] = kl
            kls[name][_key(truth.name, item)] = kl
            folder.keep_told({**folder.told, "kl": kls[name]})

        if asked:
            said = ask(
                self.sides.apart_python, REFERENCE, asked, self._request(), self.report, told
            )
            self.peak_memory = max(self.peak_memory, int(said.get("peak_memory", 0)))
            self.asked += sum(len(side.wanted) for side in asked)
        self.seconds += time.time() - started

    def _request(self) -> dict[str, Any]:
        return self.sides.request(())


def _key(reference: str, item: Item) -> str:
    return f"{reference}:{item.digest}"


def _rows(path: Any) -> Scores:
    with np.load(path) as file:
        if "ids" in file:
            raise Unsupported(
                "What is compared with told only the likeliest tokens of a position.",
                why="Parts of a model are told apart by whole distributions.",
                hint="Leave out --endpoint adapter=URL for --bisect.",
            )
        return Scores(file["values"])


def _first(items: Mapping[int, Item], positions: int) -> dict[int, Item]:
    found: dict[int, Item] = {}
    for number, item in items.items():
        positions -= len(item.ids)
        if found and positions < 0:
            break
        found[number] = item
    return found


def _error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))
