"""An engine that is none: its speeds are known, and its noise is drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from remerge.serving.bench.load import Answer, Tokens
from remerge.serving.bench.measured import ArmName
from remerge.serving.bench.processes import Tree
from remerge.serving.bench.rounds import Host, Run, Work, run


@dataclass
class SimulatedTree(Tree):
    cpu: float = 0.0

    def seconds(self) -> dict[int, float]:
        return {1: self.cpu}

    def weigh(self) -> None:
        self.memory = 1000

    @contextmanager
    def weighing(self) -> Generator[None]:
        yield


@dataclass
class Machine:
    """What all arms share: a speed that wanders, now and then another program in the way, and how
    much of either there is."""

    seed: int
    noise: float = 0.05
    drift: float = 0.03
    busy: float = 0.05
    starts: float = 0.0
    slow_start: float = 0.0
    warmth: float = 0.0
    drawn: random.Random = field(init=False)
    speed: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.drawn = random.Random(self.seed)

    def disturbed(self) -> float:
        """By how much longer something takes now."""
        self.speed += self.drawn.gauss(0, self.drift)
        busy = self.drawn.uniform(0.2, 2.0) if self.drawn.random() < self.busy else 0.0
        return math.exp(self.speed + self.drawn.gauss(0, self.noise)) * (1 + busy)


@dataclass
class Simulated:
    """A server: seconds of processor time for a token of each of its arms."""

    machine: Machine
    costs: dict[ArmName, float]
    fails_at: int | None = None
    asked: list[tuple[ArmName, int, tuple[Tokens, ...]]] = field(default_factory=list[Any])

    def __post_init__(self) -> None:
        self.tree: Tree = SimulatedTree(lambda: [1])
        self.start_seconds = self.machine.slow_start
        self._start = math.exp(self.machine.drawn.gauss(0, self.machine.starts))

    def load(
        self, arm: ArmName, prompts: Sequence[Tokens], *, concurrency: int, max_tokens: int
    ) -> tuple[list[Answer], float]:
        self.asked.append((arm, concurrency, tuple(prompts)))
        tokens = max_tokens * len(prompts)
        cost = self.costs[arm] * (0.7 if concurrency > 1 else 1.0) * self._start
        seconds = tokens * cost * self.machine.disturbed()
        assert isinstance(self.tree, SimulatedTree)
        self.tree.cpu += seconds
        answer = Answer(max_tokens, seconds / 10, (seconds / tokens,) * (max_tokens - 1))
        found = [answer] * len(prompts)
        # Not while it is warmed up, which everything must survive.
        if self.fails_at == concurrency and len(prompts) > concurrency:
            found[0] = Answer(0, None, (), "500 it is tired")
        return found, seconds


def simulated(
    machine: Machine,
    merged: float = 0.001,
    adapter: float = 0.0013,
    *,
    rounds: int = 6,
    fails_at: int | None = None,
    together: bool = True,
    hosted: list[Simulated] | None = None,
    report: Any = lambda done, total, what: None,
) -> Run:
    """All rounds of two arms with these costs."""
    seen = [] if hosted is None else hosted

    def host(costs: dict[ArmName, float], fails: int | None) -> Host:
        @contextmanager
        def start() -> Generator[Simulated]:
            one = Simulated(machine, costs, fails)
            seen.append(one)
            yield one

        return Host(tuple(costs), start)

    work = Work([(1, 2), (3,)], (1, 4), 8, 16, rounds, machine.seed)
    hosts = [host({"merged": merged}, None), host({"adapter": adapter}, fails_at)]
    return run(hosts, work, report, together=together)
