"""Processes that promote and roll back: at once, or until they are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import remerge
from tests.artefacts.store import faults

# What the small models of the store's tests have no tokenizer for.
BY_HAND = {"skip": ("compare", "check"), "reason": "models without a tokenizer"}


def start(target: Any, *args: Any) -> Any:
    """A child that calls ``target``."""
    child = multiprocessing.get_context("forkserver").Process(target=target, args=args)
    child.start()
    return child


def exit_code(child: Any) -> int:
    child.join(120)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def promoted(root: Path, name: str, go: Any) -> NoReturn:
    go.wait(60)
    try:
        remerge.promote(name, store=root, **BY_HAND)
    except remerge.RemergeError as failure:
        os._exit(failure.exit_code)
    os._exit(0)


def killed(root: Path, what: str, point: int) -> NoReturn:
    """Before its ``point``-th step on the disk."""
    # What is imported on the way is none of its steps.
    from remerge.serving import promoting, rolling_back  # noqa: F401
    from remerge.validation import verify  # noqa: F401

    faults.Steps(point, None, 0, False).install()
    if what == "rollback":
        remerge.rollback(store=root)
    else:
        remerge.promote("v1", store=root, threads=1, **BY_HAND)
    os._exit(0)


def killed_after(root: Path, step: str) -> None:
    def told(one: Any) -> None:
        if one.name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    remerge.promote("v1", store=root, told=told, **BY_HAND)
