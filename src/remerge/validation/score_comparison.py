"""An engine's log-probabilities against the reference's: pure functions over arrays.

With p the reference's distribution of the next token at a position, and q the engine's:
KL(p||q) = sum over tokens of p (log p - log q), in nats. Perplexity is exp of minus the mean
log-probability of the tokens that really follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from remerge.engines.scoring import Questions, Scores, Wide, normalised
from remerge.errors import BadInput

_TOP = 5
# Below it a share of probability is float32's rounding of the sum of the others.
_REST = 1e-5


@dataclass(frozen=True)
class Differences:
    """Absolute differences over all positions and tokens, of logits or of log-probabilities."""

    of: Literal["logits", "log-probabilities"]
    mean: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """What lies between reference and engine over all positions.

    ``distinct`` positions are not another's over again. ``mean_difference`` and
    ``max_difference``: of the log-probability of the token that follows (absolute, nats).
    ``logits``: the same of all tokens, of their logits where both sides told these. ``top1``: share
    of positions whose likeliest token is the same; ``top5``: of the reference's five likeliest, the
    share that is among the engine's. ``likeliest``: how many tokens of each position the engine
    told, None for all; KL then is a lower bound, over these and all others as one.
    """

    positions: int
    distinct: int
    vocabulary: int
    likeliest: int | None
    mean_difference: float
    max_difference: float
    kl_mean: float
    kl_max: float
    top1: float
    top5: float
    logits: Differences
    perplexity_reference: float
    perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity / self.perplexity_reference


@dataclass(frozen=True)
class Share:
    """How much of the adapter's change an engine shows: 1 for all of it, 0 for the base alone;
    ``error`` is its standard error, ``kl`` what lies between merged model and base."""

    value: float
    error: float
    kl: float


def compare(reference: Scores, engine: Scores, questions: Questions) -> Comparison:
    """Raises `BadInput` where the two are not over the same positions."""
    _check(reference, engine, questions)
    width = reference.width if engine.ids is not None else min(reference.width, engine.width)
    rows, tokens = questions.followed
    follows = np.full(questions.rows, -1, np.int64)
    follows[rows] = tokens
    if (tokens >= width).any():
        raise BadInput(
            f"The prompts hold token {int(tokens.max())}, and the engine knows {width} tokens."
        )
    divergences: list[Wide] = []
    same: list[np.ndarray] = []
    shared: list[np.ndarray] = []
    pairs: list[Wide] = []
    meter = _Meter(reference, engine)
    for block in reference.blocks(width):
        first = reference.dense(block, width)
        second, ids = None, engine.ids
        if ids is None:
            second = engine.dense(block, width)
            kl, top = _kl(first, second), second.argmax(axis=1)
            five = _likeliest(second)
            meter.add(block, first, second)
        else:
            named, told = ids[block], engine.values[block].astype(np.float64)
            kl, top = _partial_kl(first, named, told), named[:, 0]
            five = named[:, :_TOP]
            meter.add(block, np.take_along_axis(first, named.astype(np.int64), axis=1), told)
        divergences.append(kl)
        same.append(first.argmax(axis=1) == top)
        shared.append((_likeliest(first)[:, :, None] == five[:, None]).any(axis=2).mean(axis=1))
        wanted = follows[block]
        (place,) = np.nonzero(wanted >= 0)
        if engine.followed is not None:
            own = engine.followed[block][place]
        elif ids is not None:
            own = _told(ids[block][place], engine.values[block][place], wanted[place])
        else:
            assert second is not None
            own = second[place, wanted[place]]
        pairs.append(np.stack([first[place, wanted[place]], own], axis=1))
    kl, equal, pair = np.concatenate(divergences), np.concatenate(same), np.concatenate(pairs)
    known = pair[np.isfinite(pair).all(axis=1)]
    if not len(known):
        raise BadInput("The engine told the log-probability of no token that follows.")
    apart = np.abs(known[:, 0] - known[:, 1])
    return Comparison(
        positions=len(kl),
        distinct=questions.distinct,
        vocabulary=width,
        likeliest=None if engine.ids is None else engine.width,
        mean_difference=float(apart.mean()),
        max_difference=float(apart.max()),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1=float(equal.mean()),
        top5=float(np.concatenate(shared).mean()),
        logits=meter.differences,
        perplexity_reference=_perplexity(known[:, 0]),
        perplexity=_perplexity(known[:, 1]),
    )


def mean_kl(reference: Scores, other: Scores) -> float:
    """Mean of KL(reference || other) over all positions, both of the whole vocabulary."""
    width = min(reference.width, other.width)
    found = [
        _kl(reference.dense(block, width), other.dense(block, width))
        for block in reference.blocks(width)
    ]
    return float(np.concatenate(found).mean())


def adapter_share(base: Scores, merged: Scores, engine: Scores) -> Share:
    """How far the engine stands from the base on the way to the merged model.

    The regression of (log q - log base) on (log merged - log base) through the origin, each centred
    and weighted by the merged model's probabilities (Fisher's metric, in which KL is half a squared
    distance). Errors that know nothing of the adapter, as rounding's, leave it at 1 on average,
    even if they are larger than the adapter's change. Its standard error is that of positions drawn
    anew.
    """
    width = min(base.width, merged.width, engine.width if engine.ids is None else merged.width)
    products: list[Wide] = []
    squares: list[Wide] = []
    for block in merged.blocks(width):
        target, start = merged.dense(block, width), base.dense(block, width)
        if engine.ids is None:
            found = engine.dense(block, width)
        else:
            # Of tokens that the engine does not tell, nothing is known to have changed.
            found = start.copy()
            np.put_along_axis(found, engine.ids[block], engine.values[block], axis=1)
        weight = np.exp(target)
        change, shown = _centred(target - start, weight), _centred(found - start, weight)
        products.append((weight * change * shown).sum(axis=1))
        squares.append((weight * change * change).sum(axis=1))
    product, square = np.concatenate(products), np.concatenate(squares)
    kl = mean_kl(merged, base)
    total = float(square.sum())
    if total <= 0:
        return Share(math.nan, math.nan, kl)
    value = float(product.sum()) / total
    return Share(value, float(np.sqrt(((product - value * square) ** 2).sum())) / total, kl)


class _Meter:
    """Absolute differences of two sides' values, block by block."""

    def __init__(self, reference: Scores, engine: Scores) -> None:
        self._shifts = reference.shift, engine.shift
        self._sum, self._count, self._largest = 0.0, 0, 0.0

    def add(self, rows: slice, first: Wide, second: Wide) -> None:
        # Where both say that a token cannot come, they agree.
        apart = np.subtract(first, second, out=np.zeros_like(first), where=first != second)
        one, other = self._shifts
        if one is not None and other is not None:
            apart = apart + (one[rows] - other[rows])[:, None]
        found = np.abs(apart)
        self._sum += float(found.sum())
        self._count += found.size
        self._largest = max(self._largest, float(found.max(initial=0.0)))

    @property
    def differences(self) -> Differences:
        both = all(shift is not None for shift in self._shifts)
        of = "logits" if both else "log-probabilities"
        return Differences(of, self._sum / max(self._count, 1), self._largest)


def _likeliest(rows: Wide) -> np.ndarray:
    """The likeliest tokens of each row (rows, up to five), in no order."""
    count = min(_TOP, rows.shape[1])
    return np.argpartition(rows, -count, axis=1)[:, -count:]


def _check(reference: Scores, engine: Scores, questions: Questions) -> None:
    if not reference.rows == engine.rows == questions.rows:
        raise BadInput(
            f"The engine scored {engine.rows} positions, the reference {reference.rows} of "
            f"{questions.rows}."
        )


def _kl(first: Wide, second: Wide) -> Wide:
    p = np.exp(first)
    # What cannot come next adds nothing, whatever the engine makes of it.
    apart = np.subtract(first, second, out=np.zeros_like(first), where=p > 0)
    return (p * apart).sum(axis=1)


def _partial_kl(first: Wide, ids: np.ndarray, told: Wide) -> Wide:
    """KL over the tokens told and all others as one; never more than over the whole vocabulary."""
    here = np.take_along_axis(first, ids.astype(np.int64), axis=1)
    p, q = np.exp(here), np.exp(told)
    rest_p, rest_q = 1 - p.sum(axis=1), 1 - q.sum(axis=1)
    found = (p * (here - told)).sum(axis=1)
    open_end = (rest_p > _REST) & (rest_q > _REST)
    safe_p, safe_q = np.where(open_end, rest_p, 1.0), np.where(open_end, rest_q, 1.0)
    return np.maximum(found + safe_p * np.log(safe_p / safe_q), 0.0)


def _told(ids: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> Wide:
    """The log-probabilities of given tokens, NaN where the engine does not tell them."""
    found = np.full(len(wanted), np.nan)
    rows, columns = np.nonzero(ids == wanted[:, None])
    found[rows] = values[rows, columns]
    return found


def _centred(values: Wide, weight: Wide) -> Wide:
    return values - (weight * values).sum(axis=1, keepdims=True)


def _perplexity(values: Wide) -> float:
    return float(math.exp(min(-float(values.mean()), 700.0)))


def likeliest_difference(told: dict[int, float], row: Wide) -> float:
    """The mean absolute difference between log-probabilities that a server told and those of a
    scored row (tokens), weighted by these probabilities."""
    whole = normalised(row)
    pairs = [(float(whole[token]), value) for token, value in told.items()]
    weight = sum(math.exp(scored) for scored, _ in pairs)
    return sum(math.exp(scored) * abs(scored - value) for scored, value in pairs) / weight
