"""The k largest of a stream, against a stable sort of all values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remerge.merging import selection
from remerge.merging.selection import EVERYTHING, NOTHING, largest

# Heavy ties, zeros, numbers that float32 holds as denormal, as one number, or not at all.
FEW = [0.0, 0.0, 1e-46, 1.4e-45, 3e-40, 1e-39, 0.5, 0.5 + 1e-12, 0.5 + 1e-7, 1.0, 2.0, 1e30, 1e300]
VALUES = st.one_of(
    st.sampled_from(FEW), st.floats(0, 1e3), st.floats(0, 1e-37), st.integers(0, 3).map(float)
)


def float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def sorted_cut(values: np.ndarray, count: int) -> np.ndarray:
    """Which values are among the ``count`` largest: as float32, the earlier of equal ones first;
    zeros never."""
    keys = float32(values)
    taken = np.zeros(len(values), dtype=bool)
    taken[np.argsort(-keys, kind="stable")[:count]] = True
    return taken & (keys > 0)


def streamed(values: np.ndarray, sizes: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
    first, step = 0, 0
    while first < values.shape[1]:
        size = sizes[step % len(sizes)]
        yield first, torch.from_numpy(values[:, first : first + size])
        first, step = first + size, step + 1


def check(values: np.ndarray, counts: list[int], sizes: list[int]) -> int:
    """Compare every row, selected and then asked in other blocks; gives the number of passes."""
    passes = 0

    def blocks() -> Iterator[tuple[int, torch.Tensor]]:
        nonlocal passes
        passes += 1
        yield from streamed(values, sizes)

    wanted = [(row, lambda _, k=count: k) for row, count in enumerate(counts)]
    for row, cut in enumerate(largest(blocks, wanted)):
        expected = sorted_cut(values[row], counts[row])
        blocks_of_it = [(first, block[row]) for first, block in streamed(values, [*sizes, 3])]
        kept = np.concatenate([cut.keep(v.clone(), first).numpy() for first, v in blocks_of_it])
        left = np.concatenate([cut.drop(v.clone(), first).numpy() for first, v in blocks_of_it])
        seen = float32(values[row]) > 0
        np.testing.assert_array_equal(kept[seen], np.where(expected, values[row], 0.0)[seen])
        np.testing.assert_array_equal(left[seen], np.where(expected, 0.0, values[row])[seen])
    return passes


@settings(max_examples=80, deadline=None)
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 60),
    st.lists(st.integers(1, 17), min_size=1, max_size=3),
)
def test_as_a_stable_sort_takes_them(
    data: st.DataObject, rows: int, columns: int, sizes: list[int]
):
    row = st.lists(VALUES, min_size=columns, max_size=columns)
    values = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    counts = data.draw(st.lists(st.integers(0, columns + 1), min_size=rows, max_size=rows))
    check(values, counts, sizes)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 80), st.integers(0, 6))
def test_with_nothing_held(data: st.DataObject, columns: int, held: int):
    """All that needs many values at the real sizes: narrowing once more, and counting equal values
    one by one."""
    values = np.array([data.draw(st.lists(VALUES, min_size=columns, max_size=columns))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_HELD", held)
        check(values, [data.draw(st.integers(0, columns))], [7])


def test_two_passes_over_a_million_values():
    rng = np.random.default_rng(1)
    values = np.abs(rng.standard_normal((2, 2**20)))
    assert check(values, [2**18, 2**20 - 5], [2**18]) == 2


def test_many_equal_values():
    """Of two neighbours among float32 numbers, more of each than are held at once."""
    next_one = float(np.nextafter(np.float32(0.5), np.float32(1)))
    values = np.concatenate([np.full(300_000, 0.5), np.full(300_000, next_one), np.zeros(9)])[None]
    rng = np.random.default_rng(2)
    rng.shuffle(values[0])
    for count in (1, 299_999, 300_000, 300_001, 599_999, 600_000, 600_005):
        check(values, [count], [2**18])


def test_a_count_may_depend_on_how_many_are_not_zero():
    values = np.array([[0.0, 3.0, 1.0, 2.0, 0.0, 4.0]])
    seen: list[int] = []

    def half(nonzero: int) -> int:
        seen.append(nonzero)
        return nonzero // 2

    cut = largest(lambda: streamed(values, [4]), [(0, half)])[0]
    assert seen == [4]
    assert cut.keep(torch.from_numpy(values[0]), 0).tolist() == [0, 3, 0, 0, 0, 4]


def test_several_cuts_of_one_row():
    values = np.arange(1.0, 11.0)[None]
    cuts = largest(lambda: streamed(values, [3]), [(0, lambda _: 2), (0, lambda _: 5)])
    kept = [cut.keep(torch.tensor(values[0]), 0) for cut in cuts]
    assert [int(v.count_nonzero()) for v in kept] == [2, 5]


def test_everything_and_nothing():
    values = torch.tensor([0.0, 1.0, 1e300], dtype=torch.float64)
    assert EVERYTHING.keep(values.clone(), 5).equal(values)
    assert not EVERYTHING.drop(values.clone(), 5).any()
    assert not NOTHING.keep(values.clone(), 5).any()
    assert NOTHING.drop(values.clone(), 5).equal(values)
    assert EVERYTHING.is_everything and not EVERYTHING.is_nothing
    assert NOTHING.is_nothing and not NOTHING.is_everything
