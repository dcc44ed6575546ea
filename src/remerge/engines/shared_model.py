"""One model in memory, whose weights become those of one side after the other: base, merge,
artefact, adapter on base. A comparison so takes one model's memory, and reads what differs.
"""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from remerge.adapters.facts import TensorFacts
from remerge.adapters.indices import as_vector, shifted
from remerge.adapters.meta_model import knows, quiet
from remerge.adapters.model_names import ModelNames
from remerge.adapters.regions import Index, Region, matrix_view
from remerge.engines.tokenisation import split
from remerge.errors import BadInput, RemergeError, Unsupported
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.plan import Plan
from remerge.outputs.planning import Inputs, make_plan
from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.documents import as_object
from remerge.sources.reading import Reader, decoded, unquantised

# Elements of a tensor that are at hand at once.
_ELEMENTS = 2**24
# What a configuration may say differently of the same model.
_IDLE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")

# Rows [first, last) of a stored tensor's matrix view.
ReadRows = Callable[[str, int, int], torch.Tensor]


class SharedModel:
    """A model of transformers in ``dtype`` on ``device``; ``inputs`` and ``plan`` are those of the
    merge in float32."""

    def __init__(self, inputs: Inputs, plan: Plan, dtype: torch.dtype, device: str) -> None:
        self._inputs, self._plan = inputs, plan
        self._dtype, self._device = dtype, torch.device(device)
        self._model: Any = None
        # Whose weights the model has: "" for none that can be made others.
        self._state = ""

    def base(self) -> Any:
        """The base alone; where the adapter gives the vocabulary another size, of its own size."""
        plan = without_adapters(self._plan)
        if plan is None:
            alone = replace(self._inputs, adapters=(), adapter_references=(), labels=(), notes=())
            self._drop()
            self._model = self._load(make_plan(alone, self._bare_recipe(), 2**30))
            return self._model
        if self._state == "merge":
            self._fill_from(plan, touched(self._plan))
        elif self._state != "base":
            self._fill_from(plan, None)
        self._state = "base"
        return self._model

    def merge(self) -> Any:
        """The merge, rounded once to float32."""
        if self._state == "base":
            self._fill_from(self._plan, touched(self._plan))
        elif self._state != "merge":
            self._fill_from(self._plan, None)
        self._state = "merge"
        return self._model

    def artefact(self, place: Path, *, decode: bool = False) -> Any:
        """What lies in a checkpoint, or in a GGUF file, whatever it claims to be. With ``decode``
        the values that quantised codes stand for, in plain layers."""
        checkpoint = open_checkpoint(place) if place.is_dir() else None
        if checkpoint is None or not self._alike(checkpoint.config, decode=decode):
            self._drop()
            stated = self._plan.config if decode else None
            self._model = stored_model(place, self._dtype, stated).to(self._device)
            return self._model
        if self._model is None or not self._state:
            # Any model of the artefact's shapes will do, and all of its weights are replaced.
            if without_adapters(self._plan) is None:
                self.merge()
            else:
                self.base()
        reads = decoded(checkpoint)
        reader = Reader(checkpoint)

        def rows(tensor: str, first: int, last: int) -> torch.Tensor:
            source = reads.tensors[tensor]
            width = matrix_view(source.shape)[1]
            return reader.values(source, first * width, (last - first) * width).view(-1, width)

        try:
            self._fill(reads.tensors, rows, f"{place}")
        finally:
            reader.close()
        self._state = "artefact"
        return self._model

    def adapted(self) -> Any:
        """The base, to be wrapped by PEFT: it is nobody's afterwards."""
        model = self.base()
        self._state = ""
        return model

    def release(self) -> None:
        """Let go of the model where its weights are nobody's."""
        if not self._state:
            self._drop()

    def disturbed(self) -> Any:
        """The merge's model, given up to be changed."""
        model = self.merge()
        self._state = ""
        return model

    def _bare_recipe(self) -> Any:
        asked = self._plan.recipe
        return asked.model_copy(
            update={"method": "sum", "weights": (), "parameters": {}, "prefer": ()}
        )

    def _alike(self, config: Mapping[str, Any], *, decode: bool) -> bool:
        """Whether a checkpoint's configuration is that of the merge, and says of no quantisation
        unless codes are to be decoded: what kernels make of them is their own."""
        quantised = as_object(config.get("quantization_config")) or config.get("compression_config")
        mine = _essential(self._plan.config)
        return (decode or not quantised) and mine is not None and _essential(config) == mine

    def _fill_from(self, plan: Plan, only: Collection[str] | None) -> None:
        if self._model is None or not self._state:
            self._drop()
            self._model = self._load(plan)
            return
        with plan.open(torch.device("cpu")) as merged:
            stored = None if only is None else frozenset(only)
            self._fill(plan.tensors, merged_rows(merged), "the merge", stored)

    def _load(self, plan: Plan) -> Any:
        with plan.open(torch.device("cpu")) as merged:
            return checked(merged.load_model(dtype=self._dtype)).to(self._device)

    def _fill(
        self,
        tensors: Mapping[str, TensorFacts],
        read: ReadRows,
        whose: str,
        stored: Collection[str] | None = None,
    ) -> None:
        """Fill the model's parameters (all, or those made of these ``stored`` ones); raises
        `BadInput` for one that is not there."""
        with quiet():
            names = ModelNames(self._model, tensors)
        state = self._model.state_dict(keep_vars=True)
        seen: set[int] = set()
        for name, value in state.items():
            if id(value) in seen:
                continue
            seen.add(id(value))
            regions = names.regions(name)
            if not regions:
                raise BadInput(
                    f"{whose} lacks {name}, or holds it in another shape.",
                    why="transformers would make it up.",
                )
            if stored is None or any(region.tensor in stored for region in regions):
                kind = names.layer(name.rpartition(".")[0])
                view = value.data.view(matrix_view(value.shape, "" if kind is None else kind.kind))
                for region in regions:
                    copy_region(view, region, read)

    def _drop(self) -> None:
        self._model, self._state = None, ""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def merged_rows(merged: MergedCheckpoint) -> ReadRows:
    """Rows of a merge's tensors, computed on read."""

    def rows(tensor: str, first: int, last: int) -> torch.Tensor:
        plan = merged.plans[tensor]
        width = matrix_view(plan.shape)[1]
        values = merged.read_elements(plan, first * width, (last - first) * width)
        return values.view(-1, width)

    return rows


def copy_region(view: torch.Tensor, region: Region, read: ReadRows) -> None:
    """Fill the part of a parameter's matrix view (rows, columns) that a region says."""
    if region.transposed:
        view = view.T
        rows, cols = region.parameter_cols, region.parameter_rows
    else:
        rows, cols = region.parameter_rows, region.parameter_cols
    step = max(1, _ELEMENTS // max(len(region.cols), 1))
    for start in range(0, len(region.rows), step):
        wanted = region.rows[start : start + step]
        here = rows[start : start + step]
        first, last = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]) + 1
        if isinstance(wanted, np.ndarray):
            first, last = int(wanted.min()), int(wanted.max()) + 1
        block = read(region.tensor, first, last)
        block = block[_selected(shifted(wanted, -first))][:, _selected(region.cols)]
        _place(view, here, cols, block)


def taken_from(view: torch.Tensor, region: Region, stored: torch.Tensor) -> None:
    """The other way: fill the part of a stored tensor's matrix view (rows, columns) that a region
    says from a parameter's."""
    if region.transposed:
        view = view.T
        rows, cols = region.parameter_cols, region.parameter_rows
    else:
        rows, cols = region.parameter_rows, region.parameter_cols
    _place(stored, region.rows, region.cols, view[_selected(rows)][:, _selected(cols)])


def _place(view: torch.Tensor, rows: Index, cols: Index, block: torch.Tensor) -> None:
    block = block.to(view.device, view.dtype)
    part = _selected(rows), _selected(cols)
    if all(isinstance(index, slice) for index in part):
        view[part] = block
    else:
        view[
            torch.as_tensor(as_vector(rows), device=view.device)[:, None],
            torch.as_tensor(as_vector(cols), device=view.device),
        ] = block


def _selected(index: Index) -> slice | torch.Tensor:
    """What torch indexes with: a slice where it can be one, which copies nothing."""
    if isinstance(index, range) and index.step > 0:
        return slice(index.start, index.stop, index.step)
    return torch.as_tensor(as_vector(index))


def touched(plan: Plan) -> frozenset[str]:
    """The tensors of a merge that a delta changes."""
    return frozenset(name for name, tensor in plan.tensors.items() if tensor.change is not None)


def without_adapters(plan: Plan) -> Plan | None:
    """The same model with the base's own weights; None where its tensors are of other shapes."""
    tensors = {
        name: replace(tensor, change=None) if tensor.change is not None else tensor
        for name, tensor in plan.tensors.items()
    }
    comparable = all(
        tensor.compares for tensor in plan.tensors.values() if tensor.change is not None
    )
    return replace(plan, tensors=tensors) if comparable else None


def stored_model(place: Path, dtype: torch.dtype, stated: Mapping[str, Any] | None = None) -> Any:
    """A checkpoint's model, or a GGUF file's, with its weights as stored; raises `BadInput` where
    tensors of it are missing, which transformers would make up. With ``stated`` a GGUF file is read
    as the model that this configuration describes, not as what transformers makes of its keys."""
    import transformers

    auto: Any = transformers.AutoConfig
    directory, form = split(place)
    try:
        if stated is not None and form:
            config = auto.for_model(**stated)
        else:
            config = auto.from_pretrained(str(directory), local_files_only=True, **form)
        names: list[str] = list(config.architectures or [""])
        kind: Any = getattr(transformers, names[0], None) or transformers.AutoModelForCausalLM
        model, found = kind.from_pretrained(
            str(directory),
            config=config,
            dtype=_arithmetic(config, dtype),
            local_files_only=True,
            output_loading_info=True,
            **form,
        )
    except ImportError as error:
        said = " ".join(str(error).split())[:300]
        raise Unsupported(f"transformers lacks what this checkpoint needs: {said}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, RemergeError):
            raise
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"transformers cannot load {place}: {said}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise BadInput(f"{place} lacks {len(missing)} tensors, first {missing[0]}.")
    return checked(model)


def _arithmetic(config: Any, dtype: torch.dtype) -> torch.dtype:
    """As asked, but for packed 4-bit floats: compressed-tensors decodes these to the checkpoint's
    own dtype, whatever the rest is loaded in."""
    stated = as_object(getattr(config, "quantization_config", None)) or {}
    if "nvfp4" in str(stated.get("format", "")):
        return getattr(config, "dtype", None) or torch.bfloat16
    return dtype


def checked(model: Any) -> Any:
    """The model, ready to be asked; raises `Unsupported` for one that predicts no next tokens."""
    name = type(model).__name__
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise Unsupported(f"{name} does not predict next tokens: there is nothing to score.")
    return model.eval()


def _essential(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A configuration as its class reads it, defaults filled in, without what changes no logit."""
    import transformers

    fields = unquantised(config)
    model_type = fields.pop("model_type", None)
    if not knows(model_type):
        return None
    try:
        with quiet():
            auto: Any = transformers.AutoConfig
            read: dict[str, Any] = auto.for_model(model_type, **fields).to_dict()
    except Exception:  # configurations validate themselves with exceptions of several libraries
        return None
    text = as_object(read.get("text_config"))
    if text is not None:
        read["text_config"] = {key: value for key, value in text.items() if key not in _IDLE}
    return {key: value for key, value in read.items() if key not in _IDLE}
