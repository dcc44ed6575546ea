"""What is to be served becomes a server that can be started, or printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from remerge.artefacts.making import Report
from remerge.artefacts.store.rebuilding import Means
from remerge.engines.servers.registry import program_of, server_of
from remerge.engines.servers.server import Address, Server
from remerge.errors import UsageError
from remerge.serving.printed.form import Printing
from remerge.serving.printed.registry import form
from remerge.serving.printed.sampling import modelfile_beside, sampling_of, stops_of
from remerge.serving.serve import Prepared
from remerge.serving.sizes import Wanted, sizes_of
from remerge.serving.smoke import has_chat_template
from remerge.serving.targets import check_engine, choose_engine, find_target, served_of

# What the rest of the command line decides: given twice, the engine would take the later.
_OURS = frozenset({"--host", "--port", "--served-model-name", "--alias", "-a", "-m", "--model"})


def prepare(
    target: str,
    *,
    engine: str | None = None,
    address: Address | None = None,
    name: str | None = None,
    to: str | None = None,
    wanted: Wanted | None = None,
    key: str | None = None,
    extra: Sequence[str] = (),
    store: str | None = None,
    engine_python: Mapping[str, str] | None = None,
    elsewhere: bool = False,
    report: Report = lambda done, total, tensor: None,
    progress: bool = True,
) -> Prepared:
    """Find what is named, choose engine and sizes, and write the command.

    ``extra`` are words for the engine, which come last. With ``elsewhere`` it is to run in another
    place, and no engine need be here. Raises `BadInput`, `UsageError` and
    `Unsupported` for what cannot be served, with the way out.
    """
    wanted, pythons = wanted or Wanted(), engine_python or {}
    _check_extra(extra)
    found = find_target(
        target,
        Means(threads=wanted.threads, pythons=pythons, report=report),
        store=store,
        progress=progress,
    )
    server = server_of(engine or choose_engine(found, pythons, elsewhere=elsewhere))
    # Before anything is converted for it.
    check_engine(found, server.engine, to)
    program = _program(server, pythons, elsewhere=elsewhere)
    if key is not None and server.key_variable is None:
        raise UsageError(
            f"The server of {server.engine} asks for no key, and --api-key would protect nothing.",
            hint="Use --engine vllm or llama.cpp, or leave it out and keep --host 127.0.0.1.",
        )
    served = served_of(
        found,
        server.engine,
        name=name,
        to=to,
        pythons=pythons,
        threads=wanted.threads,
        report=report,
    )
    sizes = sizes_of(served, server.engine, program, wanted)
    where = address or Address()
    command = server.command(program, served, sizes.settings, where)
    command = replace(command, words=(*command.words, *extra))
    return Prepared(server.engine, served, sizes, where, command, has_chat_template(served), key)


def printed(prepared: Prepared, name: str) -> str:
    """The server as text in a form of `remerge.serving.printed`. Raises `UsageError` for what
    cannot be said in it."""
    served, sizes = prepared.served, prepared.sizes
    return form(name).write(
        Printing(
            engine=prepared.engine,
            served=served,
            settings=sizes.settings,
            address=prepared.address,
            command=prepared.command,
            memory=sizes.parts.given,
            reasons=sizes.reasons,
            health=prepared.server.health,
            sampling=sampling_of(served.model),
            stops=stops_of(served.model),
            beside=modelfile_beside(served.model),
        )
    )


def _program(server: Server, pythons: Mapping[str, str], *, elsewhere: bool) -> Path:
    try:
        return program_of(server, pythons)
    except UsageError:
        if not elsewhere or server.engine in pythons:
            raise
        return Path("llama-server" if server.engine == "llama.cpp" else "python3")


def _check_extra(extra: Sequence[str]) -> None:
    for word in extra:
        # vLLM reads an underscore in an option as a hyphen.
        if word.partition("=")[0].replace("_", "-") in _OURS:
            raise UsageError(
                f"{word} after -- would contradict what remerge says to the engine.",
                hint="Use --host, --port or --name before it.",
            )
