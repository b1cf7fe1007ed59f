"""The manifest of a leaderboard: what it was made of and with, and digests of every number, so that it can be run again."""

import json
from collections.abc import Mapping
from typing import Any

from plo.leaderboards import digests
from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.digests import VOLATILE, exact
from plo.leaderboards.headline import headline
from plo.packages import packages
from plo.tracking import MADE_WITH, Comparison, Finding, MissingFiles, RecordedCell, RecordedStage, TrackingError
from plo.values import without_credentials, without_paths

VERSION = 1
ABSENT = "not recorded"
MOST_SAMPLES = 20_000  # up to which each sample has a digest of its own
CIRCUMSTANCES = {"plo.python", "plo.platform", "plo.cpu", "plo.gpu", "plo.git"}  # tags of every version of plo
OF_THE_MACHINE = ("store", "out", "report_to")  # settings that change no number
PLUGINS = "plugin_sha256"  # in the recorded settings


def manifest(board: Leaderboard) -> dict[str, Any]:
    """Return the manifest of a leaderboard, as JSON values; `plo reproduce` runs it again.

    The same records give the same manifest. What an earlier version of plo did not record is the text "not recorded".
    """
    few = sum(map(len, board.tables.values())) <= MOST_SAMPLES
    by_key = {one.key: one for one in board.recorded}
    cells = [_cell(cell, board, each=few) for cell in board.cells]
    used = dict.fromkeys(cell.tags.get(MADE_WITH) for cell in board.cells)
    made_with = {name: found for name in used if name and (found := _made_with(board, name))}
    return {
        "plo_manifest": VERSION,
        "comparisons": [_comparison(one) for one in by_key.values()],
        "made_with": made_with or {ABSENT: _of_tags(board)},
        "judges": [
            {
                "evaluation": section.title,
                **{key: _public(judge.get(key)) for key in ("judge", "version", "prompt", "given")},
            }
            for section in board.sections
            for judge in section.judges
        ],
        "table": _table(board),
        "stages": _stages(board),
        "cells": cells,
        "each_sample": few,
    }


def _comparison(one: Comparison) -> dict[str, Any]:
    settings = dict(one.config())
    plugins = settings.pop(PLUGINS, {})
    return {
        "name": one.name,
        "key": one.key,
        "run": one.run_id,
        "status": one.status,
        "data": one.tags.get("plo.data", ABSENT),
        "model": one.tags.get("plo.model", ABSENT),
        "settings": {name: _public(value) for name, value in settings.items() if name not in OF_THE_MACHINE},
        "experiment_file": _public(one.experiment_text() or ABSENT),
        "plugins": plugins,
    }


def _public(value: Any) -> Any:
    """Return a value as JSON, without the names and passwords in addresses and the folders of the machine's files."""
    if isinstance(value, Mapping):
        return {str(key): _public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_public(one) for one in value]
    return without_paths(without_credentials(value)) if isinstance(value, str) else exact(value)


def _made_with(board: Leaderboard, name: str) -> dict[str, Any] | None:
    return next((_public(found) for one in board.recorded if (found := one.made_with(name))), None)


def _of_tags(board: Leaderboard) -> dict[str, Any]:
    """Return what earlier versions of plo recorded in tags, with the packages of now."""
    tags: dict[str, set[str]] = {}
    for cell in board.cells:
        for name, value in cell.tags.items():
            if name.startswith("plo.version.") or name in CIRCUMSTANCES:
                tags.setdefault(name.removeprefix("plo."), set()).add(value)
    return {
        "recorded": {name: sorted(values) for name, values in sorted(tags.items())},
        "packages": packages(),
        "packages_are": "those of the machine that wrote this manifest: the runs recorded only the versions above",
        **dict.fromkeys(("plo", "hardware", "engine", "model", "data"), ABSENT),
    }


def _cell(cell: RecordedCell, board: Leaderboard, *, each: bool) -> dict[str, Any]:
    tags, histories = cell.tags, cell.histories()
    evaluated = set(cell.described) or set(board.sample_metrics)
    points: dict[int, dict[str, Any]] = {}
    for name in sorted(evaluated & histories.keys()):
        for step, value in histories[name].items():
            points.setdefault(step, {})[name] = exact(value)
    frame = board.tables.get(cell.run_id)
    return {
        "name": cell.name,
        "variant": tags.get("plo.variant", cell.name),
        "loss": tags.get("plo.loss", ABSENT),
        "seed": tags.get("plo.seed", ABSENT),
        "comparison": cell.comparison_key,
        "run": cell.run_id,
        "key": cell.key,
        "code": tags.get("plo.code", ABSENT),
        "data": tags.get("plo.data", ABSENT),
        "model": tags.get("plo.model", ABSENT),
        "evaluation": tags.get("plo.evaluation", ABSENT),
        "made_with": tags.get(MADE_WITH, ABSENT),
        "threads": json.loads(tags.get("plo.costs", "{}")).get("threads", ABSENT),
        "stages": json.loads(tags.get("plo.stages", "[]")),
        "metrics": {name: exact(value) for name, value in sorted(cell.metrics.items()) if name not in VOLATILE},
        "points": {str(step): points[step] for step in sorted(points)},
        "curve": digests.curve(histories, evaluated),
        "samples": ABSENT if frame is None else digests.samples(frame, each=each),
        "evaluations": [_finding(one) for one in sorted(cell.findings, key=lambda one: (one.evaluation, one.settings))],
    }


def _finding(one: Finding) -> dict[str, Any]:
    try:
        templates = one.about.get("templates", ABSENT)
    except MissingFiles:
        raise
    except TrackingError:  # the table has no section of it either, and a note says why
        templates = ABSENT
    return {
        "evaluation": one.evaluation,
        "settings": one.settings,
        "params": _public(one.params),
        "templates": templates,
        "metrics": exact(dict(sorted(one.metrics.items()))),
        "items": digests.table(one.items),
    }


def _stages(board: Leaderboard) -> list[dict[str, Any]]:
    keys = [key for cell in board.cells for key in json.loads(cell.tags.get("plo.stages", "[]"))]
    found: list[RecordedStage] = board.recorded[0].stages(keys) if board.recorded else []
    return [
        {"name": one.name, "key": one.key, "run": one.run_id, "curve": digests.curve(one.histories())} for one in found
    ]


def _table(board: Leaderboard) -> dict[str, Any]:
    """Return what the table says: how it is read, and verdict, rank and difference of each row."""
    design = board.design
    return {
        "headline": headline(board),
        "primary": board.primary_metric,
        "better": board.descriptions[board.primary_metric].better if board.primary_metric else None,
        "baseline": board.baseline and board.title(board.baseline),
        "margin": design and design.margin,
        "alpha": design and design.judgement.alpha,
        "metrics": board.metrics,
        "rows": [_row(row, board.primary_metric) for row in board.rows if row.runs],
    }


def _row(row: Row, primary: str | None) -> dict[str, Any]:
    gap, rank = row.differences.get(primary or ""), row.rank
    tuning: Mapping[str, Any] = row.tuning or {}
    return {
        "name": row.name,
        "variant": row.variant,
        "loss": row.loss,
        "settings": row.settings,
        "seeds": list(row.runs),
        "status": row.status,
        "tuning": exact({name: value for name, value in tuning.items() if name not in VOLATILE}) or None,
        "verdict": row.verdict,
        "rank": list(rank) if rank else None,
        "means": {name: exact(found.mean) for name, found in row.metrics.items() if name not in VOLATILE},
        "difference": gap
        and exact({name: getattr(gap, name) for name in ("mean", "low", "high", "se", "p", "p_holm")}),
    }
