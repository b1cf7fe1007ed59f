"""Print the plan of a comparison: `plo compare --dry-run`."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from plo.cli.shared import console
from plo.cli.tables import print_rows
from plo.terminal import say

if TYPE_CHECKING:
    from plo.experiment.plan import Plan, PlannedCell


def print_plan(plan: "Plan") -> None:
    """Print tuning, cells, stages and evaluations of a comparison, what of them is finished, and what is left to do."""
    experiment = plan.experiment
    state = f"continues run {plan.comparison}" if plan.comparison else "new"
    say(console, (experiment.name, "bold"), f": {state}, recorded in {plan.store}")
    say(console, plan.data)
    if plan.tuning:
        say(console, f"\nTuning of every loss first: {_tuning(plan)}")
    print_rows(list(_variants(plan)), title="Cells")
    if experiment.looks:
        say(console, f"\n{_looks(plan)}")
    if plan.stages:
        rows = [
            {"stage": s.name, "for": ", ".join(s.variants), "pairs": s.pairs, "steps": s.steps or "-", "state": s.state}
            for s in plan.stages
        ]
        print_rows(rows, title="Stages, which cells wait for")
    points = ", ".join(f"{point:g}" for point in experiment.points)
    say(console, f"\nEvaluations at {points} of the training: {', '.join(plan.evaluations) or 'none'}")
    say(console, f"Evaluations of each trained model: {', '.join(plan.model_evaluations) or 'none'}")
    if len(plan.least) < len(plan.left):
        say(console, f"At least {_work(plan, plan.least)}.", style="bold")
        say(console, f"At most {_work(plan, plan.left)}.", style="bold")
    else:
        say(console, f"{_work(plan, plan.left)}.", style="bold")


def _tuning(plan: "Plan") -> str:
    """Describe the trials of the tuning, and what of them is left."""
    tuning = plan.tuning
    assert tuning is not None
    if tuning.finished == tuning.trials:
        return f"all {tuning.trials} trials are finished."
    left = f"{tuning.trials - tuning.finished} of {tuning.trials} trials, {tuning.steps} optimiser steps"
    time = f", about {duration(tuning.seconds)}" if tuning.seconds is not None else ""
    return f"{left}{time}. It may change the settings below."


def _looks(plan: "Plan") -> str:
    """Describe the looks: the seeds at each, and those of the baseline."""
    seeds: dict[int, str] = {}
    for look in plan.experiment.looks:
        counts = dict.fromkeys((cell.variant for cell in plan.cells), 0)
        for cell in plan.cells:
            counts[cell.variant] += cell.look <= look
        most = max(counts.values())
        seeds[look] = f"{look} seeds" + (f" ({most} of the baseline)" if most > look else "")
    if plan.stop:
        return f"Looks: recorded verdicts need no further seeds ({plan.stop})."
    return f"Looks at {', '.join(seeds.values())}; no seeds are added once every verdict is settled."


def _variants(plan: "Plan") -> Iterator[dict[str, str]]:
    """Describe each variant: its steps, and the state of its cells by their seeds."""
    for variant in dict.fromkeys(cell.variant for cell in plan.cells):
        own = [cell for cell in plan.cells if cell.variant == variant]
        seeds: dict[str, list[int]] = {}
        for cell in own:
            seeds.setdefault(f"resumes at step {cell.done}" if cell.state == "resumes" else cell.state, []).append(
                cell.seed
            )
        states = "\n".join(f"{_ranges(numbers)} {state}" for state, numbers in seeds.items())
        yield {"variant": variant, "steps": str(own[0].steps or "-"), "seeds": states}


def _ranges(numbers: list[int]) -> str:
    """Write numbers as "0-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _work(plan: "Plan", cells: "Iterable[PlannedCell]") -> str:
    """Describe the work of cells that are left."""
    cells = list(cells)
    seconds = plan.seconds(cells)
    time = "" if seconds is None else f", about {duration(seconds)}"
    return f"{len(cells)} of {len(plan.cells)} cells and {plan.steps(cells)} optimiser steps are left{time}"


def duration(seconds: float) -> str:
    """Write seconds in words: "45 seconds", "12 minutes", "2.5 hours"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
