"""cyllama's quantiser of files against the functions that xllamacpp exports, in an environment that
has both."""

from __future__ import annotations

import subprocess

import pytest

from tests.engines.test_gguf import ENGINE, ORACLE

pytestmark = pytest.mark.engine

_PROGRAM = """
import sys
sys.path.append(sys.argv[1])
import numpy as np
from remerge.errors import BadInput, Unsupported
from remerge.outputs.gguf import quantiser
from remerge.sources.ggml_types import TYPES

exported = quantiser.open_quantiser()
assert exported.package == "xllamacpp"
del quantiser._PACKAGES["xllamacpp"]
files = quantiser.open_quantiser()
assert files.package == "cyllama"
draw = np.random.default_rng(0)
for shape in [(1, 256), (64, 512), (3, 1792), (700, 256)]:
    rows = draw.standard_normal(shape, dtype=np.float32)
    rows[0] *= 1e-3
    for kind in TYPES.values():
        if kind.name != "F32":
            found, expected = files.quantise(rows, kind), exported.quantise(rows, kind)
            assert np.array_equal(found, expected), (kind, shape)
for wrong in (np.inf, np.nan, 1e38):
    rows[1, 1] = wrong
    for kind in ("F16", "Q8_0", "Q4_K"):
        for each in (files, exported):
            try:
                each.quantise(rows, TYPES[kind])
            except BadInput as error:
                assert "some are not finite" in str(error)
            else:
                raise AssertionError((wrong, kind, each))
try:
    files.quantise(rows, TYPES["Q4_K"], np.ones(256, np.float32))
except Unsupported as error:
    print(error)
"""


def test_bytes_are_those_of_the_functions():
    find = "import site; print(site.getsitepackages()[0])"
    place = subprocess.check_output([ORACLE, "-c", find], text=True).strip()
    done = subprocess.run(
        [ENGINE, "-P", "-c", _PROGRAM, place], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cannot take an importance matrix" in done.stdout
