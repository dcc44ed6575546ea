"""Run in llama.cpp's environment: a merged checkpoint, read tensor by tensor, as a GGUF file.

Nothing of it is on disk before it stands in the file.
"""

# llama.cpp's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from remerge.engines.calling import Report, answer
from remerge.engines.gguf import GgufOptions
from remerge.engines.gguf_converter import Conversion, convert
from remerge.engines.gguf_vocabulary import check_tokens, write_modelfile
from remerge.engines.gguf_writing import Contents, write_gguf
from remerge.engines.imatrix import read_imatrix, weights_for
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.errors import BadInput
from remerge.merging.budget import DEFAULT, peak_memory
from remerge.merging.recipe import Recipe
from remerge.outputs.gguf.choosing import choose
from remerge.outputs.gguf.quantiser import Floats, open_quantiser
from remerge.outputs.planning import make_plan, open_inputs
from remerge.sources.ggml_types import FILE_TYPES

# Below four bits, files are small and answers get worse: the user must have read by how much.
_COARSE = ("Q2", "Q3", "IQ3")


def work(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write ``request["target"]``; gives its digest, size and the tensors' types."""
    recipe = Recipe.model_validate(request["recipe"])
    inputs = open_inputs(request["base"], request["adapters"], copy_code=recipe.copy_code)
    plan = make_plan(replace(inputs, original=request["original"]), recipe, DEFAULT)
    if plan.plan_id != request["plan_id"]:
        raise BadInput(
            "The engine's environment plans this merge differently: its remerge or transformers is "
            "another one.",
            hint="Install remerge there as it is here, or leave out --engine-python.",
        )
    options = GgufOptions.model_validate(recipe.form)
    directory, target = Path(request["directory"]), Path(request["target"])
    with plan.open(torch.device("cpu")) as merged, torch.inference_mode():
        found = convert(merged, directory, request["about"]["base"])
        notes = [*check_tokens(found.writer, directory, allowed=options.allow_token_differences)]
        weights = _weights(found, request["files"].get("imatrix"))
        types = choose(
            found.shapes,
            found.model,
            options.file_type,
            options.tensor_types,
            imatrix=bool(weights),
        )
        describe(found.writer, options.file_type, request["about"], weights)
        contents = Contents(found.writer, found.lazy, types, weights)
        quantiser = open_quantiser()
        threads = request["threads"] or os.cpu_count() or 1
        written = write_gguf(target, contents, quantiser, threads, report)
    if request["beside"] is not None:
        write_modelfile(Path(request["beside"]) / "Modelfile", request["name"], directory)
    if options.file_type.startswith(_COARSE):
        notes.append(_warning(options.file_type, written.loss))
    return {
        "sha256": written.sha256,
        "size": written.size,
        "tensors": [[name, list(contents.shape(name)), kind] for name, kind in types.items()],
        "loss": written.loss,
        "notes": notes,
        "peak_memory": peak_memory(),
        "versions": {
            "llama.cpp": LLAMA_CPP.sources[0].requirement,
            quantiser.package: version(quantiser.package),
        },
    }


def _weights(found: Conversion, file: str | None) -> dict[str, Floats]:
    if file is None:
        return {}
    path = Path(file)
    return weights_for(read_imatrix(path), found.shapes, path)


def _warning(file_type: str, loss: float) -> str:
    return (
        f"{file_type} is coarse: quantised weights miss the merged ones by {loss:.1%} (root mean "
        "square, measured on a sample of every tensor). remerge check says what that does to "
        "answers; Q4_K_M is the usual least."
    )


def describe(
    writer: Any, file_type: str, about: Mapping[str, Any], weights: Mapping[str, Floats]
) -> None:
    """The metadata that the merge knows and the converter does not, in place of what the base's
    own card says of its ancestors."""
    keys = writer.kv_data[0]
    for key in [key for key in keys if key.startswith("general.base_model.")]:
        writer.remove_key(key)
    writer.remove_key("general.file_type")
    writer.add_file_type(FILE_TYPES[file_type].number)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about["base"])
    if about["base_id"] is not None:
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{about['base_id']}")
    if weights:
        writer.add_uint32("quantize.imatrix.entries_count", len(weights))
    if about["adapters"]:
        writer.add_array("remerge.adapters", about["adapters"])
    writer.add_string("remerge.merge_key", about["merge_key"])


if __name__ == "__main__":
    answer(work)
