"""A GGUF file by llama.cpp's converter, traced by its manifest, a store, and itself alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import remerge
from tests.engines.places import needs, python_of

pytestmark = needs("llama.cpp")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_gguf_file_is_traced_back(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    remerge.export(
        EXAMPLES / "base",
        file,
        adapters=EXAMPLES / "adapters" / "sort",
        to="gguf:Q8_0",
        engine_python={"llama.cpp": str(python_of("llama.cpp"))},
    )
    store = remerge.Store(tmp_path / "store")
    found = remerge.Store()
    proven = found.trace(file)
    assert (proven.known_by, proven.strength, proven.intact) == ("manifest", "proven", True)
    (origin,) = proven.origins
    assert origin.told is not None
    assert origin.made is not None
    assert origin.made.builder is not None
    assert origin.made.started is not None
    (tmp_path / "laptop").mkdir()
    alone = Path(shutil.copy(file, tmp_path / "laptop" / "x.gguf"))
    claimed = found.trace(alone)
    assert (claimed.known_by, claimed.strength) == ("metadata", "claimed")
    assert claimed.claims is not None
    assert claimed.claims.merge_key == origin.told.merge_key
    assert (claimed.claims.base, claimed.claims.adapters) == (("base",), ("sort",))
    name = store.add(file).name
    known = store.trace(alone)
    assert (known.known_by, known.origins[0].names) == ("store", (name,))
    assert store.diff(name, alone).same
