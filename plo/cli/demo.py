"""The command `demo`, which runs a small comparison on any machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from plo import extras
from plo.cli.reports import leaderboard
from plo.cli.runs import run
from plo.cli.shared import log

EXPERIMENT = Path(__file__).with_name("demo.yaml")  # part of the package: the command works in any folder
FULL: dict[str, Any] = {
    "name": "demo-full",
    "data.options.pairs": 2000,
    "train.steps": 62,
    "seeds": {"looks": [3, 5, 8]},
    "baseline_seeds": None,
    "tuning": {"trials": 8, "promote": 3, "max_kl": 4},
}


def demo(
    full: Annotated[
        bool, typer.Option("--full", help="All pairs, trials and seeds of a real comparison: about an hour.")
    ] = False,
    experiment: Annotated[
        Path, typer.Option(help="Experiment to run.", show_default="the one that comes with plo")
    ] = EXPERIMENT,
):
    """Compare eight losses on a small task whose true token rewards are known, tuned, and print the leaderboard.

    Examples:
        plo demo
        plo demo --full
    """
    for extra in ("train", "report"):  # before minutes of training
        extras.require(extra, "plo demo")
    from plo.config import load_experiment

    found = load_experiment(experiment, FULL if full else {})
    log.info(f"The demo tunes and compares sft, {', '.join(map(str, found.losses))} on the pocket task.")
    run(found)
    leaderboard([found.name])
