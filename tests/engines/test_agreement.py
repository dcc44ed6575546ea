"""How logits are compared: held to torch's own divergence, and to what must be refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from remerge.engines.agreement import agreement, check
from remerge.errors import NotReproduced

EXPECTED = np.random.default_rng(0).normal(size=(10, 50)).astype(np.float32)


def test_figures():
    found = EXPECTED + 0.1 * np.random.default_rng(1).normal(size=(10, 50)).astype(np.float32)
    result = agreement(EXPECTED, found)
    ours, theirs = (torch.log_softmax(torch.from_numpy(v).double(), -1) for v in (EXPECTED, found))
    divergence = torch.nn.functional.kl_div(theirs, ours, log_target=True, reduction="batchmean")
    assert result.divergence == pytest.approx(divergence.item())
    assert result.same_first == (EXPECTED.argmax(-1) == found.argmax(-1)).mean()
    assert 0.08 < result.relative < 0.12
    assert result.document()["positions"] == 10


def test_what_softmax_does_not_see_is_no_difference():
    shift = np.arange(10, dtype=np.float32)[:, None]
    padded = np.pad(EXPECTED + shift, ((0, 0), (0, 14)), constant_values=-1e4)
    assert agreement(EXPECTED, padded).relative < 1e-5


@pytest.mark.parametrize("broken", ["another model", "nan", "inf"])
def test_refused(broken: str):
    found = EXPECTED[:, ::-1].copy()
    if broken != "another model":
        found = EXPECTED.copy()
        found[3, 4] = float(broken)
    with pytest.raises(NotReproduced, match=r"(In|not finite in) ONNX Runtime"):
        check({"logits": EXPECTED}, found, 0.5, "ONNX Runtime")


def test_a_model_of_equal_logits():
    flat = np.zeros((2, 5), np.float32)
    assert agreement(flat, flat).relative == 0
