"""The command `power`: what an experiment could detect before it is run, and what that costs."""

import math
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from plo.cli.overrides import read_experiment
from plo.cli.parameters import Json, Plugins, Settings, Store
from plo.cli.plan_report import duration
from plo.cli.runs import run
from plo.cli.shared import console, silence_libraries
from plo.cli.tables import print_rows
from plo.terminal import say

if TYPE_CHECKING:
    from plo.experiment.power import Measured
    from plo.statistics.power import Design


def power(
    arguments: Settings = [],  # noqa: B006
    detect: Annotated[
        float | None, typer.Option(help="Difference of the primary metric to detect: show the cheapest design.")
    ] = None,
    run_pilot: Annotated[
        bool, typer.Option("--pilot", help="Train the few cells that show variances, if none are recorded.")
    ] = False,
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
    as_json: Json = False,
):
    """Show what difference an experiment can detect with how many seeds, prompts and samples, and at what cost.

    Variances and seconds are those of the cells that are recorded.

    Examples:
        plo power experiment.yaml
        plo power experiment.yaml --detect 0.1
        plo power losses=dpo,ipo data=pocket name=mine --pilot
    """
    experiment = read_experiment(arguments, {"plugins": plugin, "store": store})
    silence_libraries()
    from plo.config import ConfigError
    from plo.experiment.plan import plan_comparison
    from plo.experiment.power import designs, measure, pilot

    measured = measure(experiment)
    if measured is None and run_pilot:
        run(pilot(experiment))
        measured = measure(experiment)
    if measured is None:
        small = plan_comparison(pilot(experiment))
        names = ", ".join(dict.fromkeys(cell.variant for cell in small.cells))
        raise ConfigError(
            f"No recorded cells of {experiment.name} show its variances: two variants with two seeds each are needed. "
            f"--pilot trains {names} on seeds {', '.join(map(str, small.experiment.seeds))} ({small.steps(small.left)} optimiser "
            f"steps){'' if experiment.tuning else ', which plo compare then reuses'}."
        )
    shown = designs(experiment, measured) if detect is None else [measured.cheapest(detect)]
    if as_json:
        print_rows([vars(design) for design in shown], as_json=True)
        return
    _print_measured(measured)
    print_rows([_row(design, measured) for design in shown], title="Designs")
    if detect is not None:
        (design,) = shown
        seeds = ",".join(map(str, range(design.seeds)))
        sizes = [f"seeds={seeds}", f"evaluation.prompts={design.prompts}", f"evaluation.samples={design.samples}"]
        say(console, "\nRun it: ", (f"plo compare {shlex.join([*arguments, *sizes])}", "bold"))


def _print_measured(measured: "Measured") -> None:
    """Print what the designs are computed from."""
    say(console, (measured.metric, "bold"), f" of {measured.comparison}: {measured.variants} variants, {measured.seeds} seeds, "
        f"{measured.prompts} prompts, {measured.samples} samples each")  # fmt: skip
    deviations = {name: math.sqrt(value) for name, value in measured.components.items() if not math.isnan(value)}
    say(console, "Standard deviations: ", ", ".join(f"{name} {value:.3g}" for name, value in deviations.items()))
    if (measured.variants - 1) * (measured.seeds - 1) < 8:
        few = f"{measured.variants} variants and {measured.seeds} seeds"
        say(console, f"Few cells show the variance of seeds ({few}), so all below is rough.", style="yellow")
    say(
        console,
        f"A difference is detected with probability .8, at level {measured.alpha:g} divided by {measured.rows - 1} differences. "
        f"{measured.held_out} prompts are held out.",
    )


def _row(design: "Design", measured: "Measured") -> dict[str, str]:
    return {
        "seeds": str(design.seeds),
        "prompts": str(design.prompts),
        "samples": str(design.samples),
        "detects": f"{design.detectable:.3g}",
        "cells": str(design.seeds * measured.rows),
        "time": "-" if math.isnan(design.cost) else duration(design.cost),
    }
