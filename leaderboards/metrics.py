"""Find the description of each metric of a table: the recorded one or, for runs of earlier versions, plo's own."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from plo.metric import ADJUSTED, ARROWS, BUILT_IN, EARLIER, Metric, matching, usual_bounds
from plo.tracking import RecordedCell


def recorded_metrics(cells: Iterable[RecordedCell], notes: list[str]) -> dict[str, Metric]:
    """Return {name: the description recorded with the runs}: plo's own metrics, then the others by name.

    The order in which a run recorded them is lost on a server, so a table must not depend on it.
    Where runs disagree about a direction or bounds the last run counts, and a note says so.
    """
    found, conflicts = dict(BUILT_IN), {}
    for cell in cells:
        for name, metric in cell.described.items():
            known = found.get(name)
            differs = known is not None and (known.better, known.bounds) != (metric.better, metric.bounds)
            if differs and (name in conflicts or name not in BUILT_IN):
                conflicts[name] = (
                    f"{name} was recorded with different directions or bounds; those of {cell.name} count."
                )
            found[name] = metric
    notes += conflicts.values()
    return {name: found[name] for name in [*BUILT_IN, *sorted(found.keys() - BUILT_IN.keys())]}


def section_metric(evaluation: str, name: str, recorded: Mapping[str, Metric]) -> Metric:
    """Return the description of an evaluation's metric: as recorded, or derived from its name for earlier runs.

    A length-adjusted rate has the description of the raw rate under a label of its own.
    """
    raw, label = name.removeprefix(ADJUSTED), name.replace("length_adjusted", "length-adjusted").replace("_", " ")
    if raw in recorded:
        described = recorded[raw]
        return described if raw == name else replace(described, name=name, label=label)
    return Metric(name, label, better=ARROWS[matching(EARLIER, raw)], table=evaluation, bounds=usual_bounds(name))
