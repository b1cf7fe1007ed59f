"""The command line, `plo`: its commands, in the order in which `plo --help` lists them.

Heavy imports stand inside the commands, so that `plo --help` answers at once.
"""

import typer

from plo.cli import demo, evaluation, lists, reports, runs

app = typer.Typer(
    help="plo: compare preference losses on one backbone, record every run, publish the leaderboard.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command()(lists.losses)
app.command()(lists.generators)
app.command()(reports.docs)
app.command()(runs.verify)
app.command()(lists.scorers)
app.command()(runs.scores)
app.command()(runs.compare)
app.command("eval")(evaluation.evaluate)
app.command()(evaluation.judge_check)
app.command()(lists.evaluations)
app.command()(lists.judges)
app.command()(reports.leaderboard)
