"""The weights of an artefact that is no checkpoint, as transformers reads them, against the merge.
A delta that was dropped, turned or halved hardly shows in what a model says once it is rounded to
few bits, and shows in these at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from remerge.artefacts.digests import input_digests
from remerge.artefacts.making import Report
from remerge.engines.calling import call
from remerge.errors import RemergeError
from remerge.validation.sides import Sides
from remerge.validation.weights import Weights, of_loaded
from remerge.version import ALGORITHM, __version__

_MODULE = "remerge.engines.weigh_model"


@dataclass(frozen=True)
class Loaded:
    """``weights`` is None where transformers cannot read the artefact, and ``note`` says why;
    ``names`` are what the artefact calls the merge's tensors."""

    weights: Weights | None
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    note: str = ""


def loaded_weights(sides: Sides, coarse: float, report: Report) -> Loaded:
    """Read a GGUF file in llama.cpp's environment; ``coarse`` is the size of its format's errors,
    relative to the weights. What was measured is remembered."""
    compared = sides.compared
    memory = sides.memory.of(
        {
            "remerge": [__version__, ALGORITHM],
            "weights": compared.digest,
            "inputs": dict(input_digests(compared.plan)),
            "recipe": compared.plan.recipe.model_dump(mode="json"),
        }
    )
    told = memory.told
    if not told:
        asked = {
            "merge": compared.merge_request,
            "artefact": str(compared.artefact.place.absolute()),
            "threads": sides.running.threads,
        }
        try:
            told = call(sides.apart_python, _MODULE, asked, report)
        except RemergeError as error:
            return Loaded(None, note=f"Its weights were not compared. {error.what}")
        memory.keep_told(told)
    return Loaded(of_loaded(told, compared.plan, coarse), told["names"])
