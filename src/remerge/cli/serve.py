"""``remerge serve``."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from remerge.cli.extra_words import WithExtra, extra_words
from remerge.cli.options import engine_python, json_output, pythons, quiet, store
from remerge.cli.output import print_json, print_notes, print_table, printable, progress

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from remerge.serving.serve import Prepared, Up


# Of remerge.serving.printed; importing it would take time.
_FORMS = ("command", "compose", "compose-tgi", "kubernetes", "modelfile")


@click.command(
    "serve",
    cls=WithExtra,
    alone={"--print": _FORMS},
    short_help="Start an engine with a model, well sized.",
)
@click.argument("target", metavar="TARGET")
@click.option(
    "--engine",
    type=click.Choice(["vllm", "llama.cpp", "transformers"]),
    help="llama.cpp for a GGUF file, else vllm where it is installed. transformers is for trying "
    "out.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: every interface.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--name", metavar="NAME", help="What clients call the model, or the one adapter.")
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="REMERGE_API_KEY",
    help="The key that clients must send; better in REMERGE_API_KEY, where no list of processes "
    "shows it.",
)
@click.option("--context", type=click.IntRange(1), metavar="N", help="Tokens of one request.")
@click.option(
    "--latency-budget", type=float, metavar="MS", help="Milliseconds until the first token."
)
@click.option("--memory", metavar="SIZE", help="What the engine may take in all, e.g. 12GiB.")
@click.option("--gpu-memory", metavar="SIZE", help="The same of the GPU.")
@click.option("--max-num-seqs", type=click.IntRange(1), metavar="N", help="Requests at once.")
@click.option("--dtype", default="auto", show_default=True, help="Of the weights as computed with.")
@click.option("--cache-dtype", default="auto", show_default=True, help="Of keys and values.")
@click.option(
    "--to",
    metavar="gguf:TYPE",
    help="For llama.cpp, what a checkpoint directory becomes; by default what it holds.",
)
@click.option("--prepared-in", type=int, hidden=True)
@click.option("--prompt", metavar="TEXT", help="The smoke prompt.")
@click.option(
    "--startup-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take until it answers.",
)
@click.option(
    "--print",
    "form",
    type=click.Choice(_FORMS),
    metavar="[FORM]",
    help=f"Print it and start nothing: {', '.join(_FORMS)}.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="Threads that the engine computes with on processors; by default one for each.",
)
@engine_python
@store
@json_output
@quiet
@click.option("-v", "--verbose", is_flag=True, help="Show what the engine writes.")
def command(
    target: str,
    engine: str | None,
    host: str,
    port: int,
    name: str | None,
    api_key: str | None,
    context: int | None,
    latency_budget: float | None,
    memory: str | None,
    gpu_memory: str | None,
    max_num_seqs: int | None,
    dtype: str,
    cache_dtype: str,
    to: str | None,
    prepared_in: int | None,
    prompt: str | None,
    startup_timeout: float,
    form: str | None,
    threads: int | None,
    engine_python: tuple[str, ...],
    place: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Serve TARGET with an engine, in the foreground, until it is told to end.

    TARGET is an output of remerge, a checkpoint directory, a GGUF file, a name of the store, or
    BASE+ADAPTER[+ADAPTER], each a path, a name of the store or a Hub id. Words after -- are the
    engine's own.

    \b
    remerge serve ./merged --context 8192 --memory 12GiB
    remerge serve ./base+./adapter --engine vllm -- --enforce-eager
    remerge serve production --print kubernetes

    Once it answers, exit code 0 means that it ended because it was told to.
    """
    if prepared_in is not None:
        taken = replace(_taken_over(prepared_in), key=api_key)
        return _serve(taken, as_json, quiet, startup_timeout, prompt, verbose)
    from remerge.engines.servers.server import Address
    from remerge.merging.recipe import parse_size
    from remerge.serving.preparing import prepare, printed
    from remerge.serving.serve import document, hangup_as_termination, shown
    from remerge.serving.sizes import Wanted

    wanted = Wanted(
        context=context,
        latency_budget=latency_budget,
        memory=None if memory is None else parse_size(memory, "--memory"),
        gpu_memory=None if gpu_memory is None else parse_size(gpu_memory, "--gpu-memory"),
        sequences=max_num_seqs,
        dtype=dtype,
        cache_dtype=cache_dtype,
        threads=threads,
    )
    silent = quiet or as_json
    with hangup_as_termination(), progress("making what is served", quiet=silent) as report:
        prepared = prepare(
            target,
            engine=engine,
            address=Address(host, port),
            name=name,
            to=to,
            wanted=wanted,
            key=api_key,
            extra=extra_words(),
            store=place,
            engine_python=pythons(engine_python),
            elsewhere=form not in (None, "command"),
            report=report,
            progress=not silent,
        )
    if form is not None:
        text = printed(prepared, form)
        if api_key is not None:
            variable = prepared.server.key_variable
            print_notes([f"The key is not in what is printed: give the engine {variable}."])
        if as_json:
            print_json({**document(prepared), "form": form, "text": text})
        else:
            click.echo(text, nl=not text.endswith("\n"))
        return 0
    if not silent:
        for reason in prepared.sizes.reasons:
            click.echo(f"  {reason}")
        click.echo(f"$ {shown(prepared.command)}")

    # A shell's `remerge serve` goes on without all that preparing took.
    if sys.argv[1:2] == ["serve"]:
        _go_on_alone(prepared)
    return _serve(prepared, as_json, quiet, startup_timeout, prompt, verbose)


def _serve(
    prepared: Prepared,
    as_json: bool,
    quiet: bool,
    timeout: float,
    prompt: str | None,
    verbose: bool,
) -> int:
    from remerge.serving.serve import document, serve

    def told(up: Up) -> None:
        if as_json:
            print_json(document(prepared, up))
        elif not quiet:
            _print_up(prepared, up)
        sys.stdout.flush()

    failure = serve(prepared, told, timeout=timeout, prompt=prompt, show=verbose)
    if failure is None:
        return 0
    # With --json standard output has had its one document.
    click.echo(f"error: {' '.join(printable(str(failure)).split())}", err=True)
    return failure.exit_code


def _go_on_alone(prepared: Prepared) -> None:
    """Become the same command anew, with what was prepared in an open file: torch and the rest
    would take 250 MB for as long as the server runs."""
    with tempfile.TemporaryFile() as file:
        # The key is still where it was given.
        file.write(_as_json().dump_json(replace(prepared, key=None)))
        file.flush()
        file.seek(0)
        os.set_inheritable(file.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        words = ["-m", "remerge", "serve", "--prepared-in", str(file.fileno()), *sys.argv[2:]]
        os.execv(sys.executable, [sys.executable, "-P", *words])


def _taken_over(descriptor: int) -> Prepared:
    with os.fdopen(descriptor, "rb") as file:
        return _as_json().validate_json(file.read())


def _as_json() -> TypeAdapter[Prepared]:
    from pydantic import TypeAdapter

    from remerge.serving.serve import Prepared

    return TypeAdapter(Prepared)


def _print_up(prepared: Prepared, up: Up) -> None:
    from remerge.serving.smoke import curl

    url, model = prepared.address.url, prepared.model
    click.echo(f"serving: {', '.join(prepared.names)}")
    rows = [
        ("at", f"{url}/v1"),
        ("up after", f"{up.seconds:.1f} s"),
        ("asked", printable(up.smoke.prompt)),
        ("answer", printable(up.smoke.answer) or "(nothing)"),
        ("first token", f"{up.smoke.first_token:.3f} s (the first request there was)"),
        ("log", str(up.log)),
    ]
    print_table(rows)
    click.echo(curl(url, model, chat=prepared.chat, key=prepared.key is not None))
    click.echo("Ctrl-C ends it.")
