"""Lists of what is registered: `list`, and `losses`, `scorers`, ... as its old names."""

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, Literal

import typer

from plo.cli.complete import name_argument
from plo.cli.parameters import Json, Plugins
from plo.cli.shared import load_plugins
from plo.cli.tables import print_rows

KINDS = {  # kind: heading of its names, the registries, and its columns between names and defaults
    "losses": ("loss", "plo.losses:LOSSES plo.scorers:RECIPES", ("recipe", "needs", "level", "paper")),
    "scorers": ("scorer", "plo.scorers:SCORERS", ("trains", "reads", "paper")),
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

    Examples:
        plo list losses '*dpo*'
        plo list evaluations --json
    """
    load_plugins(plugin)
    heading, places, columns = KINDS[kind]
    registries = [_registry(place) for place in places.split()]
    rows = [_row(registry, registry[name], columns) for registry in registries for name in registry.names(pattern)]
    rows = rows or [_row(registries[0], registries[0][pattern], columns)]  # the look-up raises, and suggests near names
    if as_json:
        return print_rows(rows, as_json=True)
    recipes = [row for row in rows if row.get("recipe")]
    if plain := [row for row in rows if not row.get("recipe")]:
        print_rows([_cells(row, heading, leave_out=("recipe", *JSON_ALONE)) for row in plain])
    if recipes:
        print_rows(
            [_cells(row, heading, leave_out=("needs", "level")) for row in recipes],
            title="Recipes: a loss whose token weights a scorer makes.",
        )


def old_name(kind: Kind) -> Callable[..., None]:
    """Make the command that lists one kind, such as `plo losses`."""

    def command(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
        list_registered(kind, "*", plugin, as_json)

    command.__doc__ = f"List the registered {kind}; the same as `plo list {kind}`.\n\nExamples:\n    plo list {kind}"
    return command


def _registry(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _row(registry, entry, columns: tuple[str, ...]) -> dict[str, Any]:
    """Describe a registered entry: {column: value}."""
    own = {name: COLUMNS[name](entry) if name in COLUMNS else getattr(entry.facts, name) for name in columns}
    return {
        "name": entry.name,
        "aliases": registry.aliases(entry.name),
        **own,
        "defaults": _defaults(entry),
        "origin": _origin(entry),
    }


def _cells(row: dict[str, Any], heading: str, leave_out: tuple[str, ...]) -> dict[str, str]:
    """Format a row for the table: {heading: text}, an item a line."""
    origin = os.path.relpath(row["origin"]) if row["origin"].startswith("/") else row["origin"]
    defaults = "\n".join(f"{key}={value}" for key, value in row["defaults"].items())
    cells = {heading: "\n= ".join([row["name"], *row["aliases"]]), **row, "defaults": defaults, "origin": origin}
    texts = {key: "\n".join(value) if isinstance(value, list) else str(value or "") for key, value in cells.items()}
    return {key: text or "-" for key, text in texts.items() if key not in ("name", "aliases", *leave_out)}


def _recipe(entry) -> str:
    """Name loss and scorer of a recipe; "" for a loss."""
    from plo.scorers.recipe import Recipe

    return repr(entry.load()) if isinstance(entry.load(), Recipe) else ""


def _needs(entry) -> list[str]:
    from plo.scorers import get_variant

    return list(get_variant(entry.name).needs)


def _level(entry) -> str:
    from plo.scorers import get_variant

    return getattr(entry.facts, "level", None) or get_variant(entry.name).loss.level


def _trains(entry) -> list[str]:
    """List what is trained before the scorer can score, with its default hyper-parameters."""
    from plo.losses import get_loss
    from plo.scorers import get_scorer

    stages = get_scorer(entry.name).stages if entry.facts.stages else {}
    return [
        f"{name}: {get_loss(stage.loss).name}{' on reversed pairs' * stage.reversed}" for name, stage in stages.items()
    ]


def _reads(entry) -> list[str]:
    return [*entry.facts.reads, *(["seed"] if entry.facts.seeded else [])]


def _defaults(entry) -> dict[str, Any]:
    from plo.registry import hyper_parameters

    parameters = hyper_parameters(entry.load())
    return {n: None if p.default is inspect.Parameter.empty else p.default for n, p in parameters.items()}


def _origin(entry) -> str:
    """Return where an entry is defined; of a recipe, where its scorer is."""
    from plo.scorers.recipe import SCORERS, Recipe

    return SCORERS[entry.load().scorer].origin if isinstance(entry.load(), Recipe) else entry.origin


COLUMNS = {"recipe": _recipe, "needs": _needs, "level": _level, "trains": _trains, "reads": _reads}
