"""Lists of what is registered: losses, generators, token scorers, evaluations, judges."""

import inspect
import json
import os
from typing import Any

from rich.table import Table

from plo.cli.shared import Json, Plugins, console, load_plugins


def losses(plugin: Plugins = [], as_json: Json = False):  # noqa: B006  (typer reads the default, nobody changes it)
    """List every registered loss: what it needs, its hyper-parameters, its paper, where it is defined.

    Recipes, which are a loss with a token scorer, stand apart.
    """
    from plo.losses import LOSSES
    from plo.scorers import SCORERS

    load_plugins(plugin)
    rows = []
    for entry in LOSSES:
        loss, scorer = entry.facts.get("recipe", ("", ""))
        rows.append(
            {
                "name": entry.name,
                "aliases": LOSSES.aliases(entry.name),
                "recipe": f"{loss} + {scorer}" if loss else "",
                "needs": _needs(entry),
                "level": entry.facts["level"],
                "paper": entry.facts["paper"],
                "defaults": _defaults(entry),
                "origin": SCORERS[scorer].origin if scorer else entry.origin,
            }
        )
    if as_json:
        return _show(rows, as_json, "loss")
    _show([{k: v for k, v in row.items() if k != "recipe"} for row in rows if not row["recipe"]], False, "loss")
    if recipes := [{k: v for k, v in row.items() if k not in ("needs", "level")} for row in rows if row["recipe"]]:
        console.print("\nRecipes: a loss whose token weights a scorer makes.\n")
        _show(recipes, False, "loss")


def generators(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every registered Bregman generator, for the losses that take one."""
    from plo.losses import GENERATORS

    load_plugins(plugin)
    rows = [
        {"name": e.name, "paper": e.facts.get("paper", ""), "defaults": _defaults(e), "origin": e.origin}
        for e in GENERATORS
    ]
    _show(rows, as_json, "generator")


def scorers(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every registered token scorer: what is trained first for it, what else it reads, its hyper-parameters."""
    from plo.scorers import SCORERS

    load_plugins(plugin)
    rows = [
        {
            "name": entry.name,
            "trains": _stages(entry),
            "reads": [*entry.facts["reads"], *(["seed"] if entry.facts["seeded"] else [])],
            "paper": entry.facts["paper"],
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
    rows = [
        {"name": e.name, "level": e.facts["level"], "defaults": _defaults(e), "origin": e.origin} for e in EVALUATIONS
    ]
    _show(rows, as_json, "evaluation")


def judges(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every kind of judge with its options."""
    from plo.evals.judges import JUDGES

    load_plugins(plugin)
    rows = [{"name": e.name, "defaults": _defaults(e), "origin": e.origin} for e in JUDGES]
    _show(rows, as_json, "judge")


def _needs(entry) -> list[str]:
    needs = entry.facts["needs"]
    if not callable(needs):
        return list(needs)
    from plo.losses import get_loss

    return list(get_loss(entry.name).needs)


def _stages(entry) -> list[str]:
    """What is trained before the scorer can score, with its default hyper-parameters."""
    from plo.losses import get_loss
    from plo.scorers import get_scorer

    stages = get_scorer(entry.name).stages if entry.facts["stages"] else {}
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
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(what, no_wrap=True)
    for key in [key for key in rows[0] if key not in ("name", "aliases")]:
        table.add_column(key, overflow="fold", no_wrap=key == "defaults")
    for row in rows:
        cells = {**row, "defaults": "\n".join(f"{k}={v}" for k, v in row["defaults"].items())}
        cells["name"] = "\n= ".join([row["name"], *cells.pop("aliases", [])])
        for key in ("needs", "trains", "reads"):
            if key in cells:
                cells[key] = "\n".join(row[key]) or "-"
        cells["origin"] = os.path.relpath(row["origin"]) if row["origin"].startswith("/") else row["origin"]
        table.add_row(*(str(value) for value in cells.values()))
    console.print(table)
