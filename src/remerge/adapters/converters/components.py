"""Which part of an image model a base is, and which of its modules a name in a LoRA file means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from remerge.adapters.converters.diffusion_keys import DiffusionKey
from remerge.adapters.converters.sgm_names import sgm_names
from remerge.adapters.facts import BaseFacts
from remerge.errors import BadInput

_WEIGHT = ".weight"
_SHOWN = 3


@dataclass(frozen=True)
class Modules:
    """The modules of a base that have a weight, by path, by the names that they had before
    diffusers, and by either with ``_`` for ``.``."""

    shapes: Mapping[str, tuple[int, ...]]
    originals: Mapping[str, str]
    flat: Mapping[str, tuple[str, ...]]

    def find(self, key: DiffusionKey) -> tuple[str, ...]:
        """Paths that the key may mean."""
        # transformers 5 saves CLIP's text model without the name of its inner module.
        outer = "text_model_" if key.flat else "text_model."
        for name in (key.module, key.module.removeprefix(outer), outer + key.module):
            if key.flat:
                found = self.flat.get(name, ())
            else:
                path = self.originals.get(name, name)
                found = (path,) * (path in self.shapes)
            if found:
                return found
        return ()


def modules_of(base: BaseFacts) -> Modules:
    shapes = {
        name.removesuffix(_WEIGHT): tuple(tensor.shape)
        for name, tensor in base.tensors.items()
        if name.endswith(_WEIGHT)
    }
    originals = sgm_names(shapes)
    flat: dict[str, tuple[str, ...]] = {}
    for name, path in (*((path, path) for path in shapes), *originals.items()):
        joined = name.replace(".", "_")
        flat[joined] = (*flat.get(joined, ()), path)
    return Modules(shapes, originals, flat)


def choose_component(
    file: Path, keys: Mapping[str, DiffusionKey], sizes: Mapping[str, int], modules: Modules
) -> str:
    """The component of the file that the base is: the only one whose modules it all has.

    ``sizes`` gives the outputs that a tensor asks of its module, where it says. Raises `BadInput`
    naming the first misfit of the nearest component, or the components that fit alike.
    """
    misfits: dict[str, list[str]] = {}
    fitting: dict[str, int] = {}
    for name, key in keys.items():
        misfit = _misfit(key, sizes.get(name), modules)
        misfits.setdefault(key.component, [])
        if misfit is None:
            fitting[key.component] = fitting.get(key.component, 0) + 1
        else:
            misfits[key.component].append(f"{name}: {misfit}")
    whole = [component for component, found in misfits.items() if not found]
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise BadInput(
            f"{file}: the base could be any of {', '.join(sorted(whole))}.",
            hint="Keep the tensors of one of them in the file.",
        )
    nearest = max(misfits, key=lambda component: fitting.get(component, 0))
    found = misfits[nearest]
    raise BadInput(
        f"{file}: {len(found)} tensors of {nearest} have no place in the base: "
        f"{'; '.join(found[:_SHOWN])}.",
        why="The file holds "
        + ", ".join(sorted(misfits))
        + ", and the base is another component, another model, or names its modules otherwise.",
        hint="Give the directory of the component that was trained, in diffusers' layout.",
    )


def _misfit(key: DiffusionKey, outputs: int | None, modules: Modules) -> str | None:
    found = modules.find(key)
    if len(found) > 1:
        return f"{key.module} may mean {' or '.join(found)}"
    path = next(iter(found), None)
    if path is None:
        return f"the base has no module {key.module}"
    there = modules.shapes[path]
    if outputs is not None and there[:1] != (outputs,):
        return f"it has {outputs} outputs, and {path} is {there}"
    return None
