"""All outputs that engines write, by name, and what was asked of one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remerge.engines.calibrated import AWQ, GPTQ, GPTQMODEL_FORM
from remerge.engines.form import Form
from remerge.engines.gguf import GGUF
from remerge.engines.onnx import ONNX
from remerge.engines.openvino_form import OPENVINO_FORM
from remerge.errors import UsageError
from remerge.merging.recipe import PLAIN_FORMS

FORMS: Mapping[str, Form] = {
    form.name: form for form in (GGUF, ONNX, GPTQ, AWQ, GPTQMODEL_FORM, OPENVINO_FORM)
}
# Every option that belongs to one of them.
OPTIONS = frozenset(option for form in FORMS.values() for option in form.takes)


@dataclass(frozen=True)
class Asked:
    """A form with its options as they enter the recipe, and where the files among them lie."""

    form: Form
    options: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])


def read_form(to: str, given: Mapping[str, Any], digest: Callable[[Path], str]) -> Asked | None:
    """What ``--to`` and its options ask of an engine; None where no engine is needed.

    ``digest`` gives a file's SHA-256. Raises `UsageError` for options of another form, and for
    files that cannot be read.
    """
    # An option that was not given is None, an empty list or False; zero was given.
    absent = (None, False)
    given = {
        name: value
        for name, value in given.items()
        if not any(value is nothing for nothing in absent) and value not in ((), [])
    }
    name, _, variant = to.partition(":")
    form = FORMS.get(name)
    if form is None and to not in PLAIN_FORMS:
        known = ", ".join((*PLAIN_FORMS, *FORMS))
        raise UsageError(f"--to {to!r} is not known.", hint=f"Choose {known}.")
    for option in given:
        if form is None or option not in form.takes:
            flag = f"--{option.replace('_', '-')}"
            having = " and ".join(f"--to {f.name}" for f in FORMS.values() if option in f.takes)
            raise UsageError(f"{flag} belongs to {having}.", hint=f"Leave out {flag}.")
    if form is None:
        return None
    files = {option: Path(given[option]) for option in form.files if option in given}
    digests: dict[str, str] = {}
    for option, path in files.items():
        try:
            digests[option] = digest(path)
        except OSError as error:
            raise UsageError(f"--{option} {path} cannot be read: {error.strerror}.") from error
    return Asked(form, form.read(variant, {**given, **digests}), files)
