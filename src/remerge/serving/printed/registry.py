"""The forms there are."""

from __future__ import annotations

from collections.abc import Mapping

from remerge.errors import UsageError
from remerge.serving.printed.compose import COMPOSE, COMPOSE_TGI
from remerge.serving.printed.form import Form
from remerge.serving.printed.kubernetes import KUBERNETES
from remerge.serving.printed.modelfile import MODELFILE
from remerge.serving.printed.shell import COMMAND

FORMS: Mapping[str, Form] = {
    form.name: form for form in (COMMAND, COMPOSE, COMPOSE_TGI, KUBERNETES, MODELFILE)
}


def form(name: str) -> Form:
    """By its name; raises `UsageError` for one that there is not."""
    found = FORMS.get(name)
    if found is None:
        raise UsageError(f"{name} is no form to print.", hint=f"It is one of {', '.join(FORMS)}.")
    return found
