"""Export a leaderboard as CSV to compute with, and as JSON that traces every number to its runs."""

import json
import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.headline import design_facts, headline
from plo.leaderboards.sections import Section
from plo.leaderboards.tuning import tuning_facts
from plo.statistics import Comparison
from plo.terminal import plain

INTERVAL = ("mean", "low", "high")
TEST = ("p", "p_holm")  # of the primary metric alone
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # what formulas begin with, also in full width
RANK = ("", "_low", "_high")


def to_csv(board: Leaderboard) -> str:
    """Return one line per row: settings, seeds, run ids, and each metric's mean, sd, difference and interval, exactly."""
    lines = []
    for row in board.rows:
        line: dict[str, Any] = {"variant": row.variant, "loss": row.loss, **row.settings}
        line |= {"status": row.status, "ceiling": row.is_ceiling or None, "verdict": row.verdict}
        line |= {"training_pairs": row.pairs} if any(other.pairs for other in board.rows) else {}
        line |= {f"rank{end}": str(value) for end, value in zip(RANK, row.rank or (), strict=False)}
        line |= {f"tuning_{key}": _cell(value) for key, value in tuning_facts(board, row).items()}
        line |= {"seeds": " ".join(row.runs), "runs": " ".join(row.runs.values())}
        for name in board.metrics:
            hidden = board.is_hidden(name)  # values of an uninformative judge are in leaderboard.json, with its card
            found, gap = (None, None) if hidden else (row.metrics.get(name), row.differences.get(name))
            interval = None if hidden else row.estimates.get(name)
            line |= {name: found and found.mean, f"{name}_sd": found and found.sd}
            if any(name in other.estimates for other in board.rows):
                line |= {f"{name}_{end}": interval and getattr(interval, end) for end in ("low", "high")}
            if any(name in other.differences for other in board.rows):
                ends = (*INTERVAL, *(TEST if name == board.primary_metric else ()))
                line |= {f"{name}_difference_{end}": gap and getattr(gap, end) for end in ends}
        lines.append(line)
    frame = pd.DataFrame(lines, dtype=object)
    return frame.rename(columns=inert).map(inert).to_csv(index=False, lineterminator="\n")


def _cell(value: Any) -> Any:
    return json.dumps(_finite(value)) if isinstance(value, dict | list) else value


def inert(value: Any) -> Any:
    """Prefix a text that a spreadsheet would evaluate with an apostrophe; drop a number that is not finite.

    Control characters become escapes, as they reach the terminal that shows the file.
    """
    if not isinstance(value, str):
        return _finite(value)
    value = plain(value)
    if not value.lstrip().startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def to_json(board: Leaderboard) -> str:
    """Return everything in full precision, each mean with the values it was computed from, by run id."""
    rows = [_row_data(row, board) for row in board.rows]
    data = {
        "comparisons": board.comparisons, "shared": board.shared, "metrics": board.metrics,
        "baseline": board.baseline and board.baseline.name, "rows": rows, "notes": board.notes,
        "evaluations": [_section_data(section) for section in board.sections], "primary": board.primary_metric,
        "design": design_facts(board), "headline": headline(board),
        "matched_kl": board.matched and {
            "kl": board.matched.budget,
            "rewards": {name: asdict(one) for name, one in board.matched.rewards.items()},
            "differences": {name: _untested(asdict(one)) for name, one in board.matched.differences.items()},
        },
        "diversity_at_fixed_length": board.fixed_length and asdict(board.fixed_length),
        "variance_components": None if board.components is None else board.components.to_dict(),
    }  # fmt: skip
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _section_data(section: Section) -> dict[str, Any]:
    return {
        "evaluation": section.evaluation, "title": section.title, "settings": section.settings_digest,
        "params": section.params, "metrics": section.metrics, "notes": section.notes, "judges": section.judges,
    }  # fmt: skip


def _row_data(row: Row, board: Leaderboard) -> dict[str, Any]:
    base_runs = list(board.baseline.runs.values()) if board.baseline else []

    def difference(name: str, gap: Comparison) -> dict[str, Any]:
        found = asdict(gap) | {"runs": list(row.runs.values()), "baseline_runs": base_runs}
        return found if name == board.primary_metric and row.verdict else _untested(found)

    return {
        "name": row.name, "variant": row.variant, "loss": row.loss, "settings": row.settings,
        "status": row.status, "ceiling": row.is_ceiling, "verdict": row.verdict, "rank": row.rank and row.rank._asdict(),
        "tuning": tuning_facts(board, row), "runs": row.runs,
        **({"training_pairs": row.pairs} if row.pairs else {}),
        "metrics": {name: asdict(s) | {"values": row.values[name]} for name, s in row.metrics.items()},
        "intervals": {name: asdict(found) for name, found in row.estimates.items()},
        "differences": {name: difference(name, gap) for name, gap in row.differences.items()},
        "along": [{"point": point, **found} for point, found in row.along.items()],
        "samples": [{"prompt": prompt, "text": text} for prompt, text in row.samples],
    }  # fmt: skip


def _untested(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in TEST}


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by None, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
