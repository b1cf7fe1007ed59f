"""The command line, `plo`: its commands, in the order in which `plo --help` lists them.

Heavy imports stand inside the commands, so that `plo --help` answers at once.
"""

import typer

from plo.cli import evaluation, lists, reports, runs
from plo.cli.shared import friendly

app = typer.Typer(
    help="plo: compare preference losses on one backbone, record every run, publish the leaderboard.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    lists.losses,
    lists.generators,
    reports.docs,
    runs.verify,
    lists.scorers,
    runs.scores,
    runs.compare,
    evaluation.evaluate,
    evaluation.judge_check,
    lists.evaluations,
    lists.judges,
    reports.leaderboard,
):
    name = "eval" if command is evaluation.evaluate else None
    app.command(name)(friendly()(command))
