"""Lists of what is registered: `list`, and `losses`, `scorers`, ... as its old names."""

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import typer

import plo
from plo.cli.complete import name_argument
from plo.cli.parameters import Json, Plugins
from plo.cli.shared import load_plugins
from plo.cli.tables import print_rows
from plo.registry import hyper_parameters

KINDS = {  # kind: heading of its names, the registries, and the facts of an entry that are columns
    "losses": ("loss", "plo.losses:LOSSES plo.scorers:RECIPES", ("paper",)),
    "scorers": ("scorer", "plo.scorers:SCORERS", ("paper",)),
    "generators": ("generator", "plo.losses:GENERATORS", ("paper",)),
    "evaluations": ("evaluation", "plo.evals:EVALUATIONS", ("level", "main_score", "license", "citation")),
    "judges": ("judge", "plo.evals.judges:JUDGES", ()),
    "sources": ("source", "plo.data:SOURCES", ("gold",)),
}
JSON_ALONE = ("main_score", "license", "citation")  # columns for which a terminal is too narrow
Kind = Literal["losses", "scorers", "generators", "evaluations", "judges", "sources"]


def list_registered(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", show_choices=False, help=f"{', '.join(KINDS)}.")],
    pattern: Annotated[str, name_argument("kind", "PATTERN", "Names to list, with wildcards: '*dpo*'.")] = "*",
    plugin: Plugins = [],  # noqa: B006  (typer reads the default, nobody changes it)
    as_json: Json = False,
):
    """List what is registered under each name, with what it needs, its options, its paper and where it is defined.

    Below a default of a loss is the range in which plo tune searches.

    Examples:
        plo list losses '*dpo*'
        plo list evaluations --json
    """
    load_plugins(plugin)
    heading, places, columns = KINDS[kind]
    registries = [resolve_name(place) for place in places.split()]
    entries = [(registry, registry[name]) for registry in registries for name in registry.names(pattern)]
    entries = entries or [(registries[0], registries[0][pattern])]  # the look-up raises, and suggests near names
    rows = [_row(kind, registry, entry, columns) for registry, entry in entries]
    if as_json:
        return print_rows(rows, as_json=True)
    recipes = [row for row in rows if row.get("recipe")]
    if plain := [row for row in rows if not row.get("recipe")]:
        print_rows([_cells(row, heading, leave_out=("recipe", "search", *JSON_ALONE)) for row in plain])
    if recipes:
        print_rows(
            [_cells(row, heading, leave_out=("needs", "level", "search")) for row in recipes],
            title="Recipes: a loss whose token weights a scorer makes.",
        )


def old_name(kind: Kind) -> Callable[..., None]:
    """Make the command that lists one kind, such as `plo losses`."""

    def command(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
        list_registered(kind, "*", plugin, as_json)

    command.__doc__ = f"List the registered {kind}; the same as `plo list {kind}`.\n\nExamples:\n    plo list {kind}"
    return command


def _row(kind: Kind, registry, entry, columns: tuple[str, ...]) -> dict[str, Any]:
    """Describe a registered entry: {column: value}."""
    from plo.scorers import SCORERS
    from plo.scorers.recipe import Recipe

    target = entry.load()
    row = {"name": entry.name, "aliases": registry.aliases(entry.name)}
    row |= DERIVED[kind](entry) if kind in DERIVED else {}
    row |= {name: getattr(entry.facts, name) for name in columns}
    row["defaults"] = {n: None if p.default is p.empty else p.default for n, p in hyper_parameters(target).items()}
    row["origin"] = SCORERS[target.scorer].origin if isinstance(target, Recipe) else entry.origin
    return row


def _cells(row: dict[str, Any], heading: str, leave_out: tuple[str, ...]) -> dict[str, str]:
    """Format a row for the table: {heading: text}, an item a line."""
    tuned = {key: f"\n  {low:g} to {high:g}" for key, (low, high) in row.get("search", {}).items()}
    defaults = "\n".join(f"{key}={value}{tuned.get(key, '')}" for key, value in row["defaults"].items())
    cells = {
        heading: "\n= ".join([row["name"], *row["aliases"]]),
        **row,
        "defaults": defaults,
        "origin": _place(row["origin"]),
    }
    texts = {key: "\n".join(value) if isinstance(value, list) else str(value or "") for key, value in cells.items()}
    return {key: text or "-" for key, text in texts.items() if key not in ("name", "aliases", *leave_out)}


def _place(origin: str) -> str:
    """Shorten FILE:LINE: below the folder of the package plo, or else below the working folder."""
    path = Path(origin)
    for folder in (Path(plo.__file__).parents[1], Path.cwd()):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return origin


def _of_loss(entry) -> dict[str, Any]:
    """Describe a loss, or a recipe by its loss and scorer; `search` is where its strength is tuned."""
    from plo.scorers import RECIPES, get_variant
    from plo.scorers.space import strength_space

    variant = get_variant(entry.name)
    recipe = repr(entry.load()) if entry.name in RECIPES else ""
    search = {name: list(ends) for name, ends in strength_space(variant).items()}
    return {"recipe": recipe, "needs": list(variant.needs), "level": variant.loss.level, "search": search}


def _of_scorer(entry) -> dict[str, Any]:
    """Describe what is trained before the scorer can score, and what it reads."""
    from plo.losses import get_loss
    from plo.scorers import get_scorer

    stages = get_scorer(entry.name).stages.items() if entry.facts.stages else ()
    trains = [f"{name}: {get_loss(stage.loss).name}{' on reversed pairs' * stage.reversed}" for name, stage in stages]
    return {"trains": trains, "reads": [*entry.facts.reads, *["seed"] * entry.facts.seeded]}


DERIVED = {"losses": _of_loss, "scorers": _of_scorer}  # kind: function that makes further columns
