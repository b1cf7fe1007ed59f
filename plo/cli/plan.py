"""Print the plan of a comparison: `plo compare --dry-run`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from plo.cli.shared import console
from plo.cli.tables import print_rows
from plo.terminal import say

if TYPE_CHECKING:
    from plo.experiment.plan import Plan


def print_plan(plan: "Plan") -> None:
    """Print the cells, stages and evaluations of a comparison, what of them is finished, and what is left to do."""
    experiment = plan.experiment
    state = f"continues run {plan.comparison}" if plan.comparison else "new"
    say(console, (experiment.name, "bold"), f": {state}, recorded in {plan.store}")
    say(console, plan.data)
    print_rows(list(_variants(plan)), title="Cells")
    if plan.stages:
        rows = [
            {"stage": s.name, "for": ", ".join(s.variants), "pairs": s.pairs, "steps": s.steps or "-", "state": s.state}
            for s in plan.stages
        ]
        print_rows(rows, title="Stages, which cells wait for")
    points = ", ".join(f"{point:g}" for point in experiment.points)
    say(console, f"\nEvaluations at {points} of the training: {', '.join(plan.evaluations) or 'none'}")
    say(console, f"Evaluations of each trained model: {', '.join(plan.model_evaluations) or 'none'}")
    left = sum(cell.state != "finished" for cell in plan.cells)
    time = "" if plan.training_seconds is None else f", about {_duration(plan.training_seconds)} of training"
    say(console, f"{left} of {len(plan.cells)} cells and {plan.steps} optimiser steps are left{time}.", style="bold")


def _variants(plan: "Plan") -> Iterator[dict[str, str]]:
    """Describe each variant: its steps, and the state of its cell of each seed."""
    for variant in dict.fromkeys(cell.variant for cell in plan.cells):
        own = [cell for cell in plan.cells if cell.variant == variant]
        states = {f"seed {c.seed}": f"resumes at step {c.done}" if c.state == "resumes" else c.state for c in own}
        yield {"variant": variant, "steps": str(own[0].steps or "-"), **states}


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
