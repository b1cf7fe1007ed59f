"""The command `head-to-head`: a judge compares the variants of a comparison with each other."""

import math
from dataclasses import asdict
from typing import Annotated

import typer

from plo.cli.complete import name_option
from plo.cli.parameters import JUDGES, Json, JudgeCalls, JudgeMoney, Plugins, Store
from plo.cli.shared import load_plugins, silence_libraries
from plo.cli.tables import print_rows


def head_to_head(
    comparison: Annotated[str, typer.Argument(help="Name of a recorded comparison, or the beginning of its key.")],
    judge: Annotated[str, name_option("judges", f"Judge of the texts: {JUDGES}")],
    suite: Annotated[
        str | None,
        typer.Option(
            help="Evaluation whose recorded texts are compared: hh, tldr. Default: samples of the last point."
        ),
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt of the judge, a name or a file.")] = "instruction",
    games: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of games, each asked in both orders. All pairs of variants meet equally often."
        ),
    ] = None,
    judge_calls: JudgeCalls = None,
    judge_money: JudgeMoney = None,
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
    as_json: Json = False,
):
    """Let a judge compare the variants' texts with each other, and rate the variants by Bradley-Terry.

    Cells of the same seed meet on the prompts that all of them have, in both orders. Nothing is trained or sampled, and
    verdicts that are cached are not asked again. The leaderboard shows the ratings with intervals for new prompts and seeds.

    Examples:
        plo head-to-head first --judge gold:sentiment --games 300
        plo head-to-head hh-first --judge openai:MODEL --suite hh --template helpful
    """
    load_plugins(plugin)
    silence_libraries()
    from plo.config import ConfigError, EvaluationConfig
    from plo.experiment.evaluations import judging_of
    from plo.experiment.head_to_head import head_to_head as play
    from plo.tracking import Tracker

    settings = {"judge": judge, "judge_calls": judge_calls, "judge_money": judge_money}
    judging = judging_of(EvaluationConfig.of(settings, f"The settings of plo head-to-head {comparison}"))
    assert judging is not None  # a judge is named
    tracker = Tracker(store, create=False)
    recorded = tracker.comparisons(comparison)
    if len(recorded) > 1:
        keys = ", ".join(one.key[:12] for one in recorded)
        raise ConfigError(
            f"{len(recorded)} comparisons are called {comparison}: name the beginning of one's key, {keys}."
        )
    rated = play(recorded[0], tracker, judging, suite=suite, template=template, games=games)
    if as_json:
        print_rows([asdict(one) for one in rated], as_json=True)
        return
    rows = [
        {
            "variant": one.variant,
            "Elo": f"{one.elo:+.0f}",
            "95% interval": "-" if math.isnan(one.low) else f"{one.low:+.0f} to {one.high:+.0f}",
            "win rate": f"{one.win_rate:.3f}",
            "games": one.games,
            "seeds": one.seeds,
        }
        for one in rated
    ]
    print_rows(rows)
