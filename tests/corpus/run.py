"""Run the corpus and print what passes: ``python -m tests.corpus.run --only 'dora*'``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from tests.corpus.build import build
from tests.corpus.cases import select
from tests.corpus.check import Report, check
from tests.corpus.selfcheck import self_check


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus.run", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", help="names or categories, e.g. 'moe' 'dora*'")
    parser.add_argument("--build", metavar="DIR", type=Path, help="build there and keep it")
    parser.add_argument("--build-only", action="store_true", help="build, run nothing")
    parser.add_argument("--self", action="store_true", help="check the corpus, not remerge")
    parser.add_argument("--fast", action="store_true", help="only the representative cases")
    parser.add_argument("--failures", action="store_true", help="print only what fails")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("-v", "--verbose", action="store_true", help="tracebacks of crashes")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = select(options.only, fast=options.fast)
    if options.list:
        for case in cases:
            print(f"{case.category:10} {case.expects:8} {case.dtype:9} {case.name}  {case.notes}")
        print(f"{len(cases)} cases, {len({case.arch for case in cases})} architectures")
        return 0
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="remerge-corpus-") as scratch:
        top = options.build or Path(scratch)
        for case in cases:
            started = time.perf_counter()
            root = top / case.name
            shutil.rmtree(root, ignore_errors=True)
            report, stage = Report(), "build"
            try:
                built = build(case, root)
                stage = "check"
                if not options.build_only:
                    report = self_check(built) if options.self else check(built)
            except Exception as error:
                report.add(f"{stage}: {type(error).__name__}: {error}")
                if options.verbose:
                    traceback.print_exc()
            seconds = time.perf_counter() - started
            state = "ok" if report.ok else "FAIL"
            results[state] += 1
            if not report.ok or not options.failures:
                counts = f"{report.off}/{report.elements} off" if report.elements else ""
                print(f"{state:4} {seconds:5.1f}s {case.name}  [{case.expects}] {counts}")
            for problem in report.problems:
                print(f"       - {problem[:600]}")
            sys.stdout.flush()
            if options.build is None:
                shutil.rmtree(root, ignore_errors=True)
    print(f"{results['ok']} passed, {results['FAIL']} failed, of {len(cases)}")
    return 1 if results["FAIL"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
