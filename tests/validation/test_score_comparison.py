"""Comparing log-probabilities: against values by hand, torch's formulas, and directions known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from remerge.engines.scoring import Questions, Scores, followed, write_likeliest, write_rows
from remerge.errors import BadInput
from remerge.validation.score_comparison import (
    adapter_share,
    compare,
    likeliest_difference,
    mean_kl,
)

LN2 = math.log(2)


def asked(*prompts: tuple[int, ...]) -> Questions:
    return Questions((), prompts, 0, 0)


def scores(values: object) -> Scores:
    return Scores(np.asarray(values, np.float32))


def random(rows: int, width: int, seed: int, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32) * scale


def test_by_hand():
    """Two tokens, one prompt of three: p is even, q is 1/4 to 3/4 at each position."""
    reference = scores(np.log([[0.5, 0.5]] * 3))
    engine = scores(np.log([[0.25, 0.75]] * 3))
    found = compare(reference, engine, asked((0, 0, 1)))
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.positions == 3
    assert found.kl_mean == pytest.approx(kl, rel=1e-6)
    assert found.kl_max == pytest.approx(kl, rel=1e-6)
    # What follows is token 0, then token 1: -ln 4 and ln 3/4 against -ln 2 twice.
    assert found.mean_difference == pytest.approx((LN2 + math.log(1.5)) / 2, rel=1e-6)
    assert found.max_difference == pytest.approx(LN2, rel=1e-6)
    assert found.perplexity_reference == pytest.approx(2, rel=1e-6)
    assert found.perplexity == pytest.approx((4 * 4 / 3) ** 0.5, rel=1e-6)
    # Of equal ones the first token is the likeliest, which the engine has as the second.
    assert found.top1 == 0


def test_against_torch():
    questions = asked((3, 1, 4), (1, 5, 9, 2))
    first, second = random(7, 11, 1), random(7, 11, 2)
    p, q = (torch.from_numpy(v).double().log_softmax(-1) for v in (first, second))
    found = compare(scores(first), scores(second), questions)
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert found.kl_mean == pytest.approx(float(kl.mean()))
    assert found.kl_max == pytest.approx(float(kl.max()))
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    rows, tokens = torch.tensor([0, 1, 3, 4, 5]), torch.tensor([1, 4, 5, 9, 2])
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(second).double()[rows], tokens)
    assert found.perplexity == pytest.approx(float(loss.exp()))
    apart = (p[rows, tokens] - q[rows, tokens]).abs()
    assert found.mean_difference == pytest.approx(float(apart.mean()))


def test_rows_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch):
    questions, first, second = asked(tuple(range(9))), random(9, 40, 1), random(9, 40, 2)
    whole = compare(scores(first), scores(second), questions)
    monkeypatch.setattr("remerge.engines.scoring._VALUES", 100)
    assert compare(scores(first), scores(second), questions) == whole


def test_the_same_is_the_same():
    values = random(5, 7, 3)
    found = compare(scores(values), scores(values + 4), asked((0, 1, 2, 3, 4)))
    assert found.kl_mean == pytest.approx(0, abs=1e-12)
    assert (found.top1, found.perplexity_ratio) == (1, pytest.approx(1))


def test_padded_vocabularies_are_compared_where_both_have_tokens():
    values = random(4, 6, 3)
    wide = np.concatenate([values, np.full((4, 2), 9.0, np.float32)], axis=1)
    found = compare(scores(values), scores(wide), asked((0, 1, 2, 3)))
    assert found.vocabulary == 6
    assert found.kl_mean == pytest.approx(0, abs=1e-12)
    with pytest.raises(BadInput, match="token 7"):
        compare(scores(wide), scores(values), asked((0, 1, 7, 3)))


def test_a_token_that_cannot_come_next_adds_nothing():
    values = np.array([[0.0, 1.0, -np.inf]], np.float32).repeat(2, axis=0)
    found = compare(scores(values), scores(values), asked((0, 1)))
    assert found.kl_mean == 0


def test_the_likeliest_tokens_alone(tmp_path: Path):
    """A lower bound of the divergence, the very log-probabilities, and all of it for all tokens."""
    questions, width = asked((3, 1, 4, 1, 5)), 50
    first, second = random(5, width, 1), random(5, width, 2)
    whole = compare(scores(first), scores(second), questions)
    told = torch.from_numpy(second).double().log_softmax(-1).numpy()
    follows = [1, 4, 1, 5, 0]
    previous = 0.0
    for kept in (5, 20, 49, 50):
        rows = []
        for row, token in zip(told, follows, strict=True):
            likeliest = np.argsort(-row)[: kept - 1].tolist()
            names = dict.fromkeys([*likeliest, token, *np.argsort(-row).tolist()])
            rows.append({int(t): float(row[t]) for t in list(names)[:kept]})
        path = tmp_path / f"{kept}.npz"
        write_likeliest(path, rows, questions.prompts[0], width)
        engine = Scores.read([path], tmp_path / "whole.npy")
        found = compare(scores(first), engine, questions)
        assert found.likeliest == (None if kept == width else kept)
        assert previous <= found.kl_mean + 1e-9 <= whole.kl_mean + 2e-6
        assert found.mean_difference == pytest.approx(whole.mean_difference, rel=1e-5)
        assert found.top1 == whole.top1
        previous = found.kl_mean
    assert previous == pytest.approx(whole.kl_mean, rel=1e-5)


def test_rows_that_do_not_match():
    with pytest.raises(BadInput, match="scored 3 positions"):
        compare(scores(random(4, 5, 1)), scores(random(3, 5, 1)), asked((0, 1, 2, 3)))


def test_a_file_of_scores(tmp_path: Path):
    values = random(5, 7, 1, scale=30)
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    write_rows(paths[0], values[:2])
    write_rows(paths[1], values[2:])
    found = Scores.read(paths, tmp_path / "whole.npy")
    expected = torch.from_numpy(values).double().log_softmax(-1)
    assert torch.equal(torch.from_numpy(np.array(found.values)), expected.float())
    assert found.shift is not None
    assert np.allclose(found.values + found.shift[:, None], values, atol=1e-4)
    assert followed(values, (0, 3, 1, 6, 2)) == pytest.approx(
        expected[torch.arange(4), torch.tensor([3, 1, 6, 2])].tolist()
    )
    with pytest.raises(BadInput, match="not numbers"):
        write_rows(tmp_path / "c.npz", np.array([[0.0, np.nan]]))


def test_logits_and_the_five_likeliest():
    """Log-probabilities do not see what is added to a whole row; logits do."""
    first = random(6, 30, 1)
    moved = first.copy()
    moved[:, 3] += 0.25
    one, other = scores(first), scores(moved)
    questions = asked(tuple(range(6)))
    assert compare(one, other, questions).logits.of == "log-probabilities"

    def whole(values: np.ndarray) -> Scores:
        wide = torch.from_numpy(values).double()
        lse = wide.logsumexp(-1).numpy()
        return Scores((values - lse[:, None]).astype(np.float32), shift=lse)

    found = compare(whole(first), whole(moved), questions).logits
    assert found.of == "logits"
    assert found.largest == pytest.approx(0.25, abs=1e-5)
    assert found.mean == pytest.approx(0.25 / 30, abs=1e-6)
    # Of the five likeliest of each row one less where the token that grew pushed another out.
    five = [set(np.argsort(-rows)[:5]) for rows in first]
    grown = [set(np.argsort(-rows)[:5]) for rows in moved]
    shared = np.mean([len(a & b) / 5 for a, b in zip(five, grown, strict=True)])
    assert compare(one, other, questions).top5 == pytest.approx(shared)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_how_much_of_the_adapter_is_there(noise: float):
    """From base to merged in steps, with errors ten times as large as the adapter's change."""
    base = random(400, 64, 1)
    merged = base + random(400, 64, 2, scale=0.05)
    errors = random(400, 64, 3, scale=noise)
    for part in (0.0, 0.5, 1.0):
        engine = base + part * (merged - base) + errors
        found = adapter_share(scores(base), scores(merged), scores(engine))
        assert abs(found.value - part) <= 4 * found.error + 1e-2
        assert found.error < 0.2
        assert found.kl == pytest.approx(mean_kl(scores(merged), scores(base)))


def test_no_change_has_no_share():
    base = scores(random(4, 8, 1))
    assert math.isnan(adapter_share(base, base, base).value)


def test_prompts_that_begin_alike_are_the_same_until_they_part():
    prompts = ((1, 2, 3), (1, 2, 4, 3), (2, 1), (1, 2, 3))
    prefixes = {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}
    assert asked(*prompts).distinct == len(prefixes) == 7


def test_what_a_server_tells():
    row = np.log(np.array([0.5, 0.25, 0.25]))
    told = {0: math.log(0.5), 1: math.log(0.5)}
    # Weighted by 1/2 and 1/4: no difference, and ln 2.
    assert likeliest_difference(told, row) == pytest.approx(LN2 / 3)
