"""From what a user names to what a server is given: model, adapters, names, as files it reads."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remerge.adapters.adapter import Adapter as Opened
from remerge.adapters.adapter import open_adapter
from remerge.advice.obstacles import obstacle_to
from remerge.artefacts.making import Report
from remerge.artefacts.store.rebuilding import Means
from remerge.engines.servers.registry import usual_engine
from remerge.engines.servers.server import Adapter, Served
from remerge.engines.vllm import VLLM
from remerge.errors import BadInput, Unsupported, UsageError
from remerge.merging.budget import DEFAULT
from remerge.merging.recipe import make_recipe
from remerge.outputs.planning import make_plan, open_inputs
from remerge.serving.converted import gguf_adapter_of, gguf_of
from remerge.serving.named import Found, find, split
from remerge.sources.documents import read_json_object
from remerge.sources.gguf_header import read_gguf_header

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "vocab.txt")


@dataclass(frozen=True)
class Target:
    """A model and the adapters to serve beside it, as they were named."""

    model: Found
    adapters: tuple[Found, ...] = ()


def find_target(
    text: str, means: Means, *, store: str | None = None, progress: bool = True
) -> Target:
    """What ``NAME``, ``OUT`` or ``BASE+ADAPTER`` means. Raises `BadInput` and `UsageError`."""
    first, *others = split(text)
    model = find(first, "base", means, store=store, progress=progress)
    if not model.is_gguf and not (model.path / "config.json").is_file():
        raise _no_model(model)
    adapters = [find(part, "adapter", means, store=store, progress=progress) for part in others]
    return Target(model, _apart(model, adapters))


def choose_engine(target: Target, given: Mapping[str, str], *, elsewhere: bool = False) -> str:
    """llama.cpp for a GGUF file; for a directory vLLM where it is installed (or ``elsewhere``),
    else transformers where its server's packages are. Raises `UsageError` where there is
    neither."""
    if elsewhere and not target.model.is_gguf:
        return VLLM.name
    found = usual_engine(given, is_gguf=target.model.is_gguf)
    lacking = [name for name in ("fastapi", "uvicorn") if not importlib.util.find_spec(name)]
    if found != "transformers" or not lacking:
        return found
    raise UsageError(
        "There is no engine here that serves a checkpoint directory.",
        hint="Run: remerge engines install vllm. To try it out without: pip install "
        "remerge[serve].",
    )


def check_engine(target: Target, engine: str, to: str | None) -> None:
    """Raises `UsageError` for a model that the engine does not read, `BadInput` for one without a
    tokenizer."""
    if to is not None and (engine != "llama.cpp" or target.model.is_gguf):
        raise UsageError(
            "--to is for a checkpoint directory that llama.cpp is to serve.",
            hint="Leave it out, or add --engine llama.cpp.",
        )
    if engine != "llama.cpp" or not target.model.is_gguf:
        _check_directory(target.model, engine)


def served_of(
    target: Target,
    engine: str,
    *,
    name: str | None = None,
    to: str | None = None,
    pythons: Mapping[str, str],
    threads: int | None = None,
    report: Report = lambda done, total, tensor: None,
) -> Served:
    """The target in files that an engine reads; for llama.cpp a checkpoint becomes a GGUF file.

    Raises `UsageError` for a model that the engine does not read, `Unsupported` for an adapter that
    it cannot serve unmerged, `BadInput` for one that does not fit its base.
    """
    check_engine(target, engine, to)
    opened = [None if one.is_gguf else open_adapter(one.path) for one in target.adapters]
    for found, adapter in zip(target.adapters, opened, strict=True):
        _check_served(target.model, found, adapter, engine)
    adapters = tuple(
        Adapter(found.name, found.path if a is None else a.path, _rank(found, a))
        for found, a in zip(target.adapters, opened, strict=True)
    )
    model = target.model
    if engine == "llama.cpp":
        adapters = tuple(
            replace(one, path=_gguf_adapter(model, found, a, pythons))
            for one, found, a in zip(adapters, target.adapters, opened, strict=True)
        )
        if not model.is_gguf:
            model = replace(model, path=gguf_of(model, to, pythons, threads, report))
    return _renamed(Served(model.path, model.name, adapters), name)


def _renamed(served: Served, name: str | None) -> Served:
    """``--name`` is what clients ask for: with one adapter, that."""
    if name is None:
        return served
    if not name or any(not c.isprintable() or c in " ,=" for c in name):
        raise UsageError(
            f"--name {name!r} is no name.", hint="Write it without spaces, ',' or '='."
        )
    if len(served.adapters) > 1:
        raise UsageError(
            "--name is for one thing that is served.",
            hint="Adapters have their directories' names.",
        )
    if not served.adapters:
        return replace(served, name=name)
    if name == served.name:
        raise UsageError(f"--name {name} is the base's.", hint="Choose another for the adapter.")
    return replace(served, adapters=(replace(served.adapters[0], name=name),))


def _apart(model: Found, adapters: list[Found]) -> tuple[Found, ...]:
    """Adapters under names that differ, from each other and from the model's."""
    taken, found = {model.name}, list[Found]()
    for adapter in adapters:
        # A repository's id would read as a second base.
        name, number = adapter.name, 2
        while name in taken:
            name = f"{adapter.name}-{number}"
            number += 1
        taken.add(name)
        found.append(replace(adapter, name=name))
    return tuple(found)


def _no_model(found: Found) -> BadInput:
    if (found.path / "adapter_config.json").is_file():
        trained_on = read_json_object(found.path / "adapter_config.json").get(
            "base_model_name_or_path"
        )
        return BadInput(
            f"{found.path} is an adapter, which is served on its base.",
            hint=f"Write BASE+ADAPTER: remerge serve {trained_on or 'BASE'}+{found.path}",
        )
    files = sorted(found.path.glob("*.gguf"))
    if files:
        return BadInput(
            f"{found.path} is a directory of GGUF files.", hint=f"Name one of them: {files[0]}"
        )
    return BadInput(
        f"{found.path} is no model: it has no config.json.",
        hint="Give a checkpoint directory or a GGUF file.",
    )


def _check_directory(model: Found, engine: str) -> None:
    if model.is_gguf:
        raise UsageError(
            f"{model.path.name} is a GGUF file, which {engine} does not serve.",
            hint="Leave out --engine (llama.cpp serves it), or name the checkpoint directory.",
        )
    if not any((model.path / name).is_file() for name in _TOKENIZERS):
        raise BadInput(
            f"{model.path} has no tokenizer.",
            why="A server turns text into tokens.",
            hint="Put the base's tokenizer files into it.",
        )


def _check_served(model: Found, found: Found, adapter: Opened | None, engine: str) -> None:
    """Refuse an adapter that the engine would refuse, or serve wrong."""
    if adapter is None:
        if engine != "llama.cpp":
            raise UsageError(f"{found.path.name} is a GGUF file, which {engine} does not read.")
        return
    config = {} if model.is_gguf else read_json_object(model.path / "config.json")
    obstacle = obstacle_to(engine, adapter, config)
    if obstacle is not None:
        instead = " To try it out as it is: --engine transformers."
        raise Unsupported(
            f"{engine} cannot serve {found.name} unmerged: {obstacle.says}",
            why=f"Known from: {obstacle.source}",
            hint=f"Merge it: remerge merge {model.path} {found.path} -o OUT, and serve OUT."
            f"{'' if obstacle_to('transformers', adapter, config) else instead}",
        )
    if not model.is_gguf:
        _check_fits(model.path, found.path)


def _check_fits(base: Path, adapter: Path) -> None:
    """Engines pass over what they do not know; a plan of the merge does not."""
    try:
        make_plan(open_inputs(base, (adapter,)), make_recipe(("adapter",)), DEFAULT)
    except Unsupported:
        # What cannot be merged may be served all the same.
        return


def _rank(found: Found, adapter: Opened | None) -> int:
    """The largest rank of its modules."""
    if adapter is not None:
        return adapter.rank
    tensors = read_gguf_header(found.path).tensors
    ranks = [t.shape[0] for name, t in tensors.items() if name.endswith(".lora_a")]
    if not ranks:
        raise BadInput(f"{found.path} is a GGUF file, and no adapter.")
    return max(ranks)


def _gguf_adapter(
    model: Found, found: Found, adapter: Opened | None, pythons: Mapping[str, str]
) -> Path:
    if adapter is None:
        return found.path
    return gguf_adapter_of(replace(found, path=adapter.path), _config_of(model, adapter), pythons)


def _config_of(model: Found, adapter: Opened) -> Path:
    """The checkpoint directory whose configuration tells the converter what the base is."""
    if not model.is_gguf:
        return model.path
    named: Any = adapter.config.get("base_model_name_or_path")
    for place in (model.path.parent, Path(str(named or "")).expanduser()):
        if named and (place / "config.json").is_file():
            return place
    raise BadInput(
        f"{model.path.name} does not tell what the conversion of an adapter needs: its base's "
        "config.json.",
        hint="Name the base's directory in its place; it becomes a GGUF file by itself.",
    )
