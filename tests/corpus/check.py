"""Run remerge on a built case and compare everything."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.corpus.build import TOKENIZER_FILES, model_class
from tests.corpus.case import BAD_INPUT, Built, Tensors, read_checkpoint
from tests.corpus.oracle import adapter_logits, expected, output_logits, round_once

#: Share of elements that must equal the float64 merge rounded once.
EQUAL_SHARE = 0.999
#: Absolute and relative tolerance of float32 results.
FLOAT32_TOLERANCE = 1e-6
#: Largest difference of logits, relative to their largest value, in forward cases (float32).
LOGITS_TOLERANCE = 2e-5
#: Files that remerge may add to what the base had, besides those called ``remerge.*``.
ADDED = {"provenance.json", "README.md"}


@dataclass
class Report:
    """What was found wrong; empty means that the case passes."""

    problems: list[str] = field(default_factory=list[str])
    #: Elements compared, and how many of them were not the float64 merge rounded once.
    elements: int = 0
    off: int = 0

    def add(self, text: str) -> None:
        self.problems.append(text)

    @property
    def ok(self) -> bool:
        return not self.problems


def call_remerge(base: Path, adapter: str, output: Path) -> None:
    """The one place where remerge is called."""
    import remerge

    remerge.merge(str(base), adapter, str(output))  # type: ignore[attr-defined]


def check(built: Built) -> Report:
    """Merge the case with remerge and compare the result with the oracle."""
    report = Report()
    before = digests(built.base), digests(built.adapter)
    output = built.root / "output"
    if built.case.expects == "refused":
        check_refused(built, output, report)
    else:
        call_remerge(built.base, built.adapter_call, output)
        check_output(built, output, report)
    if (digests(built.base), digests(built.adapter)) != before:
        report.add("an input directory was changed")
    known = {"base", "adapter", "adapter_as_saved", "output"}
    left = sorted(p.name for p in built.root.iterdir() if p.name not in known)
    if left:
        report.add(f"left beside the output: {left}")
    return report


def check_refused(built: Built, output: Path, report: Report) -> None:
    try:
        call_remerge(built.base, built.adapter_call, output)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code != BAD_INPUT:
            report.add(f"raised {type(error).__name__} with exit code {code}: {error}")
    else:
        report.add("merged what has to be refused")
    if output.exists():
        report.add("a refused merge left an output directory")


def check_output(built: Built, output: Path, report: Report) -> None:
    case = built.case
    check_config(built, output, report)
    check_side_files(built, output, report)
    check_loads(built, output, report)
    base = with_one_prefix(built, read_checkpoint(built.base))
    found = with_one_prefix(built, read_checkpoint(output))
    for name in case.optional:
        if name in found and not same_bytes(found.pop(name), base[name]):
            report.add(f"{name} changed")
    for name in sorted(base.keys() & found.keys()):
        if base[name].dtype != found[name].dtype:
            report.add(f"{name} is {found[name].dtype}, was {base[name].dtype}")
    if case.expects == "forward":
        wanted, got = adapter_logits(built), output_logits(built, output)
        worst = float((wanted - got).abs().max() / wanted.abs().max())
        if not worst <= LOGITS_TOLERANCE:
            report.add(f"logits differ from the adapter on the base by {worst:.2e}")
        return
    want = expected(built)
    if want.missing:
        report.add(f"oracle: {want.missing}")
    exact = with_one_prefix(built, want.exact)
    own = None if want.peft is None else with_one_prefix(built, want.peft)
    compare_names(exact, found, report)
    for name in sorted(exact.keys() & found.keys()):
        compare_tensor(name, built, base, found[name], exact[name], own, report)
    if report.off > max(1, (1 - EQUAL_SHARE) * report.elements) and not case.one_unit_is_right:
        report.add(
            f"{report.off} of {report.elements} changed elements are not the float64 merge "
            f"rounded once"
        )


def with_one_prefix(built: Built, tensors: Tensors) -> Tensors:
    """Names without the prefix that they may or may not carry."""
    prefix = built.case.loose_prefix
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def compare_names(want: Tensors, found: Tensors, report: Report) -> None:
    if lost := sorted(want.keys() - found.keys()):
        report.add(f"{len(lost)} tensors are missing: {lost[:4]}")
    if extra := sorted(found.keys() - want.keys()):
        report.add(f"{len(extra)} tensors are too many: {extra[:4]}")


def compare_tensor(
    name: str,
    built: Built,
    base: Tensors,
    found: torch.Tensor,
    exact: torch.Tensor,
    peft: Tensors | None,
    report: Report,
) -> None:
    old = base.get(name)
    if found.shape != exact.shape:
        report.add(f"{name} has shape {tuple(found.shape)}, not {tuple(exact.shape)}")
        return
    if not found.is_floating_point():
        if old is None or not torch.equal(old, found):
            report.add(f"{name} ({found.dtype}) was changed")
        return
    if old is not None and old.shape == exact.shape and torch.equal(old.double(), exact.double()):
        if not same_bytes(old, found):
            report.add(f"{name} is untouched by the adapter but its bytes changed")
        return
    want = round_once(exact, found.dtype)
    steps = units_apart(found, want)
    if not (built.case.decomposition and found.dtype == torch.float32):
        report.elements += found.numel()
        # float64 does not say which of two neighbours is nearer when both are equally far.
        farther = (found.double() - exact).abs() - (want.double() - exact).abs()
        report.off += int(((steps > 0) & (farther > 2.0**-40 * exact.abs())).sum())
    if old is not None and old.shape == exact.shape and old.dtype == found.dtype:
        kept = old.double() == exact.double()
        if not same_bytes(old[kept], found[kept]):
            report.add(f"{name}: elements without a delta changed their bits")
    if found.dtype == torch.float32:
        bound = FLOAT32_TOLERANCE * exact.abs().clamp(min=1)
        bad = ~((found.double() - exact.double()).abs() <= bound)
    else:
        bad = steps > 1
        if built.case.one_unit_is_right and peft is not None:
            bad &= units_apart(found, peft[name].to(found.dtype)) > 1
    if bool(bad.any()):
        difference = (found.double() - exact.double()).abs()
        report.add(
            f"{name}: {int(bad.sum())} of {bad.numel()} elements differ, by up to "
            f"{float(difference.max()):.3g} (merged values reach {float(exact.abs().max()):.3g})"
        )


# --- numbers ------------------------------------------------------------------------------------
_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats, one apart for neighbours; both zeros are 0."""
    integers = tensor.contiguous().view(_INTEGERS[tensor.dtype]).to(torch.int64)
    lowest = -(1 << (8 * tensor.element_size() - 1))
    return torch.where(integers < 0, lowest - integers, integers)


def units_apart(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (ordered(left) - ordered(right)).abs()


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (left, right)]
    return torch.equal(as_bytes[0], as_bytes[1])


# --- files --------------------------------------------------------------------------------------
def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def is_weight(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json", "pytorch_model.bin"))


def check_side_files(built: Built, output: Path, report: Report) -> None:
    want = {n: d for n, d in digests(built.base).items() if not is_weight(n) and n != "config.json"}
    if built.case.tokenizer_in_adapter:
        own = digests(built.adapter)
        for name in (*TOKENIZER_FILES, "chat_template.jinja"):
            want[name] = own[name]
    found = {n: d for n, d in digests(output).items() if not is_weight(n) and n != "config.json"}
    for name, digest in want.items():
        if name not in found:
            report.add(f"side file {name} was not carried")
        elif found[name] != digest:
            report.add(f"side file {name} has other bytes")
    extra = sorted(found.keys() - want.keys() - ADDED)
    if extra := [name for name in extra if not name.startswith("remerge.")]:
        report.add(f"files that nobody asked for: {extra}")


def expected_config(built: Built) -> dict[str, Any]:
    config = copy.deepcopy(json.loads((built.base / "config.json").read_text()))
    for path, value in built.case.config_changes.items():
        *parents, leaf = path.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    return config


def check_config(built: Built, output: Path, report: Report) -> None:
    want = expected_config(built)
    found = json.loads((output / "config.json").read_text())
    for key in sorted((want.keys() | found.keys()) - set(built.case.config_free)):
        if want.get(key, "absent") != found.get(key, "absent"):
            report.add(
                f"config.json: {key} is {found.get(key, 'absent')!r}, "
                f"not {want.get(key, 'absent')!r}"
            )


def loading_report(cls: Any, directory: Path) -> dict[str, Any]:
    _, info = cls.from_pretrained(directory, dtype="auto", output_loading_info=True)
    return {key: sorted(map(str, value)) for key, value in info.items() if value}


def check_loads(built: Built, output: Path, report: Report) -> None:
    """transformers must have nothing to report that it did not report for the base."""
    transformers.logging.set_verbosity_error()
    case = built.case
    cls = getattr(transformers, case.load_class or "", None) or model_class(case, adapter=True)
    as_base = loading_report(model_class(case), built.base)
    for key, names in loading_report(cls, output).items():
        allowed = {*as_base.get(key, ()), *case.kept, *case.optional}
        if new := [name for name in names if name not in allowed]:
            report.add(f"transformers reports {key}: {new[:4]}")
