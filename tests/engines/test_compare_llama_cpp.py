"""`remerge compare` and gates with llama.cpp: a GGUF file in its own engine, and the server that is
to be deployed."""

from __future__ import annotations

from pathlib import Path

import pytest

import remerge
from remerge.artefacts.test_result import read_test_results
from remerge.errors import NotReproduced
from tests.engines.llama_server import llama_server
from tests.engines.places import needs, python_of

pytestmark = [*needs("llama.cpp"), pytest.mark.xdist_group("llama.cpp compared")]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE, SORT = EXAMPLES / "base", EXAMPLES / "adapters" / "sort"
GATE = {"evaluations": [EXAMPLES / "eval" / "sort.jsonl"], "limit": 20}


def own() -> dict[str, str]:
    return {"llama.cpp": str(python_of("llama.cpp"))}


def test_one_file_is_published_only_if_it_passes(tmp_path: Path):
    form = {"adapters": SORT, "to": "gguf:Q8_0", "engine_python": own()}
    out = tmp_path / "model.gguf"
    strict = {**GATE, "max_kl": 1e-9}
    with pytest.raises(NotReproduced, match="The gate failed: KL divergence, sort"):
        remerge.export(BASE, out, gate=strict, **form)
    assert list(tmp_path.iterdir()) == []
    remerge.export(BASE, out, gate=GATE, **form)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.gguf",
        "model.gguf.provenance.json",
        "model.gguf.remerge.json",
        "model.gguf.remerge.tests",
    ]
    (result,) = read_test_results(out)
    assert (result.verdict, result.engine, result.format) == ("passed", "llama.cpp", "Q8_0")
    assert result.command.startswith("remerge compare base sort model.gguf ")
    assert {"weights", "digests", "KL divergence, sort"} <= {gate.name for gate in result.gates}
    assert result.tasks[0].adapter.value > 0.9
    assert remerge.verify(out, engine_python=own())


def test_the_server_that_is_deployed(tmp_path: Path):
    out = tmp_path / "merged"
    remerge.merge(BASE, SORT, out)
    with llama_server(out) as endpoint:
        found = remerge.compare(BASE, SORT, out, gate=GATE, endpoint=[endpoint.url])
        again = remerge.compare(BASE, SORT, out, gate=GATE, endpoint=[endpoint.url])
        other = remerge.compare(
            BASE, EXAMPLES / "adapters" / "add", out, gate=GATE, endpoint=[endpoint.url]
        )
    assert found.passed and found.figures.engine == "a server"
    gates = {gate.name: gate for gate in found.figures.gates}
    assert "at least" in gates["KL divergence of first tokens, sort"].measured
    assert found.figures.tasks[0].merged.value > 0.9
    (cost,) = [one for one in again.figures.costs if one.side == "merged"]
    assert (cost.asked, cost.cached) == (0, 20)
    failed = {gate.name for gate in other.figures.gates if not gate.passed}
    assert "KL divergence of first tokens, sort" in failed
