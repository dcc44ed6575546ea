"""How fast this machine moves bytes and multiplies: measured for a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from remerge.engines.machine import instructions
from remerge.serving.sizing.asked import Memory
from remerge.serving.sizing.figures import figures

_BYTES = 2**26
_SIDE = 768


@dataclass(frozen=True)
class Rates:
    """Bytes read and operations done in a second; ``narrow`` times fewer operations in 16 bits."""

    bandwidth: float
    operations: float
    narrow: float
    source: str


def rates_of(memory: Memory) -> Rates:
    """Of the GPU that the memory is of, by its maker's figures, else of this machine, measured."""
    return _measured() if memory.gpu_name is None else _of_gpu(memory.gpu_name)


def _of_gpu(name: str) -> Rates:
    known = figures()
    share = known.reached.share
    # The longer name first: "H100 PCIe" is not an "H100".
    for part in sorted(known.gpus, key=len, reverse=True):
        if all(word in name.split() or word in name for word in part.split()):
            speed, source = known.gpus[part], f"the data sheet of the {part}, {share:.0%} of it"
            break
    else:
        speed = known.gpu_unknown
        source = f"{name} is not known here: taken for no faster than a small data-centre GPU"
    return Rates(speed.bandwidth * share, speed.operations * share, 1.0, source)


def _measured() -> Rates:
    import numpy as np

    block = np.ones(_BYTES // 4, np.float32)
    other = np.empty_like(block)
    np.copyto(other, block)
    moved = min(_seconds(lambda: np.copyto(other, block)) for _ in range(5))
    square = np.ones((_SIDE, _SIDE), np.float32)
    _seconds(lambda: square @ square)
    multiplied = min(_seconds(lambda: square @ square) for _ in range(5))
    can = instructions() or frozenset()
    wide = {"avx512_bf16", "amx_bf16", "bf16"} & can
    return Rates(
        # A copy reads and writes.
        bandwidth=2 * _BYTES / moved,
        operations=2 * _SIDE**3 / multiplied,
        narrow=1.0 if wide else figures().narrow_on_processor.slower,
        source="measured on this machine just now, by a copy and a product of matrices",
    )


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start
