"""The command `demo`, which runs a small comparison on any machine."""

from pathlib import Path
from typing import Annotated

import typer

from plo.cli.reports import leaderboard
from plo.cli.runs import run
from plo.cli.shared import log

EXPERIMENT = Path("docs/demo.yaml")
CHOSEN = Path("runs/demo.yaml")


def demo(
    full: Annotated[bool, typer.Option("--full", help="Run the whole experiment, however long it takes.")] = False,
    minutes: Annotated[float, typer.Option(min=0, help="Time to shorten the experiment to.")] = 5.0,
    experiment: Annotated[Path, typer.Option(help="Experiment to run or to shorten.")] = EXPERIMENT,
    chosen: Annotated[Path, typer.Option(help="File that keeps the shortened experiment.")] = CHOSEN,
):
    """Compare losses on an embedded task, as many as fit into a few minutes here, and print the leaderboard.

    Examples:
        plo demo
        plo demo --minutes 15
    """
    import torch

    from plo.config import load_experiment
    from plo.demo import keep, measure, plan

    if not full and chosen.exists():
        found = load_experiment(chosen)
        log.info(f"Continuing the demo of {chosen}; remove that file to choose its size anew.")
    else:
        speed = measure()
        whole, fitting = plan(experiment, speed, None), plan(experiment, speed, None if full else minutes)
        found = fitting.experiment
        log.info(
            f"This machine multiplies matrices at {speed['float32'] / 1e9:.3g} GFLOP/s in float32 and "
            f"{speed['bfloat16'] / 1e9:.3g} in bfloat16, with {_count(torch.get_num_threads(), 'thread')}.",
        )
        log.info(
            f"The demo trains sft, {', '.join(map(str, found.losses))} with {_count(len(found.seeds), 'seed')} on {found.data.limit} pairs in "
            f"{found.model.dtype}, samples {_count(found.evaluation.samples, 'answer')} to each of {found.evaluation.prompts} prompts, and "
            f"prints the leaderboard: about {fitting.minutes:.0f} minutes.",
        )
        if fitting.number:
            log.info(f"All of {experiment} would take about {whole.minutes:.0f} minutes: plo demo --full.")
        if not full:
            keep(found, chosen)
    run(found)
    leaderboard(found.name)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
