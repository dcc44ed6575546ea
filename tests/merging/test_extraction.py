"""The nearest low-rank matrix: against LAPACK on the whole difference, whatever the storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from remerge.adapters.regions import Region
from remerge.errors import BadInput, Unsupported
from remerge.merging import patches as patches_module
from remerge.merging.difference import Difference, assembled
from remerge.merging.extraction import Wanted, explained, fit, relative_error
from remerge.merging.patches import patches_of, window
from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.reading import Reader

Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch):
    """Blocks so small that every matrix here takes several."""
    monkeypatch.setattr(patches_module, "BLOCK", 1000)


def reader(path: Path, tensors: Tensors) -> Reader:
    path.mkdir(parents=True)
    save_file(dict(tensors), path / "model.safetensors")
    (path / "config.json").write_text("{}")
    return Reader(open_checkpoint(path))


def whole(tensor: str, shape: tuple[int, int]) -> Region:
    rows, cols = range(shape[0]), range(shape[1])
    return Region(tensor, rows, cols, "w", rows, cols)


def between(
    place: Path,
    base: Tensors,
    merged: Tensors,
    shape: tuple[int, int],
    regions: tuple[Region, ...] | None = None,
    *,
    keep: bool = False,
) -> Difference:
    sides = [reader(place / name, tensors) for name, tensors in (("b", base), ("m", merged))]
    pieces = (whole("w", shape),) if regions is None else regions
    one, other = ((pieces, side.base.tensors) for side in sides)
    return Difference("w", *sides, shape, patches_of("w", one, other, ""), keep)


def spectrum(kind: str) -> torch.Tensor:
    """A (90, 130) matrix with singular values of a known kind."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(90, 130, dtype=torch.float64, generator=generator)
    if kind == "flat":
        return noise
    left, values, right = torch.linalg.svd(noise, full_matrices=False)
    steps = torch.arange(1, 91, dtype=torch.float64)
    values = {"slow": steps**-0.5, "fast": 0.5**steps, "rank 5": (steps <= 5) + 1e-4 * values}[kind]
    return left @ (values[:, None] * right)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", ["flat", "slow", "fast", "rank 5"])
def test_error_is_within_a_percent_of_the_least(tmp_path: Path, kind: str, keep: bool):
    change = spectrum(kind)
    base = torch.randn(90, 130, generator=torch.Generator().manual_seed(4))
    merged = (base.double() + change).float()
    found = between(tmp_path, {"w": base}, {"w": merged}, (90, 130), keep=keep)
    extent = found.measure()
    wanted = merged.double() - base.double()
    near = fit(found, Wanted(5), extent.squared)
    values = torch.linalg.svdvals(wanted)
    least = float(values[5:].square().sum().sqrt())
    error = float((wanted - near.left @ near.right).norm())
    assert error <= 1.01 * least + 1e-6 * float(wanted.norm())
    share = explained(float(near.squares.sum()), extent.squared)
    assert relative_error(share) == pytest.approx(error / float(wanted.norm()), rel=1e-3, abs=1e-6)
    # Both factors carry the same weight.
    assert torch.allclose(near.left.norm(dim=0), near.right.norm(dim=1))


def test_kept_or_read_again_gives_the_same_bits(tmp_path: Path):
    base, merged = {"w": torch.zeros(90, 130)}, {"w": spectrum("slow").float()}
    fits = []
    for keep in (False, True):
        found = between(tmp_path / str(keep), base, merged, (90, 130), keep=keep)
        fits.append(fit(found, Wanted(7), found.measure().squared))
    assert torch.equal(fits[0].left, fits[1].left)
    assert torch.equal(fits[0].right, fits[1].right)


def test_energy_takes_the_fewest_that_suffice(tmp_path: Path):
    change = spectrum("slow")
    found = between(tmp_path, {"w": torch.zeros(90, 130)}, {"w": change.float()}, (90, 130))
    squared = found.measure().squared
    shares = torch.cumsum(torch.linalg.svdvals(change).square(), 0) / change.square().sum()
    rank = int((shares < 0.6).sum()) + 1
    assert fit(found, Wanted(80, 0.6), squared).rank == rank
    assert fit(found, Wanted(rank - 2, 0.6), squared).rank == rank - 2


def test_pieces_of_any_order(tmp_path: Path):
    """A parameter whose rows are interleaved in one tensor and lie transposed in another."""
    change = spectrum("slow").float()
    stored = {"a": change[[8, 2, 9, 0]].contiguous(), "b": torch.zeros(130, 86)}
    rest = [row for row in range(90) if row not in (8, 2, 9, 0)]
    stored["b"] = change[rest].T.contiguous()
    numpy_rows = torch.tensor(rest).numpy()
    order = torch.tensor([8, 2, 9, 0]).numpy()
    pieces = (
        Region("a", range(4), range(130), "w", order, range(130)),
        Region("b", range(130), range(86), "w", numpy_rows, range(130), True),
    )
    zeros = {name: torch.zeros_like(value) for name, value in stored.items()}
    found = between(tmp_path, zeros, stored, (90, 130), pieces)
    right, left = torch.randn(130, 3).double(), torch.randn(90, 3).double()
    assert torch.allclose(found.times(right), change.double() @ right)
    assert torch.allclose(found.transposed_times(left), change.double().T @ left)
    rows = window(found.patches, range(5, 40))
    assert torch.equal(assembled(found.merged, rows, (35, 130)), change[5:40])


def test_columns_of_a_wider_tensor(tmp_path: Path):
    change = spectrum("slow").float()
    pieces = (
        Region("w", range(10, 60), range(7, 100), "w", range(50), range(93)),
        Region("w", range(60, 90, 2), range(7, 100), "w", range(50, 65), range(93)),
    )
    found = between(tmp_path, {"w": torch.zeros(90, 130)}, {"w": change}, (65, 93), pieces)
    wanted = torch.cat([change[10:60, 7:100], change[60:90:2, 7:100]]).double()
    right = torch.randn(93, 3).double()
    assert torch.allclose(found.times(right), wanted @ right)
    assert found.measure().squared == pytest.approx(float(wanted.square().sum()))


def test_rows_longer_than_a_block(tmp_path: Path):
    change = torch.randn(3, 4999)
    found = between(tmp_path, {"w": torch.zeros(3, 4999)}, {"w": change}, (3, 4999))
    near = fit(found, Wanted(3), found.measure().squared)
    assert torch.allclose((near.left @ near.right).float(), change, atol=1e-5)


def test_another_dtype_alone_is_no_change(tmp_path: Path):
    base = torch.randn(40, 30)
    found = between(tmp_path, {"w": base}, {"w": base.bfloat16()}, (40, 30))
    assert found.measure().changed is False
    moved = base.bfloat16()
    moved[3, 4] += 1
    found = between(tmp_path / "moved", {"w": base}, {"w": moved}, (40, 30))
    assert found.measure().changed is True


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["base", "merged"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, side: str):
    tensors = {"base": torch.randn(40, 30), "merged": torch.randn(40, 30)}
    tensors[side][39, 3] = value
    found = between(tmp_path, {"w": tensors["base"]}, {"w": tensors["merged"]}, (40, 30))
    with pytest.raises(BadInput, match="NaN or infinity"):
        found.measure()


def test_equal_bytes_may_be_anything(tmp_path: Path):
    base = torch.randn(40, 30)
    base[0, 0] = float("-inf")
    found = between(tmp_path, {"w": base}, {"w": base.clone()}, (40, 30))
    assert (found.measure().squared, found.measure().changed) == (0.0, False)


def test_other_pieces_are_refused(tmp_path: Path):
    sides = [reader(tmp_path / name, {"w": torch.zeros(4, 4)}) for name in "bm"]
    half = (Region("w", range(2), range(4), "w", range(2), range(4)),)
    tensors = sides[0].base.tensors
    with pytest.raises(Unsupported, match="other pieces"):
        patches_of("w", ((whole("w", (4, 4)),), tensors), (half, tensors), "")
