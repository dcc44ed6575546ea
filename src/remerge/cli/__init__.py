"""The command line: one file a command, nothing but parsing and printing."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import click

from remerge.cli.lazy import lazy_group
from remerge.cli.memory import reuse_freed_memory
from remerge.cli.output import error_document
from remerge.errors import BadInput, RemergeError, TryAgain, UsageError
from remerge.version import __version__

# A hostile name may be as long as a header.
_LONGEST = 2000
_COMMANDS = (
    "merge",
    "export",
    "conflicts",
    "extract",
    "inspect",
    "verify",
    "reproduce",
    "check",
    "compare",
    "bench",
    "formats",
    "report",
    "advise",
    "serve",
    "promote",
    "rollback",
    "store",
    "card",
    "engines",
    "doctor",
)


class Terminated(BaseException):
    """SIGTERM, unwound like Ctrl-C so that no half-made output stays."""


@click.group(
    cls=lazy_group("remerge.cli", _COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 internal, 2 usage, 3 bad input, 4 files differ from their "
    "manifest, 5 derivation differs or a check failed, 6 locked, 75 try again, "
    "130/143 interrupted.",
)
@click.version_option(__version__, prog_name="remerge")
def group() -> None:
    """Take a LoRA fine-tune to production: merged exactly, in constant memory, verifiable."""


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    reuse_freed_memory()
    # A daemon may start us with closed streams.
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    as_json = "--json" in sys.argv[1:]
    try:
        code: Any = group(standalone_mode=False, prog_name="remerge")
        _leave(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        _leave(error.exit_code)
    except click.ClickException as error:
        if as_json:
            _print_json(UsageError(error.format_message()))
        error.show()
        _leave(error.exit_code)
    except RemergeError as error:
        _show(error, as_json)
        _leave(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; nothing was left behind.", err=True)
        _leave(130)
    except Terminated:
        click.echo("Terminated; nothing was left behind.", err=True)
        _leave(143)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _leave(141)
    except OSError as error:
        failure = _system_failure(error)
        _show(failure, as_json)
        _leave(failure.exit_code)
    except MemoryError:
        _show(TryAgain("Out of memory.", hint="Lower --max-memory or --threads."), as_json)
        _leave(TryAgain.exit_code)
    except Exception as error:  # the last resort: a fault of ours, said without a traceback
        if os.environ.get("REMERGE_DEBUG"):
            traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        internal = RemergeError(
            f"Internal error: {type(error).__name__}: {error} "
            f"({Path(place.filename).name}:{place.lineno}).",
            why="This is a fault in remerge, not in your input.",
            hint="Please report it; REMERGE_DEBUG=1 shows where it happened.",
        )
        _show(internal, as_json)
        _leave(1)


def _show(error: RemergeError, as_json: bool) -> None:
    if as_json:
        _print_json(error)
    click.echo(f"error: {_one_paragraph(str(error))}", err=True)


def _print_json(error: RemergeError) -> None:
    click.echo(json.dumps({"error": error_document(error)}))


def _system_failure(error: OSError) -> RemergeError:
    """What no other place explained: a name that cannot be, or a device that fails."""
    what = f"{error.filename or 'The system'}: {error.strerror}."
    permanent = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)
    return BadInput(what) if error.errno in permanent else TryAgain(what)


def _one_paragraph(text: str) -> str:
    """Short, and without line breaks or control characters, which a hostile name may hold."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    clean = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(clean.encode("utf-8", "replace").decode().split())


def _terminate(signum: int, frame: Any) -> None:
    raise Terminated


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.exit(code)
