"""The command line `plo`: its commands, in the order in which `plo --help` lists them.

Commands import heavy modules when they run, so that `plo --help` answers at once.
"""

from typing import Annotated

import typer

from plo import __version__
from plo.cli import (
    archive,
    cache,
    correct,
    data,
    demo,
    evaluation,
    head_to_head,
    lists,
    plan,
    power,
    push,
    reports,
    reproduce,
    runs,
    settings,
    tune,
)
from plo.cli.shared import add
from plo.interrupt import START_AGAIN

EXIT_CODES = (
    f"Exit codes: 0 done; 1 something failed, such as a cell, and the rest is done; 2 the command cannot be run as it is written, or a fault "
    f"of the machine, such as a full disk, ended it; 130 and 143 stopped by Ctrl-C and SIGTERM; {START_AGAIN} stopped by SIGUSR1 and to be "
    f"started again. A command that was stopped goes on where it was when it is started again."
)
app = typer.Typer(
    epilog=EXIT_CODES,
    help="Compare preference losses on one backbone, record every run, publish the leaderboard.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"plo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


add(app, demo.demo)
add(app, lists.list_registered, "list")
add(app, settings.settings)
add(app, reports.docs)
add(app, runs.verify)
add(app, runs.scores)
add(app, tune.tune)
add(app, power.power)
add(app, plan.plan)
add(app, runs.compare)
add(app, runs.run_cell)
add(app, data.data)
add(app, evaluation.evaluate, "eval")
add(app, evaluation.judge_check)
add(app, correct.correct)
add(app, head_to_head.head_to_head)
add(app, reports.leaderboard)
add(app, reproduce.reproduce)
add(app, push.push)
add(app, archive.export)
add(app, archive.import_, "import")
add(app, cache.cache)
for kind in ("losses", "scorers", "generators", "evaluations", "judges"):
    add(app, lists.old_name(kind), kind, hidden=True)
