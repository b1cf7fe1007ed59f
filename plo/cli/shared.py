"""What the commands share: the console, two options, plugins, silence, and how errors are told."""

import contextlib
import signal
from pathlib import Path
from typing import Annotated

import typer

from plo.errors import PloError
from plo.faults import sentence
from plo.interrupt import SIGNALS, Interrupted, listening
from plo.terminal import Terminal, plain

console = Terminal()
Plugins = Annotated[list[Path], typer.Option("--plugin", help="Python file that registers losses and the like.")]
Json = Annotated[bool, typer.Option("--json", help="The same as a list of JSON objects.")]


def load_plugins(plugins) -> None:
    """Run the files that register losses and the like."""
    from plo.registry import load_plugin

    for plugin in plugins:
        load_plugin(plugin)


def quiet() -> None:
    """transformers and MLflow tell at length what nobody asked; plo's own lines say what matters."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


class friendly(contextlib.ContextDecorator):
    """Shows errors that plo words itself, and faults of the machine, without a traceback, exit code 2.

    Ctrl-C and SIGTERM are answered as `plo.interrupt` says.
    """

    def __enter__(self):
        self.signals = listening()
        self.signals.__enter__()
        return self

    def __exit__(self, kind, error, traceback):
        self.signals.__exit__(None, None, None)
        if isinstance(error, Interrupted):
            for number in SIGNALS:  # while Python waits for threads in which a call is under way
                signal.signal(number, signal.SIG_DFL)
            raise typer.Exit(error.exit_code) from None
        ours = isinstance(error, PloError)
        said = str(error) if ours else sentence(error) if isinstance(error, Exception) else None
        if said is not None:
            name = typer.style(f"{type(error).__name__ if ours else 'Error'}: ", fg="red")
            typer.echo(f"{name}{plain(said)}", err=True)  # in one piece: several processes may say it at once
            raise typer.Exit(2) from None
        return False
