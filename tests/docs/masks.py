"""What may differ between a page and a run: times, memory, rates, figures of float32 arithmetic.

Everything else that a page shows, digests, counts and sizes above all, must be what the program
prints.
"""

from __future__ import annotations

import re

_NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"

# What is shown while something runs, which a terminal overwrites; what bitsandbytes says on import.
PASSING = re.compile(
    r"^[\w ]+: [\d.,]+( \w+)? of [\d.,]+ .*$|^.*\d+%\|.*\|.*$|^Failed to load CPU gemm_4bit.*$"
)

MASKS = [
    # Times.
    (r"\d{8}T\d{6}Z", "DATE"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?( ?UTC|Z|\+00:00)?", "DATE"),
    (r"\b\d{4}-\d\d-\d\d\b", "DATE"),
    (rf"(seconds +){_NUMBER}", r"\1N"),
    (rf"{_NUMBER} (s|ms|min|minutes|seconds)\b", r"N \1"),
    # Memory of a process or a machine; sizes of files are exact.
    (rf"((?:peak )?memory.*? ){_NUMBER} [kMGT]?i?B", r"\1N B"),
    # Rates.
    (rf"{_NUMBER} (\S+/s|\S+ per second|\S+ a second)", r"N \1"),
    # The id of an artefact covers its manifest, and so the version of torch that made it.
    (r"^(\w+: +)?[0-9a-f]{12}\b|(?<=  )[0-9a-f]{12}(?=  )", r"\1ID"),
    (r"^( +id +)[0-9a-f]{64}$", r"\1ID"),
    (r"^( +artefact +)[0-9a-f]{16}\b", r"\1ID"),
    # Perplexities of models in the table of probabilities: figures of float32 without a point.
    (r"(e-\d+ +\S+)( +[\d.]+){3}$", r"\1 N N N"),
]

# Figures with a point or an exponent rest on sums that libraries take in orders of their own,
# unless a unit follows: by so much of themselves, or of one, they may differ.
_FIGURE = re.compile(r"[\[(+-]*(\d+\.\d+(?:e-\d+)?|\d+e-\d+)%?[\]),:]*")
_CLOSE = 0.01
_UNITS = {"B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB"}


def agree(shown: str, printed: str) -> bool:
    """Whether two lines say the same, whatever the width of their columns.

    A line shown that ends in `` ...`` says how the other begins.
    """
    left, right = _masked(shown).split(), _masked(printed).split()
    if left[-1] == "...":
        left = left[:-1]
        right = right[: len(left)]
    if len(left) != len(right):
        return False
    units = [*left[1:], ""]
    return all(a == b or _close(a, b, u) for a, b, u in zip(left, right, units, strict=True))


def _masked(line: str) -> str:
    for pattern, by in MASKS:
        line = re.sub(pattern, by, line)
    return re.sub(r"-{3,}|─+", "---", line)


def _close(a: str, b: str, unit: str) -> bool:
    one, other = _FIGURE.fullmatch(a), _FIGURE.fullmatch(b)
    if one is None or other is None or unit.strip(",;:") in _UNITS:
        return False
    x, y = float(one[1]), float(other[1])
    if "e-" in a or "e-" in b:
        return max(x, y) <= 3 * min(x, y)
    return abs(x - y) <= _CLOSE * max(1, x, y)


def difference(shown: tuple[str, ...], printed: str) -> str | None:
    """The first line that a page shows and a run did not print there, with what it did print.

    None where they agree. A line in brackets stands for any lines.
    """
    left_out = False
    wanted = [line for line in shown if line.strip()]
    there = [line for line in printed.splitlines() if line.strip() and not PASSING.match(line)]
    at = 0
    for line in wanted:
        if re.fullmatch(r"\s*\[[^\]]*\]", line):
            left_out = True
            continue
        rest = range(at, len(there) if left_out else min(at + 1, len(there)))
        found = next((i for i in rest if agree(line, there[i])), None)
        if found is None:
            near = there[at] if at < len(there) else "(the end)"
            return f"the page shows\n  {line}\nand the program printed there\n  {near}"
        at, left_out = found + 1, False
    if at < len(there) and not left_out:
        return f"the page shows no more, and the program printed\n  {there[at]}"
    return None
