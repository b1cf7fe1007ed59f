"""Length-adjusted win rates: made here, as the fit is over all cells of a leaderboard at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from plo.evals.length import LengthAdjusted, length_adjusted
from plo.leaderboards.sections import ADJUSTED, Section


def adjust(
    sections: Sequence[Section], recorded: Mapping[str, Mapping[str, pd.DataFrame]]
) -> tuple[list[Section], dict[str, LengthAdjusted]]:
    """Each section with the length-adjusted rates that its cells allow, and these by their full name.

    One fit of `length_adjusted` a win rate, a model in it being a cell (one variant and seed). A single cell is left
    alone: its slope would be told from nothing but its own verdicts.

    Args:
        recorded: {table: {run id: its items}}.
    """
    made, fits = [], {}
    for section in sections:
        names, notes = [], []
        for name in section.metrics:
            names.append(name)
            frame = _verdicts(section, name, recorded.get(section.table, {}))
            if frame is None or frame["model"].nunique() < 2:
                continue
            adjusted = f"{section.evaluation}.{ADJUSTED}{section.short(name)}"
            fits[adjusted] = fit = length_adjusted(frame)
            names.append(adjusted)
            notes.append(
                f"{section.short(adjusted)}: one fit over {len(fit.rates)} cells, sd of prompts {fit.prompt_sd:.2f} (by the "
                f"data) and of cells' length slopes {fit.slope_sd:g} (chosen), in logits. It is not AlpacaEval's "
                f"length-controlled rate, and cells that are added move it."
            )
        made.append(replace(section, metrics=tuple(names), notes=(*section.notes, *notes)))
    return made, fits


def _verdicts(section: Section, name: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """The rows that `length_adjusted` reads, of a win rate whose lengths were recorded."""
    own, opponent = section.lengths.get(section.short(name), (None, None))
    columns = {section.short(name): "win", own: "length", opponent: "base_length"}
    frames = [
        table[["prompt_id", *columns]].rename(columns=columns).astype({"win": float}).assign(model=run)
        for run, table in tables.items()
        if own is not None and {"prompt_id", *columns} <= set(table)
    ]
    frame = pd.concat(frames).dropna() if frames else None
    return None if frame is None or frame.empty else frame
