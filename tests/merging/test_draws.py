"""Random numbers by address: the same whoever asks, and random."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from remerge.merging.draws import keep, uniform


def test_numbers_of_an_element_do_not_depend_on_what_is_asked_beside_it():
    whole = uniform(3, 1, "a.weight", 0, 1000)
    for first, count in [(0, 1), (1, 1), (3, 2), (4, 4), (7, 250), (998, 2), (500, 0)]:
        assert torch.equal(uniform(3, 1, "a.weight", first, count), whole[first : first + count])


def test_they_are_numpys_philox():
    digest = hashlib.sha256(b"7|2|x").digest()
    generator = np.random.Philox(key=np.frombuffer(digest, "<u8", 2), counter=0)
    words = np.random.Generator(generator).integers(0, 2**32, 33, np.uint32)
    np.testing.assert_array_equal(uniform(7, 2, "x", 0, 33).numpy(), words / 2**32)


@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 1 - 2**-33, 1.0])
def test_kept_are_those_below_the_density(density: float):
    kept = keep(3, 1, "a.weight", 5, 1000, density)
    expected = uniform(3, 1, "a.weight", 5, 1000) < density
    assert torch.equal(kept, expected.double())


@pytest.mark.parametrize("other", [(4, 0, "a"), (3, 1, "a"), (3, 0, "b")])
def test_seed_adapter_and_tensor_each_give_others(other: tuple[int, int, str]):
    first, second = uniform(3, 0, "a", 0, 10_000), uniform(*other, 0, 10_000)
    assert float((first == second).sum()) == 0
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.05


def test_they_are_uniform():
    found = uniform(0, 0, "a", 0, 200_000)
    assert float(found.min()) >= 0 and float(found.max()) < 1
    counts = torch.histc(found, 20, 0, 1)
    chi = float(((counts - 10_000) ** 2 / 10_000).sum())
    # 19 degrees of freedom: above 60 once in two million.
    assert chi < 60


def test_beyond_32_bits():
    far = uniform(0, 0, "a", 2**40 + 1, 3)
    assert torch.equal(far, uniform(0, 0, "a", 2**40, 4)[1:])
