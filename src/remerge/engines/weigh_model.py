"""The weights of a model that transformers reads from a GGUF file, against the exact merge: run in
llama.cpp's environment, where the package that reads such files lies."""

# transformers' automatic classes have no types, and llama.cpp's packages lie elsewhere.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from remerge.engines.calling import Teller, answer
from remerge.engines.repaired_model import RepairedModel
from remerge.engines.score_transformers import planned
from remerge.engines.shared_model import stored_model
from remerge.merging.budget import peak_memory
from remerge.merging.weighing import BLOCK, Sums, add, held
from remerge.sources.dtypes import MERGEABLE


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Weigh every tensor of the merge that the model holds. Gives the sums of each (``tensors``),
    the dtype that its values were rounded to (``rounds``), the merge's tensors that are not in the
    model (``missing``), and what the file calls those that are (``names``)."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    torch.set_num_threads(request.get("threads") or 1)
    _, plan = planned(request["merge"])
    model = stored_model(Path(request["artefact"]), torch.float32, plan.config)
    held_by = RepairedModel(model, plan)
    found: dict[str, dict[str, float]] = {}
    rounds: dict[str, str] = {}
    total = sum(math.prod(tensor.shape) for tensor in plan.tensors.values())
    done = 0
    with plan.open(torch.device("cpu")) as merged:
        merged.prepare_all(plan.touched.values(), 1)
        for name, values in held_by.stored():
            tensor = plan.tensors[name]
            if tensor.dtype not in MERGEABLE:
                continue
            rounds[name] = held(values, "F32")
            sums = Sums()
            for first in range(0, len(values), BLOCK):
                add(sums, merged, tensor, values[first : first + BLOCK], rounds[name], first)
            found[name] = sums.document()
            done += len(values)
            tell(done, total, "elements")
    held_by.close()
    return {
        "tensors": found,
        "rounds": rounds,
        "missing": sorted(plan.touched.keys() - found.keys()),
        "names": _names(Path(request["artefact"]), list(found)),
        "peak_memory": peak_memory(),
    }


def _names(place: Path, tensors: list[str]) -> dict[str, str]:
    """GGUF's names of stored tensors; experts lie in one tensor of their layer. Those that its
    table does not have are left out."""
    import gguf

    reader = gguf.GGUFReader(place)
    stated = reader.get_field("general.architecture")
    name = "" if stated is None else str(stated.contents())
    kinds = [kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == name]
    blocks = reader.get_field(f"{name}.block_count")
    if not kinds or blocks is None:
        return {}
    table = gguf.get_tensor_name_map(kinds[0], int(blocks.contents()))
    there = {tensor.name for tensor in reader.tensors}
    found: dict[str, str] = {}
    for tensor in tensors:
        stacked = re.sub(r"\.experts\.\d+\.", ".experts.", tensor)
        known = table.get_name(stacked, (".weight", ".bias")) or table.get_name(f"{stacked}.weight")
        if known in there:
            found[tensor] = known
    return found


if __name__ == "__main__":
    answer(work)
