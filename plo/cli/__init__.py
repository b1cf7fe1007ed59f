"""The command line, `plo`: its commands, in the order in which `plo --help` lists them.

Heavy imports stand inside the commands, so that `plo --help` answers at once.
"""

import typer

from plo.cli import demo, evaluation, lists, reports, runs
from plo.cli.shared import add

app = typer.Typer(
    help="plo: compare preference losses on one backbone, record every run, publish the leaderboard.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

add(app, demo.demo)
add(app, lists.losses)
add(app, lists.generators)
add(app, reports.docs)
add(app, runs.verify)
add(app, lists.scorers)
add(app, runs.scores)
add(app, runs.compare)
add(app, evaluation.evaluate, "eval")
add(app, evaluation.judge_check)
add(app, lists.evaluations)
add(app, lists.judges)
add(app, reports.leaderboard)
