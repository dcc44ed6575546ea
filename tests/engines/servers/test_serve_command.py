"""`remerge serve` with the real llama.cpp: a merged directory, and a base with its adapter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import remerge
from remerge.engines.endpoint import Asked, Endpoint, ask
from remerge.engines.servers.running import free_port
from tests.engines.places import needs, python_of

pytestmark = [*needs("llama.cpp"), pytest.mark.xdist_group("llama.cpp server")]

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SORT = EXAMPLES / "adapters" / "sort"


@pytest.mark.parametrize("unmerged", [False, True])
def test_it_answers_and_ends(tmp_path: Path, unmerged: bool):
    target = f"{EXAMPLES / 'base'}+{SORT}"
    if not unmerged:
        target = str(tmp_path / "merged+sort")
        remerge.merge(EXAMPLES / "base", SORT, target)
    row = json.loads((EXAMPLES / "eval" / "sort.jsonl").read_text().splitlines()[0])
    words = ["--engine", "llama.cpp", "--engine-python", f"llama.cpp={python_of('llama.cpp')}"]
    words += ["--port", str(free_port()), "--memory", "1GiB", "--prompt", row["prompt"], "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "remerge", "serve", target, *words],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        told = json.loads("".join(lines))
        assert told["model"] == ("sort" if unmerged else "merged+sort")
        assert told["smoke"]["answer"] == row["expected"]
        found: list[str] = []
        messages = [{"role": "user", "content": row["prompt"]}]
        endpoint = Endpoint(told["url"], told["model"], key=None)
        ask(
            endpoint,
            [Asked(messages=messages, max_tokens=12)],
            lambda number, reply: found.append(reply.text),
        )
        assert found == [row["expected"]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout.read() == ""
