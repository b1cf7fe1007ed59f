"""The command `plan`: what a comparison would do, what of it is finished, and what the rest will take."""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plo.cli.overrides import read_experiment
from plo.cli.parameters import Json, Plugins, Settings, Store
from plo.cli.shared import console, log, silence_libraries, terminal_progress
from plo.cli.tables import finite, print_rows
from plo.terminal import say
from plo.values import read_duration

if TYPE_CHECKING:
    from plo.experiment.estimate import Estimate
    from plo.experiment.within import Proposal

MEASURING = "Measuring a few batches of %s for the estimate, which is kept (plo cache): this takes a minute or two."
DAY = 86_400.0
SLACK = 1.5  # times the estimate is the time limit of a task that is given none


def plan(
    arguments: Settings = [],  # noqa: B006
    workers: Annotated[
        int,
        typer.Option(min=1, help="Number of processes that share the work, each with a device like this machine's."),
    ] = 1,
    within: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Show the largest design that fits into a time such as 2h or 45m instead."),
    ] = None,
    slurm: Annotated[
        Path | None, typer.Option(help="Write a Slurm array script with a task for each worker to this file.")
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Time limit of a task; tasks go on in another one. Default: 1.5 times the estimate."
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(help="Measure a few batches where nothing is known of this machine, model and data; or do not."),
    ] = True,
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
    as_json: Json = False,
):
    """Show what a comparison would do, what of it is finished, and what the rest takes: time, memory, disk, judge calls.

    Estimates are made of recorded cells of the same model, data and machine. What they do not show is measured once, in a
    process of its own that passes a few batches through the model.

    Examples:
        plo plan experiment.yaml
        plo plan experiment.yaml --within 2h
        plo plan experiment.yaml --workers 4 --slurm job.sh --time-limit 4h
    """
    if within and slurm:
        raise typer.BadParameter("--slurm writes a script of the experiment as given: run --within first")
    seconds, limit = (None if text is None else _duration(text) for text in (within, time_limit))
    experiment = read_experiment(arguments, {"plugins": plugin, "store": store})
    options = [*(f"--plugin={path}" for path in plugin), *([f"--store={store}"] if store else [])]
    settings = {"workers": workers, "measure": measure}
    if seconds is None:
        found = show(experiment, as_json=as_json, **settings)
        if slurm is not None:
            _write_script(slurm, found, [*arguments, *options], limit)
        return
    silence_libraries()
    from plo.experiment.estimates import largest_design

    with terminal_progress().status("planning"):
        proposal = largest_design(experiment, seconds, measuring=lambda: _tell(experiment), **settings)
    command = f"plo compare {shlex.join([*arguments, *proposal.chosen.overrides(experiment), *options])}"
    if as_json:
        facts = {"chosen": vars(proposal.chosen), "fitting": [vars(one) for one in proposal.fitting]}
        print(json.dumps(finite(facts | {"metric": proposal.metric, "command": command}), indent=2))
    else:
        _print_proposal(proposal, command)


def show(experiment: Any, *, workers: int = 1, measure: bool = False, as_json: bool = False) -> "Estimate":
    """Print the plan and the estimate of an experiment, and return it."""
    silence_libraries()
    from plo.cli.plan_report import plan_as_json, print_plan
    from plo.experiment.estimates import estimate

    with terminal_progress().status("planning"):
        found = estimate(experiment, workers=workers, measure=measure, measuring=lambda: _tell(experiment))
    if as_json:
        print(json.dumps(finite(plan_as_json(found)), indent=2, default=str))
    else:
        print_plan(found)
    return found


def _tell(experiment: Any) -> None:
    log.info(MEASURING, experiment.model.name)


def _duration(text: str) -> float:
    try:
        return read_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _print_proposal(proposal: "Proposal", command: str) -> None:
    """Print the designs that fit, the chosen one, and the command that runs it."""
    from plo.cli.plan_report import duration

    rows = []
    for one in proposal.fitting:
        seeds = f"looks {', '.join(map(str, one.looks))}" if one.looks else str(one.seeds)
        trials = {} if one.trials is None else {"trials": str(one.trials)}
        detects = {} if proposal.metric is None else {"detects": f"{one.detectable:.3g}"}
        mark = {"": "chosen" if one is proposal.chosen else ""}
        rows.append(
            {"prompts": str(one.prompts), "seeds": seeds, **trials, "time": duration(one.seconds), **detects, **mark}
        )
    print_rows(rows, title="Designs that fit, with as many seeds as there is time for")
    if proposal.metric is None or math.isnan(proposal.chosen.detectable):
        say(
            console,
            "\nWhat they detect is not known, as no variances are recorded: plo power EXPERIMENT --pilot shows them.",
        )
    else:
        say(
            console,
            f"\nA difference of {proposal.chosen.detectable:.3g} in {proposal.metric} is detected with probability .8.",
        )
    say(console, "Run it: ", (command, "bold"))


def _write_script(file: Path, found: "Estimate", arguments: list[str], limit: float | None) -> None:
    """Write the Slurm script of a plan, and say how to start it."""
    import torch

    from plo.experiment.slurm import Resources, slurm_script

    total = found.total(found.units(found.plan.left))
    gpu = torch.cuda.is_available()
    resources = Resources(
        seconds=limit or min(DAY, SLACK * (total.wall or DAY)),
        threads=torch.get_num_threads(),
        memory=None if gpu else total.memory,
        gpu=gpu,
        longest=found.step_seconds(),
    )
    command = [sys.executable, "-m", "plo", "compare", *arguments]
    file.write_text(slurm_script(found.plan.experiment.name, command, found.workers, resources), encoding="utf-8")
    log.info("Written to %s: an array of %d tasks. Start it: sbatch %s", file, found.workers, file)
    if found.plan.store.startswith("sqlite:"):
        log.warning(
            "The store is a SQLite file, which machines cannot share: give --store a tracking server's address."
        )
