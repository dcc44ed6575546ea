"""The demonstration: merge a real adapter into a real base, verify it, ask all three models, and
write the report.

Run by `make demo`; takes the inputs from `examples/` and writes to a temporary directory, but for
the report, which stays in `build/`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from score import ScoreResult, load, score
from transformers import AutoTokenizer
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
REPORT = ROOT / "build" / "demo-report.html"
LIMIT = 200
SHOWN = 3


def main() -> None:
    task = sys.argv[1] if len(sys.argv) > 1 else "sort"
    base, adapter = EXAMPLES / "base", EXAMPLES / "adapters" / task
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="remerge-demo-") as scratch:
        out = Path(scratch) / "merged"
        run("merge", relative(base), relative(adapter), "-o", str(out))
        run("verify", str(out))
        print(f"\n{task}: greedy answers to {LIMIT} held-out prompts (exact match)\n")
        tokenizer = AutoTokenizer.from_pretrained(base)
        questions = EXAMPLES / "eval" / f"{task}.jsonl"
        results = {
            "base": score(load(base), tokenizer, questions, LIMIT),
            "adapter on base": score(load(base, adapter), tokenizer, questions, LIMIT),
            "merged": score(load(out), tokenizer, questions, LIMIT),
        }
        show(results)
        print()
        REPORT.parent.mkdir(exist_ok=True)
        run("compare", relative(base), relative(adapter), str(out), "--eval", relative(questions))
        run("report", str(out), "-o", relative(REPORT), "--overwrite")


def relative(path: Path) -> str:
    return os.path.relpath(path)


def run(*arguments: str) -> None:
    """Run the command as a user would, and show it."""
    print(f"$ remerge {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "remerge", *arguments], check=True)


def show(results: dict[str, ScoreResult]) -> None:
    width = 26
    print("".join(f"{name:<{width}}" for name in ("", *results)))
    scores = (f"{r.correct}/{r.total} = {r.accuracy:.3f}" for r in results.values())
    print(f"{'score':<{width}}" + "".join(f"{text:<{width}}" for text in scores))
    first, *_ = results.values()
    for i in range(min(SHOWN, first.total)):
        print(f"\n{first.samples[i].prompt!r}, expected {first.samples[i].expected!r}")
        answers = (repr(result.samples[i].answer)[: width - 2] for result in results.values())
        print(f"{'':<{width}}" + "".join(f"{text:<{width}}" for text in answers))


if __name__ == "__main__":
    main()
