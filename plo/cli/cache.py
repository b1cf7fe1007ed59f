"""List what plo keeps under PLO_HOME, and delete it: `cache`."""

import time
from functools import partial
from typing import Annotated, Any, Literal

import typer

from plo.cli.parameters import Json
from plo.cli.shared import log
from plo.cli.tables import print_rows

DAY, GB = 86_400, 1e9


def cache(
    action: Annotated[Literal["list", "prune"], typer.Argument(metavar="ACTION", help="list or prune.")] = "list",
    name: Annotated[
        list[str], typer.Option(help="A cache; repeatable. Default: all, but to prune only those cheap to fill again.")
    ] = [],  # noqa: B006
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Prune entries that were not used for so long.")
    ] = None,
    larger_than: Annotated[
        float | None,
        typer.Option(metavar="GB", min=0, help="Prune the least recently used until the rest is no larger."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, prune shows what it would delete.")] = False,
    as_json: Json = False,
):
    """List the caches under PLO_HOME, or delete entries that no running process uses; plo makes them again.

    Examples:
        plo cache
        plo cache prune --name outputs --older-than 30 --yes
    """
    from plo import caches

    if unknown := [each for each in name if each not in caches.CACHES]:
        raise typer.BadParameter(f"there is no cache {', '.join(unknown)}. The caches are {', '.join(caches.CACHES)}.")
    if action == "list":
        if older_than is not None or larger_than is not None or yes:
            raise typer.BadParameter("--older-than, --larger-than and --yes belong to plo cache prune")
        found = caches.entries(name or None)
        return print_rows([_row(each, found) for each in name or caches.CACHES], as_json=as_json)
    seconds = None if older_than is None else older_than * DAY
    size = None if larger_than is None else larger_than * GB
    prune = partial(caches.prune, name or None, unused_for=seconds, keep_bytes=size)
    due, held = prune(dry_run=True)
    rows = [row for each in caches.CACHES if (row := _row(each, due))["entries"]]
    if yes:
        prune()
    if rows or as_json:
        print_rows(rows, as_json=as_json, title="Deleted" if yes else "Would be deleted with --yes")
    else:
        log.info("There is nothing to delete.")
    if held:
        log.info("%s entries stay, as running processes use them.", len(held))


def _row(name: str, entries: list[Any]) -> dict[str, Any]:
    """Describe a cache by those of its entries that are among `entries`."""
    from plo.caches import CACHES

    own = [entry for entry in entries if entry.cache == name]
    days = [(time.time() - entry.last_use) / DAY for entry in own]
    used = f"{min(days):.0f} to {max(days):.0f}" if days else "-"
    row = {"cache": name, "entries": len(own), "GB": round(sum(entry.size for entry in own) / GB, 3)}
    return row | {"days unused": used, "holds": CACHES[name].holds, "made again": CACHES[name].remade}
