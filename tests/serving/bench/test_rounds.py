"""Who has a turn when, how often servers start, and what each arm is asked."""

from __future__ import annotations

from collections import Counter

import pytest

from remerge.errors import TryAgain
from tests.serving.bench.simulated import Machine, Simulated, simulated


def test_every_arm_has_each_turn_as_often():
    done = simulated(Machine(3), rounds=8)
    turns = Counter((s.concurrency, s.arm, s.turn) for s in done.segments)
    assert set(turns.values()) == {4} and len(turns) == 2 * 2 * 2
    first = {(s.round, s.concurrency): s.arm for s in done.segments if s.turn == 0}
    for even in range(0, 8, 2):
        for level in (1, 4):
            assert first[even, level] != first[even + 1, level]


def test_the_order_is_drawn():
    def order(seed: int) -> list[str]:
        return [s.arm for s in simulated(Machine(seed)).segments]

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(8)}) > 1


def test_all_arms_are_asked_the_same():
    hosted: list[Simulated] = []
    simulated(Machine(1), hosted=hosted)
    asked = {one for host in hosted for one in host.asked}
    for level in (1, 4):
        by_arm = {
            arm: {p for a, n, p in asked if (a, n) == (arm, level)} for arm in ("merged", "adapter")
        }
        assert by_arm["merged"] == by_arm["adapter"]


def test_servers_start_for_each_round_where_that_is_quick():
    hosted: list[Simulated] = []
    done = simulated(Machine(1), hosted=hosted)
    assert done.servers == "anew" and len(hosted) == 2 * 6
    hosted.clear()
    done = simulated(Machine(1, slow_start=30.0), hosted=hosted)
    assert done.servers == "kept" and len(hosted) == 2
    hosted.clear()
    done = simulated(Machine(1), hosted=hosted, together=False)
    assert done.servers == "in turn" and len(hosted) == 2 * 6
    assert done.starts == {0: [0.0] * 6, 1: [0.0] * 6}


def test_progress_ends_where_it_was_said_to():
    told: list[tuple[int, int, str]] = []
    simulated(Machine(1), report=lambda *what: told.append(what))
    assert told == [(n, 24, "turns") for n in range(1, 25)]


def test_what_fails_while_it_is_warmed_up_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    from remerge.serving.bench.load import Answer

    def fails(self: Simulated, *_: object, **__: object) -> tuple[list[Answer], float]:
        return [Answer(0, None, (), "500 no room")], 1.0

    monkeypatch.setattr(Simulated, "load", fails)
    with pytest.raises(TryAgain, match=r"500 no room.*--concurrency"):
        simulated(Machine(1))
