"""An event loop in a thread of its own, so that a caller may have one already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any


def elsewhere(work: Callable[[Callable[[Any], None]], Any], told: Callable[[Any], None]) -> Any:
    """Run a coroutine in a thread of its own; ``told`` gets, in this one, what it says."""
    box: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(work(lambda event: box.put(("told", event))))

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            box.put(("done", loop.run_until_complete(task)))
        except BaseException as error:
            box.put(("failed", error))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run, name="remerge-endpoint", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = box.get()
            if kind == "done":
                return value
            if kind == "failed":
                raise value
            told(value)
    finally:
        with suppress(RuntimeError):  # It is closed: nothing is left to end.
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
