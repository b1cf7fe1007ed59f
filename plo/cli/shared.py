"""Common parts of the commands: consoles, logging, options, plug-ins, and how errors are shown."""

import contextlib
import functools
import inspect
import logging
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from plo import quiet
from plo.cli.parameters import Quiet, Verbose
from plo.errors import PloError
from plo.faults import sentence
from plo.interrupt import SIGNALS, Interrupted, listening
from plo.registry import load_plugin
from plo.terminal import Terminal, TerminalHandler, plain

if TYPE_CHECKING:
    from plo.cli.progress import TerminalProgress

log = logging.getLogger("plo")
console = Terminal()  # of results; log records and progress bars go to standard error
handler = TerminalHandler(Terminal(stderr=True))


def add(app: typer.Typer, function: Callable[..., None], name: str | None = None, *, hidden: bool = False) -> None:
    """Register `function` as a command with --verbose and --quiet; its --help ends with the "Examples:" of its docstring."""
    text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\n\nExamples:\n")
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)  # typer keeps the line ends within later paragraphs
    commands = [f"    $ {line.strip()}".replace("[", "\\[") for line in examples.splitlines()]
    epilog = "\n".join(["Examples:", "", *commands]) if examples else None  # also read as Markdown, by `make docs`

    @functools.wraps(function)
    def run(*, verbose: bool, quiet: bool, **arguments: Any) -> None:
        with logging_to_terminal(verbose=verbose, quiet=quiet), friendly():
            function(**arguments)

    both = {"verbose": Verbose, "quiet": Quiet}
    own = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=both[key]) for key in both]
    signature = inspect.signature(function)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *own])  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, **both}
    app.command(name or function.__name__.replace("_", "-"), help=text, epilog=epilog, hidden=hidden)(run)


@contextlib.contextmanager
def logging_to_terminal(*, verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """Show plo's log records on the terminal; in a launch of several processes, all of the first one and warnings of the others."""
    first = os.environ.get("RANK", "0") == "0"
    level, before = logging.DEBUG if verbose else logging.INFO if first and not quiet else logging.WARNING, log.level
    log.setLevel(level)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def terminal_progress() -> "TerminalProgress":
    """Return progress bars on the console of log records; they are silent where progress is not logged."""
    from plo.cli.progress import TerminalProgress

    return TerminalProgress(handler.console if log.isEnabledFor(logging.INFO) else Terminal(quiet=True))


def load_plugins(plugins: Iterable[Path]) -> None:
    """Run the files that `--plugin` names, for the registrations in them."""
    for plugin in plugins:
        load_plugin(plugin)


def silence_libraries() -> None:
    """Silence what transformers and MLflow report at length, unless --verbose is given."""
    if not log.isEnabledFor(logging.DEBUG):
        quiet.silence_libraries()


@contextlib.contextmanager
def friendly() -> Iterator[None]:
    """Show a `PloError` or a fault of the machine without a traceback, and exit with code 2.

    Ctrl-C, SIGTERM and SIGUSR1 are handled as `plo.interrupt` describes.
    """
    try:
        with listening():
            yield
    except Interrupted as error:
        for number in SIGNALS:  # Python may still wait for threads that are in a call
            signal.signal(number, signal.SIG_IGN if number == signal.SIGUSR1 else signal.SIG_DFL)
        raise typer.Exit(error.exit_code) from None
    except Exception as error:
        ours = isinstance(error, PloError)
        message = str(error) if ours else sentence(error)
        if message is None:
            raise
        log.debug("", exc_info=error)
        name = typer.style(f"{type(error).__name__ if ours else 'Error'}: ", fg="red")
        typer.echo(f"{name}{plain(message)}", err=True)  # in one piece, as several processes may write at once
        raise typer.Exit(2) from None
