"""The command line, `plo`: its commands, in the order in which `plo --help` lists them.

Heavy imports stand inside the commands, so that `plo --help` answers at once.
"""

import typer

from plo.cli import demo, evaluation, lists, reports, runs
from plo.cli.shared import friendly

app = typer.Typer(
    help="plo: compare preference losses on one backbone, record every run, publish the leaderboard.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command()(friendly()(lists.losses))
app.command()(friendly()(lists.generators))
app.command()(reports.docs)
app.command()(runs.verify)
app.command()(friendly()(lists.scorers))
app.command()(runs.scores)
app.command()(runs.compare)
app.command("eval")(evaluation.evaluate)
app.command()(evaluation.judge_check)
app.command()(friendly()(lists.evaluations))
app.command()(friendly()(lists.judges))
app.command()(reports.leaderboard)
