"""Lists of what is registered: losses, generators, token scorers, evaluations, judges."""

import inspect
import json
import os
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from plo.cli.shared import Json, Plugins, console, load_plugins
from plo.terminal import line, say

WIDEST = 32  # characters of a name or a default on one line: both, and what stands beside them, fit in 80


def losses(plugin: Plugins = [], as_json: Json = False):  # noqa: B006  (typer reads the default, nobody changes it)
    """List every registered loss: what it needs, its hyper-parameters, its paper, where it is defined.

    Recipes, which are a loss with a token scorer, stand apart.
    """
    from plo.losses import LOSSES
    from plo.scorers import SCORERS

    load_plugins(plugin)
    rows = []
    for entry in LOSSES:
        loss, scorer = entry.facts.recipe or ("", "")
        rows.append(
            {
                "name": entry.name,
                "aliases": LOSSES.aliases(entry.name),
                "recipe": f"{loss} + {scorer}" if loss else "",
                "needs": _needs(entry),
                "level": entry.facts.level,
                "paper": entry.facts.paper,
                "defaults": _defaults(entry),
                "origin": SCORERS[scorer].origin if scorer else entry.origin,
            }
        )
    if as_json:
        return _show(rows, as_json, "loss")
    _show([{k: v for k, v in row.items() if k != "recipe"} for row in rows if not row["recipe"]], False, "loss")
    if recipes := [{k: v for k, v in row.items() if k not in ("needs", "level")} for row in rows if row["recipe"]]:
        say(console, "\nRecipes: a loss whose token weights a scorer makes.\n")
        _show(recipes, False, "loss")


def generators(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every registered Bregman generator, for the losses that take one."""
    from plo.losses import GENERATORS

    load_plugins(plugin)
    rows = [{"name": e.name, "paper": e.facts.paper, "defaults": _defaults(e), "origin": e.origin} for e in GENERATORS]
    _show(rows, as_json, "generator")


def scorers(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every registered token scorer: what is trained first for it, what else it reads, its hyper-parameters."""
    from plo.scorers import SCORERS

    load_plugins(plugin)
    rows = [
        {
            "name": entry.name,
            "trains": _stages(entry),
            "reads": [*entry.facts.reads, *(["seed"] if entry.facts.seeded else [])],
            "paper": entry.facts.paper,
            "defaults": _defaults(entry),
            "origin": entry.origin,
        }
        for entry in SCORERS
    ]
    _show(rows, as_json, "scorer")


def evaluations(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every registered evaluation: of samples at every point of training, or of a model (`plo eval`), with its options."""
    from plo.evals import EVALUATIONS

    load_plugins(plugin)
    rows = [{"name": e.name, "level": e.facts.level, "defaults": _defaults(e), "origin": e.origin} for e in EVALUATIONS]
    _show(rows, as_json, "evaluation")


def judges(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every kind of judge with its options."""
    from plo.evals.judges import JUDGES

    load_plugins(plugin)
    rows = [{"name": e.name, "defaults": _defaults(e), "origin": e.origin} for e in JUDGES]
    _show(rows, as_json, "judge")


def _needs(entry) -> list[str]:
    needs = entry.facts.needs
    if not callable(needs):
        return list(needs)
    from plo.losses import get_loss

    return list(get_loss(entry.name).needs)


def _stages(entry) -> list[str]:
    """What is trained before the scorer can score, with its default hyper-parameters."""
    from plo.losses import get_loss
    from plo.scorers import get_scorer

    stages = get_scorer(entry.name).stages if entry.facts.stages else {}
    return [
        f"{name}: {get_loss(stage.loss).name}{' on reversed pairs' * stage.reversed}" for name, stage in stages.items()
    ]


def _defaults(entry) -> dict[str, Any]:
    from plo.registry import hyper_parameters

    parameters = hyper_parameters(entry.load())
    return {n: None if p.default is inspect.Parameter.empty else p.default for n, p in parameters.items()}


def _show(rows: list[dict[str, Any]], as_json: bool, what: str) -> None:
    if as_json:
        print(json.dumps(rows, indent=2, default=str))
        return
    shown = [_cells(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in shown[0]:
        heading = what if key == "name" else key
        # In a narrow window the other columns fold first; what does not fit even then folds too, and is never cut.
        widest = max(cell_len(line) for cells in shown for line in [heading, *cells[key].split("\n")])
        width = min(widest, WIDEST) if key in ("name", "defaults") else None
        table.add_column(heading, width=width, overflow="fold")
    for cells in shown:
        table.add_row(*map(line, cells.values()))
    console.print(table)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """What the table shows of a row: {column: text}, an item a line."""
    name = "\n= ".join([row["name"], *row.get("aliases", [])])
    defaults = "\n".join(f"{key}={value}" for key, value in row["defaults"].items())
    origin = os.path.relpath(row["origin"]) if row["origin"].startswith("/") else row["origin"]
    lists = {key: "\n".join(row[key]) or "-" for key in ("needs", "trains", "reads") if key in row}
    cells = {**row, **lists, "name": name, "defaults": defaults, "origin": origin}
    return {key: str(value) for key, value in cells.items() if key != "aliases"}
