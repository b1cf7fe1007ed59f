"""The command `correct`: judged win rates corrected by human labels."""

from pathlib import Path
from typing import Annotated

import typer

from plo.cli.complete import name_option
from plo.cli.parameters import Json, Store
from plo.cli.shared import log
from plo.cli.tables import print_rows
from plo.store import write_text


def correct(
    comparison: Annotated[
        str, typer.Argument(metavar="COMPARISON", help="Name of a comparison, or the beginning of its key.")
    ],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="CSV or JSON lines with prompt, a, b, gold (1: b is better, 0: a).")
    ],
    suite: Annotated[str, name_option("evaluations", "Evaluation whose win rates are corrected.")] = "hh",
    sheet: Annotated[
        int | None,
        typer.Option(min=1, help="Write LABELS as a CSV sheet to be filled in, with pairs of this number of prompts."),
    ] = None,
    store: Store = None,
    as_json: Json = False,
):
    """Correct judged win rates by human labels of a few of the pairs, so that they are rates of what people prefer.

    A sheet shows pairs blindly, in drawn order. Label 100 prompts or more: the interval contains what so few labels leave open.

    Examples:
        plo correct hh-first labels.csv --sheet 100
        plo correct hh-first labels.csv
    """
    from plo.evals.judges.rows import read_gold
    from plo.leaderboards import corrected
    from plo.tracking import Tracker

    cells = [cell for one in Tracker(store, "plo", create=False).comparisons(comparison) for cell in one.cells()]
    pairs = corrected.judged_pairs([cell for cell in cells if cell.status == "FINISHED"], suite)
    if sheet is not None:
        if labels.exists():
            raise corrected.LabelError(f"{labels} exists, and may hold labels: name another file, or remove it.")
        drawn = corrected.sheet(pairs, sheet)
        write_text(labels, drawn.to_csv(index=False))
        log.info(
            f"{labels}: {len(drawn)} pairs. Write 1 into gold where b is better and 0 where a is; remove the others."
        )
        return
    print_rows(corrected.table(corrected.correct(pairs, read_gold(labels))), as_json=as_json)
