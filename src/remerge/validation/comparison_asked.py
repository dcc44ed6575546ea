"""A comparison as people ask for it: the words of the command line and of recipes become what is
asked and what must hold."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from remerge.artefacts.making import Report
from remerge.errors import UsageError
from remerge.validation.compare import CompareReport, compare
from remerge.validation.comparison_run import Asking, MakeOf, Settings
from remerge.validation.gate import Thresholds
from remerge.validation.harness import HarnessSettings
from remerge.validation.judging import open_scorer
from remerge.validation.served_sides import parse_endpoints
from remerge.validation.sides import Running
from remerge.validation.tasks import parse_evals

_DTYPES = ("float32", "bfloat16", "float16")
_ASKED = ("evaluations", "scorer", "text", "prompts", "limit")


@dataclass(frozen=True)
class Asked:
    """The arguments of `remerge.compare`; ``known_as`` is the output's name where it is another
    than that of the place where it lies for now."""

    base: str | Path | None
    adapters: Sequence[str | Path]
    output: Path
    known_as: str | None = None
    gate: Mapping[str, Any] = field(default_factory=dict[str, Any])
    bisect: bool = False
    engine: str | None = None
    form: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    max_tokens: int = 512
    answer_tokens: int | None = None
    chat: bool = True
    endpoints: tuple[str, ...] = ()
    lm_eval: tuple[str, ...] = ()
    lm_eval_include: Path | None = None
    recipe_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    record: bool = True
    remember: bool = True
    pythons: Mapping[str, str] = field(default_factory=dict[str, str])
    threads: int | None = None
    make: MakeOf | None = None

    @property
    def asking(self) -> Asking:
        """Raises `UsageError` for names that are none, and files of one name."""
        gate = self.gate
        stated = gate.get("evaluations") or ()
        named = [stated] if isinstance(stated, str | Path) else list(stated)
        scorer = gate.get("scorer")
        limit = gate.get("limit")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise UsageError(f"limit {limit!r} is no number of questions.")
        return Asking(
            evaluations=parse_evals([str(one) for one in named]),
            scorer=None if scorer is None else open_scorer(scorer),
            text=_path(gate.get("text")),
            prompts=_path(gate.get("prompts")),
            limit=limit,
            tokens=self.max_tokens,
            answer_tokens=self.answer_tokens,
            as_chat=self.chat,
        )

    @property
    def thresholds(self) -> Thresholds:
        """Raises `UsageError` for what is no limit."""
        known = {one.name for one in fields(Thresholds)} | set(_ASKED)
        for name in self.gate:
            if name not in known:
                raise UsageError(
                    f"A gate has no {name}.", hint=f"It has {', '.join(sorted(known))}."
                )
        given = {name: value for name, value in self.gate.items() if name not in _ASKED}
        return Thresholds().overridden(given)

    @property
    def harness(self) -> HarnessSettings | None:
        """What lm-eval is to do."""
        if not self.lm_eval:
            return None
        return HarnessSettings(
            self.lm_eval,
            self.lm_eval_include,
            limit=self.gate.get("limit"),
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def command(self) -> str:
        """The command that asks for this, without paths, which are this machine's alone."""
        words = ["remerge", "compare"]
        words += [] if self.base is None else [_name(self.base)]
        words += [_name(adapter) for adapter in self.adapters]
        words.append(self.known_as or self.output.name)
        for evaluation in self.asking.evaluations:
            words += ["--eval", f"{evaluation.name}={evaluation.path.name}"]
        for option in ("text", "prompts"):
            if self.gate.get(option) is not None:
                words += [f"--{option}", Path(self.gate[option]).name]
        for option in ("scorer", "limit", "max_drop", "max_kl", "min_agreement"):
            if self.gate.get(option) is not None:
                words += [f"--{option.replace('_', '-')}", str(self.gate[option])]
        return shlex.join([*words, *self._other_options])

    @property
    def _other_options(self) -> list[str]:
        """What else decides figures, where it is not the default; of servers only that they were
        asked."""
        words: list[str] = []
        for option, value, default in (
            ("engine", self.engine, None),
            ("format", self.form, None),
            ("dtype", self.dtype, "float32"),
            ("max-tokens", self.max_tokens, 512),
            ("answer-tokens", self.answer_tokens, None),
        ):
            words += [] if value == default else [f"--{option}", str(value)]
        words += [] if self.chat else ["--no-chat"]
        for side in parse_endpoints(self.endpoints):
            words += ["--endpoint", f"{side}=URL"]
        for task in self.lm_eval:
            words += ["--lm-eval", Path(task).name]
        return words


def run(asked: Asked, report: Report) -> CompareReport:
    """Compare and judge; raises what `remerge.validation.compare.compare` raises."""
    if asked.dtype not in _DTYPES:
        raise UsageError(
            f"dtype {asked.dtype!r} is not known.", hint=f"Choose {', '.join(_DTYPES)}."
        )
    settings = Settings(
        running=Running(asked.dtype, asked.device, asked.threads, asked.pythons),
        thresholds=asked.thresholds,
        engine=asked.engine,
        form=asked.form,
        options=asked.recipe_options,
        endpoints=parse_endpoints(asked.endpoints),
        harness=asked.harness,
        record=asked.record,
        remember=asked.remember,
        command=asked.command,
        bisect=asked.bisect,
        make=asked.make,
    )
    return compare(asked.base, asked.adapters, asked.output, asked.asking, settings, report)


def _path(value: object) -> Path | None:
    return None if value is None else Path(str(value))


def _name(source: str | Path) -> str:
    """A Hub id as it is, of a path its last part."""
    text = str(source)
    return Path(text).name if Path(text).exists() or text.startswith((".", "/", "~")) else text
