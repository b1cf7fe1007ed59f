"""The commands `export` and `import`, which move a comparison's records from store to store."""

from pathlib import Path
from typing import Annotated

import typer

from plo.cli.parameters import Store
from plo.cli.shared import log


def export(
    comparison: Annotated[
        str, typer.Argument(metavar="COMPARISON", help="Name of a comparison or the beginning of its key.")
    ],
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="File to write, such as study.zip.")],
    store: Store = None,
):
    """Write all records of a comparison to one archive: runs, every point of every metric, files.

    Examples:
        plo export hh-first hh-first.zip
    """
    from plo.tracking import Tracker, TrackingError
    from plo.tracking import export as write

    tracker = Tracker(store, create=False)
    found = tracker.comparisons(comparison)
    if len(found) > 1:
        known = ", ".join(f"{one.name} ({one.key[:12]})" for one in found)
        raise TrackingError(f"{comparison} may be any of: {known}. Give the beginning of a key.")
    index = write(found[0], archive)
    log.info(f"{archive}: {len(index['runs'])} runs of {index['name']} ({index['key'][:12]}).")


def import_(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive that plo export wrote.")],
    store: Store = None,
):
    """Import the comparison of an archive into a store; an import that was stopped goes on when it is started again.

    Nothing is imported twice. A SQLite store, which is made if it is missing, keeps the runs' ids; a server gives new ones.

    Examples:
        plo import hh-first.zip --store here.db
    """
    from plo.tracking import Tracker, import_archive

    done = import_archive(Tracker(store), archive)
    log.info(f"{done.name} ({done.key[:12]}): {done.new} runs imported, {done.known} were there already.")
