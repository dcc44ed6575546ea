"""Rounds: every arm does the same work at every concurrency, in an order that is drawn.

Each order is followed, in the next round, by its reverse, so that who comes first or last is the
same for all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Literal, Protocol

from remerge.errors import TryAgain
from remerge.serving.bench.load import Answer, Tokens
from remerge.serving.bench.measured import ArmName
from remerge.serving.bench.processes import Tree, taken

Report = Callable[[int, int, str], None]
Servers = Literal["anew", "kept", "in turn"]

# Servers that take no longer to start, in seconds, are started for each round: what differs between
# one start and the next is then in the interval.
_QUICK = 10.0
# Seconds that a turn should take at least: what takes less is decided by chance.
_TURN = 2.0
_FEWEST, _MOST = 8, 512


class Running(Protocol):
    """An arm that can be asked: its processes, and the seconds that it took to start."""

    @property
    def tree(self) -> Tree: ...

    @property
    def start_seconds(self) -> float: ...

    def load(
        self, arm: ArmName, prompts: Sequence[Tokens], *, concurrency: int, max_tokens: int
    ) -> tuple[list[Answer], float]:
        """Ask all prompts; their answers, and the seconds from the first to the last."""
        ...


@dataclass(frozen=True)
class Host:
    """A server, or what stands for one: the arms that it answers for, and how it is started."""

    arms: tuple[ArmName, ...]
    start: Callable[[], AbstractContextManager[Running]]


@dataclass(frozen=True)
class Work:
    """What each round does: at each concurrency so many requests (None: as many as take
    `_TURN` seconds), of prompts that begin anew when there are more requests than prompts."""

    prompts: Sequence[Tokens]
    concurrency: tuple[int, ...]
    requests: int | None
    max_tokens: int
    rounds: int
    seed: int

    def asked(self, requests: int) -> list[Tokens]:
        """The prompts of so many requests."""
        return [self.prompts[number % len(self.prompts)] for number in range(requests)]


@dataclass(frozen=True)
class Segment:
    """One arm's turn: what `remerge.serving.bench.measured.Sample` has, with every answer."""

    round: int
    concurrency: int
    arm: ArmName
    turn: int
    seconds: float
    cpu_seconds: float | None
    answers: tuple[Answer, ...]


@dataclass
class Run:
    """What came of all rounds: segments, how many requests a turn had at each concurrency, how
    servers were run, and of each host the processes and the seconds of every start."""

    segments: list[Segment]
    requests: dict[int, int]
    servers: Servers
    trees: dict[int, list[Tree]]
    starts: dict[int, list[float]]


def run(hosts: Sequence[Host], work: Work, report: Report, *, together: bool) -> Run:
    """Do all rounds. ``together``: there is memory for all hosts at once; else one runs at a time.

    Raises what starting a host or warming it up raises.
    """
    found = Run([], {}, "in turn", {}, {})
    whole = work.rounds * len(work.concurrency) * sum(len(host.arms) for host in hosts)
    rounds = _Rounds(hosts, work, found, report, whole)
    if not together:
        for number in range(work.rounds):
            for index in rounds.turns(number, len(hosts)):
                with rounds.opened([index]) as running:
                    rounds.measure(number, running)
        return found
    with ExitStack() as stack:
        running = stack.enter_context(rounds.opened(range(len(hosts))))
        rounds.measure(0, running)
        kept = max(seconds[0] for seconds in found.starts.values()) > _QUICK
        found.servers = "kept" if kept else "anew"
        if kept:
            for number in range(1, work.rounds):
                rounds.measure(number, running)
            return found
    for number in range(1, work.rounds):
        with rounds.opened(range(len(hosts))) as running:
            rounds.measure(number, running)
    return found


class _Rounds:
    def __init__(
        self, hosts: Sequence[Host], work: Work, found: Run, report: Report, whole: int
    ) -> None:
        self._hosts, self._work, self._found = hosts, work, found
        self._report, self._whole = report, whole

    def turns(self, number: int, count: int, what: str = "") -> list[int]:
        """The order of so many things in a round."""
        drawn = random.Random(f"{self._work.seed}/{number // 2}/{what}")
        order = drawn.sample(range(count), count)
        return order if number % 2 == 0 else order[::-1]

    def opened(self, which: Sequence[int]) -> _Opened:
        return _Opened(self._hosts, which, self._work, self._found)

    def measure(self, number: int, running: dict[ArmName, Running]) -> None:
        """One round of the arms that run."""
        work, names = self._work, list(running)
        for index in self.turns(number, len(work.concurrency), "concurrency"):
            level = work.concurrency[index]
            asked = work.asked(self._found.requests[level])
            for turn, place in enumerate(self.turns(number, len(names), str(level))):
                arm = names[place]
                one = running[arm]
                before = one.tree.seconds()
                answers, seconds = one.load(
                    arm, asked, concurrency=level, max_tokens=work.max_tokens
                )
                cpu = taken(before, one.tree.seconds())
                one.tree.weigh()
                told = tuple(answers)
                self._found.segments.append(Segment(number, level, arm, turn, seconds, cpu, told))
                self._report(len(self._found.segments), self._whole, "turns")


class _Opened:
    """Hosts started, each of their arms warmed up at every concurrency, and all ended again."""

    def __init__(self, hosts: Sequence[Host], which: Sequence[int], work: Work, found: Run) -> None:
        self._hosts, self._which, self._work, self._found = hosts, which, work, found
        self._stack = ExitStack()

    def __enter__(self) -> dict[ArmName, Running]:
        with self._stack:
            running: dict[ArmName, Running] = {}
            for index in self._which:
                host = self._hosts[index]
                one = self._stack.enter_context(host.start())
                self._found.trees.setdefault(index, []).append(one.tree)
                self._found.starts.setdefault(index, []).append(one.start_seconds)
                for arm in host.arms:
                    running[arm] = one
            for arm, one in running.items():
                with one.tree.weighing():
                    seconds = [self._warm(arm, one, level) for level in self._work.concurrency]
                self._decide(seconds)
            self._stack = self._stack.pop_all()
            return running

    def __exit__(self, *what: object) -> None:
        self._stack.close()

    def _warm(self, arm: ArmName, one: Running, level: int) -> float:
        """As many requests as there are at once; the seconds they took. A second time, where that
        is what decides how many there will be."""
        asked = self._work.asked(level)
        taken = 0.0
        for _ in range(1 if self._found.requests else 2):
            answers, taken = one.load(
                arm, asked, concurrency=level, max_tokens=self._work.max_tokens
            )
            fault = next((answer.fault for answer in answers if answer.fault), None)
            if fault is not None:
                raise TryAgain(
                    f"The arm {arm} fails at {level} requests at once, before anything is "
                    "measured.",
                    why=f"It said: {fault.rstrip('.')}.",
                    hint="Ask for less at once (--concurrency), or fewer tokens (--max-tokens).",
                )
        return taken

    def _decide(self, seconds: Sequence[float]) -> None:
        """How many requests a turn has at each concurrency, the same for all arms and rounds; so
        many that all that run at once end together."""
        if self._found.requests:
            return
        for level, one in zip(self._work.concurrency, seconds, strict=True):
            wanted: float | None = self._work.requests
            if wanted is None:
                wanted = max(_FEWEST, 2 * level, level * _TURN / max(one, 1e-3))
                wanted = min(wanted, max(_MOST, 2 * level))
            self._found.requests[level] = level * math.ceil(wanted / level)
