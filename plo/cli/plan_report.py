"""Print the plan of a comparison with its estimate, as tables and sentences or as JSON."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from plo.cli.shared import console
from plo.cli.tables import print_rows
from plo.terminal import say

if TYPE_CHECKING:
    from plo.experiment.estimate import Estimate, Estimated, Total
    from plo.experiment.plan import Plan, PlannedCell

GB = 1e9


def print_plan(estimate: "Estimate") -> None:
    """Print tuning, cells, stages and evaluations of a comparison, what of them is finished, and what the rest will take."""
    plan = estimate.plan
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
        print_rows(list(_stages(plan)), title="Stages, which cells wait for")
    points = ", ".join(f"{point:g}" for point in experiment.points)
    say(console, f"\nEvaluations at {points} of the training: {', '.join(plan.evaluations) or 'none'}")
    names = [evaluation.name for evaluation in plan.model_evaluations]
    say(console, f"Evaluations of each trained model: {', '.join(names) or 'none'}")
    if (units := estimate.units(plan.left)) and estimate.costs.figures:
        print_rows(list(_rows(estimate, units)), title=f"Estimate of what is left, for {_workers(estimate.workers)}")
    say(console, "")
    if len(plan.least) < len(plan.left):
        say(console, f"At least {_work(estimate, plan.least)}", style="bold")
        say(console, f"At most {_work(estimate, plan.left)}", style="bold")
    else:
        say(console, _work(estimate, plan.left), style="bold")


def plan_as_json(estimate: "Estimate") -> dict[str, Any]:
    """Return the plan with its estimate as JSON values; docs/guides/planning.md describes the keys."""
    plan = estimate.plan
    units = estimate.units(plan.left)
    return {
        "experiment": plan.experiment.model_dump(mode="json"),
        "comparison": plan.comparison,
        "store": plan.store,
        "data": {"summary": plan.data, "pairs": plan.pairs, **vars(plan.shape)},
        "stop": plan.stop,
        "cells": [
            {
                "name": one.name,
                **{key: getattr(one, key) for key in ("variant", "seed", "look", "state", "steps", "done")},
            }
            for one in plan.cells
        ],
        "stages": [
            {"name": one.unit, "stage": one.name}
            | {key: getattr(one, key) for key in ("seed", "variants", "steps", "pairs", "state")}
            for one in plan.stages
        ],
        "tuning": {key: getattr(plan.tuning, key) for key in ("trials", "finished", "steps")} if plan.tuning else None,
        "evaluations": {"of_samples": plan.evaluations, "of_models": [one.name for one in plan.model_evaluations]},
        "workers": estimate.workers,
        "units": [_unit(unit) for unit in units],
        "total": {
            "at_least": _total(estimate.total(estimate.units(plan.least))),
            "at_most": _total(estimate.total(units)),
        },
        "costs": estimate.costs.to_dict(),
    }


def _unit(unit: "Estimated") -> dict[str, Any]:
    return {
        "name": unit.name,
        "kind": unit.kind,
        "row": unit.row,
        "look": unit.look,
        "needs": unit.needs,
        "seconds": unit.seconds,
        "memory_gb": unit.memory,
        "disk_bytes": unit.disk,
        "judge_calls": unit.calls,
        "money": unit.money,
        "from": sorted(unit.sources),
    }


def _total(total: "Total") -> dict[str, Any]:
    return {
        "wall_seconds": total.wall,
        "device_seconds": total.device,
        "memory_gb": total.memory,
        "disk_bytes": total.disk,
        "judge_calls": total.calls,
        "money": total.money,
        "unknown": total.unknown,
    }


def _tuning(plan: "Plan") -> str:
    """Describe the trials of the tuning, and what of them is left."""
    tuning = plan.tuning
    assert tuning is not None
    if not tuning.left:
        return f"all {tuning.trials} trials are finished."
    left = f"{len(tuning.left)} of {tuning.trials} trials, {tuning.steps} optimiser steps"
    return f"{left}. It may change the settings below."


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


def _stages(plan: "Plan") -> Iterator[dict[str, str]]:
    """Describe the stages that cells wait for, those of all seeds in one row."""
    alike: dict[tuple[Any, ...], list[Any]] = {}
    for one in plan.stages:
        alike.setdefault((one.name, one.variants, one.steps, one.pairs, one.state), []).append(one.seed)
    everyone = {cell.variant for cell in plan.cells} - {"reference"}
    for (name, variants, steps, pairs, state), seeds in alike.items():
        yield {
            "stage": name,
            "for": "all" if everyone <= set(variants) else ", ".join(variants),
            "pairs": str(pairs),
            "steps": str(steps or "-"),
            "seeds": "shared" if seeds == [None] else _ranges(seeds),
            "state": state,
        }


def _ranges(numbers: list[int]) -> str:
    """Write numbers as "0-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _rows(estimate: "Estimate", units: "list[Estimated]") -> Iterator[dict[str, str]]:
    """Describe what units of a kind take, each and together."""
    judged = any(unit.calls for unit in units)
    if start := estimate.costs.figures.get("start"):
        seconds, memory = start.value, _memory(estimate.costs.get("memory"))
        yield _row(
            "start-up", estimate.workers, seconds, seconds * estimate.workers, memory, 0, judged, 0, 0, start.source
        )
    for name in dict.fromkeys(unit.row for unit in units):
        own = [unit for unit in units if unit.row == name]
        seconds = None if any(one.seconds is None for one in own) else sum(one.seconds or 0.0 for one in own)
        memory = _memory(max((one.memory for one in own if one.memory is not None), default=None))
        calls = None if any(one.calls is None for one in own) else sum(one.calls or 0 for one in own)
        source = max(own[0].sources, key=lambda name: own[0].sources[name], default="")  # of most of the seconds
        each = None if seconds is None else seconds / len(own)
        disk, money = sum(one.disk for one in own), sum(one.money for one in own)
        yield _row(name, len(own), each, seconds, memory, disk, judged, calls, money, source)


def _row(name, left, each, together, memory, disk, judged, calls, money, source) -> dict[str, str]:
    judge = {"judge calls": "?" if calls is None else str(calls or "-"), "cost": _money(money)} if judged else {}
    return {
        "work": name,
        "left": str(left),
        "each": "?" if each is None else short(each),
        "together": "?" if together is None else short(together),
        "memory": memory,
        "disk": _size(disk),
        **judge,
        "from": source,
    }


def _work(estimate: "Estimate", cells: "Iterable[PlannedCell]") -> str:
    """Describe the work of cells that are left, and what it takes."""
    plan, cells = estimate.plan, list(cells)
    text = f"{len(cells)} of {len(plan.cells)} cells and {plan.steps(cells)} optimiser steps are left"
    units = estimate.units(cells)
    total = estimate.total(units)
    if not units or total.wall is None:
        return f"{text}."
    text += f", about {duration(total.wall)}"
    if estimate.workers > 1:
        text += f" with {estimate.workers} workers ({duration(total.device or 0.0)} of device time)"
    each = " each" if estimate.workers > 1 else ""
    details = [f"a peak memory of {total.memory:.1f} GB{each}"] if total.memory is not None else []
    details += [f"{_size(total.disk)} on disk"] if total.disk else []
    details += [f"{total.calls} judge calls"] if total.calls else []
    details += [f"at a cost of {_money(total.money)}"] if total.calls and total.money != 0 else []
    unknown = f" Not counted, as it is not known: {', '.join(total.unknown)}." if total.unknown else ""
    return f"{text}; {', '.join(details)}.{unknown}" if details else f"{text}.{unknown}"


def _workers(count: int) -> str:
    return "one worker" if count == 1 else f"{count} workers"


def _memory(gigabytes: float | None) -> str:
    return "-" if gigabytes is None else f"{gigabytes:.1f} GB"


def _size(bytes_: float) -> str:
    if bytes_ < 1e5:
        return "-" if not bytes_ else "<0.1 MB"
    return f"{bytes_ / GB:.1f} GB" if bytes_ >= GB else f"{bytes_ / 1e6:.1f} MB"


def _money(amount: float) -> str:
    return "unknown" if math.isnan(amount) else f"{amount:.4g}" if amount else "-"


def short(seconds: float) -> str:
    """Write seconds in short: "0.4 s", "45 s", "12 min", "2.5 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def duration(seconds: float) -> str:
    """Write seconds in words: "45 seconds", "12 minutes", "2.5 hours"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
